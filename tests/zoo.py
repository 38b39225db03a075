"""Layers of transformers that ``fuse`` takes, as a number: python -m tests.zoo [--refused] [NAME OF A MODEL ...].

It looks at all functions and modules of the modelling files in the installed package that can be called with tensors
alone, and of which torch computes nothing but formulas of elements, reductions, views and concatenations.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from textwrap import dedent
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import customops
from customops.blocks import plan

from .compare import TOLERANCE, cotangent

WIDTH = 8  # of what is normalized, and the value of each number that a class asks for
# The shapes of the tensors that a call is tried with, in order; the last one is for all further ones.
SHAPES = [
    [(2, 6, WIDTH)],
    [(2, WIDTH, 6, WIDTH)],
    [(2, 4, 6, WIDTH), (2, 4, 6, WIDTH), (2, 6, WIDTH)],
    [(2, 6, 4, WIDTH), (6, WIDTH)],
    [(6, 4, WIDTH), (6, 4, WIDTH), (6, WIDTH)],
]
TAGS = {torch.Tag.pointwise, torch.Tag.reduction}  # of torch's operators, those that formulas and reductions have
OTHERS = {  # that have no such tag, nor are they views
    *("cat", "stack", "_to_copy", "copy_", "_unsafe_view", "lift_fresh", "detach", "glu", "_softmax", "_log_softmax"),
    *("native_layer_norm", "native_group_norm", "_fused_rms_norm", "full", "full_like", "zeros_like", "ones_like"),
}
KINDS = {"norm": "norms", "rot": "rotary embeddings", "act": "activations", "lu": "activations"}


class Found(NamedTuple):
    """A function or module of a modelling file."""

    model: str  # the name of the model's package
    name: str
    make: Callable[[], Callable]  # returns it: of a module each time another one, with equal parameters
    text: str  # its program, without its name and docstrings: copies have equal ones
    parameters: tuple[str, ...]  # what it takes that has no default

    @property
    def kind(self) -> str:
        """Which row of the table it is counted in."""
        return next((kind for word, kind in KINDS.items() if word in self.name.lower()), "others")


class Operators(TorchDispatchMode):
    """A mode that tells whether formulas of elements, reductions and views were all that torch computed."""

    def __init__(self):
        super().__init__()
        self.computes, self.others = False, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Call the operator, and look at its tags."""
        name = function.overloadpacket.__name__
        self.computes |= not function.is_view
        if not (function.is_view or TAGS.intersection(function.tags) or name in OTHERS):
            self.others.add(name)
        return function(*args, **(kwargs or {}))


def modelling_files(models: list[str]) -> Iterator[tuple[str, ModuleType]]:
    """Yield the modelling files of these models, or of all, as modules; those that ask for other packages are not."""
    root = Path(importlib.import_module("transformers").__file__).parent
    yield "activations", importlib.import_module("transformers.activations")
    for path in sorted(root.glob("models/*/modeling_*.py")):
        if not models or path.parent.name in models:
            with suppress(ImportError):
                yield path.parent.name, importlib.import_module(f"transformers.models.{path.parent.name}.{path.stem}")


def found_in(model: str, module: ModuleType) -> Iterator[Found]:
    """Yield the functions and the classes of modules that are defined in a file, and can be called with tensors."""
    for name, x in vars(module).items():
        if getattr(x, "__module__", None) != module.__name__ or name != getattr(x, "__name__", None):
            continue
        if isinstance(x, FunctionType):
            yield Found(model, name, lambda x=x: x, program_of(x), required(x))
        elif isinstance(x, type) and issubclass(x, nn.Module):
            made = instance(x)
            if made is not None:
                yield Found(model, name, lambda m=made: copy.deepcopy(m), program_of(x), required(made.forward))


def instance(cls: type[nn.Module]) -> nn.Module | None:
    """Return a module of the class made with numbers alone, None where it asks for more."""
    for numbers in (len(required(cls.__init__)) - 1, 1):
        with ignoring_errors():
            return initialized(cls(*[WIDTH] * numbers))
    return None


