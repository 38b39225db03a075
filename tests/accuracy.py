"""Errors in units in the last place (ulp): drawn inputs, exact results, the largest error, and the table of them.

A derivative is held to its exact value at what was saved: the output as it was rounded, where the derivative reads it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import machine

from .cases import REDUCTIONS


class Error(NamedTuple):
    """The errors of the results at many points."""

    points: int
    ulp: float  # the largest error
    wrong: int  # how many results are inf or nan where the exact one is not, or the other way round
    misrounded: int  # how many results are not the exact ones, rounded to nearest


def spacing(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the distance between the numbers of ``dtype`` around ``x``, which is float64."""
    info = torch.finfo(dtype)
    _, exponent = torch.frexp(x.abs().clamp(info.tiny, info.max))
    return ((exponent.long() + 1022) << 52).view(torch.float64) * info.eps  # ldexp and exp2 are not exact


def largest_error(got: Tensor, want: Tensor, off: Tensor) -> Error:
    """Return the error of ``got``, which is ``off`` from an exact value that rounds to ``want`` in float64."""
    rounded = want.to(got.dtype)
    same = (got == rounded) | (got.isnan() & rounded.isnan())
    finite = got.isfinite() & rounded.isfinite()
    ulps = (off.abs() / spacing(want, got.dtype))[finite]
    largest = ulps.max().item() if ulps.numel() else 0.0
    return Error(got.numel(), largest, int((~same & ~finite).sum()), int((~same).sum()))


