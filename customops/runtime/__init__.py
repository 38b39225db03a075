"""The ways for one operator to run: by kernel or by formula, whole, on shards of a DTensor, or by blocks on a CPU."""
