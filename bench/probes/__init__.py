"""They watch from outside: a technique knows none of them."""
