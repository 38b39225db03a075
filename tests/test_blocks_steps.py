"""The steps of a block: formulas as calls into given memory, their temporaries, and fewer steps for the same values."""

from __future__ import annotations

import inspect
from functools import partial
from itertools import product
from random import Random
from typing import Any

import pytest
import torch

from customops import formulas
from customops.blocks import space
from customops.blocks.lowering import Call, Number, copy, lower, operands
from customops.blocks.lowering import Ref as FormulaRef
from customops.blocks.masks import exclusive_or, keep
from customops.blocks.simplify import simplify
from customops.blocks.slots import Slot, assign_slots
from customops.blocks.steps import Memory, Pass, Ref, Step
from customops.runtime.paths import EXPONENTS

from .cases import EDGES, REDUCTIONS, ids
from .conftest import MODE

pytestmark = pytest.mark.skipif(MODE != "formulas", reason="the same whatever computes: seen once")
SHAPE = (4, 9)
NUMBERS = (0.3, 2, -1)
FULL, COLUMN, ROW = (True, True), (True, False), (False, True)


def execute(walk: Pass, leaves: list[Any], shape=SHAPE) -> None:
    """Execute a pass as one block; temporaries begin as nan."""
    program = assign_slots(walk)
    slots = [torch.empty(space.shape_of(shape, slot.varies), dtype=slot.dtype) for slot in program.slots]
    values = [*leaves, *slots, *program.constants]
    for function, inputs, out in program.instructions:
        function(*[values[i] for i in inputs], out=values[out])


def pass_of(steps: list[Step], leaves: int) -> Pass:
    return Pass([Memory(i, (SHAPE[1], 1)) for i in range(leaves)], steps, [], [], frozenset())


def lowered_pass(calls: tuple[Call, ...], result: FormulaRef, args: list, dtype: torch.dtype, varies) -> Pass:
    """Return the pass that copies tensors to temporaries, which calls may write over, and writes the result."""
    steps: list[Step] = []
    known: list[Any] = []
    for k, x in enumerate(args):
        known.append(Ref(False, len(steps)) if isinstance(x, torch.Tensor) else x)
        if isinstance(x, torch.Tensor):
            steps.append(Step(copy, (Ref(True, k),), dtype, tuple(n > 1 for n in x.shape)))
    for call in calls:
        inputs = tuple(known[x.value] if isinstance(x, FormulaRef) else x for x in call.args)
        known.append(Ref(False, len(steps)))
        steps.append(Step(call.function, inputs, call.dtype, call.varies or (False,) * len(SHAPE)))
    steps.append(Step(copy, (known[result.value],), dtype, varies, Ref(True, len(args))))
    return pass_of(steps, len(args) + 1)


