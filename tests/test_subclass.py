"""Tensors that are not plain: what ours makes of them is what torch does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.masked import masked_tensor
from torch.testing._internal.two_tensor import TwoTensor

import customops

from .cases import CALLS, REDUCTIONS, ROWS, functions_of, ids
from .compare import assert_same_outcomes, outcome
from .conftest import DEVICE
from .marks import by_path

pytestmark = pytest.mark.filterwarnings("ignore")  # torch warns of what it does slowly, half or no longer
FAKE = FakeTensorMode()
TWINS = [row for row in ROWS if hasattr(customops, f"{row.name}_")]
MASK = (torch.arange(24, device=DEVICE) % 3 > 0).reshape(2, 3, 2, 2)
BATCHES = torch.tensor([0, 1, 2], device=DEVICE)  # as jagged tensors have one nesting if they share it


class Subclass(Tensor):
    """A tensor that leaves everything to torch."""


KINDS = {
    "parameter": nn.Parameter,
    "buffer": nn.Buffer,
    "uninitialized": lambda x: nn.UninitializedParameter(device=x.device),
    "subclass": lambda x: x.as_subclass(Subclass),
    "parameter of a subclass": lambda x: nn.Parameter(x.as_subclass(Subclass)),
    "dispatch subclass": lambda x: TwoTensor(x, x.clone()),
    "masked": lambda x: masked_tensor(x, MASK[: len(x)]),
    "meta": lambda x: x.to("meta"),
    "fake": FAKE.from_tensor,
    "nested": lambda x: torch.nested.nested_tensor(list(x.unbind())),
    "jagged": lambda x: torch.nested.nested_tensor_from_jagged(x, BATCHES),
    "sparse": Tensor.to_sparse,
    "sparse rows": lambda x: x[..., 0, 0].to_sparse_csr(),
    "mkldnn": Tensor.to_mkldnn,
    "quantised": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.quint8),
    "conjugated": lambda x: torch.complex(x, x + 1).conj(),
    "negated": lambda x: torch.complex(x, -x).conj().imag,
    "zero": lambda x: torch._efficientzerotensor(x.shape, dtype=x.dtype, device=x.device),
}
UNDRIVEN = ("conjugated", "quantised")  # dtypes without a kernel, which backend 'triton' says


def draw(row, kind: str, seed: int) -> Tensor:
    return KINDS[kind](row.draw((2, 3, 2, 2), torch.float32, seed, DEVICE))


def seen(z: Any) -> Any:
    """Return all there is to see of a result: what it is, and its values as plain tensors."""
    if isinstance(z, list | tuple):
        return list(map(seen, z))
    if not isinstance(z, Tensor):
        return z
    parts: Any = []
    if type(z) is TwoTensor:
        parts = [z.a, z.b]
    elif hasattr(z, "get_mask"):
        parts = [z.get_mask(), z.get_data().where(z.get_mask(), 0)]
    elif z.is_nested:
        parts = list(z.unbind())
    elif not (z.is_meta or z.device.type == "meta" or hasattr(z, "fake_mode")):
        parts = [z.dequantize() if z.is_quantized else z.to_dense()]
    facts = (type(z), z.dtype, z.layout, z.device, z.requires_grad, None if z.is_nested else z.shape)
    return [facts, *(part.detach().as_subclass(Tensor) for part in parts)]


def assert_seen_alike(run, kind: str = "") -> None:
    """Assert that ``run(library)`` gives the same for ours as for torch."""
    with customops.backend("auto" if kind in UNDRIVEN else customops.config.current_backend):
        got, want = (seen(outcome(run, library)) for library in (customops, torch))
    assert type(got) is type(want), (got, want)
    _assert_alike(got, want)


def _assert_alike(got, want):
    if isinstance(want, list):
        assert len(got) == len(want)
        for mine, theirs in zip(got, want, strict=True):
            _assert_alike(mine, theirs)
    elif isinstance(want, Tensor):
        assert_same_outcomes(got, want)
    else:
        assert got == want


@pytest.mark.sample(formulas="operator*kind, path*kind", kernels="path, kind")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("row", "call"), CALLS, ids=ids)
def test_results_and_gradients_are_torchs(row, call, kind, tally):
    def value(library):
        return call.function(library, *(draw(row, kind, i) for i in range(call.arity)))

    def gradients(library):
        xs = [draw(row, kind, i).detach().requires_grad_() for i in range(call.arity)]
        z = call.function(library, *xs)
        return torch.autograd.grad(sum(part.sum() for part in z.unbind()) if z.is_nested else z.sum(), xs)

    assert_seen_alike(value, kind)
    assert_seen_alike(gradients, kind)
    tally("unusual tensors")


@pytest.mark.sample(kernels="kind")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("row", TWINS, ids=ids)
def test_in_place_twins_are_torchs(row, kind):
    rests = [[]] if row.calls[0].arity == 1 else [[1.5], [draw(row, kind, 1)]]
    for rest in rests:

        def run(library, rest=rest):
            x = draw(row, kind, 0)
            x = x.detach() if x.requires_grad else x
            z = getattr(Tensor if library is torch else customops, f"{row.name}_")(x, *rest)
            return z, z is x

        assert_seen_alike(run, kind)


@pytest.mark.sample(formulas="operator*kind, kind*plain", kernels="kind*plain")
@pytest.mark.parametrize("plain", [False, True], ids=["same kind", "plain"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("row", [row for row in ROWS if row.name != "relu"], ids=ids)
def test_out_is_written_as_torch_would(row, kind, plain):
    arguments = (0,) if row.name in REDUCTIONS else () if row.calls[0].arity == 1 else (1.5,)
    if len(row.calls) == 1 and row.calls[0].arity == 2:  # takes no numbers
        arguments = (draw(row, kind, 1),)

    def run(library):
        x = draw(row, kind, 0)
        out = torch.ones(3, 2, 2, device=DEVICE) if arguments == (0,) else torch.ones(2, 3, 2, 2, device=DEVICE)
        out = out if plain or arguments == (0,) else KINDS[kind](out)
        with torch.no_grad():
            z = getattr(functions_of(library, row.name), row.name)(x, *arguments, out=out)
        return z, z is out

    assert_seen_alike(run, kind)


@pytest.mark.sample(formulas="operator, path, device", kernels="device")
@pytest.mark.parametrize("device", ["cpu", "cuda", "xpu", "mps", "meta"])
@pytest.mark.parametrize(("row", "call"), CALLS, ids=ids)
def test_results_stay_on_a_device_that_is_not_there(row, call, device):
    def run(library):
        with FakeTensorMode():
            return call.function(library, *(torch.ones(2, 3, 2, 2, device=device) for _ in range(call.arity)))

    assert_seen_alike(run)


@by_path
@pytest.mark.parametrize(("row", "call"), CALLS, ids=ids)
def test_value_that_escaped_a_transform_still_computes(row, call):
    escaped = []
    for transform in (torch.vmap, torch.func.grad, torch.func.functionalize):
        transform(lambda x: (escaped.append(x), x.sum())[1])(torch.ones(3, device=DEVICE))
    for x in [x for x in escaped if x.dim() >= call.rank]:
        got, want = (outcome(call.function, library, *[x] * call.arity) for library in (customops, torch))
        assert_same_outcomes(*(z.detach() if isinstance(z, Tensor) else z for z in (got, want)))
