"""``python -m tests.compatibility`` writes docs/compatibility.md and its tables from the JSON that test runs leave."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from .cases import REPRESENTATIVES as OPERATORS
from .features import FEATURES, INAPPLICABLE, LIMITED, NEEDS_GPU
from .recorder import RESULTS, Check

RUNS = {
    "formulas": "ours, by torch formulas on the CPU",
    "kernels": "ours, by Triton kernels in the interpreter",
    "torch": "torch eager: its own operators under the same tests, in the place of ours",
    "gpu": "ours, by Triton kernels on a GPU",
}
SYMBOLS = {"passed": "✓", "partly": "◐", "refused": "⊘", "xfailed": "expected ✗"}
LIMITS, BACKENDS = "limits.md", "backends.md#the-four-rules"  # as docs/compatibility.md links to them
SUMMARY = """\
# Compatibility

Every operator is held to what torch's own operator does in the same place: value, gradient or type of error. A cell
counts the features of a section that a test showed for the operator, of those that it could have: ✓ is all, 6/8 is six
of eight, and nothing is claimed that no test ran. The other operators take the same paths and differ by their formulas,
which every run tests; they have no columns here. A section has a page with a table of its features, what torch's
operators do under the same tests, and links to these."""
RUNS_INTRO = """\
Counts of cases: a run takes a sample of them, see [testing](testing.md). `make compatibility` runs the tests behind
the tables again and writes these pages; `python -m tests.compatibility` writes them from the recorded
[results](compatibility); `make test` fails where its own results are others."""
LEGEND = """\
A cell has a line for each run, counts cases, and links to the tests behind it, which its title names.

- ✓ 38: so many cases passed. With `*` they run several operators at once, and count for each.
- ◐ 5: passed, and torch refuses some of what they try, as ours does.
- ⊘ 8: passed, and torch refuses all that they try, as ours does.
- **✗ 2 of 38**: failed.
- skipped: [skipped.md](skipped.md) is why. not drawn: the sample of that run has no case of this operator, often
  because the tests ask nothing of the backend and run by formulas. not run: the run does not have the test.
- no test: nothing is known. n/a: torch has no such call, or it takes two tensors; in torch's line, only ours have it.
- †: ours differs from torch somewhere near; [Limits]({limits}) says where.

