"""DTensors: values, gradients, where both end up and what is refused are those of torch's operators."""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from itertools import product
from math import prod

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import _functional_collectives as collectives
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor, init_device_mesh

import customops

from .cases import CALLS, EXTREMA, ROWS, ids, one_of_each_path
from .compare import assert_same_outcomes, cotangent, outcome, record_launches
from .conftest import DEVICE, KERNELS, NO_KERNEL

SHAPES = ((4, 3, 2, 2), (4, 3), (2, 1))  # over two processes 4 divides, 3 does not, and of 1 the second has none
PAIRS = (((4, 3), (4, 3)), ((4, 3), (3,)), ((4, 1), (1, 3)), ((4, 3), ()), ((3,), (4, 3)))


@cache
def mesh_of(*size):
    """Return one mesh for all tests: each mesh makes groups of its own."""
    return init_device_mesh(DEVICE, size)


def spread(x, mesh, placements):
    """Spread ``x`` over ``mesh``; where it is partial, the parts differ."""
    whole = [Replicate() if p.is_partial() else p for p in placements]
    local = distribute_tensor(x, mesh, whole).to_local()
    for axis, p in enumerate(placements):
        if p.is_partial():
            local = local * (1.5 if mesh.get_local_rank(axis) else -0.5)
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=x.shape, stride=x.stride())


def placements_of(shape, mesh):
    """Return every way for a tensor of ``shape`` to be spread over ``mesh``."""
    return product([Replicate(), Partial(), *map(Shard, range(len(shape)))], repeat=mesh.ndim)


def reaches_all(shape, mesh, placements):
    """Return whether a tensor of ``shape`` so spread has elements in each process."""
    parts = [prod(mesh.size(a) for a, p in enumerate(placements) if p == Shard(dim)) for dim in range(len(shape))]
    return all(n >= m for n, m in zip(shape, parts, strict=True))


def seen(z, strides):
    """Return all there is to see of a result: a DTensor as a whole, its local shard, placements and strides."""
    if isinstance(z, list | tuple):
        return [seen(part, strides) for part in z]
    if not isinstance(z, DTensor):
        return z
    return [z.full_tensor(), z.to_local(), z.shape, strides and z.stride(), *map(str, z.placements)]


def assert_seen_alike(use, where="", strides=False):
    """Assert that ``use(library)`` gives the same for ours as for torch; return whether torch refuses it."""
    got, want = (seen(outcome(use, library), strides) for library in (customops, torch))
    try:
        assert_same_outcomes(got, want)
    except AssertionError as error:
        raise AssertionError(f"{where}: {error}") from None
    return isinstance(want, type)


def evaluate(call, library, xs):
    """Return the value, its gradients for a cotangent with its placements, and those for a replicated one."""
    leaves = [x.detach().requires_grad_() for x in xs]
    z = call.function(library, *leaves)
    g = cotangent(torch.empty(z.shape, dtype=z.dtype, device=DEVICE))
    there, everywhere = [Replicate() if p.is_partial() else p for p in z.placements], [Replicate()] * len(z.placements)
    return [
        z,
        *torch.autograd.grad(z, leaves, distribute_tensor(g, z.device_mesh, there), retain_graph=True),
        *torch.autograd.grad(z, leaves, distribute_tensor(g, z.device_mesh, everywhere)),
    ]


def _compare(index, shapes, size, step=1, first=0):
    """Compare a call on one in ``step`` combinations of placements; return how many it has compared and torch refused.

    Each call has other combinations, so that together they have all.
    """
    (row, call), mesh = CALLS[index], mesh_of(*size)
    wholes = [row.draw(shape, seed=i, device=DEVICE) for i, shape in enumerate(shapes)]
    refused = []
    every = list(product(*(placements_of(shape, mesh) for shape in shapes)))
    for placements in every[(index + first) % min(step, len(every)) :: step]:
        if row.name in EXTREMA and not reaches_all(shapes[0], mesh, *placements):
            continue  # of nothing there is no extremum: torch raises in that process, and the others wait
        xs = [spread(x, mesh, p) for x, p in zip(wholes, placements, strict=True)]
        uses = (lambda lib: call.function(lib, *xs)), (lambda lib: evaluate(call, lib, xs))  # noqa: B023 - used at once
        uses = uses[:1] if row.name == "prod" else uses  # torch takes no gradient of it by placement
        where, strides = f"{call} of {shapes}, {placements}", row.name != "mean"  # whose gradient is a view
        refused += [assert_seen_alike(use, where, strides) for use in uses]
    return len(refused), sum(refused)


