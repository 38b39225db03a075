"""The README and the pages say what is so: code prints what stands below it, commands exist, links lead somewhere."""

from __future__ import annotations

import ast
import contextlib
import doctest
import importlib.util
import io
import re
import runpy
import shlex
import sys
import tomllib
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
import torch

import customops
from benchmarks import walk
from customops.cli.main import COMMANDS, main

from .conftest import DEVICE, INTERPRETED, KERNELS

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "examples/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
GENERATED = "derivations.md", "api.md"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="the examples compute on the CPU")
by_formula = pytest.mark.skipif(KERNELS or INTERPRETED, reason="the pages show what a process without kernels prints")
page_by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


MODULES = sorted(
    ".".join(file.relative_to(ROOT).with_suffix("").parts)
    for file in (ROOT / "customops").rglob("*.py")
    if ">>> " in file.read_text()
)


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples_print_what_they_say(module):
    if module == "customops.tools.dry_run" and INTERPRETED:
        pytest.skip("the interpreter's functions do not compile")
    failed, tried = doctest.testmod(import_module(module), extraglobs={"torch": torch})
    assert tried > 0
    assert failed == 0


@by_formula
@page_by_page
def test_code_prints_what_stands_below_it(page):
    if page.name not in GENERATED:
        check_code(page.read_text())


@by_formula
@page_by_page
def test_commands_exist_and_print_what_stands_below_them(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    check_commands(page.read_text())


@by_formula
@page_by_page
def test_links_and_paths_lead_somewhere(page):
    check_links(page.read_text(), page.parent)


@by_formula
@pytest.mark.parametrize("name", GENERATED)
def test_pages_are_what_the_source_generates(name):
    page = runpy.run_path(str(ROOT / "docs" / "generate.py"))["PAGES"][name]()
    assert page == (ROOT / "docs" / name).read_text(), "run: python docs/generate.py"


@pytest.mark.skipif(not INTERPRETED, reason="half of the walk is by kernels")
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="other versions of Python have frames of their own")
def test_the_walk_is_what_a_call_runs(capsys):
    walk.main([])
    assert f"```text\n{capsys.readouterr().out}```" in (ROOT / "docs/architecture.md").read_text()


@by_formula
def test_the_walk_tells_kernels_from_what_launches_them():
    files = {file.stem for file in (ROOT / "triton_kernels").glob("*.py") if "@triton.jit" in file.read_text()}
    assert {f"triton_kernels/{name}" for name in files} == walk.DEVICE_CODE


@by_formula
def test_the_readme_is_short_and_says_the_status_first():
    lines = (ROOT / "README.md").read_text().split("\n")
    assert len(lines) <= 121
    assert "No GPU has run it yet" in "\n".join(lines[:10])


def test_imports_go_along_the_one_rule():
    """The rule stands in the page of the architecture: a package imports itself and what is left of it."""
    page = (ROOT / "docs/architecture.md").read_text()
    order = re.search(r"^    (triton_kernels <- .*)$", page, re.MULTILINE)[1].split(" <- ")  # type: ignore[index]
    alone = re.search(r"^(.*) import none of them", page, re.MULTILINE)[1]  # type: ignore[index]
    below = {package: {*order[: i + 1]} for i, package in enumerate(order)}
    below |= {module: set() for module in re.findall(r"`(\w+)`", alone)}
    assert len(below) == len(order) + 4
    for package in below:
        assert imported(package) <= below[package] | (below.keys() - {*order}), package
    for file in (ROOT / "examples").glob("*.py"):
        assert not re.search(r"customops\.\w+ import|import customops\.", file.read_text()), file


@by_formula
def test_the_page_of_the_architecture_names_every_module():
    rows = re.findall(r"^\| (`.*?`) \| (.*) \|$", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE)
    named = {
        folder: {*re.findall(r"`(\w+)\.py`", cell)}
        for where, cell in rows
        for folder in re.findall(r"`([\w/]+/)`", where)
    }
    packages = [
        file.parent for folder in ("customops", "triton_kernels") for file in (ROOT / folder).rglob("__init__.py")
    ]
    for package in packages:
        modules = {file.stem for file in package.glob("[a-z]*.py")} - {"formulas"}
        if package.name != "customops":
            assert named[f"{package.relative_to(ROOT)}/"] - {"formulas"} == modules