In the line of the kernels a formula answers too, wherever [no kernel can run]({backends})."""

Run = dict | None  # a JSON document, if there is one


def load(results: Path = RESULTS) -> dict[str, Run]:
    """Return the document of each run."""
    files = {run: results / f"{run}.json" for run in RUNS}
    return {run: json.loads(file.read_text()) if file.exists() else None for run, file in files.items()}


def pages(results: Path = RESULTS) -> dict[Path, str]:
    """Return every page by its path: the summary, a page of each section, and what was skipped."""
    runs = load(results)
    failed = failures(runs)
    blocks = [SUMMARY, table(summary(runs)), RUNS_INTRO, table(map(about, runs.items()))]
    blocks += [f"What failed: {'' if failed else 'nothing'}.".replace(": .", ":"), bullets(failed)]
    written = {results.with_suffix(".md"): blocks}
    legend = LEGEND.format(limits=f"../{LIMITS}", backends=f"../{BACKENDS}")
    for section, features in FEATURES.items():
        rows = [row(runs, name, checks) for name, checks in features.items()]
        links = [link(name, checks) for name, checks in features.items() if checks]
        blocks = [f"# Compatibility: {section}", legend, table(rows), "\n".join(links)]
        written[results / f"{slug(section.lower())}.md"] = blocks
    written[results / "skipped.md"] = ["# Compatibility: what was skipped, and why", bullets(skips(runs))]
    return {path: "\n\n".join(filter(None, blocks)) + "\n" for path, blocks in written.items()}


def about(run: tuple[str, Run]) -> dict[str, str]:
    """Return the line of a run: what it ran on, and how many cases."""
    name, document = run
    line = {"run": name, "what computes": RUNS[name]}
    if document is None:
        return line | {"cases": "not run yet"}
    ran = Counter(document["ran"])
    line |= {key: document["where"][key] for key in ("torch", "Triton", "Python", "device")}
    return line | {
        "cases": f"{drawn(ran):,} drawn of {ran['cases']:,}",
        **{key: f"{ran[key]:,}" for key in (*SYMBOLS, "failed", "skipped") if ran[key]},
    }


def summary(runs: dict[str, Run]) -> Iterator[dict[str, str]]:
    """Yield for each section how many features are met."""
    for section, features in FEATURES.items():
        line = {"section": f"[{section}](compatibility/{slug(section.lower())}.md)"}
        for operator in OPERATORS:
            asked = [checks for name, checks in features.items() if operator not in INAPPLICABLE.get(name, ())]
            found = sum(met(runs, checks, operator) for checks in asked)
            line[operator] = "✓" if found == len(asked) else f"{found}/{len(asked)}"
        yield line


def met(runs: dict[str, Run], checks: tuple[Check, ...], operator: str) -> bool:
    """Return whether a run of ours has shown a feature, and none has seen it fail."""
    counts = sum((count(runs[run], checks, operator) for run in RUNS if run != "torch"), Counter())
    return any(counts[what] for what in ("passed", "partly", "refused")) and not counts["failed"]


def row(runs: dict[str, Run], name: str, checks: tuple[Check, ...]) -> dict[str, str]:
    """Return the line of a feature, in which every cell has a line for each run."""
    shown = [run for run in RUNS if run in asked_of(checks) and (run != "gpu" or runs[run] or on_gpu(checks))]
    line = {"feature": name + (f" [†](../{LIMITS})" if name in LIMITED else ""), "run": "<br>".join(shown)}
    for operator in OPERATORS:
        if operator in INAPPLICABLE.get(name, ()):
            line[operator] = "n/a"
        elif not any(concerns(check, operator) for check in checks):
            line[operator] = "no test"
        else:
            texts = [cell(runs, run, checks, operator) for run in shown]
            line[operator] = "no test" if {*texts} == {"no test"} else f"[{'<br>'.join(texts)}][{slug(name)}]"
    return line


def on_gpu(checks: tuple[Check, ...]) -> bool:
    """Return whether only a GPU can run these checks."""
    return bool(checks) and all(check.file in NEEDS_GPU for check in checks)


def asked_of(checks: tuple[Check, ...]) -> Iterable[str]:
    """Return the runs that have to show a feature."""
    return ("gpu",) if on_gpu(checks) else RUNS if checks else ()


def concerns(check: Check, operator: str) -> bool:
    """Return whether a check may be about an operator."""
    return not check.together or operator in check.together


def cell(runs: dict[str, Run], run: str, checks: tuple[Check, ...], operator: str) -> str:
    """Return what a run says of a feature of an operator, in one line."""
    document = runs[run]
    if run == "torch":
        checks = tuple(check for check in checks if not check.ours)
        if not checks:
            return "n/a"
    if document is None:
        return "not run: needs a GPU" if run == "gpu" else "not run"
    if not any(str(check) in document["results"] for check in checks):
        return "not run"
    counts = count(document, checks, operator)
    mark = "*" if any(operator in check.together for check in checks) else ""
    return verdict(counts) + mark * any(counts.values())


def count(document: Run, checks: Iterable[Check], operator: str) -> Counter[str]:
    """Return counts of what became of the cases of some checks."""
    total: Counter[str] = Counter()
    for check in checks if document else ():
        counts = document["results"].get(str(check), {})
        total += Counter(counts.get("together" if operator in check.together else operator, {}))
    return total


def drawn(counts: Counter[str]) -> int:
    """Return how many of the cases a run took."""
    return counts.total() - counts["cases"]


def verdict(counts: Counter[str]) -> str:
    """Return counts as the text of a cell."""
    ran = drawn(counts)
    if counts["failed"]:
        return f"**✗ {counts['failed']} of {ran}**"
    if not ran:
        return "not drawn" if counts["cases"] else "no test"
    if ran == counts["skipped"]:
        return "skipped"
    return " ".join(f"{symbol} {counts[what]}" for what, symbol in SYMBOLS.items() if counts[what])


def link(name: str, checks: tuple[Check, ...]) -> str:
    """Return the definition of the link in the cells of a feature."""
    return f'[{slug(name)}]: ../../tests/{checks[0].file} "{", ".join(map(str, checks))}"'


def failures(runs: dict[str, Run]) -> list[str]:
    """Return every check that failed, by run and operator."""
    return [
        f"{run}: `{check}`, {'all operators in it' if operator == 'together' else operator}: {verdict(Counter(counts))}"
        for run, document in runs.items()
        for check, operators in (document or {"results": {}})["results"].items()
        for operator, counts in operators.items()
        if counts.get("failed")
    ]


def skips(runs: dict[str, Run]) -> list[str]:
    """Return why tests were skipped, by run."""
    return [
        f"{run}, {n} {'cases' if n > 1 else 'case'}: {reason}"
        for run, document in runs.items()
        for reason, n in (document or {"skipped": {}})["skipped"].items()
    ] or ["Nothing."]


def slug(name: str) -> str:
    """Return a name as the label of a link."""
    return re.sub(r"\W+", "-", name).strip("-")


def table(lines: Iterable[dict[str, str]]) -> str:
    """Return a Markdown table with a column for every key there is."""
    lines = list(lines)
    keys = list(dict.fromkeys(key for line in lines for key in line))
    rows = [keys, ["---"] * len(keys), *([line.get(key, "") for key in keys] for line in lines)]
    return "\n".join(f"| {' | '.join(texts)} |" for texts in rows)


def bullets(texts: Iterable[str]) -> str:
    """Return a Markdown list."""
    return "\n".join(f"- {text}" for text in texts)


def main(results: Path = RESULTS) -> int:
    """Write the pages, and remove those of sections that are no more."""
    written = pages(results)
    for path in {*results.glob("*.md")} - {*written}:
        path.unlink()
    for path, text in written.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
