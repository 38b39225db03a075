"""Audit what each call costs on an H100, by its compiled kernels: ``python -m tests.audit [--quick]`` prints a table.

A dry run compiles and records the launches on large tensors; nothing is computed, so no element is ever touched. The
four limits of a launch are estimated from its code: bytes of DRAM, bytes in flight, instructions and launches.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import cycle
from typing import NamedTuple
from unittest.mock import patch

import torch
from customops.triton_kernels.launch import Launch
from torch import Tensor
from tqdm import tqdm

import customops
from customops.runtime.paths import KERNEL_DTYPES
from customops.tools import machine_code

from .audit_layers import Cost, audit_layers, bytes_of, cost_of, faults_of_layer, table_of_layers
from .cases import CALLS, EXTREMA, REDUCTIONS, ROW, ROWS, Call, ids

WORD = 16  # bytes that one instruction loads at most
WARP = 32 * WORD  # a tensor with fewer bytes has no vector for each lane of a warp
# Bytes that a launch on 4 MB and more has in flight on each multiprocessor, at least. Each element takes a register or
# two, so that those of one byte have half as many, which is still what the bandwidth takes.
IN_FLIGHT = 32 << 10
WARPS = 8  # resident on each then, at least
DTYPES = sorted(KERNEL_DTYPES, key=str)
# The calls that are audited in every run: of each operator one on the most tensors.
USUAL = {max(reversed(row.calls), key=lambda call: call.arity).name for row in ROWS if row.name not in REDUCTIONS}
USUAL |= {"pow(x, 3)", *(f"{name}({axes})" for name in REDUCTIONS for axes in ("0", "-1, keepdim"))}

ONCE_AT_FAULT = (
    ("pow(x, -0.5)", "sliced", torch.int8),  # spilled
    ("pow(x, y)", "rows of 1024", torch.int8),  # likewise
    ("sum(0)", "long rows", torch.int8),  # loaded 64 bits at a time
    ("sum(0)", "contiguous", torch.int8),  # wrote 12 % of its input in partial sums
    ("mul(x, y)", "outer", torch.bfloat16),  # likewise
)

# Launches of backward, by how the operands broadcast. Where sums are too few to fill the GPU, several programs share
# each, and one more launch adds up their parts; so it is with few columns, not with many rows, and twice with both.
NONE = {"whole": 0}
ONE = {"whole": 1}
SUMS = {"row": 2, "wide row": (1, 2), "widest row": 1, "column": 1, "few": 2, "channel": 2, "outer": 3}
# The reductions whose sums several programs share, by layout; those of any other take one launch.
MATRIX_SUMS = ("", "None", "0", "0, -1")
VECTOR_SUMS = ("", "None", "0", "-1, keepdim")
SHARED = {
    "contiguous": MATRIX_SUMS,
    "ragged end": VECTOR_SUMS,
    "small": (),
    "transposed": ("", "None", "-1, keepdim", "0, -1"),
    "sliced": MATRIX_SUMS,
    "every second": MATRIX_SUMS,
    "unaligned": VECTOR_SUMS,
    "width 1000": MATRIX_SUMS,
    "width 1004": MATRIX_SUMS,
    "cube": ("", "None"),
    "images": ("", "None", "0, 2, 3"),
    "long rows": ("", "None", "-1, keepdim", "0, -1"),
    "short rows": MATRIX_SUMS,
    "rows of 64": MATRIX_SUMS,
    "rows of 256": MATRIX_SUMS,
    "rows of 1024": MATRIX_SUMS,
    "rows of 16384": ("", "None", "0, -1"),
    "rows of 65536": ("", "None", "-1, keepdim", "0, -1"),
}


class Layout(NamedTuple):
    """A way for the tensors of a call to lie in memory; they are called x, y, z, g, dx and dy.

    Vectors of 16 bytes are expected of a tensor that is not in ``narrow``, if its rows all start at a multiple of 16
    bytes.
    """

    name: str
    make: Callable[[torch.dtype], list[Tensor]]  # returns two operands of a dtype; a call takes as many as it has
    narrow: tuple[str, ...] = ()  # the tensors of which no full vectors are expected
    pitch: int = 4096  # elements from the start of one row to that of the next
    kind: str = "whole"  # how the operands broadcast: a column of BACKWARD
    fits: str = "any"  # the calls that it is for: "any", "pair" (of operands), "reduction", or "sum": either of these
    in_flight: int = IN_FLIGHT  # bytes that a launch on large operands has in flight on a multiprocessor, at least
    most: float = 1.05  # the bytes of DRAM that a call may move, as a multiple of those that have to move

    def __str__(self):
        return self.name


class Case(NamedTuple):
    """A call, and the dtype and layout of its operands."""

    operator: str
    call: Call
    dtype: torch.dtype
    layout: Layout

    def __str__(self):
        return f"{self.call}, {ids(self.dtype)}, {self.layout}"


class Phase(NamedTuple):
    """The launches of one direction of a call."""

    cost: Cost
    bits: dict[str, int]  # by tensor: the bits of the widest access to it, in the launch where that is narrowest
    wide: set[str]  # the tensors of which full vectors are expected
    faults: list[str]  # all that is wrong, in words


Finding = dict[str, Phase]  # by direction, "forward" and "backward"


def _pair(x: Sequence[int], y: Sequence[int] | None = None, view: Callable[[Tensor], Tensor] = lambda x: x):
    return lambda dtype: [view(torch.empty(shape, dtype=dtype)) for shape in (x, x if y is None else y)]


MATRIX = (4096, 4096)
IMAGES = (32, 64, 56, 56)
LAYOUTS = (
    Layout("contiguous", _pair(MATRIX)),
    Layout("ragged end", _pair([4096 * 4096 + 3])),
    Layout("small", _pair((8, 128)), pitch=128),
    Layout("row", _pair(MATRIX, [4096]), ("dy",), kind="row", fits="pair"),
    Layout("column", _pair(MATRIX, (4096, 1)), ("y", "dy"), kind="column", fits="pair"),
    Layout("channel", _pair(IMAGES, (64, 1, 1)), ("y", "dy"), 56 * 56, kind="channel", fits="pair"),
    Layout("outer", _pair((4096, 1), (1, 4096)), ("x", "dx", "dy"), kind="outer", fits="pair"),
    Layout("second transposed", lambda dtype: [x := torch.empty(MATRIX, dtype=dtype), torch.empty_like(x).t()], ("y",),
           fits="pair"),
    Layout("transposed", _pair(MATRIX, view=Tensor.t)),
    Layout("sliced", _pair((4096, 4112), view=lambda x: x[:, :4096]), pitch=4112),
    # each byte that is in flight brings one with it that nobody asked for
    Layout("every second", _pair((4096, 8192), view=lambda x: x[:, ::2]), ("x", "y"), in_flight=IN_FLIGHT // 2),
    Layout("unaligned", _pair([4096 * 4096 + 1], view=lambda x: x[1:]), ("x", "y")),
    Layout("width 1000", _pair((4096, 1000), [1000]), ("dy",), 1000, kind="row"),
    # a mask cuts the last vector of a row, so each element has an address in registers, which leave fewer programs
    Layout("width 1004", _pair((4096, 1004), [1004]), ("dy",), 1004, kind="row", in_flight=IN_FLIGHT // 2),
    Layout("cube", _pair((64, 512, 512)), pitch=512, fits="reduction"),
    Layout("images", _pair(IMAGES), pitch=56, fits="reduction"),
    Layout("long rows", _pair((2, 2**24)), fits="reduction"),
    Layout("short rows", _pair((2**20, 7)), pitch=7, fits="reduction", in_flight=IN_FLIGHT // 2),  # as width 1004
    Layout("rows of 64", _pair((2**16, 64), [64]), ("dy",), 64, kind="row", fits="sum"),
    Layout("rows of 256", _pair((2**14, 256), [256]), ("dy",), 256, kind="row", fits="sum"),
    Layout("rows of 1024", _pair((2**12, 1024), [1024]), ("dy",), 1024, kind="row", fits="sum"),
    Layout("rows of 16384", _pair((2**10, 2**14), [2**14]), ("dy",), 2**14, kind="wide row", fits="sum"),
    Layout("rows of 65536", _pair((2**8, 2**16), [2**16]), ("dy",), 2**16, kind="widest row", fits="sum"),
    Layout("column of 256", _pair((2**14, 256), (2**14, 1)), ("y", "dy"), 256, kind="column", fits="pair"),
    Layout("column of 65536", _pair((2**8, 2**16), (2**8, 1)), ("y", "dy"), 2**16, kind="few", fits="pair"),
)  # fmt: skip


@cache
def cases() -> tuple[Case, ...]:
    """Return every call on every layout that it fits, in every dtype that torch has it for."""
    channels = [
        (name, Call(f"{name}(0, 2, 3)", lambda lib, x, name=name: getattr(lib, name)(x, (0, 2, 3)), rank=4))
        for name in REDUCTIONS
        if name != "prod"  # torch takes one axis, or all
    ]
    return tuple(
        Case(operator, call, dtype, layout)
        for operator, call in (*((row.name, call) for row, call in CALLS), *channels)
        for layout in LAYOUTS
        for dtype in DTYPES
        if _fits(operator, call, layout) and _is_defined(call, dtype, layout)
    )


@cache
def chosen() -> tuple[Case, ...]:
    """Return the cases of every run: usual calls in two dtypes and two layouts; each layout, dtype and past fault."""
    two = (torch.float32, torch.bfloat16)
    usual = [c for c in cases() if c.call.name in USUAL and c.dtype in two and c.layout.name in ("contiguous", "row")]
    fitting = [[c for c in cases() if (c.layout, c.dtype) == turn] for turn in zip(LAYOUTS, cycle(DTYPES))]
    pinned = [c for c in cases() if (c.call.name, c.layout.name, c.dtype) in ONCE_AT_FAULT]
    return tuple(dict.fromkeys([*usual, *(some[7 * i % len(some)] for i, some in enumerate(fitting)), *pinned]))


def audit(case: Case) -> Finding:
    """Run a call, and backward where there is one, in a dry run; compare what it launches with what it should."""
    xs = case.layout.make(case.dtype)[: case.call.arity]
    differentiable = case.dtype.is_floating_point and case.operator not in (
        *EXTREMA,
        "prod",
    )  # whose backward may read x twice
    for x in xs:
        x.requires_grad_(differentiable)
    z, launched = _launches(lambda: case.call.function(customops, *xs))
    tensors = {**dict(zip("xy", xs, strict=False)), "z": z}
    finding = {"forward": _measure(case, "forward", tensors, launched)}
    if differentiable:
        tensors["g"] = torch.empty(z.shape, dtype=z.dtype)
        grads, launched = _launches(lambda: torch.autograd.grad(z, xs, tensors["g"]))
        tensors |= zip(("dx", "dy"), grads, strict=False)
        finding["backward"] = _measure(case, "backward", tensors, launched)
    return finding


def faults(finding: Finding) -> list[str]:
    """Return all that is wrong, in words."""
    return [f"{direction}: {fault}" for direction, phase in finding.items() for fault in phase.faults]


def _fits(operator: str, call: Call, layout: Layout) -> bool:
    if operator in REDUCTIONS:
        return layout.fits != "pair" and layout.make(torch.int8)[0].dim() >= call.rank
    return layout.fits == "any" or (layout.fits != "reduction" and call.arity == 2)


def _is_defined(call: Call, dtype: torch.dtype, layout: Layout) -> bool:
    """Return whether torch has the operator for the dtype: there is no mean of integers, no difference of bool."""
    try:
        call.function(torch, *(torch.ones([1] * x.dim(), dtype=dtype) for x in layout.make(dtype)[: call.arity]))
    except RuntimeError:
        return False
    return True


def _launches(run: Callable):
    """Return the result of ``run``, and for every launch its record and the address or number of each argument."""
    given = []
    launch = Launch.__call__

    def listen(self, arguments, *rest):
        slots = [("operands", *slot) for slot in enumerate(self.operand_positions)]
        slots += [("outputs", *slot) for slot in enumerate(self.output_positions)]
        given.append({(side, i): _address(arguments[index]) for side, i, index in slots})
        launch(self, arguments, *rest)

    with customops.dry_run("cuda:90") as records, patch.object(Launch, "__call__", listen):
        result = run()
    return result, list(zip(records, given, strict=True))


def _address(x: Tensor | int) -> int:
    return x.data_ptr() if isinstance(x, Tensor) else x


def _measure(case: Case, direction: str, tensors: dict[str, Tensor], launched: list) -> Phase:
    """Read the launches of one direction; addresses tell which tensor is which."""
    names = {x.data_ptr(): name for name, x in reversed(tensors.items())}  # a gradient that is g itself is g
    bits: dict[str, int] = {}
    for record, given in launched:
        for leaf, width in machine_code.widest(record.compiled).items():
            name = "unknown" if leaf is None else names.get(given[leaf], "parts")  # of a sum
            bits[name] = min(width, bits.get(name, width))
    records = [record for record, _ in launched]
    floor = sum(record.bytes_floor for record in records)
    used = {name: tensors[name] for name in bits if name in tensors}
    unread = [
        0,
        *(bytes_of(x) for name, x in tensors.items() if name == "g" and "g" not in bits),
    ]  # as of sign's gradient
    counted = {bytes_of(*used.values()) + n for n in unread}
    assert {"unknown", "parts"} & bits.keys() or floor in counted, "a dry run counts other bytes"
    phase = Phase(cost_of(records, floor), bits, _wide(case, used), [])
    phase.faults.extend(_judge(case, direction, phase, used))
    return phase


def _judge(case: Case, direction: str, phase: Phase, used: dict[str, Tensor]) -> Iterator[str]:
    expected, cost = _expected(case, direction), phase.cost
    if cost.launches not in expected:
        yield f"{cost.launches} launches, expected {' or '.join(map(str, expected))}"
    for name, bits in phase.bits.items():
        if name in phase.wide and bits != 8 * WORD:
            yield f"{name} moves in {bits} bits, expected {8 * WORD}"
        start = used[name].data_ptr() if name in used else 0
        if start % WORD and bits > 8 * (start & -start):
            yield f"{name} moves in {bits} bits, but starts at an odd multiple of {8 * (start & -start)} bits"
    if "unknown" in phase.bits:
        yield "a pointer cannot be told"
    if cost.spills:
        yield f"spills {cost.spills} bytes of a thread"
    if cost.excess > case.layout.most:
        yield f"moves {cost.excess:.3f} times the bytes of DRAM, expected {case.layout.most} at most"
    least = min(case.layout.in_flight, IN_FLIGHT // 2 if case.dtype.itemsize == 1 else IN_FLIGHT)
    if 0 < cost.in_flight < least:  # what reads nothing, as sign's gradient, waits for nothing
        yield f"has {cost.in_flight / 1024:.1f} KiB in flight, expected {least >> 10} at least"
    if cost.warps < WARPS:
        yield f"has {cost.warps:.1f} warps on a multiprocessor, expected {WARPS} at least"


def _expected(case: Case, direction: str) -> tuple[int, ...]:
    """Return the numbers of launches that a phase may take.

    Sums of elements of 8 bytes, and of 1 byte, of which half as many are enough, may have enough in flight by one.
    """
    reduces = case.operator in REDUCTIONS
    if direction == "backward":
        by_kind = (NONE if is_passed_on(case.operator, case.call) else ONE) | SUMS
        n = by_kind[case.layout.kind if case.call.arity == 2 else "whole"]
    else:
        axes = case.call.name.partition("(")[2].removesuffix(")")
        n = 2 if reduces and axes in SHARED[case.layout.name] else 1
    if isinstance(n, tuple):
        return n
    return (n - 1, n) if n > 1 and case.dtype.itemsize in (1, 8) else (n,)


@cache
def is_passed_on(operator: str, call: Call) -> bool:
    """Return whether each gradient of torch's own call is g itself, perhaps expanded, so that none is written."""
    shape = (2, 2, 2, 2) if operator in REDUCTIONS else (2,)
    xs = [ROW[operator].draw(shape, seed=i).requires_grad_() for i in range(call.arity)]
    z = call.function(torch, *xs)
    g = torch.ones_like(z)
    return all(dx.data_ptr() == g.data_ptr() for dx in torch.autograd.grad(z, xs, g))


