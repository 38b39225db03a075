"""Compare the compiled code of fused layers with that of Liger-Kernel, for a GPU that is not here: no time is taken."""
