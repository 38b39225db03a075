"""The errors that an executed kernel raises."""


class KernelFault(RuntimeError):
    """A fault of a kernel that was executed on the CPU."""
