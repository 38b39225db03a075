"""Graphs of our calls are walked, written over, timed and freed as torch's are, by many threads at once."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.autograd import graph
from torch.profiler import profile

import customops

from .cases import CALLS, PATH_OF, ids
from .compare import assert_as_torch, assert_same_outcomes, backward, cotangent
from .conftest import INTERPRETED
from .inplace import BINARY, UNARY, twin
from .marks import by_path, every_call


@pytest.fixture(autouse=True)
def _count(tally):
    tally("uses of autograd")


@every_call
@by_path
def test_nodes_can_be_walked_and_carry_what_torchs_do(row, call, device):
    def use(f, *xs):
        z = f(*(x * 1 for x in xs))
        node = z.grad_fn
        node.metadata["mine"] = 1
        above = [(parent.name() == "MulBackward0", i) for parent, i in node.next_functions if parent]
        named = node.name().lower().startswith(row.node)
        return named, above, isinstance(node, graph.Node), z.grad_fn.metadata["mine"], z.output_nr

    assert_as_torch(use, row, call, device)


@pytest.mark.parametrize(("row", "call"), [c for c in CALLS if "another" not in PATH_OF[str(c[1])][3]], ids=ids)
@by_path
def test_saved_tensors_can_be_read_until_backward_frees_them(row, call, device):
    xs = [row.draw((2, 3, 2, 2), seed=i, device=device).requires_grad_() for i in range(call.arity)]
    node = (z := call.function(customops, *xs)).grad_fn
    assert all(any(saved is t or saved.data_ptr() == t.data_ptr() for t in (*xs, z)) for saved in node.saved_tensors)
    backward(z)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        _ = node.saved_tensors


@every_call
@by_path
@pytest.mark.skipif(INTERPRETED, reason="Triton's interpreter holds what it was called with in reference cycles")
def test_memory_is_freed_without_the_garbage_collector_and_as_early_as_torchs(row, call, device):
    def use(f, *xs):
        ys = [x * 1 for x in xs]
        z = f(*ys)
        w = z * 1
        z.grad_fn.metadata["mine"] = graph_lives = type("Mark", (), {})()
        marks = [weakref.ref(t.untyped_storage()) for t in (z, *ys)] + [weakref.ref(graph_lives)]
        del z, ys, graph_lives
        alive = [[mark() is not None for mark in marks]]
        backward(w)
        alive.append([mark() is not None for mark in marks])
        del w
        return [*alive, [mark() is not None for mark in marks]]

    gc.disable()
    try:
        assert_as_torch(use, row, call, device)
    finally:
        gc.enable()


@every_call
@by_path
def test_profilers_see_the_operator_and_link_its_backward_to_its_forward(row, call, device):
    xs = [row.draw((2, 3, 2, 2), seed=i, device=device).requires_grad_() for i in range(call.arity)]
    with profile() as profiled:
        backward(call.function(customops, *xs))
    numbers = {e.name.lower().replace("number", ""): e.sequence_nr for e in profiled.events()}
    assert numbers[row.node] == numbers[f"{row.node}backward"] >= 0


@every_call
@by_path
def test_threads_go_backward_at_once(row, call, device):
    """Each goes through a graph of its own, with shapes of its own, and all go through one that they share."""

    def use(f, *xs):
        z = f(*xs)

        def go(n):
            own = f(*(x[:, :n] for x in xs))
            return [torch.autograd.grad(w, xs, cotangent(w), retain_graph=True) for w in (own, z)]

        with ThreadPoolExecutor(3) as pool:
            return list(pool.map(go, [1, 2, 3]))

    assert_as_torch(use, row, call, device)


@every_call
@by_path
def test_generators_keep_their_grad_mode_to_themselves(row, call, device):
    def use(f, *xs):
        @torch.no_grad()
        def results():
            while True:
                yield f(*xs)

        return [(next(results()).requires_grad, f(*xs).requires_grad) for _ in range(2)]

    assert_as_torch(use, row, call, device)


@every_call
@by_path
def test_a_view_of_a_result_written_in_place_is_differentiated(row, call, device):
    def use(f, *xs):
        z = f(*xs)
        z.view(-1)[:1].mul_(2)
        v = z.flatten()
        return z.grad_fn is None, backward(v * z.flatten(), *xs), z.is_leaf, z._is_view(), z._version

    assert_as_torch(use, row, call, device, raises=None)


@pytest.mark.parametrize("name", [*UNARY, *BINARY])
def test_writing_into_a_view_reaches_its_base_and_the_other_views(name, device):
    def run(library):
        x = torch.rand(3, 4, device=device, dtype=torch.float64).requires_grad_()
        base = x * 1
        row, column, flat = base[1], base[:, 1], base.view(-1)
        twin(library, name)(row, *[1.7] * (name in BINARY))
        grads = torch.autograd.grad((base * base).sum() + column.sum() + (flat * flat).sum(), x)
        return base, column, flat, grads

    results = []
    for library in (customops, torch):
        torch.manual_seed(1)
        results.append(run(library))
    assert_same_outcomes(*results)
