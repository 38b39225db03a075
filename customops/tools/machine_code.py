"""Read a compiled Triton kernel: its registers, its spills, and how wide it loads and stores through each pointer."""

from __future__ import annotations

import io
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from functools import reduce
from operator import getitem
from pathlib import Path
from struct import unpack_from
from tempfile import NamedTemporaryFile
from typing import Any, NamedTuple

from .. import config
from .._compat import kernel_files, triton
from ..ptx.frame import address_of
from ..ptx.module import Function, Instruction, Variable, parse
from ..ptx.origins import VARIABLE, origins_of

Leaf = tuple[str | int, ...]  # where an argument stands: ("x",), or ("operands", 1) inside a tuple

SASS_FILE = "kernel.cuobjdump"

EXECUTABLE = 4  # the flag of a section with code
CUDA_INFO = 0x70000000  # the type of a section with what CUDA's driver is told
FRAME_SIZE, REGISTER_COUNT, PARAMETER_BANK = 0x11, 0x2F, 0x0A  # what is told of each function
AMD_ACCESS = re.compile(r"^\s*(?:global|buffer|flat|(scratch))_(load|store)_(?:lds_)?(\w+)", re.MULTILINE)


class Resources(NamedTuple):
    """The registers and spills of a compiled kernel."""

    registers: int  # of each thread
    spills: int  # bytes that each thread keeps in memory instead; on CUDA those of every store and every load


class Access(NamedTuple):
    """One load or store instruction."""

    kind: str  # load or store, of global memory; local: either, of what registers do not hold
    bits: int  # moved by each thread
    leaf: Leaf | None  # the argument that is the pointer, None where that is not known

    @property
    def size(self) -> int:
        """Bytes that each thread moves."""
        return self.bits // 8


def resources(compiled: Any) -> Resources:
    """Return the registers and spills of a Triton ``CompiledKernel``, with the functions that it calls.

    For CUDA ptxas is run once more, which takes as long as compiling did; the answer is cached. A stack (which
    ``cuobjdump -res-usage`` and the driver report) is no proof of a spill: a slow path of ``sin`` has one.

    Raises:
        RuntimeError: ptxas makes other code than the kernel's, because its options have changed since.
    """
    if compiled.hash not in config.kernel_resources:
        hip = compiled.metadata.target.backend == "hip"
        config.kernel_resources[compiled.hash] = _amd_resources(compiled) if hip else _nvidia_resources(compiled)
    return config.kernel_resources[compiled.hash]


def registers(compiled: Any) -> int:
    """Return the registers of each thread, as :func:`resources` does, but without ptxas."""
    if compiled.metadata.target.backend == "hip":
        return _amd_resources(compiled).registers
    return binary_registers(compiled.asm["cubin"])


def binary_registers(cubin: bytes) -> int:
    """Return the registers of each thread that runs the functions in a CUDA binary."""
    return max(_attribute(cubin, REGISTER_COUNT))


def binary_stack(cubin: bytes) -> int:
    """Return the bytes of memory that each thread has for itself in a CUDA binary: its spills and arrays."""
    return max(_attribute(cubin, FRAME_SIZE), default=0)


def accesses(compiled: Any) -> tuple[Access, ...]:
    """Return the loads and stores of global memory in a kernel's PTX or AMD assembly, in order.

    Atomics, TMA and tables of constants are left out. The binary has the same widths, but not as many of each: ptxas
    unrolls loops and drops repeated loads. An address that several pointers lead to, as by ``tl.where``, counts for
    each of them. Where a pointer passed through memory or into a function that is not inlined, and everywhere on AMD,
    the leaf is None.
    """
    if compiled.metadata.target.backend == "hip":
        instructions = map(amd_access, AMD_ACCESS.finditer(compiled.asm["amdgcn"]))
        return tuple(access for access in instructions if access.kind != "local")
    module, leaves = parse(compiled.asm["ptx"]), [leaf for leaf, _ in parameters(compiled)]
    functions = module.functions.values()
    return tuple(a for f in functions for a in _ptx_accesses(f, leaves if f.is_kernel else (), module.variables))


