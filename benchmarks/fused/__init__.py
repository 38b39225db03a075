"""Time fused layers on the CPU: against the same formula in torch's operators, torch's own layers, torch.compile."""
