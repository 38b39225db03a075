"""``fuse``: trace a function, build its graph, run it as kernels, and say what they do."""