def _wide(case: Case, used: dict[str, Tensor]) -> set[str]:
    """Return the tensors of which full vectors are expected: none too small for a warp, and no sum."""
    if case.operator in REDUCTIONS:  # whose backward scales a small dense tensor
        whole = used.keys() - {"z"}
        flat = "g" in used or ("z" in used and used["z"].numel() == 1 and used["x"].is_contiguous())
    else:
        whole = used.keys() - set(case.layout.narrow)
        flat = all(x.is_contiguous() for x in used.values()) and len({x.shape for x in used.values()}) == 1
    in_rows = {name for name in whole if flat or case.layout.pitch * used[name].itemsize % WORD == 0}
    return {name for name in in_rows - set(case.layout.narrow) if bytes_of(used[name]) >= WARP}


KINDS = ((0, "operators"), (2, "dtypes"), (3, "layouts"))
LEGEND = """bits: the narrowest of the widest accesses to contiguous and row tensors, other: to any other tensor;
forward, backward: launches; DRAM: its bytes, to those of each input and output once; KiB: in flight on a
multiprocessor, and warps on it, of launches on 4 MB and more that neither read all at once nor wait for
instructions; SASS: machine instructions an element; us: estimated. The worst of each layout's calls."""


def table(findings: dict[Case, Finding]) -> str:
    """Return what was found as text: a line for each layout, and then all that is wrong."""
    heads = f"{'bits':>6}{'other':>7}{'spills':>8}{'forward':>9}{'backward':>10}{'DRAM':>7}{'KiB':>7}{'warps':>7}"
    lines = [f"{'layout':<18}{'calls':>6}{heads}{'SASS':>7}{'us':>7}"]
    for layout in LAYOUTS:
        some = [finding for case, finding in findings.items() if case.layout is layout]
        if some:
            lines.append(f"{layout.name:<18}{len(some):>6}{_row(some)}")
    wrong = [f"{case}: {fault}" for case, finding in findings.items() for fault in faults(finding)]
    counts = " x ".join(f"{len({case[i] for case in findings})} {kind}" for i, kind in KINDS)
    return "\n".join([*lines, LEGEND, f"{counts}: {len(findings)} calls, {len(wrong)} faults", *wrong])


