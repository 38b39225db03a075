"""The sample covers what its mark asks for in few cases, and shares of the rest are disjoint and complete."""

from __future__ import annotations

from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from . import selection
from .marks import formulas_only

pytestmark = formulas_only


class Item(NamedTuple):
    """A stand-in for a test case, with what selection reads of it."""

    originalname: str
    params: dict[str, Any]
    asked: str | None = None  # of kernels; None is a test without the mark
    fixturenames: tuple[str, ...] = ()
    parent: str = "test_it.py"
    compiled: str | None = None  # of compiled code; None is a mark that does not say
    others: str | None = None  # of operators that stand for no others
    id: str = ""
    path: Path = Path("test_it.py")

    __hash__ = object.__hash__
    __eq__ = object.__eq__
    callspec = property(lambda self: self)

    def get_closest_marker(self, _name):
        asked = {"kernels": self.asked, "compiled": self.compiled, "others": self.others}
        said = {mode: what for mode, what in asked.items() if what is not None}
        if not said:
            return None
        return pytest.mark.sample(**({} if self.asked is None else {"formulas": ""}), **said).mark


SAMPLED = [
    Item("test_sampled", {"a": a, "b": b, "c": c}, "a*b, c")
    for a, b, c in product(range(3), ({"unhashable": 1}, {"unhashable": 2}), range(5))
]
ONCE = [Item("test_once", {"a": a}, "once") for a in range(3)]
OF_NO_KERNEL = [Item("test_of_no_kernel", {"a": a}, "") for a in range(2)]
UNMARKED = [Item("test_unmarked", {"a": a}) for a in range(4)]
OF_TWO_LENGTHS = [Item("test_of_two_lengths", {}, None, ("full",))]
ALL = SAMPLED + ONCE + OF_NO_KERNEL + UNMARKED + OF_TWO_LENGTHS


def pairs(cases):
    return [[(i, j, case[i], case[j]) for i in range(3) for j in range(i)] for case in cases]


def test_covering_has_every_term_in_few_cases():
    cases = list(product(range(7), range(5), range(4)))
    chosen = selection.covering(pairs(cases))
    found = {pair for terms in pairs([cases[i] for i in chosen]) for pair in terms}
    assert found == {pair for terms in pairs(cases) for pair in terms}
    assert 35 <= len(chosen) <= 42, "7 x 5 pairs are the most, of 140 cases"
    assert chosen == selection.covering(pairs(cases)) == sorted(chosen)


def test_covering_varies_what_is_not_asked_for():
    cases = list(product(range(10), range(10)))
    chosen = selection.covering([[("first", first)] for first, _ in cases])
    assert len(chosen) == 10
    assert len({cases[i][1] for i in chosen}) >= 4


def test_covering_of_cases_that_lack_something_takes_what_there_is():
    assert selection.covering([["a", "b"], ["a"], ["c"], []]) == [0, 2]


def names(items):
    return Counter(item.originalname for item in items)


def test_sample_is_what_marks_ask_for():
    taken = selection.sample(ALL, "kernels")
    assert names(taken) == {"test_sampled": 6, "test_once": 1, "test_unmarked": 4, "test_of_two_lengths": 1}
    assert taken == [item for item in ALL if item in taken]
    assert selection.sample(ALL, "gpu") == taken
    assert names(selection.sample(ALL, "formulas")) == {"test_unmarked": 4, "test_of_two_lengths": 1}


def test_sample_and_rest_are_all():
    rest = selection.rest(ALL, "kernels")
    assert {*selection.sample(ALL, "kernels")} | {*rest} == {*ALL}
    assert {*selection.sample(ALL, "kernels")} & {*rest} == {*OF_TWO_LENGTHS}, "which are longer in the rest"


@pytest.mark.parametrize(("file", "others"), [("test_gradients.py", 2), ("test_autograd.py", 0)])
def test_operators_that_stand_for_no_others_are_sampled_by_themselves_and_where_formulas_are_tested(file, others):
    calls = [f"{name}(x)" for name in ("log", "exp", "log1p", "expm1")]
    items = [
        Item("test_calls", {"call": call, "a": a}, "call, a", id=f"{call}-{a}", path=Path(file))
        for call, a in product(calls, range(2))
    ]
    taken = selection.sample(items, "kernels")
    assert [item.id for item in taken if "1" not in item.id.partition("-")[0]] == ["log(x)-0", "exp(x)-1"]
    assert len({item.params["call"] for item in taken}) == 2 + others
    assert {*taken} | {*selection.rest(items, "kernels")} == {*items}


def test_a_mark_may_ask_less_of_operators_that_stand_for_no_others():
    items = [
        Item("test_all", {"name": name, "a": a}, others="name", id=f"{name}-{a}", path=Path("test_database.py"))
        for name, a in product(("log", "log1p", "expm1"), range(5))
    ]
    taken = Counter(item.params["name"] for item in selection.sample(items, "formulas"))
    assert taken == {"log": 5, "log1p": 1, "expm1": 1}


def test_shares_are_disjoint_and_all_and_have_their_part_of_each_test():
    rest = selection.rest(ALL, "kernels")
    shares = [selection.share(rest, number, of=3) for number in range(6)]
    assert shares[:3] == shares[3:]
    assert Counter(item for share in shares[:3] for item in share) == Counter(rest)
    for test, total in names(rest).items():
        assert {names(share)[test] for share in shares} <= {total // 3, -(-total // 3)}


def test_by_compiled_code_only_those_take_part_whose_marks_say_so():
    some = [Item("test_some", {"a": a, "b": b}, "a", compiled="b") for a, b in product(range(3), range(2))]
    every = [Item("test_all", {"a": a}, "", compiled="all") for a in range(3)]
    twice = [Item("test_twice", {}, "", compiled="once", fixturenames=("full",))]
    items = [*ALL, *some, *every, *twice]
    assert names(selection.sample(items, "compiled")) == {"test_some": 2, "test_all": 3, "test_twice": 1}
    assert selection.taking_part(items, "compiled") == [*some, *every, *twice]
    assert names(selection.rest(items, "compiled")) == {"test_some": 4, "test_twice": 1}
    assert selection.taking_part(items, "kernels") == items


@pytest.mark.parametrize("text", ["3", "a/5", "1/0", "-1/5"])
def test_what_is_no_share_is_refused(text):
    with pytest.raises(pytest.UsageError, match="--share: expected NUMBER/COUNT"):
        selection.parse_share(text)
