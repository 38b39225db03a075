"""What is raised for a kernel that does what no kernel may do."""

from __future__ import annotations


class KernelFault(RuntimeError):
    """A fault of a kernel, found as its compiled code was executed on the CPU, or of a launch that no GPU takes.

    The message says what happened and where; the attributes say it to a program. Each may be None where it is not
    known.
    """

    def __init__(
        self,
        reason: str,
        kernel: str | None = None,
        instruction: str | None = None,
        source: str | None = None,
        program: tuple[int, int, int] | None = None,
        thread: int | None = None,
        tensor: str | None = None,
    ):
        self.reason = reason  # what happened
        self.kernel = kernel  # the name of the kernel
        self.instruction = instruction  # of PTX, as it is written
        self.source = source  # the line of Python that it was compiled from, as ``"map.py:31"``, innermost first
        self.program = program  # the program's id along each axis of the grid
        self.thread = thread  # within the program
        self.tensor = tensor  # the parameter of the kernel that the tensor was given for
        where = {
            f"kernel {kernel}": kernel,
            f"at {source}": source,
            f"program {program}": program,
            f"thread {thread}": thread,
            f"in `{instruction}`": instruction,
        }
        known = ", ".join(text for text, value in where.items() if value is not None)
        super().__init__(f"{reason} ({known})" if known else reason)


class LaneFault(Exception):
    """A fault that one lane ran into; the machine knows the rest, and makes a :class:`KernelFault` of it."""

    def __init__(self, reason: str, lane: int | None = None, tensor: str | None = None):
        super().__init__(reason)
        self.reason = reason
        self.lane = lane  # among the lanes that run together, None where it is no single one
        self.tensor = tensor
