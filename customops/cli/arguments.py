"""Read what is given on the command line; what is wrong with it is said in one line, with what would do."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from ..runtime.paths import KERNEL_DTYPES
from ..tools import targets

SHORT = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}
REFUSED = RuntimeError, ValueError, IndexError, OverflowError, TypeError  # how torch and Python refuse a call
MOST_NAMES = 50  # that are listed where none is near
SHAPE = re.compile(r"(-?\d{1,18}([x,]-?\d{1,18})*)?")
OPERANDS = """A tensor is written [NAME:]SHAPE[:DTYPE][:strides=STRIDES][:grad|:nograd]:

  --input 4096x4096                   by position, of the dtype that --dtype says
  --input weight:4096:bf16            by name, of a dtype of its own
  --input x:64x64:strides=1x64        transposed in memory; strides count elements
  --input mask:4096x4096:bool         a mask
  --input x:8x8:grad --input w:8x8    gradients for x alone
  --input x:8x8 --input w:8x8:nograd  gradients for all but w; for none with nograd at each

A shape may be written 4096,4096 too, and that of a tensor without axes is empty. --number has a number, or any other
literal of Python, in the place of a tensor, or by name: --number 2, --number eps=1e-6, --number keepdim=True."""


class BadArgument(Exception):
    """What is wrong with the command line, in one line, and what would do."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Raise BadArgument, which ``main`` prints."""
        raise BadArgument(f"{self.prog}: {message}; {self.prog} --help says what there is")


class TensorArgument(NamedTuple):
    """A tensor as it is written."""

    name: str | None  # of the parameter; None of a tensor by position
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    strides: tuple[int, ...] | None  # in elements
    has_gradient: bool | None  # None where nothing is said


class Operands(NamedTuple):
    """The arguments of a call."""

    args: list[Any]
    kwargs: dict[str, Any]
    has_gradients: bool  # whether there is a backward pass: not where every tensor is said to have none


class _Operand(argparse.Action):
    """Gather tensors and numbers in the order in which they are written."""

    def __call__(self, parser, namespace, values, option_string=None):
        namespace.operands = [*(namespace.operands or ()), (self.const, values)]