def _check(ranks, tally, index, several, size, step, firsts=(0,)):
    """Compare on each of ``several`` shapes, beginning in turn with each of ``firsts`` of a step."""
    compared = refused = 0
    for shapes, first in product(several, firsts):
        results = ranks(_compare, index, shapes, size, step, first)
        assert len(set(results)) == 1
        compared, refused = compared + results[0][0], refused + results[0][1]
    assert compared > refused
    tally("placements", compared)  # some of which torch refuses: how many depends on what ran before


@pytest.mark.sample(kernels="operator")
@pytest.mark.parametrize(("row", "call"), CALLS, ids=ids)
def test_every_placement_gives_what_torch_gives(row, call, two, tally, full):
    """A call of each path has all placements, any other call some; with ``--full`` all have all."""
    step = 1 if full or ((row, call) in one_of_each_path() and not KERNELS) else 5
    several = PAIRS if call.arity == 2 else [(shape,) for shape in SHAPES if len(shape) >= call.rank]
    _check(two, tally, CALLS.index((row, call)), several, (2,), step)


@pytest.mark.sample(formulas="operator", kernels="operator")
@pytest.mark.parametrize(("row", "call"), [(row, call) for row, call in CALLS if call.rank < 3], ids=ids)
def test_mesh_of_two_axes_gives_what_torch_gives(row, call, four, tally, full):
    """Calls have some placements; with ``--full`` all, or more of them by kernels, which take minutes for one call."""
    shapes = PAIRS[1] if call.arity == 2 else [(4, 3)]
    step = 47 if call.arity == 2 else 7
    firsts = range(1 if not full else 5 if KERNELS else step)
    _check(four, tally, CALLS.index((row, call)), [shapes], (2, 2), step, firsts)


def _accumulate(index, placement):
    """Compare the sums of the gradients of three passes, what they are after one is doubled, and the cotangent."""
    (row, call), mesh = CALLS[index], mesh_of(2)
    wholes = [row.draw((4, 3, 2, 2), seed=i, device=DEVICE) for i in range(call.arity)]

    def use(library):
        leaves = [spread(x, mesh, [placement]).requires_grad_() for x in wholes]
        g = torch.ones_like(call.function(library, *leaves).detach())
        for _ in range(3):
            call.function(library, *leaves).backward(g)
        sums = [leaf.grad.clone() for leaf in leaves]
        leaves[0].grad.mul_(2)
        return [*sums, *(leaf.grad for leaf in leaves), g]

    assert_seen_alike(use)


@pytest.mark.sample(formulas="operator, path*placement", kernels="path, placement")
@pytest.mark.parametrize("placement", [Shard(0), Replicate()], ids=str)
@pytest.mark.parametrize(("row", "call"), [(row, call) for row, call in CALLS if row.name != "prod"], ids=ids)
def test_gradients_add_up_and_share_no_memory(row, call, placement, two):
    two(_accumulate, CALLS.index((row, call)), placement)


def _transposed(lib, x, y, mesh):
    local = x.t().contiguous().t()
    leaf = DTensor.from_local(local, mesh, [Replicate()]).detach().requires_grad_()
    z = lib.mul(leaf, leaf)
    (g,) = torch.autograd.grad(z, leaf, z.detach())
    return [g, g.contiguous().view(12)]


