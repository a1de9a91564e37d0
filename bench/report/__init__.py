"""The only formatting: from stored records to what a person reads."""