def widest(compiled: Any) -> dict[Leaf | None, int]:
    """Return the bits of the widest load or store of each pointer parameter that is used.

    The key None stands for accesses whose pointer is not known.
    """
    bits: dict[Leaf | None, int] = {}
    for access in accesses(compiled):
        bits[access.leaf] = max(access.bits, bits.get(access.leaf, 0))
    return bits


def parameters(compiled: Any) -> tuple[tuple[Leaf, str], ...]:
    """Return each parameter of the machine code: where it stands among the arguments, and its type, as ``"*fp32"``.

    Tuples are flattened and constants are gone. Scratch pointers, which Triton appends, are not listed.
    """
    names = compiled.src.fn.arg_names

    def leaves(dtype: Any, path: tuple[int, ...]) -> Iterator[tuple[Leaf, str]]:
        if path in compiled.src.constants or dtype == "constexpr":
            return
        if isinstance(dtype, tuple):
            for i, inner in enumerate(dtype):
                yield from leaves(inner, (*path, i))
        elif dtype.startswith("tensordesc"):
            raise NotImplementedError(
                f"{compiled.name}: {names[path[0]]} is a tensor descriptor, which becomes several parameters; "
                "pass the tensor, and make the descriptor in the kernel"
            )
        else:
            yield (names[path[0]], *path[1:]), dtype

    signature = [compiled.src.signature.get(name, "constexpr") for name in names]
    return tuple(leaf for i, dtype in enumerate(signature) for leaf in leaves(dtype, (i,)))


def flat_arguments(compiled: Any, args: Sequence[Any]) -> tuple[Any, ...]:
    """Return the value of each parameter of the machine code, in the order of :func:`parameters`.

    ``args`` are what a launcher gets: all arguments of the kernel in order, with tuples and constants.
    """
    named = dict(zip(compiled.src.fn.arg_names, args, strict=True))
    return tuple(reduce(getitem, path, named[name]) for (name, *path), _ in parameters(compiled))


