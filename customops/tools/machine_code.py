"""What a compiled Triton kernel became: its registers, its spills, and how wide it reads and writes each pointer."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from struct import unpack_from
from typing import Any, NamedTuple

from .. import config
from .._compat import triton

Leaf = tuple[str | int, ...]  # where an argument stands: ("x",), or ("operands", 1) inside a tuple

INSTRUCTION = re.compile(r"(?<![\w.$%])([a-z]\w*(?:[.:]+\w+)*)\s+([^;\n]*);")
WORD = re.compile(r"%?\w+")
AMD_ACCESS = re.compile(r"^\s*(?:global|buffer|flat)_(load|store)_(?:lds_)?(\w+)", re.MULTILINE)


class Resources(NamedTuple):
    """Registers per thread, and bytes per thread in memory instead, each store and load counted on CUDA."""

    registers: int
    spills: int


class Access(NamedTuple):
    """One load or store instruction of global memory; ``parameter`` is None where its pointer is not known."""

    kind: str  # "load" or "store"
    bits: int  # moved per thread
    parameter: Leaf | None


def resources(compiled: Any) -> Resources:
    """Registers and spills of a Triton ``CompiledKernel``, functions that it calls included.

    For CUDA ptxas is run once more, which takes as long as it took to compile, and the answer is remembered. A stack
    (which ``cuobjdump -res-usage`` and the driver report) is no proof of a spill: a slow path of ``sin`` has one.

    Raises:
        RuntimeError: ptxas makes other code than the kernel's, because its options have changed since.
    """
    if compiled.hash not in config.kernel_resources:
        hip = compiled.metadata.target.backend == "hip"
        config.kernel_resources[compiled.hash] = _amd_resources(compiled) if hip else _nvidia_resources(compiled)
    return config.kernel_resources[compiled.hash]


def accesses(compiled: Any) -> tuple[Access, ...]:
    """The loads and stores of global memory in the PTX or AMD assembly of a kernel, in its order; no atomics, no TMA.

    The binary has the same widths, but not as many of each: ptxas unrolls loops and drops repeated loads. An address
    that several pointers lead to, as by ``tl.where``, counts for each of them. Where a pointer passed through memory
    or into a function that is not inlined, and everywhere on AMD, the parameter is None.
    """
    if compiled.metadata.target.backend == "hip":
        found = AMD_ACCESS.findall(compiled.asm["amdgcn"])
        return tuple(Access(kind, _amd_bits(width), None) for kind, width in found)
    pointers = {
        f"{compiled.metadata.name}_param_{i}": leaf
        for i, (leaf, dtype) in enumerate(parameters(compiled))
        if dtype.startswith("*")
    }
    functions = re.split(r"\.(?:entry|func)\b", compiled.asm["ptx"])  # each counts its registers from 0
    return tuple(access for body in functions for access in _ptx_accesses(body, pointers))


def widest(compiled: Any) -> dict[Leaf | None, int]:
    """The bits of the widest load or store of each pointer parameter that is used, None standing for unknown ones."""
    bits: dict[Leaf | None, int] = {}
    for access in accesses(compiled):
        bits[access.parameter] = max(access.bits, bits.get(access.parameter, 0))
    return bits


def parameters(compiled: Any) -> tuple[tuple[Leaf, str], ...]:
    """Where each parameter of the machine code stands among the arguments, and its type, as ``"*fp32"``.

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
            raise NotImplementedError(f"{names[path[0]]} is a tensor descriptor, which becomes several parameters")
        else:
            yield (names[path[0]], *path[1:]), dtype

    signature = [compiled.src.signature.get(name, "constexpr") for name in names]
    return tuple(leaf for i, dtype in enumerate(signature) for leaf in leaves(dtype, (i,)))


def _nvidia_resources(compiled: Any) -> Resources:
    """From the log of ptxas, run by Triton itself and so with the options that the kernel was compiled with."""
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
    spilled = re.findall(r"(\d+) bytes spill (?:stores|loads)", log.getvalue())
    return Resources(max(map(int, used)), sum(map(int, spilled)))


def _code(cubin: bytes) -> list[bytes]:
    """The executable sections of an ELF file; its debug information holds when the source was last written."""
    (table,), (size, count) = unpack_from("<Q", cubin, 40), unpack_from("<HH", cubin, 58)
    sections = [unpack_from("<IIQQQQ", cubin, table + i * size) for i in range(count)]
    return [cubin[start : start + length] for _, _, flags, _, start, length in sections if flags & 4]


def _amd_resources(compiled: Any) -> Resources:
    """Of vector registers alone: scalar ones spill to lanes of a vector register, not to memory."""
    counts = {name: int(n) for name, n in re.findall(r"\.(\w+_count): +(\d+)", compiled.asm["amdgcn"])}
    return Resources(counts["vgpr_count"], 4 * counts["vgpr_spill_count"])


def _ptx_accesses(body: str, pointers: dict[str, Leaf]) -> Iterator[Access]:
    instructions = [(found[1].split("."), found[2]) for found in INSTRUCTION.finditer(re.sub(r"//.*", "", body))]
    origins = _origins(instructions, pointers)
    for opcode, operands in instructions:
        if opcode[0] in ("ld", "st", "cp") and "global" in opcode and "bulk" not in opcode:
            address = re.findall(r"\[([^]]*)\]", operands)[-1]  # of the two of cp.async, the first is shared memory
            leaves: list[Leaf | None] = [*sorted(_origins_of(address, origins), key=str)]
            for leaf in leaves or [None]:
                yield Access("store" if opcode[0] == "st" else "load", _ptx_bits(opcode, operands), leaf)


def _origins(instructions: list[tuple[list[str], str]], pointers: dict[str, Leaf]) -> dict[str, set[Leaf]]:
    """The pointer parameters that the value of each register is computed from."""
    origins: dict[str, set[Leaf]] = {name: {leaf} for name, leaf in pointers.items()}
    definitions = []
    for opcode, operands in instructions:
        written, _, read = operands.partition("}" if operands.startswith("{") else ",")
        if not written.startswith("[") and opcode[0] != "setp":
            # what an address in brackets leads to is another value, but for a parameter
            definitions.append((WORD.findall(written), read if "param" in opcode else re.sub(r"\[[^]]*\]", "", read)))
    known = -1
    while known != (known := sum(map(len, origins.values()))):  # again while a loop carries something back
        for registers, operands in definitions:
            leaves = _origins_of(operands, origins)
            for register in registers if leaves else ():
                origins[register] = origins.get(register, set()) | leaves
    return origins


def _origins_of(operands: str, origins: dict[str, set[Leaf]]) -> set[Leaf]:
    return {leaf for word in WORD.findall(operands) for leaf in origins.get(word, ())}


def _ptx_bits(opcode: list[str], operands: str) -> int:
    if opcode[0] == "cp":
        return 8 * int(operands.split("]")[2].split(",")[1], 0)  # cp.async [to], [from], bytes
    lanes = next((int(part[1:]) for part in opcode if re.fullmatch(r"v\d", part)), 1)
    return lanes * int(opcode[-1][1:])


def _amd_bits(width: str) -> int:
    """Of dwordx4, ubyte, short_d16_hi, b128."""
    found = re.search(r"(dword|short|byte|[bui](?=\d))x?(\d*)", width)
    assert found, width
    return {"dword": 32, "short": 16, "byte": 8}.get(found[1], 1) * int(found[2] or 1)
