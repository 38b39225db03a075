"""The choice of a test's cases for a run: a covering array of its parameters without ``--full``, shares of the rest.

``@pytest.mark.sample(formulas="call, path*mode", kernels="")`` says what the cases that `make test` runs must cover, by
mode: here each call at least once, and each pair of a path and a mode; by kernels none. ``"once"`` takes one case,
``"all"`` all of them. A test without the mark runs all its cases; but by compiled code only a test takes part whose
mark says ``compiled``. What is taken depends on the parameters alone, not on names, and is the same in every run.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator, Sequence
from random import Random

import pytest

from .cases import PATH_OF, REPRESENTATIVES
from .recorder import OPERATORS, operator_of

Term = tuple[Hashable, ...]
OTHERS = frozenset(OPERATORS) - {*REPRESENTATIVES}
OF_FORMULAS = frozenset(  # the files whose tests ask what formulas compute, not what is done to a call
    {"test_accuracy", "test_audit", "test_blocks", "test_blocks_steps", "test_compiled", "test_database", "test_edges"}
    | {"test_gradients", "test_inplace", "test_kernels", "test_offline", "test_precision", "test_symbolic"}
)


def covering(cases: Sequence[Sequence[Term]]) -> list[int]:
    """Return the indices of few cases that contain, together, every term that some case has.

    It is the greedy choice: each time the case with the most terms that no earlier one has. Among equals those far
    apart in the list come first, so that what is not asked for varies too.
    """
    spread = [i * 0.6180339887498949 % 1 for i in range(len(cases))]
    missing = {term for terms in cases for term in terms}
    heap = [(-len(terms), spread[i], i) for i, terms in enumerate(cases)]
    heapq.heapify(heap)
    chosen = []
    while missing:
        _, _, i = heapq.heappop(heap)
        gain = sum(term in missing for term in cases[i])
        if heap and (-gain, spread[i], i) > heap[0]:
            heapq.heappush(heap, (-gain, spread[i], i))
        else:
            chosen.append(i)
            missing.difference_update(cases[i])
    return sorted(chosen)


def terms_of(parameters: dict[str, Hashable], asked: str) -> list[Term]:
    """Return what a case of these parameters has of ``asked``, which is ``name, name*name, ...``."""
    if asked == "once":
        return [(asked,)]
    terms = [tuple(name.strip() for name in term.split("*")) for term in asked.split(",") if term.strip()]
    return [(names, *(parameters[name] for name in names)) for names in terms]


def parameters_of(item: pytest.Item) -> dict[str, Hashable]:
    """Return the values of a case by name, and what they imply: the path of a call, the kind of an engine."""
    spec = item.callspec
    found = {name: value if _is_hashable(value) else repr(value) for name, value in spec.params.items()}
    if hasattr(spec.params.get("case"), "_asdict"):
        found |= spec.params["case"]._asdict()
    if "call" in found:
        found["path"] = PATH_OF.get(str(found["call"]), str(found["call"]))
    if "row" in found:
        found["operator"] = str(found["row"])
    if "shapes" in spec.params and isinstance(found["shapes"], tuple):
        found["ranks"] = tuple(len(shape) for shape in found["shapes"])
    if "names" in found:
        found["outermost"], found["innermost"] = found["names"][0], found["names"][-1]
    if isinstance(found.get("name"), str):
        found.setdefault("kind", found["name"].partition(",")[0])
    return found


def _is_hashable(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def asked_of(item: pytest.Item, mode: str) -> str | None:
    """Return what the cases of this test must cover in this mode; None is all cases. A GPU takes what kernels do."""
    mark = item.get_closest_marker("sample")
    asked = {} if mark is None else mark.kwargs
    otherwise = {"gpu": asked.get("kernels"), "compiled": ""}.get(mode)
    return None if asked.get(mode) == "all" else asked.get(mode, otherwise)


def taking_part(items: Sequence[pytest.Item], mode: str) -> list[pytest.Item]:
    """Return the cases that there are in this mode: by compiled code those of the tests whose marks ask for some."""
    return [item for item in items if mode != "compiled" or asked_of(item, mode) != ""]


def sample(items: Sequence[pytest.Item], mode: str) -> list[pytest.Item]:
    """Return the cases that a run without ``--full`` takes, in their order.

    Operators that are no ``REPRESENTATIVES`` are covered by themselves, so that what is taken of these does not change
    with another; and only where formulas are tested. The mark may ask ``others`` of them, less than of these.
    """
    taken: set[pytest.Item] = set()
    for cases in _by_test(items):
        asked, is_of_others = asked_of(cases[0], mode), [_operator_of(item) in OTHERS for item in cases]
        of_others = asked_of(cases[0], "others") or asked
        if asked is not None and not _asks_of_formulas(cases[0]):
            of_others = ""
        for wanted, which in ((asked, False), (of_others, True)):
            taken.update(
                _covered([item for item, is_one in zip(cases, is_of_others, strict=True) if is_one is which], wanted)
            )
    return [item for item in items if item in taken]


def _covered(cases: Sequence[pytest.Item], asked: str | None) -> Sequence[pytest.Item]:
    """Return few cases of a test that cover what is asked, all where None is."""
    if asked is None or not cases or (asked and not hasattr(cases[0], "callspec")):
        return cases
    terms = [terms_of(parameters_of(item), asked) for item in cases] if asked else []
    return [cases[i] for i in covering(terms)]


def _operator_of(item: pytest.Item) -> str | None:
    """Return the operator that the id of a case names, None without one."""
    return operator_of(getattr(getattr(item, "callspec", None), "id", ""))


def _asks_of_formulas(item: pytest.Item) -> bool:
    """Return whether a test asks what formulas compute, not what is done to a call."""
    return getattr(getattr(item, "path", None), "stem", None) in OF_FORMULAS


def rest(items: Sequence[pytest.Item], mode: str) -> list[pytest.Item]:
    """Return the cases that only ``--full`` runs, or runs at full length, as the fixture ``full`` asks."""
    sampled = set(sample(items, mode))
    return [
        item for item in taking_part(items, mode) if item not in sampled or "full" in getattr(item, "fixturenames", ())
    ]


def share(items: Sequence[pytest.Item], number: int, of: int) -> list[pytest.Item]:
    """Return one of ``of`` disjoint shares of ``items``, which together are all; each has its part of every test."""
    random = Random(0)
    shuffled = [item for cases in _by_test(items) for item in random.sample(cases, len(cases))]
    taken = set(shuffled[number % of :: of])
    return [item for item in items if item in taken]


def parse_share(text: str) -> tuple[int, int]:
    """Return number and count of ``number/count``."""
    number, slash, of = text.partition("/")
    if not (slash and number.isdecimal() and of.isdecimal() and int(of)):
        raise pytest.UsageError(f"--share: expected NUMBER/COUNT, such as 17/60, got {text!r}")
    return int(number), int(of)


def _by_test(items: Sequence[pytest.Item]) -> Iterator[list[pytest.Item]]:
    """Yield the cases of each test function."""
    groups: dict[tuple[object, str], list[pytest.Item]] = {}
    for item in items:
        groups.setdefault((item.parent, getattr(item, "originalname", None) or item.name), []).append(item)
    yield from groups.values()