def _row(findings: list[Finding]) -> str:
    """Return the worst of the findings on one layout, as the cells of a line."""
    phases = [phase for finding in findings for phase in finding.values()]
    bits = {asked: [n for p in phases for name, n in p.bits.items() if (name in p.wide) == asked] for asked in (1, 0)}
    narrowest = [str(min(some)) if some else "-" for some in bits.values()]
    launches = [[each[way].cost.launches for each in findings if way in each] for way in ("forward", "backward")]
    spans = ["-".join(map(str, sorted({min(n), max(n)}))) if n else "-" for n in launches]
    costs = [phase.cost for phase in phases]
    spills, excess = max(cost.spills for cost in costs), max(cost.excess for cost in costs)
    busy = f"{min(cost.in_flight for cost in costs) / 1024:>7.1f}{min(cost.warps for cost in costs):>7.1f}"
    worst = f"{max(cost.instructions for cost in costs):>7.1f}{1e6 * max(cost.seconds for cost in costs):>7.1f}"
    return f"{narrowest[0]:>6}{narrowest[1]:>7}{spills:>8}{spans[0]:>9}{spans[1]:>10}{excess:>7.3f}{busy}{worst}"


def main() -> int:
    """Audit, print the table, and return whether anything is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.audit", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only the calls that make test audits")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes, by default %(default)s")
    options = parser.parse_args()
    chosen_cases = chosen() if options.quick else cases()
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        found = pool.map(_audit_number, map(cases().index, chosen_cases), chunksize=8)
        shown = tqdm(found, "auditing", len(chosen_cases), unit="call", file=sys.stderr)
        findings = dict(zip(chosen_cases, shown, strict=True))
    print(table(findings), end="\n\n", flush=True)
    layers = audit_layers()
    print(table_of_layers(layers))
    return any(map(faults, findings.values())) or any(faults_of_layer(*found) for found in layers.items())


def _audit_number(i: int) -> Finding:
    """Audit a case by its number: a layout has functions, which processes cannot hand to each other."""
    return audit(cases()[i])


if __name__ == "__main__":
    sys.exit(main())