@by_formula
def test_the_page_for_contributors_names_every_file_that_tests_and_benchmarks_share():
    _, _, part = (ROOT / "CONTRIBUTING.md").read_text().partition("## What tests and benchmarks share\n")
    cells = re.findall(r"^\| (`.*`) \| .* \|$", part.partition("\n## ")[0], re.MULTILINE)
    named: list[str] = []
    for cell in cells:
        folder, _, first = cell.strip("`").partition("/")
        if folder in ("tests", "benchmarks"):
            named += [f"{folder}/{name}" for name in first.split("`, `") if not name.startswith("docs/")]
    there = [
        path.relative_to(ROOT)
        for folder in (ROOT / "tests", ROOT / "benchmarks")
        for path in folder.glob("[a-z]*")
        if (path.suffix in (".py", ".c") or (path / "__init__.py").exists()) and not path.name.startswith("test_")
    ]
    assert sorted(named) == sorted(f"{path}{'' if path.suffix else '/'}" for path in there)


@by_formula
def test_the_page_of_examples_names_every_script():
    commands = re.findall(r"^\| `.* (examples/\w+\.py)` \|", (ROOT / "examples/README.md").read_text(), re.MULTILINE)
    scripts = [file for file in (ROOT / "examples").glob("*.py") if '__name__ == "__main__"' in file.read_text()]
    assert sorted(commands) == sorted(f"examples/{file.name}" for file in scripts)


@by_formula
def test_the_page_of_layers_names_every_function_and_module():
    rows = re.findall(r"^\| (`.*`.*) \| (`.*`) \|$", (ROOT / "docs/functional.md").read_text(), re.MULTILINE)
    functions, modules = ({*re.findall(r"`(\w+)`", " ".join(cells))} for cells in zip(*rows, strict=True))
    assert functions == {*customops.nn.functional.__all__}
    assert modules == {*customops.nn.__all__} - {"functional"}


@by_formula
def test_what_the_page_says_is_refused_is_refused():
    """Each row of the table is a function that raises, and where code stands beside it, that is traced."""
    rows = re.findall(r"^\| `(.*?)` \| (.*) \|$", (ROOT / "docs/fuse.md").read_text(), re.MULTILINE)
    assert len(rows) >= 12
    for code, instead in rows:
        with pytest.raises(TypeError, match=r"^fuse: "):
            check_fused(code)
        whole = re.fullmatch(r"`(ops\..*)`", instead)
        if whole:
            check_fused(whole[1])


@by_formula
def test_messages_in_the_troubleshooting_table_are_in_the_source():
    rows = re.findall(r"^\| `(.*?)` \| .* \| .* \|$", (ROOT / "docs/backends.md").read_text(), re.MULTILINE)
    assert len(rows) >= 10
    for message in rows:
        check_message(message)