def _alone(lib, x, y, mesh):
    """Return what comes of tensors on the first process, of which the others have nothing."""
    there = DeviceMesh(DEVICE, [0])
    leaf, other = _leaf(distribute_tensor(x, there, [Shard(0)])), _leaf(distribute_tensor(y, there, [Replicate()]))
    z = lib.mul(lib.exp(leaf), other)
    grads = torch.autograd.grad(z, (leaf, other), torch.ones_like(z))
    return [str(z.placements), *(part.to_local() for part in (z, lib.sum(leaf, 1), lib.mean(leaf), *grads))]


def _swap(x, mesh):
    """Spread ``x`` over the same processes in another order."""
    return spread(x, DeviceMesh(DEVICE, mesh.mesh.flip(0)), [Shard(0)])


def _late(x):
    """Return ``x`` as the result of a collective that nobody has waited for."""
    z = collectives.all_reduce(x / 2, "sum", dist.group.WORLD)
    assert type(z) is collectives.AsyncCollectiveTensor
    return z


def _leaf(z):
    return z.detach().requires_grad_()


def _late_use(lib, x, y, mesh):
    late = _late(x).requires_grad_()
    z = lib.add(lib.mul(late, y), lib.mean(late, 0))
    return [z, *torch.autograd.grad(z.sum(), late)]


def _twice(lib, x, y, mesh):
    leaf, other = _leaf(spread(x, mesh, [Shard(0)])), _leaf(spread(y, mesh, [Replicate()]))
    z = lib.sum(lib.mul(lib.pow(leaf, other), lib.sigmoid(leaf)), 0)
    dx, dy = torch.autograd.grad(z.full_tensor().sum(), (leaf, other), create_graph=True)
    return [dx, dy, *torch.autograd.grad((dx * dx).sum().full_tensor() + dy.full_tensor().sum(), (leaf, other))]


def _module(lib, x, y, mesh):
    parameter = nn.Parameter(spread(y, mesh, [Replicate()]))
    lib.sum(lib.mul(spread(x, mesh, [Shard(0)]), parameter)).full_tensor().backward()
    return parameter.grad


def _autocast(lib, x, y, mesh):
    leaf = _leaf(spread(x.float(), mesh, [Shard(0)]))
    with torch.autocast(DEVICE, torch.bfloat16):
        z = lib.mul(lib.log(leaf), leaf @ spread(torch.ones(3, 3, device=DEVICE), mesh, [Replicate()]))
    return [z, *torch.autograd.grad(z.sum().full_tensor(), leaf)]


def _in_place(lib, x, y, mesh):
    z = spread(x, mesh, [Shard(0)])
    return [(Tensor.mul_ if lib is torch else customops.mul_)(z, spread(y, mesh, [Replicate()])), z]


