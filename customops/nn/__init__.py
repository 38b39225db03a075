"""Layers of torch.nn that are computed by fused compositions of operators."""
