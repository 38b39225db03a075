"""The approximate instructions keep the ISA's bounds, use them, and have the ISA's special values."""

from math import inf, nan, pi

import numpy as np
import pytest

from customops.ptx.arithmetic import operation

from .ptx_numbers import FORMS

pytestmark = pytest.mark.sample(kernels="")  # it asks nothing of the interpreter


@pytest.fixture(autouse=True)
def _no_warnings():
    with np.errstate(all="ignore"):
        yield


def unit(v, kind="f32"):
    """Return the distance of the format's numbers around float64 `v`."""
    exponent_bits, mantissa_bits = FORMS[kind]
    lowest = 2 - (1 << (exponent_bits - 1))
    return np.ldexp(1.0, np.maximum(np.frexp(v)[1] - 1, lowest) - mantissa_bits)


def ulps(count):
    return lambda v, x: count * unit(v)


def relative(bound):
    return lambda v, x: np.abs(v) * 2.0**bound


def absolute(bound):
    return lambda v, x: np.full_like(v, 2.0**bound)


def log_bound(v, x):
    return np.where((x > 0.5) & (x < 2), 1.0, np.abs(v)) * 2.0**-22


def angle_bound(v, x):
    return np.where(np.abs(x) <= 2 * pi, 2.0**-20.5, 2.0**-14.7)


SIGNED = ("sin", "cos", "tanh", "rcp", "ex2")
CASES = {  # opcode: the function, the bound in the words of the ISA, and the range of exponents to draw from
    "rcp.approx.f32": (lambda x: 1 / x, ulps(1), (-125, 125)),
    "rcp.approx.ftz.f32": (lambda x: 1 / x, ulps(1), (-125, 125)),
    "sqrt.approx.f32": (np.sqrt, relative(-23), (-126, 127)),
    "sqrt.approx.ftz.f32": (np.sqrt, relative(-23), (-126, 127)),
    "rsqrt.approx.f32": (lambda x: 1 / np.sqrt(x), relative(-22.9), (-126, 127)),
    "rsqrt.approx.ftz.f32": (lambda x: 1 / np.sqrt(x), relative(-22.9), (-126, 127)),
    "lg2.approx.f32": (np.log2, log_bound, (-126, 127)),
    "lg2.approx.ftz.f32": (np.log2, log_bound, (-3, 3)),
    "sin.approx.f32": (np.sin, angle_bound, (-20, 8)),
    "sin.approx.ftz.f32": (np.sin, angle_bound, (-20, 2)),
    "cos.approx.f32": (np.cos, angle_bound, (-20, 8)),
    "cos.approx.ftz.f32": (np.cos, angle_bound, (-20, 2)),
    "tanh.approx.f32": (np.tanh, relative(-11), (-30, 3)),
    "tanh.approx.f16": (np.tanh, absolute(-10.987), (-13, 3)),
    "tanh.approx.bf16": (np.tanh, absolute(-8), (-30, 3)),
    "ex2.approx.f16": (np.exp2, relative(-9.9), (-10, 2)),
    "ex2.approx.ftz.bf16": (np.exp2, relative(-7), (-10, 5)),
}


