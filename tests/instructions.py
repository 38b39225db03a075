"""Instructions of each formula for an element, counted in compiled code: ``python -m tests.instructions`` prints them.

They are those that a thread executes of a kernel for :data:`TARGET`, as the estimate of a launch has them: on the usual
way through it, without the paths for special numbers. Those of a copy of as many tensors are taken off. No assertions.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence

import torch

import customops
from customops import formulas
from customops.compiler.executable import Executable
from customops.compiler.graph import Constant, Graph, Input, Op
from customops.compiler.saving import INSTRUCTIONS
from customops.runtime.rules import parameters
from customops.runtime.specs import TensorSpec

from .cases import REDUCTIONS

TARGET = "cuda:90"
ELEMENTS = 1 << 20
NUMBERS = {"alpha": 3, "beta": 1.5, "threshold": 20.0, "low": -1.0, "high": 1.0, "count": 1000}
EXPONENTS = {"pow_number": 3, "pow_number_dx": 3, "norm_power": 0.5, "norm_power_dx": 0.5}
FORMULAS = [
    name
    for name, function in vars(formulas).items()
    if inspect.isfunction(function) and name[0] != "_" and name[-1] != "_" and name not in (*REDUCTIONS, "full_like")
]


def instructions_of(formula: str) -> float:
    """Return how many instructions a formula takes for an element."""
    names = parameters(getattr(formulas, formula))
    numbers = NUMBERS | ({"y": EXPONENTS[formula]} if formula in EXPONENTS else {})
    tensors = [name for name in names if name not in numbers]
    graph, inputs = _graph_of(tensors)
    at = dict(zip(tensors, inputs, strict=True))
    operands = tuple(at[name] if name in at else graph.add(Constant(numbers[name])) for name in names)
    return _of_a_kernel(graph, graph.add(Op(formula, operands)), inputs) - _of_a_copy(len(tensors))


def _graph_of(names: Sequence[str]) -> tuple[Graph, list[int]]:
    graph = Graph({0: ELEMENTS})
    return graph, [graph.add(Input(name, (0,))) for name in names]


def _of_a_copy(count: int) -> float:
    """Return the instructions of a kernel that loads so many tensors and stores one, for an element."""
    graph, inputs = _graph_of([f"x{k}" for k in range(count)])
    total = inputs[0] if count > 1 else graph.add(Op("neg", (inputs[0],)))
    for x in inputs[1:]:
        total = graph.add(Op("add", (total, x, graph.add(Constant(1)))))
    return _of_a_kernel(graph, total, inputs) - max(1, count - 1)


def _of_a_kernel(graph: Graph, value: int, inputs: Sequence[int]) -> float:
    graph.results.append((value, (0,)))
    tensors = {i: torch.empty(ELEMENTS) for i in inputs}
    spec = TensorSpec(torch.Size([ELEMENTS]), (1,), torch.float32, torch.device("cpu"))
    with customops.dry_run(TARGET) as records, customops.backend("triton"):
        Executable(graph, tensors, [spec], torch.float32, distinct=True)([*tensors.values()])
    (record,) = records
    return record.estimate.instructions_per_element


def main(names: Sequence[str]) -> None:
    """Print the instructions of these formulas, or of all, beside those that saving has."""
    for name in names or FORMULAS:
        print(f"{name:16} {instructions_of(name):6.1f} {INSTRUCTIONS.get(name, 1):4}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
