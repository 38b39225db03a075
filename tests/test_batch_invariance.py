"""The bits of a row do not depend on how many rows there are: the order of every sum along it is fixed.

The gradients of one row alone are another program, where a weight's gradient is no sum: of it this is not asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch

import customops
from customops import fuse

from .conftest import INTERPRETED, KERNELS
from .marks import formulas_only
from .programs import layer_norm, rms_norm, softmax

pytest.importorskip("triton", reason="without Triton there are no kernels")
from customops.triton_kernels.body import Geometry, KernelBody
from customops.triton_kernels.launch import Launch

FUNCTIONS = {"softmax": (softmax, 0), "rms_norm": (rms_norm, 1), "layer_norm": (layer_norm, 2)}
ROWS = (2, 3, 7, 16, 33, 131, 1000, 4096, 65537, 100_000)
HALF = torch.bfloat16


class Chosen(NamedTuple):
    """What fixes the order of the sums along a row."""

    kernel: str
    warps: int
    geometry: Geometry
    body: KernelBody
    divisors: tuple  # of pointers: where they are known, threads load vectors


def launched(function, rows: int, columns: int, weights: int, dtype: torch.dtype) -> Iterator[Chosen]:
    """Yield what is chosen for the launches of a call and of its gradients that reduce along a row."""
    found = []

    def compile_nothing(launch, specialization, warps, _registers, _moves):
        pointers = tuple(item for item in specialization.divisors if item[0][0] < 2)
        found.append(Chosen(launch.kernel.__name__, warps, launch.arguments[-1], launch.arguments[-2], pointers))
        launch.is_dry_run, launch.function_and_metadata, launch.run = True, (None, None), lambda *_: None

    xs = [torch.empty(shape, dtype=dtype, requires_grad=True) for shape in [(rows, columns), *[(columns,)] * weights]]
    with pytest.MonkeyPatch.context() as patch, customops.dry_run("cuda:90"):
        patch.setattr(Launch, "_compile", compile_nothing)
        z = fuse(lambda *xs: function(customops, *xs))(*xs)
        torch.autograd.grad(z, xs, torch.empty_like(z))
    for chosen in found:
        if any(chosen.body.reducers):
            geometry = chosen.geometry._replace(has_one_block=False)  # this, and what ends sums over rows, may differ
            yield chosen._replace(geometry=geometry, body=chosen.body._replace(epilogue=()))


@formulas_only
@pytest.mark.skipif(INTERPRETED, reason="a dry run compiles, which the interpreter cannot")
@pytest.mark.parametrize(("columns", "walked"), [(75, False), (75, True), (1024, False), (1024, True)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_kernels_of_a_row_are_the_same_for_1_to_100_000_rows(name, columns, walked, walking, replan):
    """So are tiles, warps, chunks, walks, and formulas; forward for one row too."""
    if walked:
        walking()
    function, weights = FUNCTIONS[name]
    counts = [rows for rows in ROWS if rows * columns < 10_000_000]
    first = None
    for rows in counts:
        replan()
        chosen = list(launched(function, rows, columns, weights, HALF))
        assert {kernel for kernel, *_ in chosen} == {"walk_kernel" if walked else "map_reduce_kernel"}
        first = first or chosen
        assert chosen == first, rows
    replan()
    one = next(launched(function, 1, columns, weights, HALF))
    assert one.geometry.tile == first[0].geometry.tile
    assert one._replace(geometry=first[0].geometry) == first[0]
    if columns % 8:  # the vectors of many rows would not be aligned
        assert one.divisors == ()


@formulas_only
@pytest.mark.skipif(INTERPRETED, reason="a dry run compiles, which the interpreter cannot")
@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
@pytest.mark.parametrize("columns", [4097, 8192, 12_288, 16_384, 65_536])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_kernels_of_a_long_row_are_the_same_for_2_to_300_rows(name, columns, dtype, replan):
    function, weights = FUNCTIONS[name]
    found = []
    for rows in (2, 5, 40, 133, 300 if columns < 20_000 else 140):
        replan()
        found.append(list(launched(function, rows, columns, weights, dtype)))
    assert found[0]
    assert all(chosen == found[0] for chosen in found)


@pytest.mark.sample(kernels="", compiled="name, walked")
@pytest.mark.skipif(not KERNELS, reason="by formulas torch chooses the order")
@pytest.mark.parametrize("walked", [False, True])
@pytest.mark.parametrize("columns", [75, 160, 1030])
@pytest.mark.parametrize("name", ["softmax", "rms_norm"])
def test_bits_of_a_row_are_the_same_among_1_to_33_rows(name, columns, walked, walking, device):
    if walked:
        walking()
    function, weights = FUNCTIONS[name]
    x, g, *others = (
        torch.randn(shape, device=device, dtype=torch.float32)
        for shape in [(33, columns), (33, columns), *[(columns,)] * weights]
    )

    def values_and_gradients(rows: int):
        leaves = [x[:rows].clone().requires_grad_(), *(y.requires_grad_() for y in others)]
        z = fuse(lambda *xs: function(customops, *xs))(*leaves)
        return z.detach(), torch.autograd.grad(z, leaves[0], g[:rows])[0]

    z, dx = values_and_gradients(33)
    for rows in (1, 2, 3, 7, 16):
        mine, gradient = values_and_gradients(rows)
        assert torch.equal(mine, z[:rows]), rows
        assert torch.equal(gradient, dx[:rows]) or (rows, weights) == (1, 1), rows