@by_formula
def test_contributing_quotes_the_source():
    """Its code stands in lists, indented: each line of it is one of ours, but those that hold an ellipsis."""
    code = re.findall(r"^   ```python\n(.*?)^   ```", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(code) == 3
    for line in "\n".join(code).split("\n"):
        assert "..." in line or line.removeprefix("   ") in sources()


def test_layers_of_the_examples_agree_with_torch(capsys):
    """They do so by kernels, too; the page of the examples shows them by formulas."""
    layers = runpy.run_path(str(ROOT / "examples/layers.py"))
    assert layers["main"]() == 0
    assert capsys.readouterr().out.count("agrees with torch") == len(layers["COMPARISONS"]) == 16


FAULTS = {
    "a wrong result": ("code", "```python\nprint(1)\n# 2\n```"),
    "no result": ("code", "```python\nprint(1)\n```"),
    "code that raises": ("code", "```python\n1 / 0\n```"),
    "a wrong output": ("commands", "```console\n$ python examples/layers.py\nnothing\n```"),
    "a target that does not exist": ("commands", "`make nothing`"),
    "an option that does not exist": ("commands", "`python -m benchmarks --nothing`"),
    "a module that does not exist": ("commands", "`python -m benchmarks.nothing`"),
    "a file that does not exist": ("commands", "`python examples/nothing.py`"),
    "a test that does not exist": ("commands", "```sh\npython -m pytest tests/test_nothing.py\n```"),
    "an extra that does not exist": ("commands", '`pip install ".[nothing]"`'),
    "a subcommand that does not exist": ("commands", "`customops nothing --json`"),
    "a variable that does not exist": ("commands", "```sh\nCUSTOMOPS_NOTHING=1 make test\n```"),
    "a command that nothing holds": ("commands", "```sh\nnothing\n```"),
    "a link to no file": ("links", "[it](nothing.md)"),
    "a link to no heading": ("links", "[it](README.md#nothing)"),
    "a path to no file": ("links", "`customops/nothing.py`"),
    "a message that nobody prints": ("message", "you have … nothing"),
    "a remedy that cannot be traced": ("fused", "x.cumsum(0)"),
}


@by_formula
@pytest.mark.parametrize("fault", FAULTS)
def test_each_check_sees_a_fault(fault, monkeypatch):
    monkeypatch.chdir(ROOT)
    kind, text = FAULTS[fault]
    checks = {
        "code": check_code,
        "commands": check_commands,
        "links": lambda text: check_links(text, ROOT),
        "message": check_message,
        "fused": check_fused,
    }
    with pytest.raises((AssertionError, ZeroDivisionError, TypeError)):
        checks[kind](text)


def check_code(text: str) -> None:
    """Run the Python of a page; comments below a statement that prints are what it prints."""
    names = {"__name__": "page"}
    for code in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        lines = code.split("\n")
        nodes = ast.parse(code).body
        for node, following in zip(nodes, [*nodes[1:], None], strict=True):
            until = following.lineno - 1 if following else len(lines)
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(ast.Module([node], []), "page", "exec"), names)
            if out.getvalue():
                comments = [line.removeprefix("# ") for line in lines[node.end_lineno : until] if line[:2] == "# "]
                assert "\n".join(comments) == out.getvalue().rstrip()


