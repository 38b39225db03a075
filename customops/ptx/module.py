"""Read PTX, as LLVM and Triton write it, into functions and instructions.

The grammar: Parallel Thread Execution ISA, https://docs.nvidia.com/cuda/parallel-thread-execution.
"""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Iterator, Mapping
from functools import lru_cache, partial
from typing import NamedTuple

WIDTHS = {"pred": 1, "b8": 8, "b16": 16, "b32": 32, "b64": 64, "b128": 128}  # bits of a register, by its kind

_LOCATION = re.compile(r"\s*\.loc\s+(\d+)\s+(\d+)\s+(\d+)([^/]*)(?://\s*(.*))?")
_FILE = re.compile(r'\s*\.file\s+(\d+)\s+"([^"]*)"')
_HEADER = re.compile(r"\.(entry|func)\s*(\([^)]*\))?\s*([\w$]+)\s*(?:\(([^)]*)\))?(.*)", re.DOTALL)
_PARAMETER = re.compile(r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)(\s+\.ptr)?[^,]*?\s([\w$]+)(?:\[(\d+)\])?\s*$")
_VARIABLE = re.compile(
    r"(?:\.\w+\s+)*?\.(shared|global|local|const)\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)(?:\[(\d*)\])?(?:\s*=\s*\{?([^}]*)\}?)?"
)
_REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(.*)", re.DOTALL)
_INSTRUCTION = re.compile(r"(?:@(!?)(%?[\w$]+)\s+)?([a-z][\w.:]*)\s*(.*)", re.DOTALL)
_OPERAND = re.compile(r"\s*(\{[^}]*\}|\[[^\]]*\]|\([^)]*\)|[^,\s][^,]*)")


class Parameter(NamedTuple):
    """A parameter of a function."""

    name: str
    type: str  # of PTX, without the dot
    is_pointer: bool  # to global memory
    size: int  # bytes


class Variable(NamedTuple):
    """A variable in memory."""

    name: str
    space: str  # "shared", "global", "local" or "const"
    alignment: int  # bytes
    size: int  # bytes; 0 for shared memory whose size is told at the launch
    values: bytes  # the initial content, empty where there is none


class Instruction(NamedTuple):
    """One instruction."""

    opcode: str  # with its modifiers, as "ld.global.v4.b32"
    operands: tuple[str, ...]  # as they are written, a group in braces or brackets as one
    guard: str | None  # the predicate register that says which threads execute it
    negated: bool  # whether those do for which the guard is false
    location: tuple[str, ...]  # lines of Python that it was compiled from, innermost first, as ("map.py:31",)
    text: str  # as it is written, on one line


class Function(NamedTuple):
    """A kernel, or a function that it calls."""

    name: str
    is_kernel: bool
    parameters: tuple[Parameter, ...]
    results: tuple[Parameter, ...]
    registers: dict[
        str, str
    ]  # kind of each register, by name; a name in an inner block has the block's number behind it
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]  # the instruction that follows each label
    variables: tuple[Variable, ...]  # of this function alone
    threads: tuple[int, ...]  # along each axis of a block, as the kernel requires; empty where it does not


class Module(NamedTuple):
    """A text of PTX."""

    target: str  # as "sm_90a"
    functions: dict[str, Function]
    variables: tuple[Variable, ...]

    @property
    def kernel(self) -> Function:
        """Return the only kernel."""
        (kernel,) = (function for function in self.functions.values() if function.is_kernel)
        return kernel


@lru_cache(maxsize=512)
def parse(text: str) -> Module:
    """Read a module of PTX.

    Raises:
        ValueError: a line cannot be read.
    """
    reader = _Reader(dict(_FILE.findall(text)))
    for statement in reader.statements(text):
        reader.read(*statement)
    target = re.search(r"^\.target\s+([\w]+)", text, re.MULTILINE)
    return Module(target[1] if target else "", reader.functions, tuple(reader.variables))


