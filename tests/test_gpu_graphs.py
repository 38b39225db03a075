"""CUDA graphs of operators, callables and training steps; several streams and devices in one network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import customops

from .cases import Call
from .compare import cotangent
from .network import LIBRARIES, Network, batches, optimizer_of
from .test_gpu import assert_all_equal, draw, evaluate, every_call  # which skips this, too, without a GPU


def captured(function):
    """Capture ``function``, warmed up on a side stream, as torch's docs ask; return the graph and the results."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = function()
    return graph, results


@every_call
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_graph_replays_with_new_values(row, call, backward):
    xs = [x.requires_grad_(backward) for x in draw(row, call)]
    g = cotangent(call.function(torch, *xs)) if backward else None
    graph, results = captured(lambda: evaluate(call, customops, xs, g))
    for seed in (10, 20):
        for x, value in zip(xs, draw(row, call, seed=seed), strict=True):
            x.data.copy_(value)
        if backward:
            g.mul_(-1.5)
        graph.replay()
        assert_all_equal(results, evaluate(call, torch, xs, g))


@every_call
@pytest.mark.parametrize("trained", [False, True], ids=["inference", "training"])
def test_graphed_callable_answers_new_values(row, call, trained):
    samples = tuple(x.requires_grad_(trained) for x in draw(row, call))
    graphed = torch.cuda.make_graphed_callables(lambda *xs: call.function(customops, *xs), samples)
    replayed = Call(call.name, lambda _, *xs: graphed(*xs))
    for seed in (10, 20):
        xs = draw(row, call, seed=seed)
        g = cotangent(call.function(torch, *xs)) if trained else None
        assert_all_equal(evaluate(replayed, None, xs, g), evaluate(call, torch, xs, g))


def _step(model, optimizer, x, targets):
    optimizer.zero_grad()
    loss = model.loss(model(x), targets)
    loss.backward()
    optimizer.step()
    return loss.detach()


def test_graphed_network_trains_as_torchs():
    """One step is captured, parameters written and all, and replayed on other batches."""
    (first, *others), losses, models = batches(), {}, {}
    for name, library in LIBRARIES.items():
        model = models[name] = Network(library)
        optimizer, static = optimizer_of(model), [x.clone() for x in first]
        graph, loss = captured(lambda model=model, optimizer=optimizer, static=static: _step(model, optimizer, *static))
        losses[name] = []
        for batch in others * 5:
            for old, new in zip(static, batch, strict=True):
                old.copy_(new)
            graph.replay()
            losses[name].append(loss.clone())
    assert_all_equal(losses["customops"], losses["torch"])
    assert_all_equal(*(list(model.parameters()) for model in models.values()))
    assert losses["torch"][-2] < losses["torch"][0]  # of the same batch


@pytest.mark.parametrize("trained", [False, True], ids=["inference", "training"])
def test_network_of_graphed_blocks_gives_what_torchs_gives(trained):
    results = []
    for name, library in LIBRARIES.items():
        model = Network(library).train(trained)
        (x, targets), *_ = batches()
        if name == "customops":
            sample = torch.randn_like(model.enter(x)).requires_grad_(trained)
            model.first, model.second = torch.cuda.make_graphed_callables(
                (model.first, model.second), ((sample,), (sample.detach().clone().requires_grad_(trained),))
            )
        with torch.set_grad_enabled(trained):
            loss = model.loss(model(x), targets)
        results.append([loss.detach(), *(torch.autograd.grad(loss, list(model.parameters())) if trained else ())])
    assert_all_equal(*results)


@every_call
def test_branches_on_streams_of_their_own_join(row, call):
    """Each is late; a backward pass goes back on the streams that its forward came on."""
    draws = [draw(row, call, seed=seed) for seed in (10, 20)]
    results = []
    for library in (customops, torch):
        here, leaves, branches = torch.cuda.current_stream(), [], []
        for xs in draws:
            stream = torch.cuda.Stream()
            leaves.append([torch.zeros_like(x).requires_grad_() for x in xs])
            stream.wait_stream(here)
            with torch.cuda.stream(stream):
                torch.cuda._sleep(10**8)  # cycles
                for leaf, x in zip(leaves[-1], xs, strict=True):
                    leaf.data.copy_(x)
                branches.append((call.function(library, *leaves[-1]), stream))
        for _, stream in branches:
            here.wait_stream(stream)
        z = library.mul(*(branch for branch, _ in branches))
        results.append([z.detach(), *torch.autograd.grad(z, [*leaves[0], *leaves[1]], cotangent(z))])
        torch.cuda.synchronize()
    assert_all_equal(*results)


def _across(model, x):
    """Run the first block here and the rest on the other device; neither of them need be the current one."""
    enter, first, *others = model
    return nn.Sequential(*others).to("cuda:1")(first(enter(x)).to("cuda:1"))


def _side_by_side(model, x):
    return nn.DataParallel(model)(x)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("forward", [_across, _side_by_side], ids=["across", "data parallel"])
def test_network_on_two_devices_trains_as_torchs(forward):
    results = []
    for library in LIBRARIES.values():
        model, ((x, targets), *_) = Network(library), batches()
        z = forward(model, x)
        loss = model.loss(z, targets.to(z.device))
        results.append([loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))])
    assert_all_equal(*results)
