"""Execute compiled kernels, in PTX, on a CPU."""
