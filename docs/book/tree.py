"""Write the sources of the site into a folder: the pages of the repository, those of the book, and lists of them."""

from __future__ import annotations

import os
import re
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import customops

from .pages import TEMPLATES, page, summary, with_formulas
from .subjects import ROOT, Subject, page_of, subjects

PLACES = {  # where a file of the repository is in the site; the other pages of docs/ are in guide/
    "README.md": "project/readme.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
    "examples/README.md": "guide/examples.md",
    "benchmarks/README.md": "guide/benchmarks.md",
    "docs/derivations.md": "operators/index.md",  # the book has the same, from the same docstrings
    "docs/book/index.md": "index.md",
    "notebooks/gradients.ipynb": "notebook.ipynb",
}
REPLACED = {"docs/derivations.md"}  # pages that the site has another one for
BELOW = """
```{{toctree}}
:hidden:
:glob:

{}/*
```
"""
LINK = re.compile(
    r"(?P<text>!?\[((?:[^\[\]]|\[[^\]]*\])*)\])\((?P<to>[^)\s]+)\)|^(?P<name>\[.+?\]: )(?P<at>\S+)", re.MULTILINE
)


def place_of(file: Path) -> str:
    """Return where a file of the repository is in the site."""
    path = file.relative_to(ROOT).as_posix()
    if path in PLACES:
        return PLACES[path]
    if path.startswith("docs/book/"):
        return path.removeprefix("docs/book/")
    return path.replace("docs/", "guide/", 1) if path.startswith("docs/") and path.endswith(".md") else f"files/{path}"


def sources() -> list[Path]:
    """Return the pages that the repository has."""
    pages = [ROOT / path for path in PLACES if path not in REPLACED]
    found = [*sorted((ROOT / "docs").rglob("*.md"))]
    outside = {ROOT / path for path in REPLACED}
    return list(dict.fromkeys([*pages, *(f for f in found if f not in outside)]))


def stage(file: Path, tree: Path) -> None:
    """Copy a page into the tree; its links lead to pages there, or to copies of other files.

    In the menu the pages in a folder of its name are below it.
    """
    here = tree / place_of(file)

    def linked(match: re.Match) -> str:
        target = _moved(match["to"] or match["at"], file, tree)
        if target is None:
            return match[2]  # a folder is no page
        return f"{match['text']}({target})" if match["text"] else f"{match['name']}{target}"

    here.parent.mkdir(parents=True, exist_ok=True)
    text = file.read_text() + (BELOW.format(file.stem) if file.with_suffix("").is_dir() else "")
    here.write_text(text if file.suffix == ".ipynb" else LINK.sub(linked, text))


def _moved(link: str, file: Path, tree: Path) -> str | None:
    """Return a link of a page as it is in the tree, to which another file is copied; None of a folder."""
    name, hash_, heading = link.partition("#")
    target = (file.parent / name).resolve()
    if "://" in link or not name or not target.exists():
        return link
    if target.is_dir():
        target /= "README.md"
        if not target.exists():
            return None
    if place_of(target).startswith("files/"):
        _copy(target, tree / place_of(target))
    return os.path.relpath(tree / place_of(target), (tree / place_of(file)).parent) + hash_ + heading


def _copy(file: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, to)


def write_page(subject: Subject, tree: Path) -> None:
    """Write the page of a subject, and its picture."""
    folder = tree / subject.kind
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{subject.name}.md").write_text(page(subject, folder))


def write_by_name(place: str, tree: Path) -> None:
    """Write a page in a process of its own, to which a name is sent."""
    write_page(next(each for each in subjects() if f"{each.kind}/{each.name}" == place), tree)


def write_lists(every: list[Subject], tree: Path) -> None:
    """Write the pages that list others, and the reference of what has no page of its own."""
    functional = customops.nn.functional
    elsewhere = [
        name for name in functional.__all__ if not page_of(getattr(functional, name), every).startswith("layers")
    ]
    for kind in ("operators", "layers"):
        rows = [(each.name, with_formulas(summary(each.function))) for each in every if each.kind == kind]
        text = TEMPLATES.get_template(f"{kind}.md.jinja").render(rows=rows, elsewhere=elsewhere)
        (tree / kind / "index.md").write_text(text)
    own = {each.function for each in every}
    names = [(_directive(n), n) for n in customops.__all__ if not n.endswith("_") and getattr(customops, n) not in own]
    modules = [name for name in customops.nn.__all__ if name != "functional"]
    (tree / "reference").mkdir(exist_ok=True)
    for name in ("index", "modules"):
        text = TEMPLATES.get_template(f"reference_{name}.md.jinja").render(names=names, modules=modules)
        (tree / "reference" / f"{name}.md").write_text(text)


def _directive(name: str) -> str:
    value = getattr(customops, name)
    if isinstance(value, type):
        return "autoexception" if issubclass(value, Exception) else "autoclass"
    return "autofunction"


def write_tree(tree: Path) -> None:
    """Write all sources of the site into a new folder."""
    shutil.rmtree(tree, ignore_errors=True)
    every = subjects()
    for file in sources():
        stage(file, tree)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(write_by_name, f"{each.kind}/{each.name}", tree) for each in every]
        for done, each in zip(waiting, every, strict=True):
            done.result()
            print(f"{each.kind}/{each.name}", flush=True)
    write_lists(every, tree)
