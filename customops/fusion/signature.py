"""The type of a fused function for type checkers: the signature of the function that it was made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

from ..compiler.graph import Graph

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class FusedCallable(Protocol[P, R_co]):
    """A function that ``fuse`` returned: it is called, and bound as a method, as the original is."""

    __name__: str
    __wrapped__: Any  # the original

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Return what the function returns."""

    def program(self, *args: P.args, **kwargs: P.kwargs) -> Graph:
        """Return what is computed for these arguments: formulas of values over named axes."""

    def explain(self, *args: Any, **kwargs: Any) -> None:
        """Print what a call would compute, launch and move on a GPU; ``target`` names it."""

    @overload
    def __get__(self, instance: None, owner: Any = None) -> FusedCallable[P, R_co]: ...

    @overload
    def __get__(
        self: FusedCallable[Concatenate[Any, Q], R_co], instance: object, owner: Any = None
    ) -> Callable[Q, R_co]: ...
