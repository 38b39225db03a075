"""Each PTX instruction on registers gives the bits that a scalar evaluation with integers and fractions gives."""

from zlib import crc32

import numpy as np
import pytest

from customops.ptx.arithmetic import operation
from customops.ptx.formats import DTYPES, PACKED

from .ptx_numbers import FORMS, PAIRS, decode, is_nan, width
from .ptx_opcodes import EXACT, KERNELS
from .ptx_scalar import evaluate, parse

pytestmark = pytest.mark.sample(kernels="")  # it asks nothing of the interpreter

LONGEST = 128  # operands of each opcode


@pytest.fixture(autouse=True)
def _no_warnings():
    with np.errstate(all="ignore"):
        yield


NAMES: dict[str, list[str]] = {}
for text in EXACT:
    NAMES.setdefault(text.split(".")[0], []).append(text)


def float_edges(kind):
    """Return the bits of zeros, the ends of the subnormal and normal numbers, ones, infinities and nans."""
    exponent_bits, mantissa_bits = FORMS[kind]
    sign, unit = 1 << (exponent_bits + mantissa_bits), 1 << mantissa_bits
    one = ((1 << (exponent_bits - 1)) - 1) * unit
    infinity = ((1 << exponent_bits) - 1) * unit
    positive = [0, 1, unit - 1, unit, unit + 1, one - 1, one, one + 1, one + unit // 2, one + 3 * unit]
    return [b | s for b in (*positive, infinity - 1, infinity, infinity + 1, infinity + unit // 2) for s in (0, sign)]


def integer_edges(bits):
    top = 1 << (bits - 1)
    return [x & (2 * top - 1) for x in (0, 1, 2, 3, 8, 16, 31, 32, 33, 63, 64, 255, top - 1, top, top + 1, -1, -2, -3)]


def edges(kind):
    if kind in PAIRS:
        half = edges(kind[:-2])
        return [low | high << width(kind) // 2 for low, high in zip(half, half[5:] + half[:5], strict=True)]
    if kind == "pred":
        return [0, 1]
    return float_edges(kind) if kind in FORMS else integer_edges(width(kind))


def operands(kinds, random, count=LONGEST):
    """Return lists of bits, one per source: half of them edges, a quarter close to each other, a quarter random."""
    columns = []
    for kind in kinds:
        bits, some = width(kind), edges(kind)
        drawn = random.integers(0, 1 << 63, count, np.uint64).astype(object) * 2 + random.integers(0, 2, count)
        column = [int(x) >> (64 - bits) for x in drawn]
        for lane in range(0, count * 3 // 4):
            column[lane] = some[random.integers(len(some))]
        columns.append(column)
    if len(set(kinds)) == 1:
        for column in columns[1:]:  # neighbours, and opposites
            for lane in range(count // 2, count * 3 // 4):
                step = int(random.integers(-2, 3)) & ((1 << width(kinds[0])) - 1)
                flip = int(random.integers(2)) << (width(kinds[0]) - 1)
                column[lane] = (columns[0][lane] + step) % (1 << width(kinds[0])) ^ flip
    return columns


def register(bits, kind):
    """Return an array of the machine's type from bits."""
    dtype = np.dtype(DTYPES[kind])
    return np.array(bits, f"u{dtype.itemsize}" if kind != "pred" else bool).view(dtype)


def bits_of(array, kind):
    array = np.asarray(array)
    assert array.dtype == DTYPES[kind]
    return [int(x) for x in array.view(f"u{array.dtype.itemsize}")]


def alike(got, expected, kind, opcode):
    """Return whether the bits are the same; the ISA leaves the payload of some nans open."""
    if got == expected:
        return True
    name, modifiers, _ = parse(opcode)
    open_payload = "ftz" in modifiers if name in ("neg", "abs") else kind == "f64"
    if not open_payload:
        return False
    shift = width(kind) // 2 if kind in PAIRS else 0
    scalar, mask = PACKED.get(kind, kind), (1 << (shift or width(kind))) - 1
    pairs = [(got >> s & mask, expected >> s & mask) for s in {0, shift}]
    return all(g == e or (is_nan(decode(g, scalar)) and is_nan(decode(e, scalar))) for g, e in pairs)


def sources_of(opcode, random):
    kinds = operation(opcode).sources
    columns = operands(kinds, random)
    if opcode.startswith("lop3"):
        columns[3] = [int(random.integers(256))] * LONGEST
    if parse(opcode)[0] in ("shl", "shr", "shf", "bfe", "bfi"):  # amounts that matter
        for place, kind in enumerate(kinds):
            if place and kind == "u32":
                columns[place] = [b if i % 3 else int(random.integers(70)) for i, b in enumerate(columns[place])]
    return columns


@pytest.mark.parametrize("name", NAMES)
def test_instruction_gives_the_bits_of_the_scalar_evaluation(name):
    for opcode in NAMES[name]:
        check(opcode)


def check(opcode):
    random = np.random.default_rng(crc32(opcode.encode()))
    columns = sources_of(opcode, random)
    op = operation(opcode)
    arrays = [register(column, kind) for column, kind in zip(columns, op.sources, strict=True)]
    results = op.function(*arrays)
    results = results if len(op.results) > 1 else (results,)
    got = [bits_of(array, kind) for array, kind in zip(results, op.results, strict=True)]
    for lane, values in enumerate(zip(*columns, strict=True)):
        expected = evaluate(opcode, *values)
        for place, kind in enumerate(op.results):
            assert alike(got[place][lane], expected[place], kind, opcode), (
                f"{opcode} {[hex(v) for v in values]}: {got[place][lane]:#x}, expected {expected[place]:#x}"
            )


@pytest.mark.parametrize("name", NAMES)
def test_immediate_operand_gives_the_values_of_a_full_one(name):
    for opcode in NAMES[name]:
        check_immediates(opcode)


def check_immediates(opcode):
    random = np.random.default_rng(1)
    op = operation(opcode)
    columns = sources_of(opcode, random)
    arrays = [register(column, kind) for column, kind in zip(columns, op.sources, strict=True)]
    for place in range(len(arrays)):
        full, short = list(arrays), list(arrays)
        full[place], short[place] = np.full_like(arrays[place], arrays[place][7]), arrays[place][7]
        for a, b in zip(_tuple(op.function(*full)), _tuple(op.function(*short)), strict=True):
            a, b = np.broadcast_arrays(a, b)
            assert a.dtype == b.dtype
            assert np.array_equal(a, b, equal_nan=a.dtype.kind == "f"), opcode


def _tuple(results):
    return results if isinstance(results, tuple) else (results,)


def test_opcodes_of_the_kernels_are_known():
    for opcode in KERNELS:
        op = operation(opcode)
        assert all(kind in DTYPES for kind in (*op.sources, *op.results)), opcode


@pytest.mark.parametrize(
    "opcode",
    ["add.rn.f31", "fma.rn.s32", "mul.s32", "cvt.f32", "add.rn.f32.f32.f32", "frob.b32", "add.rq.f32", "add.rz.bf16",
     "setp.ltu.s32", "fma.rn.ftz.bf16", "cvt.e4m3x2.e5m2x2", "mul.wide.u64", "add.sat.u32", "rcp.approx.f64", ""],
)  # fmt: skip
def test_unknown_opcode_raises_key_error(opcode):
    with pytest.raises(KeyError):
        operation(opcode)


def test_packed_types_have_two_parts():
    assert all(np.dtype(DTYPES[pair]).itemsize == 2 * np.dtype(DTYPES[part]).itemsize for pair, part in PACKED.items())


def test_minimum_of_three_is_the_smallest():
    a, b, c = (np.random.default_rng(2).permutation(np.float32([1, 2, np.nan, -0.0, 0.0, 5, np.nan])) for _ in range(3))
    b, c = np.roll(b, 1), np.roll(c, 3)
    two = operation("min.f32").function
    assert np.array_equal(two(a, b, c), two(two(a, b), c), equal_nan=True)
    assert two(*np.float32([[3], [1], [2]])).tolist() == [1]
