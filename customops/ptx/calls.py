"""Functions that a kernel calls and CUDA defines: a failed assertion, and ``tl.device_print``."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from .faults import LaneFault
from .frame import Frame

_FIELD = re.compile(r"%([-+ 0#]*\d*(?:\.\d+)?)(?:hh|h|ll|l|z)?([diuxXofFeEgGcsp%])")  # of C's printf
_LONG = re.compile(r"%[-+ 0#]*\d*(?:\.\d+)?(?:ll|l|z|p|s|[fFeEgG])")  # a field whose value has 8 bytes

Text = Callable[[int], str]  # gives the string at an address of the module's constants


def fail(frame: Frame, lanes: np.ndarray, arguments: list[Any], text: Text) -> None:
    """Raise the fault of an assertion that fails: ``__assertfail(message, file, line, function, size)``."""
    lane = int(np.argmax(lanes))
    message = f": {text(int(frame.spread(arguments[0])[lane]))}" if arguments else ""
    raise LaneFault(f"an assertion of the kernel fails{message}", lane)


def print_lanes(frame: Frame, lanes: np.ndarray, arguments: list[Any], text: Text) -> None:
    """Print a line for each lane, as C does: ``vprintf(format, where the values are in the lane's own memory)``."""
    formats, places = (frame.spread(argument) for argument in arguments)
    size = len(frame.local) // frame.batch.lanes
    for lane in np.flatnonzero(lanes):
        own = frame.local[lane * size : (lane + 1) * size].tobytes()
        print(_formatted(text(int(formats[lane])), own[int(places[lane]) - frame.own :], text), end="")


def _formatted(form: str, values: bytes, text: Text) -> str:
    """Return what C's printf makes of a format and values that lie in memory, each at a multiple of its size."""
    at = 0

    def field(match: re.Match) -> str:
        nonlocal at
        flags, kind = match.groups()
        if kind == "%":
            return "%"
        size = 8 if _LONG.match(match[0]) else 4
        at = -(-at // size) * size
        bits, at = values[at : at + size], at + size
        if kind in "fFeEgG":
            return f"%{flags}{kind}" % np.frombuffer(bits, np.float64)[0]
        number = int.from_bytes(bits, "little", signed=kind in "di")
        if kind == "p":
            return hex(number)
        return text(number) if kind == "s" else f"%{flags}{kind}" % number

    return _FIELD.sub(field, form)


CALLS: dict[str, Callable[[Frame, np.ndarray, list[Any], Text], None]] = {
    "__assertfail": fail,
    "vprintf": print_lanes,
}