def parameter_offsets(compiled: Any) -> dict[int, Leaf]:
    """Return the pointer parameters of a CUDA kernel by their offset in the bank of constants, in bytes."""
    offset = next(_attribute(compiled.asm["cubin"], PARAMETER_BANK)) & 0xFFFF
    found = {}
    for leaf, kind in parameters(compiled):
        size = 8 if kind.startswith("*") else max(1, int(re.sub(r"\D", "", kind)) // 8)
        offset = -(-offset // size) * size
        if kind.startswith("*"):
            found[offset] = leaf
        offset += size
    return found


def sass(compiled: Any) -> str:
    """Return the machine code of a CUDA kernel and of the functions that it calls, as ``cuobjdump -sass`` prints it.

    That takes half a second, so the text is kept in Triton's cache, beside the kernel.
    """
    files = kernel_files(compiled)
    if path := files.get_file(SASS_FILE):
        return Path(path).read_text()
    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [triton().knobs.nvidia.cuobjdump.path, "-sass", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    files.put(text.encode(), SASS_FILE)
    return text


def name_of(leaf: Leaf) -> str:
    """Return an argument's place as text, as ``operands[1]``."""
    return "".join([str(leaf[0]), *(f"[{i}]" for i in leaf[1:])])


def _nvidia_resources(compiled: Any) -> Resources:
    """Read the log of ptxas, which Triton itself runs with the options that the kernel was compiled with."""
    target = compiled.metadata.target
    log = io.StringIO()
    with triton().knobs.nvidia.scope(), redirect_stdout(log):
        triton().knobs.nvidia.dump_ptxas_log = True
        cubin = (
            triton().compiler.make_backend(target).make_cubin(compiled.asm["ptx"], {}, compiled.metadata, target.arch)
        )
    if _code(cubin) != _code(compiled.asm["cubin"]):
        raise RuntimeError(f"ptxas does not reproduce the code of {compiled.name}: have its options changed?")
    used = re.findall(r"Used (\d+) registers", log.getvalue())
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", log.getvalue())
    return Resources(max(map(int, used)), sum(map(int, spills)))


def _code(cubin: bytes) -> list[bytes]:
    """Return the executable sections of an ELF file, whose debug information holds when the source was last written."""
    return [content for _, flags, content in _sections(cubin) if flags & EXECUTABLE]


def _attribute(cubin: bytes, attribute: int) -> Iterator[int]:
    """Yield an attribute of each function in a CUDA binary, as ``cuobjdump -elf`` prints it from ``.nv.info``.

    An entry has a format, an attribute and two bytes. In format 4 these are the length of what follows, which for an
    attribute of a function is its symbol and a value.
    """
    for kind, _, content in _sections(cubin):
        start = 0
        while kind == CUDA_INFO and start < len(content):
            form, found, length = unpack_from("<BBH", content, start)
            if (form, found, length) == (4, attribute, 8):
                yield unpack_from("<II", content, start + 4)[1]
            start += 4 + (length if form == 4 else 0)


def _sections(cubin: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield the type, the flags and the content of each section of an ELF file."""
    (table,), (size, count) = unpack_from("<Q", cubin, 40), unpack_from("<HH", cubin, 58)
    for i in range(count):
        _, kind, flags, _, start, length = unpack_from("<IIQQQQ", cubin, table + i * size)
        yield kind, flags, cubin[start : start + length]


def _amd_resources(compiled: Any) -> Resources:
    """Return the resources in vector registers: a scalar one spills to a vector register, not to memory."""
    counts = {name: int(n) for name, n in re.findall(r"\.(\w+_count): +(\d+)", compiled.asm["amdgcn"])}
    return Resources(counts["vgpr_count"], 4 * counts["vgpr_spill_count"])


def _ptx_accesses(function: Function, leaves: Sequence[Leaf], variables: Sequence[Variable]) -> Iterator[Access]:
    """Yield the accesses of one function in PTX; ``leaves`` are those of its parameters, as far as known.

    Tables of constants among the module's ``variables`` are left out.
    """
    origins = origins_of(function, variables)
    for instruction in function.instructions:
        name, *modifiers = instruction.opcode.split(".")
        if name in ("ld", "st", "cp") and "global" in modifiers and "bulk" not in modifiers:
            addresses = [operand for operand in instruction.operands if operand.startswith("[")]
            base, _ = address_of(addresses[-1])  # of the two of cp.async, the first is shared memory
            if VARIABLE in origins.get(base, ()):
                continue
            known: list[Leaf | None] = [leaves[i] for i in sorted(origins.get(base, ())) if i < len(leaves)]
            for leaf in known or [None]:
                yield Access("store" if name == "st" else "load", _ptx_bits(instruction), leaf)


def _ptx_bits(instruction: Instruction) -> int:
    """Return the bits that one instruction moves for a thread."""
    name, *modifiers, kind = instruction.opcode.split(".")
    if name == "cp":
        return 8 * int(instruction.operands[2], 0)  # cp.async [to], [from], bytes
    lanes = next((int(modifier[1:]) for modifier in modifiers if re.fullmatch(r"v\d", modifier)), 1)
    return lanes * int(kind[1:])


def amd_access(instruction: re.Match[str]) -> Access:
    """Return what an instruction loads or stores, which ``AMD_ACCESS`` found. Its pointer is not told."""
    scratch, kind, width = instruction.groups()
    return Access("local" if scratch else kind, _amd_bits(width), None)


def _amd_bits(width: str) -> int:
    """Return the bits of a width as AMD writes it: dwordx4, ubyte, short_d16_hi, b128."""
    match = re.search(r"(dword|short|byte|[bui](?=\d))x?(\d*)", width)
    assert match, width
    return {"dword": 32, "short": 16, "byte": 8}.get(match[1], 1) * int(match[2] or 1)
