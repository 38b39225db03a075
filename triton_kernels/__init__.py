"""Two Triton kernels that run every program of operators; installed as ``customops.triton_kernels``."""
