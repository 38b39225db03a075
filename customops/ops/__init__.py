"""What an operator is: its formula, its derivation, and its ``autograd.Function``."""
