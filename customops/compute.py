"""Kernel or torch formula: the ways an operator computes, none of which knows which operator it is."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Container, Iterable, Sequence
from functools import cache, lru_cache
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import blocks, shards
from .dispatch import ALIGNMENT, features, has_kernel, is_idle, is_unseen
from .memory import empty
from .shards import JOINED, Spread, without

MOST_PLANS = 1 << 14
HALVES = frozenset({torch.float16, torch.bfloat16})

Like = tuple[torch.Size, torch.dtype]


def like_of(x: Tensor) -> Like:
    """What a gradient has to know of ``x``."""
    return x.shape, x.dtype


class Spec(NamedTuple):
    """A tensor without its memory."""

    shape: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class _Call(NamedTuple):
    """What a call like an earlier one does: the launches, and the tensors they write."""

    plan: Callable[[Sequence, Sequence[Tensor]], None]
    outputs: tuple[Spec, ...]

    def __call__(self, args: Sequence) -> list[Tensor]:
        outputs = [empty(*spec) for spec in self.outputs]
        self.plan(args, outputs)
        return outputs


def pointwise(formula: Callable, *args, out: Tensor | None = None) -> Tensor:
    """``formula`` on tensors and numbers, broadcast together."""
    found = features(args if out is None else (*args, out))
    if found and (out is None or _suits(out, args)):
        key = formula, found
        call = _calls.get(key)
        if call is None:
            call = remember(key, has_kernel(formula.__name__, args, out) and _plan_pointwise(formula, args))
        if call:
            (z,) = call(args)
            return z if out is None else torch.maximum(z, z, out=out)  # torch's own resizing and casts
    elif out is None and (spread := shards.find(args)) and (like := _outline(formula, args, {})):
        z = pointwise(formula, *map(spread.local, args))
        return spread.join(z, like, spread.placements(like.shape))
    return formula(*args) if out is None else formula(*args, out=out)


def pointwise_(formula: Callable, twin: Callable, x: Tensor, *args) -> Tensor:
    """``formula`` on ``x`` and the rest, written over ``x``; ``twin`` is torch's own way to do so."""
    args = x, *args
    found = features(args)
    if found:
        key = formula, twin, found
        call = _calls.get(key)
        if call is None:
            call = remember(key, has_kernel(formula.__name__, args, x) and _plan_in_place(formula, args))
        if call:
            call.plan(args, (x,))
            if not x.is_inference():
                torch.autograd.graph.increment_version(x)
            return x
    return twin(*args)


class Rule(NamedTuple):
    """Derivatives that are taken in one pass, and the names of what they read: g, then tensors, then numbers.

    Tensors come in the order in which torch saves them, y first: a checkpoint pairs by it what two passes saved, one of
    which may have run under a mode, where torch's operator answers.
    ``steps`` has with each derivative the positions of its arguments among those values.
    """

    derivatives: tuple[Callable, ...]
    names: tuple[str, ...]
    steps: tuple[tuple[Callable, tuple[int, ...]], ...]

    @classmethod
    def of(cls, derivatives: tuple[Callable, ...], numbers: Container[str] = ()) -> Rule:
        """The rule of these derivatives, where what ``numbers`` names are numbers."""
        read = {name for derivative in derivatives for name in parameters(derivative)}
        names = tuple(sorted(read, key=lambda name: (name in numbers, "gyxz".find(name))))
        return cls(derivatives, names, tuple((d, tuple(map(names.index, parameters(d)))) for d in derivatives))


def picker(positions: Iterable[int]) -> Callable[[Sequence], Sequence]:
    """What picks these positions out of a tuple, as a tuple, without a Python frame."""
    positions = tuple(positions)
    if len(positions) > 1:
        return itemgetter(*positions)
    return itemgetter(slice(positions[0], positions[0] + 1) if positions else slice(0))