def draw(opcode, low, high, count=40_000):
    """Return numbers of the opcode's type, and the same in float64."""
    random = np.random.default_rng(6)
    x = np.ldexp(random.uniform(1, 2, count), random.integers(low, high + 1, count))
    if opcode.split(".")[0] in SIGNED:
        x *= random.choice([-1.0, 1.0], count)
    kind = opcode.split(".")[-1]
    if kind == "bf16":
        bits = (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        return bits, widen(bits, kind)
    x = x.astype(np.float16 if kind == "f16" else np.float32)
    return x, x.astype(np.float64)


def widen(x, kind):
    return (x.astype(np.uint32) << 16).view(np.float32).astype(np.float64) if kind == "bf16" else x.astype(np.float64)


@pytest.mark.parametrize("opcode", CASES)
def test_largest_error_is_near_the_bound_and_not_past_it(opcode):
    function, bound, (low, high) = CASES[opcode]
    x, wide = draw(opcode, low, high)
    v = function(wide)
    error = (widen(operation(opcode).function(x), opcode.split(".")[-1]) - v) / bound(v, wide)
    assert np.abs(error).max() <= 1 + 1e-6
    assert error.max() > 0.85
    assert error.min() < -0.85 or opcode.startswith("tanh.approx.bf16")


def test_exponential_stays_within_two_units_of_the_nearest():
    for opcode in ("ex2.approx.f32", "ex2.approx.ftz.f32"):
        x = np.random.default_rng(7).uniform(-126, 128, 40_000).astype(np.float32)
        nearest = np.exp2(x.astype(np.float64)).astype(np.float32)
        steps = operation(opcode).function(x).view(np.int32) - nearest.view(np.int32)
        assert set(steps.tolist()) == {-2, -1, 0, 1, 2}


@pytest.mark.parametrize("opcode", ["div.full.f32", "div.full.ftz.f32", "div.approx.f32", "div.approx.ftz.f32"])
def test_quotient_stays_within_two_units(opcode):
    random = np.random.default_rng(8)
    a, b = (random.standard_normal(40_000).astype(np.float32) for _ in range(2))
    v = a.astype(np.float64) / b
    error = (operation(opcode).function(a, b) - v) / unit(v)
    assert 1.8 < np.abs(error).max() <= 2


@pytest.mark.parametrize("opcode", ["rcp.approx.ftz.f64", "rsqrt.approx.ftz.f64"])
def test_gross_approximation_uses_the_upper_words_only(opcode):
    x = np.exp(np.random.default_rng(9).uniform(-600, 600, 20_000))
    result = operation(opcode).function(x)
    upper = (x.view(np.uint64) & np.uint64(0xFFFFFFFF00000000)).view(np.float64)
    assert np.array_equal(result, operation(opcode).function(upper))
    assert not (result.view(np.uint64) & np.uint64(0xFFFFFFFF)).any()
    v = 1 / upper if opcode.startswith("rcp") else 1 / np.sqrt(upper)
    assert 0.5 < np.abs(result / v - 1).max() * 2**20 <= 1


SPECIAL: dict[
    str, list[tuple[float, float]]
] = {  # operand and result: the ISA's tables; subnormal operands where .ftz flushes them
    "rcp.approx.f32": [(inf, 0.0), (-inf, -0.0), (0.0, inf), (-0.0, -inf), (nan, nan), (2.0**-140, inf)],
    "rcp.approx.ftz.f32": [(2.0**-127, inf), (-(2.0**-127), -inf), (2.0**127, 0.0)],
    "sqrt.approx.f32": [(inf, inf), (-inf, nan), (-1.0, nan), (0.0, 0.0), (-0.0, -0.0), (nan, nan)],
    "sqrt.approx.ftz.f32": [(2.0**-127, 0.0), (-(2.0**-127), -0.0)],
    "rsqrt.approx.f32": [(inf, 0.0), (-inf, nan), (-1.0, nan), (0.0, inf), (-0.0, -inf), (nan, nan)],
    "rsqrt.approx.ftz.f32": [(2.0**-127, inf), (-(2.0**-127), -inf)],
    "lg2.approx.f32": [
        (inf, inf),
        (-inf, nan),
        (-1.0, nan),
        (0.0, -inf),
        (-0.0, -inf),
        (nan, nan),
        (2.0**-140, -140.0),
    ],
    "lg2.approx.ftz.f32": [(2.0**-127, -inf)],
    "ex2.approx.f32": [(inf, inf), (-inf, 0.0), (0.0, 1.0), (-0.0, 1.0), (nan, nan), (128.0, inf), (-140.0, 2.0**-140)],
    "ex2.approx.ftz.f32": [(-127.0, 0.0), (2.0**-127, 1.0)],
    "sin.approx.f32": [(inf, nan), (-inf, nan), (0.0, 0.0), (-0.0, -0.0), (nan, nan)],
    "cos.approx.f32": [(inf, nan), (-inf, nan), (0.0, 1.0), (-0.0, 1.0), (nan, nan)],
    "tanh.approx.f32": [
        (inf, 1.0),
        (-inf, -1.0),
        (0.0, 0.0),
        (-0.0, -0.0),
        (nan, nan),
        (2.0**-140, 2.0**-140),
        (40.0, 1.0),
    ],
    "tanh.approx.f16": [(inf, 1.0), (-inf, -1.0), (0.0, 0.0), (-0.0, -0.0), (nan, nan)],
    "ex2.approx.f16": [(inf, inf), (-inf, 0.0), (0.0, 1.0), (-0.0, 1.0), (nan, nan), (16.0, inf)],
    "rcp.approx.ftz.f64": [
        (inf, 0.0),
        (-inf, -0.0),
        (0.0, inf),
        (-0.0, -inf),
        (2.0**-1050, inf),
        (-(2.0**-1050), -inf),
        (nan, nan),
    ],
    "rsqrt.approx.ftz.f64": [(inf, 0.0), (-inf, nan), (0.0, inf), (-0.0, -inf), (2.0**-1050, inf), (nan, nan)],
}


@pytest.mark.parametrize("opcode", SPECIAL)
def test_special_values_are_those_of_the_isa(opcode):
    dtype = {"f16": np.float16, "f32": np.float32, "f64": np.float64}[opcode.split(".")[-1]]
    operands, expected = (np.array(column, dtype) for column in zip(*SPECIAL[opcode], strict=True))
    result = operation(opcode).function(operands)
    for x, got, want in zip(operands, result, expected, strict=True):
        assert np.array_equal(got, want, equal_nan=True), (x, got, want)
        assert np.isnan(got) or np.signbit(got) == np.signbit(want), x


def test_quotient_overflows_where_its_nearest_number_does():
    scale, steps = (x.ravel() for x in np.meshgrid(np.arange(60), np.arange(-3, 4)))
    largest = np.finfo(np.float32).max
    for sign in (1, -1):
        a = np.ldexp(np.float32(sign * largest), -scale)
        b = np.ldexp(np.float32(1), -scale) + np.ldexp(np.float32(2.0**-24), -scale) * steps.astype(np.float32)
        nearest = (a.astype(np.float64) / b).astype(np.float32)
        assert np.array_equal(np.isinf(operation("div.full.f32").function(a, b)), np.isinf(nearest))


@pytest.mark.parametrize(
    ("opcode", "x", "expected"),
    [
        ("ex2.approx.f32", np.arange(-149.0, 128), np.exp2(np.arange(-149.0, 128))),
        ("rcp.approx.f32", np.exp2(np.arange(-126.0, 127)), np.exp2(-np.arange(-126.0, 127))),
        ("sqrt.approx.f32", np.exp2(np.arange(-126.0, 127, 2)), np.exp2(np.arange(-126.0, 127, 2) / 2)),
        ("rsqrt.approx.f32", np.exp2(np.arange(-126.0, 127, 2)), np.exp2(-np.arange(-126.0, 127, 2) / 2)),
        ("lg2.approx.f32", np.exp2(np.arange(-149.0, 128)), np.arange(-149.0, 128)),
    ],
)
def test_powers_of_two_are_exact(opcode, x, expected):
    assert np.array_equal(operation(opcode).function(x.astype(np.float32)), expected.astype(np.float32))


def test_quotient_of_equal_numbers_is_one():
    x = np.random.default_rng(10).standard_normal(1000).astype(np.float32)
    assert (operation("div.full.f32").function(x, x) == 1).all()


def test_quotient_by_a_huge_divisor_is_zero_or_nan():
    a, b = np.float32([1, -1, inf]), np.float32([1.5 * 2.0**126] * 3)
    result = operation("div.approx.f32").function(a, b)
    assert result[:2].tolist() == [0, 0]
    assert np.isnan(result[2])
    assert (operation("div.full.f32").function(a[:2], b[:2]) != 0).all()


def test_same_operands_give_the_same_result():
    x = np.random.default_rng(11).standard_normal(100).astype(np.float32)
    for opcode in ("ex2.approx.f32", "sin.approx.f32"):
        function = operation(opcode).function
        assert np.array_equal(function(x), np.concatenate([function(x[:37]), function(x[37:])]))
        assert function(x[0]) == function(x)[0]


@pytest.mark.parametrize("opcode", ["ex2.approx.f16x2", "tanh.approx.f16x2", "tanh.approx.bf16x2"])
def test_packed_halves_are_each_approximated(opcode):
    bits = np.random.default_rng(12).integers(0, 1 << 16, 2000, np.uint16)
    scalar = operation(opcode[:-2]).function(bits.view(np.float16 if "bf16" not in opcode else np.uint16))
    packed = operation(opcode).function(bits.view(np.uint32))
    assert np.array_equal(packed.view(np.uint16), scalar.view(np.uint16))


def test_bounded_functions_stay_within_one():
    x = np.random.default_rng(13).uniform(-700, 700, 40_000).astype(np.float32)
    for opcode in ("sin.approx.f32", "cos.approx.f32", "tanh.approx.f32"):
        assert np.abs(operation(opcode).function(x)).max() <= 1