USES = {
    "with a plain tensor": lambda lib, x, y, mesh: lib.mul(spread(x, mesh, [Shard(0)]), y),
    "with a plain number in a tensor": lambda lib, x, y, mesh: lib.mul(spread(x, mesh, [Shard(0)]), y[0]),
    "on two meshes": lambda lib, x, y, mesh: lib.add(spread(x, mesh, [Shard(0)]), _swap(x, mesh)),
    "shapes that do not broadcast": lambda lib, x, y, mesh: lib.mul(*(spread(z, mesh, [Shard(0)]) for z in (x, y[:2]))),
    "here they would": lambda lib, x, y, mesh: lib.mul(*(spread(z[:, 0], mesh, [Shard(0)]) for z in (x, x[:2]))),
    "relu of bool": lambda lib, x, y, mesh: lib.relu(spread(x > 1, mesh, [Shard(0)])),
    "mean of integers": lambda lib, x, y, mesh: lib.mean(spread(x.long(), mesh, [Shard(0)]), 0),
    "no such axis": lambda lib, x, y, mesh: lib.sum(spread(x, mesh, [Shard(0)]), 2),
    "sum of integers": lambda lib, x, y, mesh: lib.sum(spread(x.long(), mesh, [Shard(0)]), 0),
    "sum in another dtype": lambda lib, x, y, mesh: lib.sum(spread(x, mesh, [Shard(0)]), 0, dtype=torch.float32),
    "complex": lambda lib, x, y, mesh: lib.mul(spread(torch.complex(x, x), mesh, [Shard(0)]), 2j),
    "two dtypes": lambda lib, x, y, mesh: lib.add(*(spread(z, mesh, [Shard(0)]) for z in (x, x.float()))),
    "averages that do not average": lambda lib, x, y, mesh: lib.mean(spread(x, mesh, [Shard(1)]), 1),
    "out": lambda lib, x, y, mesh: lib.exp(spread(x, mesh, [Shard(0)]), out=spread(x, mesh, [Shard(0)])),
    "in place": _in_place,
    "partial averages": lambda lib, x, y, mesh: lib.mul(DTensor.from_local(x, mesh, [Partial("avg")]), 2),
    "partial maxima": lambda lib, x, y, mesh: lib.relu(DTensor.from_local(x, mesh, [Partial("max")])),
    "nothing here": lambda lib, x, y, mesh: lib.sum(lib.exp(spread(x[:1], mesh, [Shard(0)])), 0),
    "nothing anywhere": lambda lib, x, y, mesh: lib.mean(spread(x[:0], mesh, [Shard(0)])),
    "still on its way": _late_use,
    "twice differentiated": _twice,
    "parameter": _module,
    "autocast": _autocast,
    "transposed": _transposed,
    "on some of the processes": _alone,
}
REFUSED = ("with a plain tensor", "on two meshes", "shapes that do not broadcast", "here they would")
REFUSED += ("relu of bool", "mean of integers", "no such axis")


def _compare_use(name):
    mesh, x, y = mesh_of(2), ROWS[0].draw((4, 3), device=DEVICE), ROWS[0].draw((3,), seed=1, device=DEVICE)
    with customops.backend("auto") if name == "complex" else nullcontext():
        return assert_seen_alike(lambda lib: USES[name](lib, x, y, mesh), strides=True)


def _launched(index, late):
    """Return how many kernels ran for plain tensors, and how many for the local shards of spread or late ones."""
    row, call = CALLS[index]
    wholes = [row.draw((4, 3, 2, 2), seed=i, device=DEVICE) for i in range(call.arity)]
    mesh = mesh_of(dist.get_world_size())
    counts = []
    for xs in wholes, [_late(x) if late else spread(x, mesh, [Shard(0)]) for x in wholes]:
        with pytest.MonkeyPatch.context() as patch:
            launches = record_launches(patch)
            z = call.function(customops, *(x.requires_grad_() for x in xs))
            if row.name not in (*EXTREMA, "prod"):  # of these torch's operators take the gradient
                torch.autograd.grad(z, xs, torch.ones_like(z))
        counts.append(len(launches))
    return counts


@pytest.mark.sample(kernels="operator, path*late")
@pytest.mark.skipif(not KERNELS, reason=NO_KERNEL)
@pytest.mark.parametrize("late", [False, True], ids=["spread", "late"])
@pytest.mark.parametrize(("row", "call"), CALLS, ids=ids)
def test_kernels_run_on_what_is_here(row, call, late, two):
    plain, here = two(_launched, CALLS.index((row, call)), late)[0]
    assert plain > 0
    assert here == plain


@pytest.mark.parametrize("name", USES)
def test_unusual_use_is_torchs(name, two, tally):
    assert two(_compare_use, name) == [name in REFUSED] * 2
    if name in REFUSED:
        tally("refused uses")


def _compare_before_the_sharded(name):
    x = spread(ROWS[0].draw((4, 6), device=DEVICE), mesh_of(2), [Shard(1)])
    return assert_seen_alike(lambda lib: getattr(lib, name)(x, 0), strides=True)


@pytest.mark.parametrize("name", ["sum", "mean", "amax", "amin"])
def test_axis_before_the_sharded_one_can_be_reduced(name, two):
    """The result has that axis no more: it is sharded along another number."""
    assert two(_compare_before_the_sharded, name) == [False, False]