def pointwise_vjp(rule: Rule, values: Sequence, likes: Sequence[Like]) -> list[Tensor]:
    """The gradients that ``rule`` gives of ``values``, each summed to the shape of its input, in one pass."""
    g = values[0]
    found = None if is_idle(g) else features(values)
    if found:
        key = rule.derivatives, found, *likes
        plan = _calls.get(key)
        if plan is None:
            plan = remember(key, has_kernel(rule.derivatives[0].__name__, values) and _plan_vjp(rule, values, likes))
        if plan:
            kept, call = plan
            made = iter(call(values) if call else ())
            return [g if keeps else next(made) for keeps in kept]
    elif (spread := shards.find(values)) and _is_joint(rule, values, spread):
        return _vjp_on_shards(rule, values, likes, spread)
    if likes[0][1] is not g.dtype or likes[-1][1] is not g.dtype:
        values = widened(values)
    conjugates = g.is_complex()  # as it is where anything is; a cotangent goes in and comes out conjugated
    if conjugates:
        values = (g.conj(), *values[1:])
    grads: list[Any] = [None] * len(likes)
    turns = range(len(likes))
    if len(likes) > 1 and likes[0][0] == g.shape:
        turns = turns[::-1]  # what may be summed first, so that it is gone before the next is made
    large = g.numel() >= blocks.LARGE and is_unseen(values)
    for i in turns:
        derivative, positions = rule.steps[i]
        arguments = [values[k] for k in positions]
        grad = blocks.derive(derivative, arguments, likes[i][0]) if large else derivative(*arguments)
        if conjugates:
            grad = grad.conj()
        grads[i] = grad if like_of(grad) == likes[i] else _fit(grad, *likes[i])
    return grads


def _vjp_on_shards(rule: Rule, values: Sequence, likes: Sequence[Like], spread: Spread) -> list[Tensor]:
    """``pointwise_vjp`` on the parts that are here; what is summed over an axis is summed later over processes."""
    g, *_ = values
    here = [spread.local(value) for value in values]
    grads = pointwise_vjp(rule, here, [(spread.local_shape(shape, here[0].shape), dtype) for shape, dtype in likes])
    full = torch.empty_like(on_meta(spec_of(g))).stride()
    joined = []
    for grad, (shape, dtype) in zip(grads, likes, strict=True):
        like = Spec(shape, full if shape == g.shape else contiguous(shape), dtype, grad.device)
        # g itself where it is the gradient: in another guise of its memory autograd would accumulate
        joined.append(g if grad is here[0] else spread.join(grad, like, spread.placements(shape, "sum")))
    return joined


def _is_joint(rule: Rule, values: Sequence, spread: Spread) -> bool:
    """Whether the values of each derivative by itself line up as all of them do: torch goes by those."""
    return all(shards.align([values[k] for k in arguments]) == spread for _, arguments in rule.steps)


def widened(values: Sequence) -> Sequence:
    """``values``, those of a half type in the dtype of the first: autocast takes a wider result of what it read."""
    dtype = values[0].dtype
    return [x.to(dtype) if isinstance(x, Tensor) and x.dtype in HALVES else x for x in values]


def reduce(formula: Callable, x: Tensor, *dim, dtype: torch.dtype | None = None, out: Tensor | None = None) -> Tensor:
    """``formula`` over axes: over all of them where ``dim`` is empty, else it holds the axes and ``keepdim``."""
    options: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    if out is not None:
        options["out"] = out
    found = features((x,) if out is None else (x, out))
    usual = _are_axes(*dim) and (dtype is None or isinstance(dtype, torch.dtype))
    if found and usual and (out is None or _suits(out, (x,))):
        axes = tuple(tuple(d) if isinstance(d, list) else d for d in dim)
        key = formula, found, axes, tuple(map(type, dim)), dtype
        call = _calls.get(key)
        if call is None:
            runs = has_kernel(formula.__name__, (x,), out, dtype)
            call = remember(key, runs and _plan_reduce(formula, x, axes, options))
        if call:
            (z,) = call((x,))
            return z if out is None else torch.maximum(z, z, out=out)
    elif usual and out is None and (spread := shards.find((x,))) and (like := _outline(formula, (x, *dim), options)):
        return _reduce_on_shards(formula, x, dim, options, spread, like)
    return formula(x, *dim, **options)


def _reduce_on_shards(
    formula: Callable, x: Tensor, dim: tuple, options: dict[str, Any], spread: Spread, like: Spec
) -> Tensor:
    """``reduce`` of the part that is here; what is reduced over a sharded axis is joined later over processes."""
    joined = JOINED[formula.__name__]
    uneven = any(x.shape[dim] % n for dim, n in spread.parts().items())
    if joined == "avg" and uneven:  # averages of unequal parts do not average
        return formula(x, *dim, **options)
    z = reduce(formula, spread.local(x), *dim, **options)
    placements = spread.placements(kept_shape(x.shape, *dim), joined)
    if len(like.shape) < x.dim():
        placements = without(placements, reduced_axes(x.dim(), *dim))
    return spread.join(z, like, placements)


@lru_cache(maxsize=4096)
def kept_shape(shape: torch.Size, axes: Any = (), keepdim: bool = False) -> torch.Size:
    """``shape`` with 1 for each axis that a reduction runs over."""
    reduced = reduced_axes(len(shape), axes, keepdim)
    return torch.Size(1 if a in reduced else n for a, n in enumerate(shape))