class _Reader:
    """What is known of a module while its text is read."""

    def __init__(self, files: dict[str, str]):
        self.files = {number: path.rpartition("/")[2] for number, path in files.items()}
        self.functions: dict[str, Function] = {}
        self.variables: list[Variable] = []
        self.location: tuple[str, ...] = ()
        self.function: Function | None = None  # the one that is read, so far its header alone
        self.instructions: list[Instruction] = []  # of it, as are the next three
        self.labels: dict[str, int] = {}
        self.registers: dict[str, str] = {}
        self.own_variables: list[Variable] = []
        self.scopes: list[dict[str, str]] = []  # the unique names of registers and parameters, by block
        self.blocks = 0

    def statements(self, text: str) -> Iterator[tuple[str, str]]:
        """Yield each statement with what ends it: ``;``, ``:``, or a brace that opens or closes a block."""
        buffer, skipping = "", False
        for line in text.splitlines():
            if match := _LOCATION.match(line):
                self.location = self._location(*match.groups())
                continue
            line, _, _ = line.partition("//")
            if re.match(r"\s*\.(file|version|target|address_size)\b", line):
                continue
            if skipping:
                skipping = "}" not in line
                continue
            for piece in re.split(r"([;{}])", line):
                if re.match(r"\s*\.section\b", buffer):
                    skipping, buffer = True, ""
                    break
                buffer, ended = self._add(buffer, piece)
                if ended:
                    yield ended
            if match := re.match(r"\s*([$%\w]+):\s*(.*)", buffer, re.DOTALL):
                yield match[1], ":"
                buffer = match[2]
            buffer += " "

    def _add(self, buffer: str, piece: str) -> tuple[str, tuple[str, str] | None]:
        """Add a piece of text to a statement; return what is left of it, and the statement if it has ended."""
        if piece == ";":
            return "", (buffer.strip(), ";")
        opens_block = not buffer.strip() or re.search(r"\.(entry|func)\b", buffer)
        if (piece == "{" and opens_block) or (piece == "}" and not buffer.strip()):
            return "", (buffer.strip(), piece)
        if match := re.match(r"\s*([$\w]+):\s+(.*)", buffer + piece, re.DOTALL):  # a label before an instruction
            return match[2], (match[1], ":")
        return buffer + piece, None

    def _location(self, file: str, line: str, _column: str, _more: str, comment: str | None) -> tuple[str, ...]:
        inlined = re.findall(r"([\w.<>-]+):(\d+):\d+", comment or "")
        if inlined:
            return tuple(f"{name}:{number}" for name, number in inlined)
        return (f"{self.files.get(file, '?')}:{line}",)

    def read(self, statement: str, end: str) -> None:
        """Read one statement."""
        if self.function is None:
            self._read_outside(statement, end)
        elif end == "{":
            self.blocks += 1
            self.scopes.append({})
        elif end == "}":
            self.scopes.pop()
            if not self.scopes:
                self._finish(self.function)
        elif end == ":":
            self.labels[statement] = len(self.instructions)
        elif statement.startswith("."):
            self._read_declaration(statement)
        elif statement:
            self.instructions.append(self._instruction(statement))

    def _read_outside(self, statement: str, end: str) -> None:
        if match := re.search(r"\.(entry|func)\b", statement):
            if end == "{":
                self.function = self._function(statement[match.start() :])
                self.instructions, self.labels, self.registers, self.own_variables = [], {}, {}, []
                self.scopes = [{}]
        elif match := _VARIABLE.match(statement):
            self.variables.append(_variable(match))

    def _function(self, header: str) -> Function:
        match = _HEADER.match(header)
        if match is None:
            raise ValueError(f"PTX: a function's header cannot be read: {header!r}")
        kind, results, name, parameters, directives = match.groups()
        threads = re.search(r"\.reqntid\s+([\d, ]+)", directives)
        counts = tuple(int(n) for n in threads[1].split(",")) if threads else ()
        takes, gives = _parameters(parameters or ""), _parameters((results or "").strip("()"))
        return Function(name, kind == "entry", takes, gives, {}, (), {}, (), counts)

    def _read_declaration(self, statement: str) -> None:
        if match := _REGISTERS.match(statement):
            kind = match[1].replace("u", "b").replace("s", "b").replace("f", "b") if match[1] != "pred" else "pred"
            for name in match[2].split(","):
                self._declare(name.strip(), kind)
        elif match := _VARIABLE.match(statement):
            self.own_variables.append(_variable(match))
        elif statement.startswith(".param"):
            (parameter,) = _parameters(statement)
            self.scopes[-1][parameter.name] = f"{parameter.name}.{self.blocks}"
        elif not statement.startswith((".pragma", ".loc", ".branchtargets")):
            raise ValueError(f"PTX: a directive cannot be read: {statement!r}")

    def _declare(self, name: str, kind: str) -> None:
        """Declare a register, or ``%r<9>``: registers ``%r0`` to ``%r8``."""
        match = re.fullmatch(r"(.+)<(\d+)>", name)
        if match:
            self.registers.update({f"{match[1]}{i}": kind for i in range(int(match[2]))})
            return
        unique = name if len(self.scopes) == 1 else f"{name}.{self.blocks}"
        self.scopes[-1][name] = unique
        self.registers[unique] = kind

    def _instruction(self, statement: str) -> Instruction:
        match = _INSTRUCTION.fullmatch(statement)
        if match is None:
            raise ValueError(f"PTX: an instruction cannot be read: {statement!r}")
        negated, guard, opcode, rest = match.groups()
        rest = self._unique(re.sub(r"\s*\|\s*", "|", rest))
        operands = tuple(operand.strip() for operand in _OPERAND.findall(rest) if operand.strip())
        text = " ".join(statement.split())
        return Instruction(opcode, operands, guard and self._unique(guard), bool(negated), self.location, text)

    def _unique(self, text: str) -> str:
        """Replace the names that inner blocks declare, the innermost first."""
        names = ChainMap(*reversed(self.scopes))
        return re.sub(r"[%\w$]+", partial(_renamed, names), text) if names else text

    def _finish(self, function: Function) -> None:
        self.functions[function.name] = function._replace(
            registers=self.registers,
            instructions=tuple(self.instructions),
            labels=self.labels,
            variables=tuple(self.own_variables),
        )
        self.function = None


def _renamed(scope: Mapping[str, str], word: re.Match) -> str:
    return scope.get(word[0], word[0])


def _parameters(text: str) -> tuple[Parameter, ...]:
    found = []
    for declaration in filter(str.strip, text.split(",")):
        match = _PARAMETER.match(declaration.strip())
        if match is None:
            raise ValueError(f"PTX: a parameter cannot be read: {declaration!r}")
        bits = int(re.sub(r"\D", "", match[1]))
        found.append(Parameter(match[3], match[1], match[2] is not None, bits // 8 * int(match[4] or 1)))
    return tuple(found)


def _variable(match: re.Match) -> Variable:
    space, alignment, kind, name, count, values = match.groups()
    itemsize = int(re.sub(r"\D", "", kind)) // 8
    size = itemsize * (int(count) if count else 0 if count == "" else 1)
    items = [int(value, 0) for value in re.findall(r"-?\w+", values or "")]
    content = b"".join((item % (1 << 8 * itemsize)).to_bytes(itemsize, "little") for item in items)
    return Variable(name, space, int(alignment or itemsize), size, content)
