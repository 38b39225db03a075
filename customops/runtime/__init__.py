"""How one operator runs: by kernel or by formula, whole, on shards of a DTensor, or by blocks on a CPU."""
