"""A draft model for the embedded model, made by distillation on what the target itself writes.

Not a technique: `scripts/train_draft` runs it, and the draft it makes is a model like any other.
"""