def reduced_axes(rank: int, axes: Any = (), _keepdim: bool = False) -> set[int]:
    """The axes that a reduction runs over, which is every one where none is named."""
    axes = (axes,) if isinstance(axes, int) else axes
    return {a % rank for a in axes} if axes and rank else set(range(rank))


_calls: dict[tuple, Any] = {}  # by what they depend on; False where torch answers
recall = _calls.get


def remember(key: tuple, call: Any) -> Any:
    """Keep ``call`` for its like; a model that never repeats a shape must not fill the memory."""
    if len(_calls) >= MOST_PLANS:
        _calls.clear()
    _calls[key] = call
    return call


def _plan_pointwise(formula: Callable, args: tuple) -> _Call:
    spec = _ask_torch(formula, args)
    return _Call(_plan([formula], _named(formula, args), [spec], spec), (spec,))


def _plan_in_place(formula: Callable, args: tuple) -> _Call | bool:
    """False where torch would refuse to write the result over the first argument."""
    x, spec = args[0], _ask_torch(formula, args)
    if spec.shape != x.shape or not torch.can_cast(spec.dtype, x.dtype):
        return False
    return _Call(_plan([formula], _named(formula, args), [x], spec), ())


def _plan_vjp(rule: Rule, values: Sequence, likes: Sequence[Like]):
    """Which gradients are g itself, and how to make the others; None where there are none."""
    g, named = values[0], dict(zip(rule.names, values, strict=True))
    pairs = list(zip(rule.derivatives, likes, strict=True))
    whole = g.shape, g.dtype
    kept = [like == whole and is_identity(derivative, _others(derivative, named)) for derivative, like in pairs]
    made = [pair for pair, keeps in zip(pairs, kept, strict=True) if not keeps]
    if not made:
        return kept, None
    full = torch.empty_like(g, device="meta").stride()
    grads = [
        Spec(shape, full if shape == g.shape else contiguous(shape), dtype, g.device) for _, (shape, dtype) in made
    ]
    return kept, _Call(_plan([derivative for derivative, _ in made], named, grads, spec_of(g)), tuple(grads))


def _plan_reduce(formula: Callable, x: Tensor, dim: tuple, options: dict[str, Any]) -> _Call:
    spec = _ask_torch(formula, (x, *dim), **options)
    kept = kept_shape(x.shape, *dim)
    total = Spec(kept, contiguous(kept), spec.dtype, x.device)
    count = x.numel() // kept.numel()
    plan = _plan([], {"x": x}, [total], spec._replace(shape=x.shape), (formula.__name__, count))
    return _Call(plan, (spec._replace(strides=contiguous(spec.shape)),))


def _plan(formulas: Sequence[Callable], values: dict[str, Any], outputs: Sequence, spec: Spec, fold=("sum", 1)):
    """A plan of the kernels: ``formulas`` over ``spec.shape`` in ``spec.dtype``, folded where an output broadcasts.

    By default summed; ``fold`` names a reduction, and of how many elements. Without formulas, of the only value.
    """
    from .triton_kernels import launch  # noqa: PLC0415 - Triton is imported by the first kernel
    from .triton_kernels.layout import expand  # noqa: PLC0415

    def memory(x):
        if isinstance(x, Tensor):  # a 0-dim CPU tensor among GPU tensors is a number
            return launch.Memory(x.dtype, x.data_ptr() % ALIGNMENT == 0) if x.device == spec.device else None
        return launch.Memory(x.dtype) if isinstance(x, Spec) else None

    shape = tuple(spec.shape)
    arguments = [memory(x) for x in (*values.values(), *outputs)]
    fixed = {name for f in formulas if (name := launch.compiled_in(f.__name__))}
    read = {name for f in formulas for name in parameters(f)} - fixed or set(values)
    operands = [
        launch.Operand(i, expand(shape, x.shape, _strides(x)) if arguments[i] else None, name)
        for i, (name, x) in enumerate(values.items())
        if name in read
    ]
    where = {operand.name: i for i, operand in enumerate(operands)}
    steps = [
        launch.Step(
            f.__name__,
            tuple(where[name] for name in parameters(f) if name not in fixed),
            values.get(launch.compiled_in(f.__name__)),
        )
        for f in formulas
    ]
    results = []
    for i, z in enumerate(outputs):
        strides = expand(shape, z.shape, _strides(z))
        over = frozenset(a for a, n in enumerate(shape) if n != 1 and strides[a] == 0)
        value = len(operands) + i if steps else 0
        results.append(launch.Result(value, len(values) + i, strides, fold[0] if over else None, over, fold[1]))
    stage = launch.Stage(shape, tuple(operands), tuple(steps), tuple(results))
    return launch.Plan([stage], arguments, spec.dtype, spec.device)


