"""Execute a kernel's PTX on the CPU: all threads of some programs at once, as lanes of NumPy arrays.

Where lanes take different ways through the code, they go on a basic block at a time, in an order in which all lanes
that can meet do; see ``control.py``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn

import numpy as np

from .control import ranks_of, starts_of
from .decode import Barrier, Call, Context, Jump, Return, UnknownInstruction, decode
from .faults import KernelFault, LaneFault
from .frame import WARP, Batch, DecodedNames, Frame, Step, dtype_of, names_of
from .memory import Buffer, GlobalMemory, Traffic
from .module import Function, parse
from .origins import origins

_LANES_AT_ONCE = 4096  # so many that NumPy's own time counts little, so few that their registers stay in the cache
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
        self.memory = [ctypes.create_string_buffer(v.values, v.size) for v in self._variables()]  # holds the constants
        symbols = {v.name: ctypes.addressof(m) for v, m in zip(self._variables(), self.memory, strict=True)}
        self.static_shared = 0
        for variable in self.module.variables:
            if variable.space == "shared":
                self.static_shared = -(-self.static_shared // variable.alignment) * variable.alignment
                symbols[variable.name] = self.static_shared
                self.static_shared += variable.size
        self.code = {name: _code(function, symbols) for name, function in self.module.functions.items()}
        opcodes = (x.opcode for function in self.module.functions.values() for x in function.instructions)
        self.has_atomics = any(opcode.startswith(("atom.", "red.")) for opcode in opcodes)

    def _variables(self) -> list:
        return [v for v in self.module.variables if v.space in ("global", "const")]

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
        memory = GlobalMemory(dict(buffers))
        total = int(np.prod(grid))
        at_once = 1 if self.has_atomics else max(1, _LANES_AT_ONCE // threads)
        shared = max(shared_bytes, self.static_shared)
        with np.errstate(all="ignore"):
            for start in range(0, total, at_once):
                batch = Batch(range(start, min(start + at_once, total)), threads, grid, memory, shared)
                _Run(self, batch).call(self.kernel.name, values, None)
        return memory.traffic


def _code(function: Function, symbols: Mapping[str, int]) -> Code:
    names = names_of(function, symbols)
    context = Context(names, origins(function))
    steps = tuple(decode(instruction, context) for instruction in function.instructions)
    starts = [*starts_of(function), len(steps)]
    ends = [end for start, end in zip(starts, starts[1:], strict=False) for _ in range(start, end)]
    return Code(function, names, steps, ranks_of(function), tuple(ends))


class _Run:
    """One batch of programs on its way through the code."""

    def __init__(self, program: Program, batch: Batch):
        self.program, self.batch = program, batch

    def call(self, name: str, parameters: Mapping[tuple[str, int], Any], mask: np.ndarray | None) -> Frame:
        """Run a function from its first instruction until all lanes of ``mask`` have left it; None is all lanes."""
        code = self.program.code[name]
        frame = Frame(code.names, self.batch, parameters)
        everyone = np.ones(self.batch.lanes, np.bool_) if mask is None else mask
        groups: dict[int, np.ndarray] = {0: everyone}  # lanes by their next instruction
        waiting = np.full(self.batch.lanes, -1)  # of lanes at a barrier: their next instruction
        watch = _Watch()
        while groups or (waiting >= 0).any():
            if not groups:
                self._release(code, waiting, groups)
            pc = min(groups, key=code.ranks.__getitem__)
            group = groups.pop(pc)
            frame.activate(group)
            limit = code.ends[pc] if groups else len(code.steps)
            while True:
                try:
                    signal = code.steps[pc](frame)
                except LaneFault as fault:
                    self._raise(fault, code, pc)
                if isinstance(signal, Call):
                    self._call(signal, frame, group if signal.taken is None else signal.taken, code, pc)
                    signal = None
                pc += 1
                if signal is None:
                    if pc < limit:
                        continue
                    if pc < len(code.steps):
                        _join(groups, pc, group)
                    break
                taken = group if signal.taken is None else signal.taken
                rest = None if signal.taken is None else group & ~taken
                if isinstance(signal, Barrier) and rest is None and frame.active is None and pc < limit:
                    self.batch.shared.pass_barrier(slice(None), of_block=True)
                    continue
                if isinstance(signal, Jump):
                    to = code.function.labels[signal.label]
                    if to < pc:
                        self._watch(watch, frame, code, pc - 1, group)
                    if rest is None and not groups:
                        pc = to
                        continue
                    _join(groups, to, taken)
                elif isinstance(signal, Barrier):
                    waiting[taken] = pc
                if rest is not None and rest.any():
                    _join(groups, pc, rest)
                break
        return frame

    def _call(self, call: Call, frame: Frame, taken: np.ndarray, code: Code, pc: int) -> None:
        """Run a function that the code calls, and take what it returns."""
        if call.function not in self.program.code:
            what = (
                "an assertion of the kernel fails"
                if call.function == "__assertfail"
                else f"the function {call.function} is not known"
            )
            self._raise(LaneFault(what, int(np.argmax(taken))), code, pc)
        callee = self.program.module.functions[call.function]
        passed = {}
        for given, parameter in zip(call.arguments, callee.parameters, strict=True):
            passed |= {(parameter.name, at): value for (name, at), value in frame.parameters.items() if name == given}
        outer = frame.active
        returned = self.call(call.function, passed, None if taken.all() else taken).parameters
        for given, parameter in zip(call.results, callee.results, strict=True):
            frame.parameters |= {(given, at): value for (name, at), value in returned.items() if name == parameter.name}
        frame.active = outer

    def _release(self, code: Code, waiting: np.ndarray, groups: dict[int, np.ndarray]) -> None:
        """Let the lanes that wait go on, for no other lane can: each block has to be at the barrier with all lanes."""
        threads = self.batch.threads
        waits = waiting >= 0
        absent = waits.reshape(-1, threads).any(axis=1) & ~waits.reshape(-1, threads).all(axis=1)
        diverged = waiting.reshape(-1, min(WARP, threads))
        if absent.any():
            block = int(np.argmax(absent))
            lane = block * threads + int(np.argmax(waits.reshape(-1, threads)[block]))
            fault = LaneFault("a barrier that not all threads of the program reach: some have ended", lane)
            self._raise(fault, code, int(waiting[lane]) - 1)
        if (diverged != diverged[:, :1]).any():
            lane = int(np.argmax(diverged != diverged[:, :1]))
            self._raise(
                LaneFault("the threads of a warp wait at different barriers", lane), code, int(waiting[lane]) - 1
            )
        self.batch.shared.pass_barrier(waits, of_block=True)
        for pc in np.unique(waiting[waits]):
            _join(groups, int(pc), waiting == pc)
        waiting[:] = -1

    def _watch(self, watch: _Watch, frame: Frame, code: Code, pc: int, group: np.ndarray) -> None:
        if watch.sees_nothing_change(pc, frame, group):
            fault = LaneFault(
                "a loop that never ends: nothing changes from one pass to the next", int(np.argmax(group))
            )
            self._raise(fault, code, pc)

    def _raise(self, fault: LaneFault, code: Code, pc: int) -> NoReturn:
        instruction = code.function.instructions[pc]
        lane, kernel = fault.lane, self.program.kernel.name
        program = None if lane is None else self.batch.program(lane)
        thread = None if lane is None else lane % self.batch.threads
        source = " < ".join(instruction.location) or None
        raise KernelFault(fault.reason, kernel, instruction.text, source, program, thread, fault.tensor) from None


class _Watch:
    """A look-out for loops that never end.

    It remembers the registers at one jump back, later at another, each twice as many jumps after the first as the one
    before; a jump that finds the same registers, with no store between, will be found again for ever.
    """

    def __init__(self) -> None:
        self.jumps, self.again = 0, _PATIENCE
        self.pc, self.stores = -1, -1
        self.group: np.ndarray | None = None
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


def _join(groups: dict[int, np.ndarray], pc: int, mask: np.ndarray) -> None:
    """Add lanes to those that go on at ``pc``."""
    groups[pc] = groups[pc] | mask if pc in groups else mask
