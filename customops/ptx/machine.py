"""Execute a kernel's PTX on the CPU: all threads of some programs at once, as lanes of NumPy arrays.

Where lanes take different ways through the code, they go on a basic block at a time, in an order in which all lanes
that can meet do; see ``control.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple, NoReturn

import numpy as np

from .calls import CALLS
from .control import ranks_of, starts_of
from .decode import Barrier, Call, Jump, Return, decode
from .faults import KernelFault, LaneFault
from .formats import DTYPES
from .frame import WARP, Batch, Context, DecodedNames, Frame, Step, dtype_of, names_of
from .memory import GlobalMemory, Traffic
from .module import Function, parse
from .origins import origins_of
from .regions import Buffer

LANES_AT_ONCE = 4096  # so many that NumPy's own time counts little, so few that their registers stay in the cache
_PATIENCE = 4096  # jumps back before a loop is asked whether anything changes


class Code(NamedTuple):
    """A function, ready to be executed."""

    function: Function
    names: DecodedNames
    steps: tuple[Step, ...]
    ranks: dict[int, int]  # the place of each basic block in the order in which they are run, by first instruction
    ends: tuple[int, ...]  # of each instruction: where its basic block ends


@lru_cache(maxsize=256)
def load(text: str) -> Program:
    """Return the kernel of a text of PTX, ready to be executed."""
    return Program(text)


class Program:
    """A module of PTX with one kernel."""

    def __init__(self, text: str):
        self.module = parse(text)
        self.kernel = self.module.kernel
        self.memory = [_filled(v.values, v.size) for v in self._variables()]
        self.variables = {  # as tensors, by positions that no parameter has
            -1 - i: Buffer(v.name, memory.ctypes.data, 1, (v.size,), (1,), v.space == "global")
            for i, (v, memory) in enumerate(zip(self._variables(), self.memory, strict=True))
        }
        symbols = {buffer.name: buffer.address for buffer in self.variables.values()}
        self.static_shared = 0
        for variable in self.module.variables:
            if variable.space == "shared":
                self.static_shared = -(-self.static_shared // variable.alignment) * variable.alignment
                symbols[variable.name] = self.static_shared
                self.static_shared += variable.size
        self.code = {name: _code(function, symbols) for name, function in self.module.functions.items()}
        opcodes = {x.opcode for function in self.module.functions.values() for x in function.instructions}
        self.has_atomics = any(opcode.startswith(("atom.", "red.")) for opcode in opcodes)
        kinds = {opcode.rpartition(".")[2] for opcode in opcodes if opcode.startswith(("ld.", "st.", "atom.", "red."))}
        self.narrowest = min((dtype_of(kind).itemsize for kind in kinds & DTYPES.keys()), default=16)

    def _variables(self) -> list:
        return [v for v in self.module.variables if v.space in ("global", "const")]

    def text_at(self, address: int) -> str:
        """Return the string that starts at an address of the module's constants."""
        for memory in self.memory:
            offset = address - memory.ctypes.data
            if 0 <= offset < len(memory):
                return memory[offset:].tobytes().partition(b"\0")[0].decode(errors="replace")
        return "?"

    def execute(
        self,
        grid: tuple[int, int, int],
        threads: int,
        parameters: Sequence[int],
        buffers: Mapping[int, Buffer],
        shared_bytes: int = 0,
    ) -> Traffic:
        """Run all programs of a launch on the memory of its tensors.

        Programs with atomic operations run one by one, in order; others many at once.

        Args:
            grid: the number of programs along each axis.
            threads: of each program.
            parameters: the bits of each parameter of the kernel, as an unsigned integer.
            buffers: the tensors by the position of the parameter that points to them.
            shared_bytes: shared memory of each program, as the launch asks for it.

        Returns:
            The bytes that were loaded and stored.

        Raises:
            KernelFault: the kernel did what no kernel may do, or has an instruction that is not known.
        """
        declared = self.kernel.parameters
        if len(parameters) != len(declared):
            raise ValueError(f"{self.kernel.name} takes {len(declared)} parameters, got {len(parameters)}")
        if self.kernel.threads and int(np.prod(self.kernel.threads)) != threads:
            reason = f"a launch with {threads} threads, where the code is for {self.kernel.threads}"
            raise KernelFault(reason, self.kernel.name)
        values = {
            (p.name, 0): dtype_of(f"b{8 * p.size}").type(bits % (1 << 8 * p.size))
            for p, bits in zip(declared, parameters, strict=True)
        }
        memory = GlobalMemory({**buffers, **self.variables}, self.narrowest)
        total = int(np.prod(grid))
        at_once = 1 if self.has_atomics else max(1, LANES_AT_ONCE // threads)
        shared = max(shared_bytes, self.static_shared)
        with np.errstate(all="ignore"):
            for start in range(0, total, at_once):
                batch = Batch(range(start, min(start + at_once, total)), threads, grid, memory, shared)
                _Run(self, self.kernel.name, batch, values, np.ones(batch.lanes, np.bool_)).finish()
        return memory.traffic


def _filled(values: bytes, size: int) -> np.ndarray:
    """Return memory that begins with ``values``, aligned for the widest access."""
    memory = np.zeros(size + 32, np.uint8)
    memory = memory[-memory.ctypes.data % 32 :][:size]
    memory[: len(values)] = np.frombuffer(values, np.uint8)
    return memory


def _code(function: Function, symbols: Mapping[str, int]) -> Code:
    names = names_of(function, symbols)
    swaps = (x for x in function.instructions if x.opcode.startswith("atom.") and ".cas." in x.opcode)
    context = Context(names, origins_of(function), frozenset(x.operands[1] for x in swaps))
    steps = tuple(decode(instruction, context) for instruction in function.instructions)
    starts = [*starts_of(function), len(steps)]
    ends = [end for start, end in pairwise(starts) for _ in range(start, end)]
    return Code(function, names, steps, ranks_of(function), tuple(ends))


class _Run:
    """A function on its way, as lanes of a batch go through it."""

    def __init__(
        self,
        program: Program,
        function: str,
        batch: Batch,
        parameters: Mapping[tuple[str, int], Any],
        lanes: np.ndarray,
    ):
        """``parameters`` are those of the function, by name and offset; ``lanes`` says which lanes call it."""
        self.program, self.batch, self.code = program, batch, program.code[function]
        self.frame = Frame(self.code.names, batch, parameters)
        self.groups: dict[int, np.ndarray] = {0: lanes}  # lanes by the instruction where they go on
        self.waiting = np.full(batch.lanes, -1)  # of lanes at a barrier: the instruction after it
        self.barriers = np.zeros(batch.lanes, np.int64)  # of those lanes: the number of the barrier
        self.watch = _Watch()

    def finish(self) -> Frame:
        """Run from the first instruction until all lanes have returned."""
        self.batch.frames.append(self.frame)
        while self.groups or (self.waiting >= 0).any():
            if not self.groups:
                self._release()
            pc = min(self.groups, key=self.code.ranks.__getitem__)
            self._advance(pc, self.groups.pop(pc))
        return self.batch.frames.pop()

    def _advance(self, pc: int, group: np.ndarray) -> None:
        """Let a group go on until it splits or waits, or until another may have to go first."""
        frame, steps = self.frame, self.code.steps
        frame.activate(group)
        limit = self.code.ends[pc] if self.groups else len(steps)
        while True:
            try:
                signal = steps[pc](frame)
            except LaneFault as fault:
                self._raise(fault, pc)
            pc += 1
            if signal is not None:
                following = self._follow(signal, pc, group)
                if following is None:
                    return
                pc = following
            if pc >= limit:
                if pc < len(steps):
                    self._join(pc, group)
                return

    def _follow(self, signal: Jump | Return | Barrier | Call, pc: int, group: np.ndarray) -> int | None:
        """Do what a signal says; return where the group goes on, None where it does not go on as one.

        ``pc`` is the instruction after the one that gave the signal.
        """
        taken = group if signal.taken is None else signal.taken
        if isinstance(signal, Call):
            self._call(signal, taken, pc - 1)
            return pc
        together = signal.taken is None and not self.groups
        if isinstance(signal, Jump):
            to = self.code.function.labels[signal.label]
            if to < pc and self.watch.sees_nothing_change(pc, self.frame, group):
                self._raise(LaneFault("a loop that never ends: nothing changes in it", int(np.argmax(group))), pc - 1)
            if together:
                return to
            self._join(to, taken)
        elif isinstance(signal, Barrier):
            if together and self.frame.active is None:
                self.batch.shared.pass_barrier(slice(None), of_block=True)
                return pc
            self.waiting[taken], self.barriers[taken] = pc, signal.number
        rest = group & ~taken
        if rest.any():
            self._join(pc, rest)
        return None

    def _join(self, pc: int, lanes: np.ndarray) -> None:
        """Add lanes to those that go on at ``pc``."""
        self.groups[pc] = self.groups[pc] | lanes if pc in self.groups else lanes

    def _call(self, call: Call, lanes: np.ndarray, pc: int) -> None:
        """Run a function that the code calls, and take what it returns."""
        functions, parameters = self.program.module.functions, self.frame.parameters
        if call.function not in functions:
            self._call_outside(call, lanes, pc)
            return
        callee = functions[call.function]
        names = dict(zip(call.arguments, [p.name for p in callee.parameters], strict=True))
        passed = {(names[name], at): value for (name, at), value in parameters.items() if name in names}
        frame = _Run(self.program, call.function, self.batch, passed, lanes).finish()
        names = dict(zip([p.name for p in callee.results], call.results, strict=True))
        returned = {(names[name], at): value for (name, at), value in frame.parameters.items() if name in names}
        parameters.update(returned)

    def _call_outside(self, call: Call, lanes: np.ndarray, pc: int) -> None:
        """Run a function that CUDA defines."""
        try:
            if call.function not in CALLS:
                raise LaneFault(f"the function {call.function} is not known", int(np.argmax(lanes)))
            arguments = [self.frame.parameters[name, 0] for name in call.arguments]
            CALLS[call.function](self.frame, lanes, arguments, self.program.text_at)
        except LaneFault as fault:
            self._raise(fault, pc)
        self.frame.parameters.update({(name, 0): np.uint32(0) for name in call.results})

    def _release(self) -> None:
        """Let the lanes that wait go on, for no other lane can: each block has to be at the barrier with all lanes."""
        waiting, threads = self.waiting, self.batch.threads
        waits = waiting >= 0
        blocks = waits.reshape(-1, threads)
        absent = np.repeat(blocks.any(axis=1) & ~blocks.all(axis=1), threads) & waits
        warps = waiting.reshape(-1, min(WARP, threads))
        numbers = self.barriers.reshape(-1, threads)
        for wrong, reason in (
            (absent, "a barrier that not all threads of the program reach: some have ended"),
            ((warps != warps[:, :1]).ravel(), "the threads of a warp wait at different barriers"),
            ((numbers != numbers[:, :1]).ravel() & waits, "threads of the program wait at barriers of two numbers"),
        ):
            if wrong.any():
                lane = int(np.argmax(wrong))
                self._raise(LaneFault(reason, lane), int(waiting[lane]) - 1)
        self.batch.shared.pass_barrier(waits, of_block=True)
        for pc in np.unique(waiting[waits]):
            self._join(int(pc), waiting == pc)
        waiting[:] = -1

    def _raise(self, fault: LaneFault, pc: int) -> NoReturn:
        instruction, lane = self.code.function.instructions[pc], fault.lane
        raise KernelFault(
            fault.reason,
            self.program.kernel.name,
            instruction.text,
            " < ".join(instruction.location) or None,
            None if lane is None else self.batch.program(lane),
            None if lane is None else lane % self.batch.threads,
            fault.tensor,
        ) from None


class _Watch:
    """A look-out for loops that never end.

    It remembers the registers at one jump back, later at another, each twice as many jumps after the first as the one
    before; a jump that finds the same registers, with no store between, will be found again for ever.
    """

    def __init__(self) -> None:
        self.jumps, self.again = 0, _PATIENCE
        self.pc, self.stores = -1, -1
        self.group = np.zeros(0, np.bool_)
        self.registers: list[Any] = []

    def sees_nothing_change(self, pc: int, frame: Frame, group: np.ndarray) -> bool:
        """Return whether lanes are where they were before, in all that they can see."""
        self.jumps += 1
        if self.jumps < self.again and (self.jumps < _PATIENCE or pc != self.pc or frame.batch.stores != self.stores):
            return False
        if self.jumps >= self.again:
            self.again *= 2
            self.pc, self.stores, self.group = pc, frame.batch.stores, group
            self.registers = list(frame.registers)
            return False
        same = zip(self.registers, frame.registers, strict=True)
        return np.array_equal(self.group, group) and all(a is b or _is_equal(a, b) for a, b in same)


def _is_equal(a: Any, b: Any) -> bool:
    return a.tobytes() == b.tobytes()