def _strides(x: Tensor | Spec) -> tuple[int, ...]:
    return x.stride() if isinstance(x, Tensor) else x.strides


def is_identity(derivative: Callable, others: Sequence) -> bool:
    """Whether ``derivative`` of g and ``others``, in the order of its parameters, returns g itself, whatever g is."""
    if any(isinstance(value, Tensor) for value in others):
        return False
    one = torch.ones((), device="cpu")
    return derivative(one, *others) is one


def _others(derivative: Callable, named: dict[str, Any]) -> list:
    """What ``derivative`` reads but g."""
    return [named[name] for name in parameters(derivative) if name != "g"]


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of a tensor of this shape whose elements lie in order."""
    strides, step = [1] * len(shape), 1
    for i in range(len(shape) - 1, -1, -1):
        strides[i] = step
        step *= max(shape[i], 1)
    return tuple(strides)


def _are_axes(axes: Any = (), _keepdim: bool = False) -> bool:
    """Whether ``axes`` is what a reduction usually gets; anything odder is torch's to read."""
    axes = axes if isinstance(axes, tuple | list) else () if axes is None else (axes,)
    return all(type(a) is int for a in axes)


def _fit(grad: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Sum a gradient over the axes that its input was broadcast along, and give it the input's dtype.

    Torch sums what has no axes too, and has no sum of complex halves.
    """
    return cast(grad if grad.shape == shape else grad.sum_to_size(shape), dtype)


def cast(grad: Tensor, dtype: torch.dtype) -> Tensor:
    """A gradient in the dtype of its input: a real one gets the real part."""
    return (grad.real if grad.is_complex() and not dtype.is_complex else grad).to(dtype)


@cache
def parameters(formula: Callable) -> tuple[str, ...]:
    """The names of what a formula reads, in order, ``out`` not among them."""
    return tuple(name for name, p in inspect.signature(formula).parameters.items() if p.kind == p.POSITIONAL_OR_KEYWORD)


def _named(formula: Callable, args: Sequence) -> dict[str, Any]:
    return dict(zip(parameters(formula), args, strict=True))


def _suits(out: Any, args: Sequence) -> bool:
    """Whether ``out`` is a tensor apart from ``args`` or laid out as they are: torch may have to refuse any other.

    No tensor suits under autocast, whose lists have no operator with an ``out``.
    """
    if not isinstance(out, Tensor) or torch._debug_has_internal_overlap(out) == 1 or torch.is_autocast_enabled():
        return False
    return not any(
        isinstance(x, Tensor)
        and x.untyped_storage().data_ptr() == out.untyped_storage().data_ptr()
        and (x.data_ptr(), *spec_of(x)) != (out.data_ptr(), *spec_of(out))
        for x in args
    )


def _ask_torch(formula: Callable, args: tuple, **options) -> Spec:
    """What torch would return for these arguments, raising what torch would raise.

    Runs ``formula`` on single elements, where all of torch's checks are made, and on meta tensors for the shape.
    """

    def single(spec: Spec) -> Tensor:
        return torch.ones([1] * len(spec.shape), dtype=spec.dtype, device=spec.device)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an ``out`` of one element is resized, the caller's may not be
            one = _imagine(single, formula, args, options)
            many = _imagine(on_meta, formula, args, options)
    except Exception:
        formula(*args, **options)  # so that the error speaks of the caller's tensors
        raise
    return Spec(many.shape, many.stride(), one.dtype, one.device)


def _outline(formula: Callable, args: tuple, options: dict[str, Any]) -> Spec | None:
    """The shape and strides of what torch would return; None where it refuses, as it will say itself."""
    try:
        return spec_of(_imagine(on_meta, formula, args, options))
    except (RuntimeError, IndexError, TypeError, NotImplementedError, ValueError):
        return None


def _imagine(make: Callable[[Spec], Tensor], formula: Callable, args: tuple, options: dict[str, Any]) -> Tensor:
    """``formula`` on other tensors, that ``make`` makes of the specs of those given."""
    given = [make(spec_of(arg)) if isinstance(arg, Tensor) else arg for arg in args]
    return formula(*given, **{k: make(spec_of(v)) if isinstance(v, Tensor) else v for k, v in options.items()})


def on_meta(spec: Spec) -> Tensor:
    """A tensor like it that has no memory."""
    return torch.empty_strided(spec.shape, spec.strides, dtype=spec.dtype, device="meta")


def spec_of(x: Tensor) -> Spec:
    """What ``x`` is but for its memory."""
    return Spec(x.shape, x.stride(), x.dtype, x.device)
