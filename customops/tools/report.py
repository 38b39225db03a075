"""Print launches, and read the arguments of the commands."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..runtime.paths import KERNEL_DTYPES
from .estimate import Estimate
from .machine_code import Leaf, accesses, name_of
from .record import LaunchRecord
from .targets import KIB

SHORT = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}


def integers(name: str, text: str) -> tuple[int, ...]:
    """Return the integers that the option ``name`` was given, as ``4096,4096``."""
    if not re.fullmatch(r"(-?\d{1,18}(,-?\d{1,18})*)?", text):
        raise ValueError(f"--{name}: expected integers, as 4096,4096, got {text!r}")
    return tuple(map(int, text.split(","))) if text else ()


def dtype_named(name: str) -> torch.dtype:
    """Return the dtype that ``--dtype`` names."""
    dtype = SHORT.get(name, getattr(torch, name, None))
    if not isinstance(dtype, torch.dtype) or dtype not in KERNEL_DTYPES:
        known = sorted(str(dtype).removeprefix("torch.") for dtype in KERNEL_DTYPES)
        raise ValueError(f"--dtype: kernels take {', '.join([*known, *SHORT])}, got {name!r}")
    return dtype


def reason(error: Exception) -> str:
    """Return why a call failed, on one line; torch's message about too large a tensor speaks of its source."""
    allocation = re.search(r"tried to allocate (\d+) bytes", str(error))
    if allocation:
        return f"cannot reserve {int(allocation[1]):,} bytes of address space (none is written): use a smaller shape"
    return " ".join(str(error).split())


def describe(phase: str, records: Sequence[LaunchRecord]) -> Iterator[str]:
    """Yield the lines that describe the launches of a phase."""
    yield from (line for record in records for line in _lines(phase, record))
    if not records:
        yield f"{phase:10}launches nothing"


def _lines(phase: str, record: LaunchRecord) -> Iterator[str]:
    """Yield the lines that describe one launch."""
    yield f"{phase:10}{record.name}  {record.program}".rstrip()
    yield f"{'':10}grid {record.grid}  warps {record.num_warps}  registers {record.registers}  spills {record.spills}"
    yield f"{'':10}{traffic(record.bytes_moved, record.bytes_floor)}"
    yield from (f"{'':10}{line}" for line in _limits(record.estimate))
    for kind, widths in _widest(record).items():
        yield f"{'':10}{kind:6}" + "".join(f"  {leaf} {bits}" for leaf, bits in sorted(widths.items())) + " bits"


def traffic(moved: int | None, floor: int | None) -> str:
    """Return the bytes moved beside their floor; a launch that only adds up partial sums has none."""
    ratio = f"{moved / floor:.3f}" if moved is not None and floor else "-"
    return f"bytes moved {amount(moved)}  floor {amount(floor)}  ratio {ratio}"


def _limits(found: Estimate) -> Iterator[str]:
    """Yield the lines that tell what limits a launch, and how long it is estimated to take."""
    instructions = f"instructions {found.instructions_per_element:.1f} an element"
    yield f"DRAM {found.dram_bytes:,}  L2 {found.l2_bytes:,}  {instructions}"
    in_flight = f"warps {found.warps:.1f}  in flight {found.bytes_in_flight / KIB:.1f} KiB on a multiprocessor"
    yield f"{in_flight}  {duration(found.total)}, limited by {found.limit}"


def duration(seconds: float) -> str:
    """Return an estimate of a time."""
    return f"estimate {seconds * 1e6:.1f} us"


def amount(count: int | None) -> str:
    """Return a number of bytes, which is not known of a kernel that is not ours and was not executed."""
    return "unknown" if count is None else f"{count:,}"


def total(counts: Iterable[int | None]) -> int | None:
    """Return the sum of numbers of bytes, None where one of them is not known."""
    counts = [*counts]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _widest(record: LaunchRecord) -> dict[str, dict[str, int]]:
    """Return the bits of the widest load and store of each operand and output; on AMD all count as ``any``."""
    widths: dict[str, dict[str, int]] = {"load": {}, "store": {}}
    for kind, bits, leaf in accesses(record.compiled):
        name = _name(leaf, record)
        widths[kind][name] = max(bits, widths[kind].get(name, 0))
    return widths


def _name(leaf: Leaf | None, record: LaunchRecord) -> str:
    """Return the name of the operand or output that an access goes to, or of the argument of another's kernel."""
    if leaf is None:
        return "any"
    if not record.program:
        return name_of(leaf)
    return record.operands[int(leaf[1])] if leaf[0] == "operands" else f"out{leaf[1]}"


def label(operand: Any) -> str:
    """Return an operand as ``bfloat16[4096, 4096]``, or a number as it is written."""
    if not isinstance(operand, Tensor):
        return str(operand)
    return f"{str(operand.dtype).removeprefix('torch.')}{list(operand.shape)}"