def rounded_twice(want: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``want`` as a float32 result that is off by up to 2 ulp, at random, and then rounded to ``dtype``."""
    share = 2 * torch.rand(want.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64) - 1
    return (want + 2 * share * spacing(want, torch.float32)).float().to(dtype)


def name_of(dtype: torch.dtype) -> str:
    """Return what a table calls a dtype."""
    return str(dtype).removeprefix("torch.")


def is_ordinary(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return where float64 ``x`` is 0, or so far inside the range of ``dtype`` that no step of the formulas leaves it.

    Half types are computed in float32, whose range bfloat16 has too: for float16 its range itself is far inside.
    """
    info, margin = torch.finfo(dtype), 1 if dtype == torch.float16 else 2**16
    return (x == 0) | ((x.abs() >= info.tiny * margin) & (x.abs() <= info.max / margin))


def random_bits(numel: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Return finite numbers of ``dtype`` with random bits, so of every magnitude; of a half type, return all."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    generator = torch.Generator().manual_seed(seed)
    if dtype.itemsize == 2:
        x = (torch.randperm(2**16, generator=generator) - 2**15).to(integer).view(dtype)
    else:
        ends = torch.iinfo(integer)
        x = torch.randint(ends.min, ends.max, (numel,), generator=generator, dtype=torch.int64)
        x = x.to(integer).view(dtype)
    return torch.where(x.isfinite(), x, 1)


def sample(row: Any, dtype: torch.dtype, numel: int, seed: int) -> Tensor:
    """Return random bits, numbers from the row's domain, and 32 times these: exp and pow reach the ends of a range."""
    bits = random_bits(numel, dtype, seed)
    near = row.draw((numel,), dtype, seed=seed)
    return torch.cat([bits.abs() if row.low > 0 else bits, near, near * 32])


def measure(
    row: Any, call: Any, dtype: torch.dtype, device: str, libraries: dict[str, Any], numel: int = 2**16
) -> list[dict]:
    """Return the largest errors of a call's value and gradients, by range, as dicts that can be written as JSON.

    ``numel`` are drawn of each kind of input, or fewer in float64, which is slow to compute exactly.
    """
    xs, g = _drawn(row, call, dtype, numel)
    errors: dict[tuple[str, str], dict[str, Error]] = {}
    for name, library in libraries.items():
        got = [x.cpu() for x in _run(call.function, library, [x.to(device) for x in xs], g.to(device))]
        if dtype == torch.float64 and has_exact(row, call):
            exact = in_mpmath(row, call, xs, g, got)
        else:
            exact = in_float64(call.function, xs, g, got)
        for of, mine, (want, off) in zip(("value", "d/dx", "d/dy"), got, exact, strict=False):
            ordinary = is_ordinary(want, dtype)
            for x in xs if xs[0].shape == want.shape else ():
                ordinary &= is_ordinary(x.double(), dtype)
            for range_of, points in (("ordinary", ordinary), ("ends", ~ordinary)):
                error = largest_error(mine[points], want[points], off[points])
                errors.setdefault((of, range_of), {})[name] = error
                if dtype.itemsize == 2:
                    model = rounded_twice(want[points], dtype)
                    error = largest_error(model, want[points], model.double() - want[points])
                    errors[of, range_of]["2 ulp of float32"] = error
    return [
        {"operator": call.name, "of": of, "dtype": name_of(dtype), "range": range_of}
        | {name: error._asdict() for name, error in by_library.items()}
        for (of, range_of), by_library in errors.items()
        if any(error.points for error in by_library.values())
    ]


def _drawn(row: Any, call: Any, dtype: torch.dtype, numel: int) -> tuple[list[Tensor], Tensor]:
    """Draw inputs and a gradient on the CPU; a reduction's are positive: where they cancel, chance decides errors."""
    if row.name in REDUCTIONS:
        x = row.draw((8, 16, 8, 16) if dtype.itemsize == 2 or numel < 2**16 else (16, 64, 32, 64), dtype).abs()
        return [x], row.draw(call.function(torch, x).shape, dtype, seed=1)
    numel = 200 if dtype == torch.float64 else numel
    xs = [sample(row, dtype, numel, seed) for seed in range(call.arity)]
    return xs, row.draw(xs[0].shape, dtype, seed=2)


def _run(call: Callable, library: Any, xs: Sequence[Tensor], g: Tensor) -> list[Tensor]:
    """Return the value of ``call(library, *xs)`` and its gradients for ``g``."""
    leaves = [x.detach().requires_grad_() for x in xs]
    z = call(library, *leaves)
    return [z.detach(), *torch.autograd.grad(z, leaves, g)]


def in_float64(call: Callable, xs: Sequence[Tensor], g: Tensor, got: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return the value of a call and its gradients, by torch in float64, each with how far ``got`` is off."""
    wide = [x.double().requires_grad_() for x in xs]
    given, saved = {x.data_ptr() for x in wide}, got[0].double()

    def unpack(x):
        return saved if x.shape == saved.shape and x.dtype == saved.dtype and x.data_ptr() not in given else x

    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, unpack):
        value = call(torch, *wide)
        want = [value.detach(), *torch.autograd.grad(value, wide, g.double())]
    return [(exact, mine.double() - exact) for mine, exact in zip(got, want, strict=True)]


def has_exact(row: Any, call: Any) -> bool:
    """Return whether a call is defined as a term of its own tensors, and of no condition or bound made of these."""
    from customops.proof.symbolic import exact  # noqa: PLC0415 - SymPy may be missing

    return bool(row.definition) and len(exact(row, call).names) == call.arity


def in_mpmath(
    row: Any, call: Any, xs: Sequence[Tensor], g: Tensor, got: Sequence[Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """Return the same for an elementwise call, computed in as many bits as it takes to add 1 to the least float64."""
    import mpmath  # noqa: PLC0415 - SymPy brings it

    from customops.proof.symbolic import exact  # noqa: PLC0415 - as above

    _, value, slopes = exact(row, call)
    rows = []
    with mpmath.workprec(1200):
        for numbers in zip(*(x.tolist() for x in (*got, g, *xs)), strict=True):
            mine, (slope, *variables) = numbers[: len(got)], map(mpmath.mpf, numbers[len(got) :])
            z = mpmath.mpf(mine[0])
            want = [value(*variables), *(slope * function(z, *variables) for function in slopes)]
            want = [mpmath.nan if isinstance(e, mpmath.mpc) else e for e in want]  # a root or logarithm below 0
            rows.append([(float(e), float(x - e)) for x, e in zip(mine, want, strict=True)])
    columns = torch.tensor(rows, dtype=torch.float64).unbind(1)
    return [(column[:, 0], column[:, 1]) for column in columns]


def write(measured: Sequence[dict]) -> Path:
    """Write the table as JSON and Markdown to the folder of this GPU."""
    where = machine.where("cuda")
    folder = machine.folder(where)
    folder.mkdir(parents=True, exist_ok=True)
    document = {"machine": where, "errors": sorted(measured, key=_order)}
    (folder / "accuracy.json").write_text(json.dumps(document, indent=1) + "\n")
    (folder / "accuracy.md").write_text(markdown(where, measured))
    return folder / "accuracy.md"


def markdown(where: dict[str, str], measured: Sequence[dict]) -> str:
    """Return the table as Markdown: one line for each operator, derivative, dtype and range."""
    head = "| operator | of | dtype | range | points | ours, ulp | torch, ulp | ours wrong | torch wrong |"
    lines = [
        "# Largest errors, in ulp",
        "",
        "Ours and torch's on one GPU, each against the exact result. Wrong are results that are inf or nan where the",
        "exact one is not, or the other way round. The range is 'ends' where an operand or the result is subnormal,",
        "or within 2^16 of where the dtype ends, but for float16; else 'ordinary'. A * marks where ours is worse.",
        "",
        *(f"- {name}: {value}" for name, value in where.items()),
        "",
        head,
        re.sub(r"[^|]+", "---", head),
    ]
    for m in sorted(measured, key=_order):
        ours, theirs = m["ours"], m["torch"]
        mark = " *" if is_worse(m) else ""
        cells = [f"`{m['operator']}`", m["of"], m["dtype"], m["range"], str(ours["points"])]
        cells += [f"{ours['ulp']:.3g}{mark}", f"{theirs['ulp']:.3g}", str(ours["wrong"]), str(theirs["wrong"])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def is_worse(m: dict, allowed: float = 0) -> bool:
    """Return whether ours is off by more than torch's and ``allowed`` ulp, or wrong more often."""
    return m["ours"]["ulp"] > m["torch"]["ulp"] + allowed or m["ours"]["wrong"] > m["torch"]["wrong"]


def summary(measured: Sequence[dict], written: Path | None) -> str:
    """Return one line for the end of a run."""
    worse = sum(map(is_worse, measured))
    where = f"written to {written}" if written else "not written: only a part was measured"
    return f"{len(measured):>8} largest errors, {worse} of ours above torch's, {where}"


def _order(m: dict) -> tuple[str, ...]:
    return m["operator"], m["dtype"], m["range"], m["of"]
