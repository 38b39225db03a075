"""PyTorch's own operator database: its samples, references, errors and ``out=`` rules, ours against torch's."""

from __future__ import annotations

import random
import warnings

import pytest
import torch

from customops.proof import database
from customops.proof.database import check_gradients, check_value

from .cases import ROW, ROWS, ids
from .compare import assert_same_outcome, outcome
from .conftest import DEVICE, KERNELS, MODE

pytest.importorskip("expecttest", reason="torch's database of operators needs the package expecttest")

INFOS = {row.name: database.torchs(row) for row in ROWS}
OURS = {row.name: database.ours(row.name) for row in ROWS}
EVERY = [(name, dtype) for name, info in INFOS.items() for dtype in sorted(info.supported_dtypes(DEVICE), key=str)]
# Complex numbers have no kernel: there the backend raises, which test_dispatch.py holds it to.
DTYPES = sorted({dtype for _, dtype in EVERY}, key=str)
VALUES = [(name, dtype) for name, dtype in EVERY if not (KERNELS and dtype.is_complex)]
# torch cannot sum complex32 on the CPU, so neither can the backward of a broadcast.
GRADIENTS = [
    (name, dtype)
    for name, dtype in VALUES
    if dtype in INFOS[name].supported_backward_dtypes(DEVICE) and dtype != torch.complex32
]
# Without --full these dtypes have a share of the reference inputs, which take a tenth of a second to make, and all
# sample inputs; where kernels compute others, which differ from them in promotion alone, have some of these.
MAIN = {
    "formulas": (torch.float32, torch.complex64, torch.int64),
    "kernels": (torch.float32, torch.int64),
    "gpu": (torch.float32, torch.bfloat16, torch.int64),
    "compiled": (torch.float32, torch.bfloat16, torch.int64),
}[MODE]
STEP = 5 if KERNELS else 1  # from one sample of another dtype to the next
SHARE = {"formulas": 0.1, "kernels": 0.01, "gpu": 0.01, "compiled": 0.01}[MODE]  # of the reference inputs
LARGEST = 4096 if KERNELS else 2**30  # elements in them; on a CPU kernels take minutes for a million


def samples(name, dtype, full, requires_grad=False):
    """Yield sample inputs of a dtype and, seeded, a share of the reference inputs; each as it is and non-contiguous."""
    chance = random.Random(f"{name} {dtype}")
    first, step = (0, 1) if full or dtype in MAIN else (DTYPES.index(dtype) % STEP, STEP)
    for sample in list(INFOS[name].sample_inputs(DEVICE, dtype, requires_grad=requires_grad))[first::step]:
        yield from (sample, sample.noncontiguous())
    if (not full and dtype not in MAIN) or (name in ("where", "clamp") and requires_grad):
        return  # torch cannot make references whose conditions require a gradient
    for sample in INFOS[name].reference_inputs(DEVICE, dtype, requires_grad=requires_grad):
        small = getattr(sample.input, "nelement", int)() <= LARGEST or (full and MODE not in ("kernels", "compiled"))
        if (full or chance.random() < SHARE) and small:
            yield from (sample, sample.noncontiguous())


@pytest.mark.sample(gpu="name, dtype", compiled="all", others="name, dtype")
@pytest.mark.parametrize(("name", "dtype"), VALUES, ids=ids)
def test_samples_have_torchs_value_dtype_and_strides(name, dtype, full, tally):
    for sample in samples(name, dtype, full):
        check_value(ROW[name], sample, KERNELS)
        tally("database samples")


@pytest.mark.sample(gpu="name, dtype", compiled="all", others="name, dtype")
@pytest.mark.parametrize(("name", "dtype"), GRADIENTS, ids=ids)
def test_samples_have_torchs_gradients(name, dtype, full, tally):
    for sample in samples(name, dtype, full, requires_grad=True):
        tally("database samples", check_gradients(ROW[name], sample, KERNELS))


@pytest.mark.sample(compiled="all")
@pytest.mark.parametrize("name", [name for name, info in INFOS.items() if info.error_inputs_func])
def test_error_inputs_raise_torchs_type(name, tally):
    errors = list(INFOS[name].error_inputs(DEVICE))
    for error in errors:
        s = error.sample_input
        want = outcome(INFOS[name], s.input, *s.args, **s.kwargs)
        assert_same_outcome(outcome(OURS[name], s.input, *s.args, **s.kwargs), want)
        tally("database samples")


@pytest.mark.sample(formulas="name, dtype", kernels="name", compiled="name, dtype")
@pytest.mark.parametrize(("name", "dtype"), [(n, d) for n, d in VALUES if INFOS[n].supports_out], ids=ids)
def test_out_behaves_as_torchs(name, dtype, tally):
    """Right and wrong shape, dtype and layout: same value, same strides, same memory, same warning, same error."""
    for sample in INFOS[name].sample_inputs(DEVICE, dtype):
        s, z = sample, INFOS[name](sample.input, *sample.args, **sample.kwargs)
        outs = (
            lambda z=z: torch.empty_like(z),
            lambda z=z: torch.empty(0, dtype=z.dtype, device=DEVICE),
            lambda z=z: torch.empty((*z.shape, 2), dtype=z.dtype, device=DEVICE),
            lambda z=z: torch.empty((*z.shape, 2), dtype=z.dtype, device=DEVICE)[..., 0],
            lambda z=z: torch.empty(z.shape, dtype=torch.float64, device=DEVICE),
            lambda z=z: torch.empty(z.shape, dtype=torch.int16, device=DEVICE),
        )
        if KERNELS and name in ("abs", "sign"):
            outs = outs[:4]  # torch's CPU does not cast what it need not compute; a kernel casts it, as of other dtypes
        for make in outs:
            results = []
            for function in (OURS[name], INFOS[name]):
                out = make()
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    got = outcome(function, s.input, *s.args, **s.kwargs, out=out)
                results.append((got, out, ["resized" in str(w.message) for w in caught].count(True)))
            (got, mine, warned), (want, theirs, expected) = results
            assert_same_outcome(got, want, strides=True, computed=z.dtype)
            assert (got is mine) == (want is theirs)
            assert warned == expected or name == "mean"  # torch's mean on the CPU resizes without a warning
            tally("database samples")
