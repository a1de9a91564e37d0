"""A small network of full precision, trained from nothing: what quantisation can be tried on without a hub.

Not a workload: `scripts/pretrain` runs it, and the network it makes is a model like any other.
"""