def add_operands(parser: argparse.ArgumentParser) -> None:
    """Add the options of :func:`read_operands`, and explain them."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"{OPERANDS}\n\n{parser.epilog}"
    parser.set_defaults(operands=None)
    same: dict[str, Any] = {"dest": "operands", "action": _Operand, "default": None}
    parser.add_argument(
        "--input", "--shape", const="input", metavar="TENSOR", help="a tensor, as 4096x4096:bf16; see below", **same
    )
    parser.add_argument("--number", const="number", metavar="[NAME=]VALUE", help="a number in place of one", **same)
    parser.add_argument(
        "--dtype", default="float32", help=f"of tensors that say none: torch's name, or {', '.join(SHORT)}; %(default)s"
    )


def add_target(parser: argparse.ArgumentParser) -> None:
    """Add ``--target``."""
    names = ", ".join([*targets.NAMES, *targets.TARGETS])
    parser.add_argument("--target", default="cuda:90", help=f"the GPU: {names}; default: %(default)s")


def target_named(name: str) -> tuple[str, targets.Target]:
    """Return the target of a dry run and the GPU that a name stands for. Raises BadArgument."""
    try:
        return targets.find(name)
    except ValueError as error:
        raise BadArgument(f"--{error}") from None


def read_operands(args: argparse.Namespace, requires_grad: bool) -> Operands:
    """Return what a command line has for the arguments of a call; no memory of these tensors is touched.

    Gradients are those of tensors that say ``grad``; if none does, of all floating ones that do not say ``nograd``,
    where ``requires_grad`` asks for them.
    """
    default = dtype_named("--dtype", args.dtype)
    read = [(tensor(text) if kind == "input" else _number(text)) for kind, text in args.operands or ()]
    tensors = [x for x in read if isinstance(x, TensorArgument)]
    chosen = any(x.has_gradient for x in tensors)
    requires_grad = requires_grad or any(x.has_gradient is False for x in tensors)
    operands = Operands([], {}, not tensors or not all(x.has_gradient is False for x in tensors))
    for x in read:
        name, value = x if isinstance(x, tuple) and not isinstance(x, TensorArgument) else (x.name, None)
        if isinstance(x, TensorArgument):
            dtype = x.dtype or default
            wanted = x.has_gradient if chosen else x.has_gradient is not False and requires_grad
            floats = dtype.is_floating_point or bool(x.has_gradient)
            value = _made(x, dtype, bool(wanted) and floats)
        if name is None and operands.kwargs:
            option = "--input" if isinstance(x, TensorArgument) else "--number"
            raise BadArgument(f"{option}: an argument by position stands behind one by name: write those by name last")
        if name in operands.kwargs:
            raise BadArgument(f"{name} is given twice")
        if name is None:
            operands.args.append(value)
        else:
            operands.kwargs[name] = value
    return operands


def _made(x: TensorArgument, dtype: torch.dtype, requires_grad: bool) -> Tensor:
    if x.strides is None:
        return torch.empty(x.shape, dtype=dtype, requires_grad=requires_grad)
    return torch.empty_strided(x.shape, x.strides, dtype=dtype).requires_grad_(requires_grad)


def tensor(text: str) -> TensorArgument:
    """Return a tensor that is written as OPERANDS explains. Raises BadArgument."""
    first, *rest = text.split(":")
    name = None
    if not SHAPE.fullmatch(first) and first.isidentifier() and rest:
        name, first, *rest = text.split(":")
    dtype, strides, has_gradient = None, None, None
    for part in rest:
        if part in ("grad", "nograd"):
            has_gradient = part == "grad"
        elif part.startswith("strides="):
            strides = integers("--input", part.removeprefix("strides="))
        else:
            dtype = dtype_named("--input", part)
    return TensorArgument(name, integers("--input", first), dtype, strides, has_gradient)


def integers(option: str, text: str) -> tuple[int, ...]:
    """Return integers that are written as ``4096x4096`` or ``4096,4096``."""
    if not SHAPE.fullmatch(text):
        raise BadArgument(f"{option}: expected integers, as 4096x4096, got {text!r}")
    return tuple(map(int, re.split("[x,]", text))) if text else ()


def dtype_named(option: str, name: str) -> torch.dtype:
    """Return the dtype that a name stands for."""
    dtype = SHORT.get(name, getattr(torch, name, None))
    if not isinstance(dtype, torch.dtype) or dtype not in KERNEL_DTYPES:
        known = sorted(str(dtype).removeprefix("torch.") for dtype in KERNEL_DTYPES)
        raise BadArgument(f"{option}: kernels take {', '.join([*known, *SHORT])}, got {name!r}")
    return dtype


def _number(text: str) -> tuple[str | None, Any]:
    """Return the name, if one is written, and the value of a literal."""
    name, _, value = text.partition("=") if re.match(r"[A-Za-z_]\w*=", text) else ("", "", text)
    try:
        return name or None, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        pass
    try:
        return name or None, float(value)  # inf and nan
    except ValueError:
        raise BadArgument(f"--number: expected a number, as 2, 1e-6 or eps=1e-6, got {text!r}") from None


def nearest(name: str, known: Iterable[str]) -> str:
    """Return words about names like an unknown one."""
    known = [*known]
    found = get_close_matches(name, known, 3, 0.5)
    if not found and len(known) > MOST_NAMES:
        return f"none of {len(known):,} names is near"
    return f"the nearest are {', '.join(found)}" if found else f"there are {', '.join(known)}"


def reason(error: BaseException) -> str:
    """Return why a call failed, on one line; torch's message about too large a tensor speaks of its source."""
    allocation = re.search(r"tried to allocate (\d+) bytes", str(error))
    if allocation:
        return f"cannot reserve {int(allocation[1]):,} bytes of address space (none is written): use a smaller shape"
    return " ".join(str(error).split()) if isinstance(error, REFUSED) and str(error) else with_type(error)


def with_type(error: BaseException) -> str:
    """Return an error in one line, as Python ends a traceback."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


def operator_named(name: str, known: Sequence[str], kind: str = "operator") -> str:
    """Return a name, if it is that of an operator or what ``kind`` says. Raises BadArgument with the nearest."""
    if name not in known:
        raise BadArgument(f"unknown {kind} {name!r}: {nearest(name, known)}")
    return name