def check_commands(text: str) -> None:
    """Check each command of a page, and what the page says it prints."""
    blocks = re.findall(r"^```(sh|console)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for kind, block in blocks:
        parts = re.split(r"^\$ ", block, flags=re.MULTILINE)[1:] if kind == "console" else block.rstrip().split("\n")
        for part in parts:
            command, _, output = part.partition("\n")
            check_command(command)
            if output:
                assert matches(output, printed(command))
    for command in re.findall(r"`((?:make|python|pip|torchrun|bash|customops|\.venv/bin/\S+) [^`]+)`", text):
        check_command(command)


def check_command(command: str) -> None:
    """Check that what a command names exists: target, module, file, option, extra, variable."""
    words = shlex.split(command, comments=True)
    while words and "=" in words[0]:
        assert words.pop(0).partition("=")[0] in sources()
    program, *rest = words or [""]
    program = program.rpartition("/")[2]
    options = [word.partition("=")[0] for word in rest if word.startswith("--")]
    if program == "make":
        makefile = (ROOT / "Makefile").read_text()
        known = {*re.findall(r"^([\w-]+):", makefile, re.MULTILINE), *re.findall(r"\$\((\w+)\)", makefile)}
        assert {word.partition("=")[0] for word in rest} <= known
    elif program == "pip":
        known = {re.split(r"[><;=\s]", name)[0] for name in PROJECT["dependencies"]} | {"."}
        known |= {f".[{extra}]" for extra in PROJECT["optional-dependencies"]}
        assert rest[0] == "install"
        assert {*rest[1:]} <= known
    elif program in ("python", "torchrun") and rest[0] != "-m":
        file = ROOT / next(word for word in rest if word.endswith(".py"))
        assert file.exists()
        assert program == "torchrun" or all(f'"{option}"' in sources() for option in options)
    elif program == "python" and rest[1] == "pytest":
        assert all((ROOT / word).exists() for word in rest if word.startswith("tests/"))
    elif program in ("python", "customops"):
        assert rest[0] in COMMANDS if program == "customops" else importlib.util.find_spec(rest[1])
        assert all(f'"{option}"' in sources() for option in options)
    else:
        assert program in ("pre-commit",), f"nothing holds this command: {command}"
        assert any(name.startswith(program) for name in PROJECT["optional-dependencies"]["dev"])


@cache
def printed(command: str) -> str:
    """Return what a command prints, run in this process."""
    words = shlex.split(command, comments=True)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        if words[0] == "customops":
            assert main(words[1:]) == 0
        else:
            assert words[0] == "python"
            with pytest.raises(SystemExit) as end:
                runpy.run_path(str(ROOT / words[1]), run_name="__main__")
            assert end.value.code == 0
    return out.getvalue()


def matches(wanted: str, printed: str) -> bool:
    """Compare, a line of three points standing for any lines; another Triton may need other registers."""
    if not _is_pinned("triton"):
        wanted, printed = (re.sub(r"registers \d+", "registers", text) for text in (wanted, printed))
    return doctest.OutputChecker().check_output(wanted, printed, doctest.ELLIPSIS)


def _is_pinned(package: str) -> bool:
    version = getattr(import_module(package), "__version__", "")
    return f"{package}=={version}" in (ROOT / "constraints.txt").read_text().split()


def check_links(text: str, folder: Path) -> None:
    """Check that links lead to files and headings, and that paths in code are those of files."""
    for target in re.findall(r"\]\(([^)]+)\)", without_code(text)):
        name, _, heading = target.partition("#")
        if "://" in target:
            continue
        file = folder / name if name else None
        assert file is None or file.exists(), target
        if heading:
            assert heading in headings(text if file is None else file.read_text()), target
    for path in re.findall(r"`((?:customops|triton_kernels|tests|benchmarks|examples|docs)/[\w/.]+)`", text):
        assert (ROOT / path).exists(), path


def without_code(text: str) -> str:
    """Return a page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def headings(text: str) -> list[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", without_code(text), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]


def check_fused(code: str) -> None:
    """Trace ``code`` as a function of x."""
    fused = customops.fuse(eval(f"lambda x: {code}", {"ops": customops, "torch": torch}))
    fused(torch.ones(4, 4))


def check_message(message: str) -> None:
    """Check that a message is put together of what stands in the source; an ellipsis is what varies."""
    for piece in re.split(r"…|: |(?<=kernel for )", message):
        assert piece.strip() in sources(), piece


def imported(package: str) -> set[str]:
    """Return the packages and modules of ours that those of ``package`` import, wherever in a file."""
    top = ROOT / (package if package == "triton_kernels" else f"customops/{package}")
    found = set()
    for file in top.glob("*.py") if top.is_dir() else [top.with_suffix(".py")]:
        here = ("customops", package, file.stem) if top.is_dir() else ("customops", package)
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                base = [*here[: len(here) - node.level], *filter(None, [node.module])] if node.level else [node.module]
                names = [f"{'.'.join(base)}.{alias.name}".split(".") for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name.split(".") for alias in node.names]
            else:
                continue
            found |= {name[1] for name in names if name[0] == "customops" and len(name) > 1}
    return found - {package}


@cache
def sources() -> str:
    """Return all Python of the repository, of the tests only the records of operators and what the environment sets."""
    folders = ("customops", "triton_kernels", "benchmarks", "examples", "docs")
    files = [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]
    tests = [ROOT / "tests" / name for name in ("cases.py", "compiled.py", "conftest.py")]
    return "\n".join(file.read_text() for file in (*files, *tests))