def draw(varies: tuple[bool, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Return special numbers and others."""
    shape = space.shape_of(SHAPE, varies)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).flatten()
    x[::2] = torch.tensor([EDGES[(i * 5 + seed) % len(EDGES)] for i in range(len(x[::2]))])
    return x.view(shape).to(dtype)


def options(name: str) -> list:
    """Return what a parameter of a formula may be: axes along which a tensor varies, or a number."""
    if name in ("alpha", "count", "beta", "threshold"):
        return list(NUMBERS)
    return [FULL] if name in ("g", "z", "ties") else [FULL, COLUMN, ROW, 0.3]


FORMULAS = {
    name: [p.name for p in inspect.signature(function).parameters.values() if p.name not in ("out", "dim", "options")]
    for name, function in vars(formulas).items()
    if inspect.isfunction(function) and not name.startswith("_") and not name.endswith("_")
}


def assert_same_bits(got: torch.Tensor, want: torch.Tensor, name: str) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True, msg=lambda m: f"{name}: {m}")
    assert torch.equal(got.signbit() | got.isnan(), want.signbit() | want.isnan()), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=ids)
@pytest.mark.parametrize("name", FORMULAS)
def test_formulas_as_calls_into_given_memory_give_the_same_bits(name, dtype):
    formula = getattr(formulas, name)
    if name.startswith(("pow_number", "norm_power")):
        alternatives = [[FULL]] * (len(FORMULAS[name]) - 1) + [[*EXPONENTS, 0, 2.5]]
    else:
        alternatives = [options(p) for p in FORMULAS[name]]
    reductions = [(0,), (1,), (0, 1)] if name in REDUCTIONS else [()]
    taken = 0
    for kinds, reduced in product(product(*alternatives), reductions):
        if reduced and not (isinstance(kinds[0], tuple) and all(kinds[0][a] for a in reduced)):
            continue  # a reduction is over axes along which its value varies
        args = [draw(kind, dtype, k) if isinstance(kind, tuple) else kind for k, kind in enumerate(kinds)]
        try:
            want = formula(*operands(name, args, dtype), *([[*reduced], True] if reduced else ()))
        except (TypeError, AttributeError, RuntimeError):  # it takes no number there
            continue
        if not isinstance(want, torch.Tensor):
            continue  # of numbers alone
        key = tuple(kind if isinstance(kind, tuple) else Number(kind, repr(kind)) for kind in kinds)
        lowered = lower(name, key, reduced, dtype)
        assert torch.bool not in {call.dtype for call in lowered.calls}, "bool takes elements one by one"
        got = torch.empty(want.shape, dtype=dtype)
        if isinstance(lowered.result, FormulaRef):
            varies = tuple(n > 1 for n in want.shape)
            execute(lowered_pass(lowered.calls, lowered.result, args, dtype, varies), [*args, got])
        else:
            got.copy_(lowered.result)
        assert_same_bits(got, want.to(dtype), f"{name}{kinds}")
        taken += 1
    assert taken


@pytest.mark.parametrize("seed", range(40))
def test_no_step_writes_over_a_value_that_a_later_one_reads(seed):
    random = Random(seed)
    dtypes, shapes = (torch.float32, torch.float64), (FULL, COLUMN)
    steps = []
    for k in range(30):
        refs = [Ref(True, random.randrange(3))] + [Ref(False, i) for i in range(max(0, k - 6), k)]
        args = tuple(random.choice([*refs, 0.5]) for _ in range(random.randint(1, 3)))
        out = Ref(True, 3 + k) if random.random() < 0.2 else None
        steps.append(Step(partial(int), args, random.choice(dtypes), random.choice(shapes), out))
    program = assign_slots(pass_of(steps, 3 + 30))
    held: dict[int, Any] = {i: ("leaf", i) for i in range(3)}  # what lies where
    first = 33 + len(program.slots)
    held |= {first + i: number for i, number in enumerate(program.constants)}
    for k, (step, instruction) in enumerate(zip(steps, program.instructions, strict=True)):
        want = [("leaf" if x.is_leaf else "step", x.position) if isinstance(x, Ref) else x for x in step.args]
        assert [held[i] for i in instruction.inputs] == want
        held[instruction.out] = "step", k
        if step.out is None:
            assert program.slots[instruction.out - 33] == Slot(step.dtype, step.varies)
        else:
            assert instruction.out == step.out.position
    assert len(program.slots) < sum(step.out is None for step in steps), "temporaries are used again"


X, Y, Z = (Ref(True, i) for i in range(3))
OUT = Ref(True, 3)


def chain(*calls: tuple) -> list[Step]:
    """Return steps of ``(function, *args)``, where an integer -1 - k is the value of step k; the last is written."""
    steps = []
    for k, (function, *args) in enumerate(calls):
        refs = tuple(Ref(False, -1 - x) if type(x) is int and x < 0 else x for x in args)
        steps.append(Step(function, refs, torch.float32, FULL, OUT if k == len(calls) - 1 else None))
    return steps


ZERO = torch.zeros(())
RULES = {
    "x + y z": (chain((torch.mul, Y, Z), (torch.add, X, -1)), 1),
    "y z + x": (chain((torch.mul, Y, Z), (torch.add, -1, X)), 1),
    "x - y z": (chain((torch.mul, Y, Z), (torch.sub, X, -1)), 1),
    "y z - x": (chain((torch.mul, Y, Z), (torch.sub, -1, X)), 2),
    "x + 0.3 y": (chain((torch.mul, 0.3, Y), (torch.add, X, -1)), 1),
    "x - 0.3 y": (chain((torch.mul, Y, 0.3), (torch.sub, X, -1)), 1),
    "0.3 y + x": (chain((torch.mul, Y, 0.3), (torch.add, -1, X)), 1),
    "x + -y": (chain((torch.neg, Y), (torch.add, X, -1)), 1),
    "x - -y": (chain((torch.neg, Y), (torch.sub, X, -1)), 1),
    "x - (0 + 3 y z)": (chain((partial(torch.addcmul, value=3), ZERO, Y, Z), (torch.sub, X, -1)), 1),
    "x - (1 + 3 y z)": (chain((partial(torch.addcmul, value=3), ZERO + 1, Y, Z), (torch.sub, X, -1)), 2),
    "0.3 (0.7 x)": (chain((torch.mul, X, 0.7), (torch.mul, 0.3, -1)), 1),
    "-(0.7 x)": (chain((torch.mul, X, 0.7), (torch.neg, -1)), 1),
    "0.7 -x": (chain((torch.neg, X), (torch.mul, -1, 0.7)), 1),
    "(x / 3) 0.7": (chain((torch.div, X, 3), (torch.mul, -1, 0.7)), 1),
    "2 y where y = 0.3 x": (chain((torch.mul, X, 0.3), (torch.mul, -1, 2)), 1),
    "3 (x + x)": (chain((torch.add, X, X), (torch.mul, -1, 3)), 1),
    "x + 0.3 (0.7 y)": (chain((torch.mul, Y, 0.7), (torch.mul, -1, 0.3), (torch.add, X, -2)), 1),
    "x / y": (chain((torch.div, X, Y)), 1),
    "(x / 0) 2": (chain((torch.div, X, 0), (torch.mul, -1, 2)), 2),
    "1e-30 (1e-30 x)": (chain((torch.mul, X, 1e-30), (torch.mul, -1, 1e-30)), 2),
    "1e30 (1e30 x)": (chain((torch.mul, X, 1e30), (torch.mul, -1, 1e30)), 2),
    "10^15 (10^15 x)": (chain((torch.mul, X, 10**15), (torch.mul, -1, 10**15)), 1),
    "x True": (chain((torch.mul, X, True), (torch.mul, -1, 2)), 2),
    "y z is read twice": (chain((torch.mul, Y, Z), (torch.add, X, -1), (torch.mul, -1, -2)), 3),
    "x > 0, twice": (chain((torch.gt, X, 0), (torch.gt, X, 0), (torch.add, -1, -2)), 2),
    "x > 0 and x > -0": (chain((torch.gt, X, 0.0), (torch.gt, X, -0.0), (torch.add, -1, -2)), 3),
    "whether x > y is not 0": (chain((torch.gt, X, Y), (torch.ne, -1, 0), (torch.mul, -2, Z)), 2),
    "whether x > y is not 1": (chain((torch.gt, X, Y), (torch.ne, -1, 1), (torch.mul, -2, Z)), 3),
    "whether x y is not 0": (chain((torch.mul, X, Y), (torch.ne, -1, 0), (torch.mul, -2, Z)), 3),
    "1 x + y 1.0": (chain((torch.mul, 1, X), (torch.mul, Y, 1.0), (torch.add, -1, -2)), 1),
    "y ^ (x ^ y) + z": (chain((exclusive_or, X, Y), (exclusive_or, -1, Y), (torch.add, -2, Z)), 1),
    "z ^ (x ^ y)": (chain((exclusive_or, X, Y), (exclusive_or, -1, Z)), 2),
    "x where y > 0, else x": (
        chain((torch.gt, Y, 0), (exclusive_or, X, X), (keep, -2, -1), (exclusive_or, -3, X)),
        1,
    ),
    "what nothing reads": (chain((torch.exp, X), (torch.mul, Y, Z), (torch.neg, -2)), 2),
}


@pytest.mark.parametrize("name", RULES, ids=lambda name: name.replace(" ", ""))
def test_simpler_steps_have_the_values_of_those_written(name):
    steps, count = RULES[name]
    simpler = simplify(pass_of(steps, 4))
    assert len(simpler.steps) == count
    xs = [torch.randn(SHAPE) * 2.0 ** (5 * i) for i in range(3)]
    xs[0][0, :3] = torch.tensor([0.0, 3e38, -3e38])
    got, want = torch.empty(SHAPE), torch.empty(SHAPE)
    execute(simpler, [*xs, got])
    execute(pass_of(list(steps), 4), [*xs, want])
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-5, equal_nan=True)


def test_a_product_that_is_a_result_stays_a_step():
    product_, total = chain((torch.mul, Y, Z), (torch.add, X, -1))
    steps = [product_._replace(out=Ref(True, 4)), total]
    assert simplify(pass_of(steps, 5)).steps == steps


def test_a_term_in_another_dtype_is_added_as_it_is():
    wide, total = chain((torch.mul, Y, Z), (torch.add, X, -1))
    steps = [wide._replace(dtype=torch.float64), total]
    assert simplify(pass_of(steps, 5)).steps == steps
