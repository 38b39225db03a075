"""Stretches of a module's ``forward``: what is elementwise, a view or a norm between two of its matrix products.

A stretch is a function of its own, which is fused. It may contain modules, such as a norm or an activation.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.nn import Module

from .._compat import has_global_hooks
from ..fusion import spelling
from ..fusion.cache_key import NO_KEY, static_key
from ..fusion.decorator import Fused
from ..fusion.reshaping import FUNCTIONS, METHODS
from .check import Checked, NotTaken, check
from .probe import Probe, unchanged
from .tracing import Traced, reads_global

SIGNS = {getattr(operator, name) for name in ("add", "sub", "mul", "truediv", "pow", "neg", "getitem")}


class Stretch(NamedTuple):
    """Some nodes of a graph that are computed as one."""

    text: str  # what they compute, in order
    modules: tuple[str, ...]  # those that it contains
    function: Fused  # of the module, and of what the nodes read
    inputs: tuple[Any, ...]  # that, on the probe
    checked: Checked


class Inner(NamedTuple):
    """What is known of a module that can be part of a stretch."""

    kernels: int  # how many torch launches for it; 0 if it returns its argument, as ``nn.Identity``
    is_of_mode: bool = False  # whether it does that in one mode only, as a dropout outside of training


class Program(NamedTuple):
    """A ``forward`` with stretches."""

    run: Callable[..., Any]  # of the module, twice, and the inputs of the graph
    known: tuple[tuple[Callable, Any], ...]  # what reads an attribute, or a global name, and what it has to be
    modules: tuple[Callable, ...]  # what reads those in stretches, whose hooks would see no tensors
    is_of_mode: bool  # whether a module in a stretch returns its argument in this mode only

    def is_for(self, module: Module) -> bool:
        """Return whether it computes what ``forward`` of ``module`` does now."""
        for read, value in self.known:
            now = read(module)
            if now is not value and (type(now) is not type(value) or now != value):
                return False
        return not self.modules or not (has_global_hooks() or any([has_hooks(read(module)) for read in self.modules]))


def find(
    module: Module, traced: Traced, inputs: Sequence, fusable: Mapping[Module, Inner]
) -> tuple[Program | None, list[Stretch]]:
    """Return the program of a graph, None if nothing of it is fused, and the stretches that are.

    ``fusable`` are modules that may be in one. A stretch is checked on what it reads if the graph gets ``inputs``. It
    has to be more than one kernel if these modules are one each.
    """
    graph, values = traced.graph, _values(module, traced.graph, inputs)
    owner = _first_placeholder(graph)
    stretches = []
    computes = partial(_computes, module, fusable)
    for nodes in _groups(graph, lambda node: _is_fusable(node, values, module, fusable), computes):
        stretch = _replaced(graph, nodes, owner, module, values, fusable)
        stretches += [stretch] if stretch else []
    if not stretches:
        return None, []
    modules = tuple(dict.fromkeys(name for stretch in stretches for name in stretch.modules))
    graph.lint()
    of_mode = [name for name in modules if fusable[module.get_submodule(name)].is_of_mode]
    read = traced.attributes | {f"{name}.training": module.get_submodule(name).training for name in of_mode}
    known: list[tuple[Callable, Any]] = [(attrgetter(name), value) for name, value in read.items()]
    known += [(reads_global(module, name), value) for name, value in traced.names.items()]
    return Program(_compiled(module, graph), tuple(known), tuple(map(attrgetter, modules)), bool(of_mode)), stretches


def has_hooks(module: Module) -> bool:
    """Return whether something sees the calls of ``module``."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def _values(module: Module, graph: fx.Graph, inputs: Sequence) -> dict[fx.Node, Any]:
    """Return the value of each node, computed of these inputs."""
    values: dict[fx.Node, Any] = {}

    class Keeping(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            values[n] = super().run_node(n)
            return values[n]

    with unchanged(module), torch.no_grad():
        Keeping(module, garbage_collect_values=False, graph=graph).run(*inputs)
    return values


def _first_placeholder(graph: fx.Graph) -> fx.Node:
    """Return a new input of the graph, before all others."""
    with graph.inserting_before(next(iter(graph.nodes))):
        return graph.placeholder("module")


def _groups(
    graph: fx.Graph, is_fusable: Callable[[fx.Node], bool], computes: Callable[[fx.Node], bool]
) -> list[list[fx.Node]]:
    """Return sets of connected nodes that can be fused, each in order, and of which several compute something.

    Two nodes are in one only if as many others lie before them, at most along a path: so no path leaves a set and
    comes back.
    """
    depths: dict[fx.Node, int] = {}
    roots: dict[fx.Node, fx.Node] = {}  # of each node that can be fused, one that stands for its set, perhaps by others

    def root(node: fx.Node) -> fx.Node:
        return node if roots[node] is node else root(roots[node])

    for node in graph.nodes:
        before = [
            depths[x] + (x not in roots and x.op not in ("placeholder", "get_attr")) for x in node.all_input_nodes
        ]
        depths[node] = max(before, default=0)
        if node.op != "output" and is_fusable(node):
            roots[node] = node
            for x in node.all_input_nodes:
                if x in roots and depths[x] == depths[node]:
                    roots[root(x)] = node
    groups: dict[fx.Node, list[fx.Node]] = {}
    for node in roots:
        groups.setdefault(root(node), []).append(node)
    trimmed = [_trimmed(nodes, computes) for nodes in groups.values()]
    return [nodes for nodes in trimmed if sum(map(computes, nodes)) > 1]


def _trimmed(nodes: Sequence[fx.Node], computes: Callable[[fx.Node], bool]) -> list[fx.Node]:
    """Return ``nodes`` without the modules at either end that return their arguments: these gain nothing."""
    inside, passing = set(nodes), [node for node in nodes if node.op == "call_module" and not computes(node)]
    for node in passing:
        if inside.isdisjoint(node.all_input_nodes):
            inside.discard(node)
    for node in reversed(passing):
        if inside.isdisjoint(node.users):
            inside.discard(node)
    return [node for node in nodes if node in inside]


def _is_fusable(node: fx.Node, values: dict[fx.Node, Any], module: Module, fusable: Mapping[Module, Inner]) -> bool:
    """Return whether a node computes a tensor of floats from such tensors, by what fuse knows."""
    read = [values.get(x) for x in node.all_input_nodes]
    if not _is_float(values.get(node)) or not any(map(_is_float, read)):
        return False
    if not all(_is_float(x) or static_key(x) is not NO_KEY for x in read):
        return False
    if node.op == "call_module":
        child = module.get_submodule(str(node.target))
        return child in fusable and not has_hooks(child)
    if node.op == "call_function":
        return node.target in SIGNS or node.target in FUNCTIONS or node.target in spelling.table()
    name = str(node.target)
    return node.op == "call_method" and (name in METHODS or getattr(Tensor, name, None) in spelling.table())


def _is_float(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _computes(module: Module, fusable: Mapping[Module, Inner], node: fx.Node) -> bool:
    """Return whether a node is no view, and no module that returns its argument."""
    if node.op == "call_function":
        return node.target is not operator.getitem and node.target not in FUNCTIONS
    if node.op == "call_module":
        return fusable[module.get_submodule(str(node.target))].kernels > 0
    return str(node.target) not in METHODS


def _replaced(
    graph: fx.Graph,
    nodes: Sequence[fx.Node],
    owner: fx.Node,
    module: Module,
    values: dict[fx.Node, Any],
    fusable: Mapping[Module, Inner],
) -> Stretch | None:
    """Compute ``nodes`` in one function, if that is possible and gains something."""
    inside, place = set(nodes), {node: k for k, node in enumerate(graph.nodes)}
    read = list(dict.fromkeys(x for node in nodes for x in node.all_input_nodes if x not in inside))
    results = [node for node in nodes if any(user not in inside for user in node.users)]
    users = [user for z in results for user in z.users if user not in inside]
    first_user = min(users, key=place.__getitem__)
    if any(place[x] > place[first_user] for x in read):
        return None  # the order of all else, and of random numbers, stays
    function = Fused(_function(module, nodes, read, results))
    inputs = tuple(values[x] for x in read)
    try:
        checked = check(function, module, Probe(inputs, {}))
    except NotTaken:
        return None
    children = [module.get_submodule(str(node.target)) for node in nodes if node.op == "call_module"]
    if checked.plain[0].kernels - sum(max(fusable[child].kernels - 1, 0) for child in children) < 2:
        return None
    modules = tuple(dict.fromkeys(str(node.target) for node in nodes if node.op == "call_module"))
    with graph.inserting_before(first_user):
        call = graph.call_function(_named(function), (owner if modules else None, *read))
        found = [graph.call_function(operator.getitem, (call, k)) for k in range(len(results))]
    for z, value in zip(results, found if len(results) > 1 else [call], strict=True):
        values[value] = values[z]
        z.replace_all_uses_with(value, delete_user_cb=lambda user: user not in inside)
    if len(results) == 1:
        graph.erase_node(found[0])
    for node in reversed(nodes):
        graph.erase_node(node)
    return Stretch(
        ", ".join(_text(node, module) for node in nodes if _computes(module, fusable, node)),
        modules,
        function,
        inputs,
        checked,
    )


def _function(
    module: Module, nodes: Sequence[fx.Node], read: Sequence[fx.Node], results: Sequence[fx.Node]
) -> Callable:
    """Return ``nodes`` as a function of the module, and of what they read."""
    part = fx.Graph()
    copies = {x: part.placeholder(f"x{k}") for k, x in enumerate(read)}
    for node in nodes:
        copies[node] = part.node_copy(node, copies.__getitem__)
    part.output(tuple(copies[z] for z in results) if len(results) > 1 else copies[results[0]])
    return _compiled(module, part)


def _compiled(module: Module, graph: fx.Graph) -> Callable:
    """Return the function that a graph is, whose first argument is the module."""
    return type(fx.GraphModule(module, graph)).forward


def _named(function: Fused) -> Callable:
    """Return a function that torch.fx can name."""
    named = function.as_function()
    named.__module__, named.__name__ = __name__, "stretch"
    return named


def _text(node: fx.Node, module: Module) -> str:
    if node.op == "call_module":
        return type(module.get_submodule(str(node.target))).__name__
    return getattr(node.target, "__name__", str(node.target))
