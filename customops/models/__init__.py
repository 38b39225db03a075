"""Models that know nothing of the package: what of them it computes, and how that is undone."""
