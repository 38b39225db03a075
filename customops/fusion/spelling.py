"""What torch's own functions and methods mean inside ``fuse``: the operators of the package, found by their names."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from importlib import import_module
from inspect import signature
from threading import local
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import resolve_name

from .casts import example_of
from .constants import LIKE, NEW, factory
from .errors import FusionError, untraceable
from .proxy import COMPARISONS, ELSEWHERE, LOGICAL, REFUSED_SIGNS, Traced, reshape
from .reshaping import FUNCTIONS

PLACES = torch, Tensor, torch.special, functional  # where torch has functions
ALIASES = {  # other names that torch has for an operator
    "absolute": "abs",
    "clip": "clamp",
    "divide": "div",
    "expit": "sigmoid",
    "greater": "gt",
    "greater_equal": "ge",
    "less": "lt",
    "less_equal": "le",
    "multiply": "mul",
    "negative": "neg",
    "not_equal": "ne",
    "subtract": "sub",
    "true_divide": "div",
}
DROPOUTS = frozenset(  # of torch, or of its functional
    {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout", "feature_alpha_dropout"}
)
PARAMETERS = {
    "train": "training",
    "axis": "dim",
    "keepdims": "keepdim",
    "a": "input",
    "x": "input",
    "x1": "input",
    "x2": "other",
}
OPTIONS = frozenset({"inplace", "out", "rounding_mode", "_stacklevel"})  # that may be left out where they say nothing
WRITING = {"out": ", as it writes to a tensor", "inplace": ", as it writes over a tensor"}
FACTS = frozenset(  # what a tensor's dtype and device alone answer
    {"itemsize", "element_size", "get_device", "layout", "is_cpu", "is_meta", "is_mps", "is_xpu", "is_sparse"}
    | {"is_quantized", "is_nested"}
)
SIGNS = frozenset(
    f"__{r}{name}__" for name in ("add", "sub", "mul", "truediv", "pow", *LOGICAL, *REFUSED_SIGNS) for r in ("", "r")
)
KINDS = {  # by what a function is called: what it does that formulas of elements cannot
    r"\w*(mm|mv|matmul|matmul__|dot|einsum|linear|attention|cdist)": "it is a matrix product",
    r"(gather|index|take|embedding|scatter|masked_s|nonzero|argwhere|one_hot|bucketize|searchsorted|put)\w*": (
        "it reads or writes elements by index"
    ),
    r"\w*(dropout|rand|bernoulli|normal_?$|poisson|multinomial|gumbel|rrelu|uniform|exponential_)\w*": (
        "it takes random numbers"
    ),
    r"(cum|logcum|diff|trapez)\w*": "it adds up along an axis, element by element",
    r"(arg|m)?sort|topk|kthvalue|\w*median|mode|\w*quantile|unique\w*|argm\w\w|histc|bincount": (
        "it looks for the order of elements"
    ),
    r"(conv|unfold|fold|pad|interpolate|grid_sample|upsample|pixel)\w*|\w*pool\w*": "it reads an element's neighbours",
    r"(fft|linalg)\w*|inverse|\w*det|svd|qr|cholesky\w*": "it is no formula of elements",
    r"(floor|ceil|round|trunc|frac|fix|fmod|remainder)\w*": "it rounds to whole numbers",
    r"item|tolist|numpy|__array__|equal|allclose|is_nonzero|any|all": "values are not known yet",
}
INSTEAD = {"values are not known yet": "pass a number as an argument"}


class _Asked(local):
    """The functions of torch whose meaning is being called in this thread."""

    functions: tuple = ()


_asked = _Asked()


def call(function: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Return what torch's ``function`` of stand-ins means; raises FusionError where it means nothing."""
    if function in FUNCTIONS and kwargs.get("out") is None:
        return reshape(FUNCTIONS[function], args, kwargs)
    meaning = table().get(function)
    if meaning is None or (kwargs and not OPTIONS.isdisjoint(kwargs)):
        _refuse_options(function, kwargs)
    if meaning is None:
        raise refusal(_path(function), function.__name__)
    before = _asked.functions
    if function in before:  # an operator asks torch for its error
        function(*map(example_of, args), **{name: example_of(x) for name, x in kwargs.items()})
        raise refusal(_path(function), function.__name__)
    _asked.functions = *before, function
    try:
        return meaning(*args, **(arguments(meaning, kwargs) if kwargs else {}))
    finally:
        _asked.functions = before


def _path(function: Callable) -> str:
    return resolve_name(function) or f"torch's {function.__name__}"


def _refuse_options(function: Callable, kwargs: dict[str, Any]) -> None:
    """Raise where ``kwargs`` ask for what no trace has."""
    for option, reason in WRITING.items():
        if kwargs.get(option) is not None and kwargs[option] is not False:
            raise untraceable(f"{_path(function)} with {option}= cannot be traced{reason}", "leave it out")
    if kwargs.get("rounding_mode"):
        raise untraceable(f"{_path(function)} with a rounding_mode cannot be traced", ELSEWHERE)


def attribute(x: Any, name: str) -> Any:
    """Return a tensor's attribute of this name, of the stand-in ``x``."""
    if name in FACTS:
        return getattr(x.example(), name)
    function = getattr(Tensor, name)  # AttributeError as a tensor's
    if function in table():
        return lambda *args, **kwargs: call(function, (x, *args), kwargs)
    path = f"Tensor.{name}()" if callable(function) else f"Tensor.{name}"
    raise refusal(path, name)


