"""One rounding where two would differ, and conversions as NumPy and torch make them."""

import numpy as np
import pytest
import torch

from customops.ptx.arithmetic import operation

from .ptx_numbers import FORMS, width
from .ptx_scalar import evaluate

pytestmark = pytest.mark.sample(kernels="")  # it asks nothing of the interpreter

MODES = ("rn", "rz", "rm", "rp")
DTYPES = {"f16": "f2", "bf16": "u2", "f32": "f4", "f64": "f8"}


@pytest.fixture(autouse=True)
def _no_warnings():
    with np.errstate(all="ignore"):
        yield


def near_ties(kind, random, count):
    """Return bits a, b, c for which ``a * b + c`` lies just beside, or on, the middle between two numbers.

    ``a = 1 + i u`` and ``b = 2**e (1 - i u)`` have the product ``2**e (1 - (i u)**2)``, and `c` is a number whose unit
    in the last place is ``2**(e + 1)``: float64 sees the middle itself unless `i` is large.
    """
    exponent_bits, mantissa_bits = FORMS[kind]
    unit, bias = 1 << mantissa_bits, (1 << (exponent_bits - 1)) - 1
    sign = 1 << (exponent_bits + mantissa_bits)
    rows = []
    for _ in range(count):
        i = int(random.integers(0, min(64, unit // 4)))
        e = int(random.integers(max(1, mantissa_bits - bias + 3), 4)) - mantissa_bits - 1
        c_exponent = e + 1 + mantissa_bits + bias
        a = bias * unit + i
        b = (e + bias) * unit - 2 * i if i else (e + bias) * unit
        c = c_exponent * unit + int(random.integers(unit))
        flips = random.integers(0, 2, 3)
        rows.append([x | sign * int(f) for x, f in zip((a, b, c), flips, strict=True)])
    return [list(column) for column in zip(*rows, strict=True)]


def tiny(kind, random, count):
    """Return bits a, b, c whose sum is subnormal, with a product below the smallest subnormal number."""
    exponent_bits, mantissa_bits = FORMS[kind]
    unit, bias = 1 << mantissa_bits, (1 << (exponent_bits - 1)) - 1
    sign = 1 << (exponent_bits + mantissa_bits)
    rows = []
    for _ in range(count):
        total = 2 * bias - bias - mantissa_bits + int(random.integers(-3, 3))  # of the exponents, biased twice
        first = int(random.integers(1, max(2, total)))
        a = first * unit + int(random.integers(unit))
        b = max(total - first, 0) * unit + int(random.integers(unit))
        c = int(random.integers(2 * unit))
        rows.append([x | sign * int(random.integers(2)) for x in (a, b, c)])
    return [list(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("draw", [near_ties, tiny])
def test_fma_rounds_once(draw, kind, mode):
    if kind in ("f16", "bf16") and mode != "rn":
        with pytest.raises(KeyError):
            operation(f"fma.{mode}.{kind}")
        return
    columns = draw(kind, np.random.default_rng(3), 400)
    arrays = [np.array(column, f"u{width(kind) // 8}").view(DTYPES[kind]) for column in columns]
    got = operation(f"fma.{mode}.{kind}").function(*arrays).view(f"u{width(kind) // 8}")
    expected = [evaluate(f"fma.{mode}.{kind}", *row)[0] for row in zip(*columns, strict=True)]
    assert got.tolist() == expected


def test_fma_of_bf16_below_all_float32_is_zero_beside_a_tie():
    """The tie in the second lane sends all lanes through rounding to odd; the first product is below all float32."""
    a, b, c = np.uint16([[0x128F, 0x3F80], [0x05E3, 0x3B80], [0, 0x3F80]])
    assert operation("fma.rn.bf16").function(a, b, c).tolist() == [0, 0x3F80]


@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_product_and_sum_rounded_apart_differ_from_fma(kind):
    """Shows that the operands above tell one rounding from two."""
    columns = near_ties(kind, np.random.default_rng(3), 400)
    a, b, c = (np.array(column, f"u{width(kind) // 8}").view(DTYPES[kind]) for column in columns)
    once = operation(f"fma.rn.{kind}").function(a, b, c)
    assert (once != a * b + c).sum() > 20
    if kind == "f32":
        wide = a.astype(np.float64) * b + c
        assert (once != wide.astype(np.float32)).sum() > 20


def every_half():
    return np.arange(1 << 16, dtype=np.uint16)


def test_f16_to_f32_is_numpys_for_all_bits():
    bits = every_half()
    expected = bits.view(np.float16).astype(np.float32)
    got = operation("cvt.f32.f16").function(bits.view(np.float16))
    assert np.array_equal(got, expected, equal_nan=True)
    assert np.array_equal(np.signbit(got)[~np.isnan(got)], np.signbit(expected)[~np.isnan(got)])


def test_bf16_to_f32_and_back_is_the_same_for_all_bits():
    bits = every_half()
    wide = operation("cvt.f32.bf16").function(bits)
    expected = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float().numpy()
    assert np.array_equal(wide, expected, equal_nan=True)
    back = operation("cvt.rn.bf16.f32").function(wide)
    assert np.array_equal(back[~np.isnan(wide)], bits[~np.isnan(wide)])
    assert (back[np.isnan(wide)] == 0x7FFF).all()


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_f32_to_half_is_torchs(kind):
    bits = np.random.default_rng(4).integers(0, 1 << 32, 200_000, np.uint32)
    middles = (np.arange(1 << 16, dtype=np.uint32) << 16) | 0x8000  # between two bf16
    x = np.concatenate([bits, middles, middles + 1, middles - 1, middles & ~np.uint32(0xFFF)]).view(np.float32)
    x = x[~np.isnan(x)]
    dtype = torch.float16 if kind == "f16" else torch.bfloat16
    expected = torch.from_numpy(x).to(dtype).view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(operation(f"cvt.rn.{kind}.f32").function(x).view(np.uint16), expected)


@pytest.mark.parametrize(("kind", "dtype"), [("e4m3x2", torch.float8_e4m3fn), ("e5m2x2", torch.float8_e5m2)])
def test_eight_bit_floats_are_torchs(kind, dtype):
    codes = np.arange(256, dtype=np.uint8)
    values = torch.from_numpy(codes).view(dtype).to(torch.float16).numpy()
    got = operation(f"cvt.rn.f16x2.{kind}").function(codes.astype(np.uint16)) & 0xFFFF
    assert np.array_equal(got.astype(np.uint16).view(np.float16), values, equal_nan=True)
    x = np.random.default_rng(5).standard_normal(50_000).astype(np.float32) * 40
    expected = torch.from_numpy(x).to(dtype).view(torch.uint8).numpy()
    assert np.array_equal(
        operation(f"cvt.rn.satfinite.{kind}.f32").function(np.zeros_like(x), x), expected.astype(np.uint16)
    )


def test_pair_has_the_first_source_in_its_upper_half():
    one, two = np.float32([1.0]), np.float32([2.0])
    assert operation("cvt.rn.bf16x2.f32").function(one, two).tolist() == [0x3F80_4000]
    assert operation("cvt.rn.f16x2.f32").function(one, two).tolist() == [0x3C00_4000]
