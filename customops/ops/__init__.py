"""The operators: each has a formula, a derivation, and an ``autograd.Function``."""