def refusal(path: str, name: str) -> FusionError:
    """Return the error of what has no meaning in a trace: it says what that does, and what would work."""
    if name.strip("_") in COMPARISONS:
        return untraceable("comparing values cannot be traced", "use maximum, minimum, relu, abs; or `is`")
    twin = getattr(Tensor, name.removesuffix("_"), None) if name.endswith("_") and name[:1] != "_" else None
    if callable(twin):
        sign = "x = x." + name.removesuffix("_") + "(...)"
        return untraceable(f"{path} cannot be traced, as it writes over a tensor", f"write {sign}")
    kind = next((kind for pattern, kind in KINDS.items() if re.fullmatch(pattern, name)), None)
    reason = f", as {kind}" if kind else ""
    return untraceable(f"{path} cannot be traced{reason}", INSTEAD.get(kind or "", ELSEWHERE))


@cache
def table() -> dict[Any, Callable]:
    """Return the meaning of each of torch's functions and methods that has one."""
    found = {
        function: meaning for name, meaning in {**_named(), **_methods()}.items() for function in functions_named(name)
    }
    if "where" in operators():  # the method has its condition second
        found[Tensor.where] = _where
    if "vector_norm" in operators():  # which has the name of torch.norm, too
        found |= {torch.linalg.vector_norm: operators()["vector_norm"], torch.linalg.norm: _norm}
    return found


def functions_named(name: str) -> list[Callable]:
    """Return torch's functions and methods of a name."""
    return [function for place in PLACES if callable(function := getattr(place, name, None))]


@cache
def operators() -> dict[str, Callable]:
    """Return the public functions of the package and of its ``nn.functional``, by name; none that writes."""
    return {name: x for name, x in _public().items() if not name.endswith("_")}


def in_place_operators() -> dict[str, Callable]:
    """Return those that write over their first argument, by name, and by other names that torch has."""
    found = {name: x for name, x in _public().items() if name.endswith("_")}
    return found | {f"{name}_": found[f"{x}_"] for name, x in ALIASES.items() if f"{x}_" in found}


def _public() -> dict[str, Callable]:
    package = __name__.partition(".")[0]
    modules = import_module(package), import_module(f"{package}.nn.functional")
    public = {name: getattr(module, name) for module in modules for name in module.__all__}
    return {name: x for name, x in public.items() if isinstance(x, FunctionType)}


def _named() -> dict[str, Callable]:
    """Return the meanings of torch's functions that are no methods of a stand-in, by name."""
    known = operators()
    found = {name: factory(name) for name in (*LIKE, *NEW)}
    found |= {name: known[alias] for name, alias in ALIASES.items() if alias in known}
    if "where" in known:
        found |= {"masked_fill": _masked_fill}
    found |= {name: _dropout(name) for name in DROPOUTS}
    return found | {"rsub": _rsub} | known


def _methods() -> dict[str, Callable]:
    """Return the methods of a stand-in that tensors have, too, by name; Python's signs among them."""
    names = (name for name in dir(Traced) if name in SIGNS or not name.startswith("_"))
    return {name: x for name in names if isinstance(x := getattr(Traced, name), FunctionType)}


def arguments(meaning: Callable, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return keyword arguments by the names that ``meaning`` has for them, without torch's options that say nothing."""
    names = parameters(meaning)
    if names is None:
        return kwargs
    renamed = {name if name in names else PARAMETERS.get(name, name): x for name, x in kwargs.items()}
    return {name: x for name, x in renamed.items() if name in names or not _says_nothing(name, x)}


def _says_nothing(name: str, x: Any) -> bool:
    return name == "_stacklevel" or (name in OPTIONS and (x is None or x is False))


@cache
def parameters(meaning: Callable) -> frozenset[str] | None:
    """Return the names of a function's parameters, None if it takes all names."""
    known = signature(meaning).parameters
    takes_all = any(p.kind == p.VAR_KEYWORD for p in known.values())
    return None if takes_all else frozenset(known)


def _dropout(name: str) -> Callable:
    """Return what torch's function of this name means: nothing, outside of training."""
    trains = "alpha" not in name  # by default

    def dropped(input: Any, p: float = 0.5, training: bool = trains) -> Any:
        if training and p:
            raise refusal(f"torch.nn.functional.{name}", name)
        return input

    return dropped


def _rsub(input: Any, other: Any, *, alpha: Any = 1) -> Any:
    return operators()["sub"](other, input, alpha=alpha)


def _where(input: Any, condition: Any, other: Any) -> Any:
    return operators()["where"](condition, input, other)


def _norm(
    input: Any, ord: Any = None, dim: Any = None, keepdim: bool = False, *, out: Any = None, dtype: Any = None
) -> Any:
    """Return ``torch.linalg.norm(...)`` of vectors: of all elements, where there is no order."""
    if ord is not None and not isinstance(dim, int) and (input.dim() if dim is None else len(dim)) != 1:
        raise untraceable("a norm of matrices cannot be traced, as it is no formula of elements", ELSEWHERE)
    return operators()["vector_norm"](input, 2 if ord is None else ord, dim, keepdim, out=out, dtype=dtype)


def _masked_fill(input: Any, mask: Any, value: Any) -> Any:
    return operators()["where"](mask, value, input)
