"""What commands take from the proofs, which need packages that operators do not."""

from __future__ import annotations

from importlib.util import find_spec

from ..compiler.printing import Notation
from .arguments import BadArgument

INSTALL = 'pip install "customops[prove]"'


def require_sympy() -> None:
    """Raise BadArgument where SymPy is not installed."""
    if find_spec("sympy") is None:
        raise BadArgument(f"SymPy is not installed, and proves the formulas: {INSTALL}")


def notation() -> tuple[Notation | None, str]:
    """Return how formulas are shown as mathematics; None, and what would do, where SymPy is not installed."""
    if find_spec("sympy") is None:
        return None, f"formulas go by their names: {INSTALL} shows them as mathematics"
    from ..proof.notation import mathematics  # noqa: PLC0415 - it needs SymPy

    return mathematics, ""
