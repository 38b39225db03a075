"""The structure of the package: private names stay in their module, private API of others in one file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import customops

ROOT = Path(__file__).parent.parent
MODULES = sorted([*(ROOT / "customops").rglob("*.py"), *(ROOT / "triton_kernels").rglob("*.py")])
# What a function may import: it may be missing, or slow.
OPTIONAL = ("triton", "torch.distributed", "..triton_kernels", "rich", "..proof", ".claims", ".notation", ".symbolic")
NAMED_TUPLE = {"_replace", "_asdict", "_fields", "_make"}  # public, in spite of their names


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _imports(tree: ast.AST) -> Iterator[tuple[str, list[str]]]:
    """Yield every module that is imported, with dots if it is relative, and the names taken from it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or ""), [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)


def private_imports(source: str) -> list[str]:
    """Return the private names that a module imports from others of the package; ``_compat`` is for all."""
    found = []
    for module, names in _imports(ast.parse(source)):
        if module.startswith((".", "customops")):
            parts = [*module.split("."), *names]
            found += [name for name in parts if _is_private(name) and name != "_compat"]
    return found


def private_api(source: str) -> list[str]:
    """Return the private names of torch and Triton that a module uses: imported, or as an attribute of a module."""
    tree, found = ast.parse(source), []
    modules = {"torch", "triton", "tl"}
    for module, names in _imports(tree):
        if module.split(".")[0] in ("torch", "triton"):
            found += [name for name in (*module.split("."), *names) if _is_private(name)]
            modules |= set(names)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_private(node.attr) and node.attr not in NAMED_TUPLE:
            value = node.value
            while isinstance(value, ast.Attribute):
                value = value.value
            if isinstance(value, ast.Name) and value.id in modules:
                found.append(node.attr)
    return found


def local_imports(source: str) -> list[str]:
    """Return the modules that functions import and that are not optional."""
    tree, found = ast.parse(source), []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for module, names in _imports(node):
                modules = [module] if module.strip(".") else [module + name for name in names]
                found += [each for each in modules if not each.startswith(OPTIONAL)]
    return found


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_module_uses_no_private_name_of_another(file):
    source = file.read_text()
    assert private_imports(source) == []
    assert local_imports(source) == []
    if file.name != "_compat.py":
        assert private_api(source) == []


@pytest.mark.parametrize(
    ("check", "source"),
    [
        (private_imports, "from .plans import _plans"),
        (private_imports, "from customops._secret import x"),
        (private_api, "from torch._C import x"),
        (private_api, "import torch\ntorch.autograd._engine"),
        (private_api, "from torch.autograd import forward_ad\nforward_ad._current_level"),
        (local_imports, "def f():\n    from .plans import remember"),
        (local_imports, "def f():\n    from . import plans"),
    ],
)
def test_each_check_sees_a_fault(check, source):
    assert check(source)


def test_no_module_has_the_name_of_what_is_exported():
    """``import customops.fuse`` would otherwise give a module or a function, as it happens."""
    modules = {path.stem for path in (ROOT / "customops").iterdir()}
    assert not modules & set(customops.__all__)


def test_what_is_exported_is_sorted_and_there():
    assert customops.__all__ == sorted(customops.__all__)
    assert all(hasattr(customops, name) for name in customops.__all__)
    public = {name for name, value in vars(customops).items() if not name.startswith("_") and not _is_module(value)}
    assert public == set(customops.__all__)


def _is_module(value: object) -> bool:
    return type(value).__name__ == "module"