@contextmanager
def ignoring_errors() -> Iterator[None]:
    """Ignore what is raised inside; transformers has an error of a missing package that is no Exception."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:
        return


def required(function: Callable) -> tuple[str, ...]:
    """Return the parameters that have no default, and gates, which norms take and do not need."""
    parameters = inspect.signature(function).parameters.values()
    given = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return tuple(p.name for p in given if p.default is p.empty or p.name == "gate")


def initialized(module: nn.Module) -> nn.Module:
    """Return the module with parameters that are not all 0 or 1, small ones for those that are large."""
    if sum(p.numel() for p in module.parameters()) > 1000:
        raise ValueError("it has weights, which are multiplied with as matrices")
    for parameter in module.parameters():
        with torch.no_grad():
            parameter.copy_(torch.rand(parameter.shape) + 0.5)
    return module


def program_of(x: Any) -> str:
    """Return the program of a function or class, without its name, decorators and docstrings."""
    (tree,) = ast.parse(dedent(inspect.getsource(x))).body
    name, tree.name, tree.decorator_list = tree.name, "", []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        if isinstance(node, ast.arg):
            node.annotation = None
    return ast.dump(tree).replace(name, "")


def tensors_for(found: Found) -> list[Tensor] | None:
    """Return tensors that it can be called with, None where it asks for others, or computes something else."""
    for shapes in SHAPES:
        generator = torch.Generator().manual_seed(0)
        each = [shapes[min(k, len(shapes) - 1)] for k in range(len(found.parameters))]
        xs = [torch.randn(shape, generator=generator) for shape in each]
        with ignoring_errors(), Operators() as seen:
            zs = results(found.make()(*xs))
            if zs and all(z.is_floating_point() for z in zs) and seen.computes:
                return None if seen.others else xs
    return None


def results(z: Any) -> list[Tensor]:
    """Return the tensors that a call returned; TypeError where it returned anything else."""
    zs = list(z) if isinstance(z, tuple | list) else [z]
    if not all(isinstance(z, Tensor) for z in zs):
        raise TypeError(f"it returned {z}")
    return zs


def computed(function: Callable, xs: list[Tensor]) -> list[Tensor]:
    """Return the results, and the gradients of tensors and parameters, zeros where there is none."""
    xs = [x.clone().requires_grad_() for x in xs]
    zs = results(function(*xs))
    leaves = [*xs, *(function.parameters() if isinstance(function, nn.Module) else ())]
    live = [z for z in zs if z.requires_grad]
    grads = torch.autograd.grad(live, leaves, [cotangent(z) for z in live], materialize_grads=True) if live else []
    return [*zs, *grads]


def outcome(found: Found, xs: list[Tensor]) -> str:
    """Return "equal" where the fused function has torch's values and gradients, else what happened."""
    want = computed(found.make(), xs)
    try:
        got = computed(customops.fuse(found.make()), xs)
    except customops.FusionError as error:
        return f"refused: {error}"
    except Exception as error:
        return f"raised: {error!r}"
    if not any(type(z.grad_fn).__name__ == "FusedFunctionBackward" for z in got):
        return "computed one operator after the other"
    try:
        torch.testing.assert_close(got, want, equal_nan=True, **TOLERANCE[torch.float32])
    except AssertionError as error:
        return f"differs: {error}"
    return "equal"


def survey(models: list[str]) -> tuple[int, list[tuple[list[Found], str]]]:
    """Return how many files were looked at, and what was found there: copies of one program, and its outcome."""
    files, by_text = 0, {}
    for model, module in modelling_files(models):
        files += 1
        for found in found_in(model, module):
            by_text.setdefault(found.text, []).append(found)
    tensors = [(copies, tensors_for(copies[0])) for copies in by_text.values()]
    return files, [(copies, outcome(copies[0], xs)) for copies, xs in tensors if xs is not None]


def table(files: int, surveyed: list[tuple[list[Found], str]]) -> Iterator[str]:
    """Yield the lines of the table."""
    yield f"| {files} files of transformers {importlib.import_module('transformers').__version__} | all | distinct |"
    yield "|---|---:|---:|"
    for kind in (*dict.fromkeys(KINDS.values()), "others", "all"):
        rows = [(copies, said == "equal") for copies, said in surveyed if kind in (copies[0].kind, "all")]
        each = sum(len(copies) for copies, equal in rows if equal), sum(len(copies) for copies, _ in rows)
        yield f"| {kind} | {each[0]} of {each[1]} | {sum(equal for _, equal in rows)} of {len(rows)} |"


def main(arguments: list[str]) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.zoo", description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="*", help="names of models; all, if there is none")
    parser.add_argument("--refused", action="store_true", help="print what is not taken, and why")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    plan.LEAST_ELEMENTS = 0, 0  # small tensors are computed by blocks, too
    files, surveyed = survey(options.models)
    for copies, said in surveyed if options.refused else ():
        if said != "equal":
            print(f"{len(copies)} x {copies[0].model}: {copies[0].name}: {said}\n")
    print(*table(files, surveyed), sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
