"""Public names say what they do: modules, classes, functions, methods."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "confide"
_DEFINITION = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def undocumented(tree: ast.Module) -> Iterator[str]:
    """Yield the public definitions of a module that have no docstring."""
    if not ast.get_docstring(tree):
        yield "1: the module"
    for node in tree.body:
        yield from _in_definition(node, "")


def _in_definition(node: ast.stmt, prefix: str) -> Iterator[str]:
    if not isinstance(node, _DEFINITION) or not _is_public(node):
        return
    name = f"{prefix}{node.name}"
    if not ast.get_docstring(node):
        yield f"{node.lineno}: {name}"
    if isinstance(node, ast.ClassDef):
        for inner in node.body:
            yield from _in_definition(inner, f"{name}.")


def _is_public(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> bool:
    # `__enter__` and its kin do what the language says.
    if node.name.startswith("_") or any("overload" in ast.unparse(d) for d in node.decorator_list):
        return False
    # A setter repeats its property.
    return not any(ast.unparse(decorator).endswith(".setter") for decorator in node.decorator_list)


def test_every_public_name_has_a_docstring() -> None:
    missing = [
        f"{path.relative_to(PACKAGE)}:{finding}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for finding in undocumented(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("X = 1", ["1: the module"]),
        ('"""M."""\ndef f(): ...', ["2: f"]),
        ('"""M."""\nasync def f(): ...', ["2: f"]),
        ('"""M."""\nclass A:\n    def f(self): ...', ["2: A", "3: A.f"]),
        ('"""M."""\nclass A:\n    """A."""\n    @property\n    def x(self): ...', ["5: A.x"]),
        ('"""M."""\ndef _f(): ...\nclass _A:\n    def f(self): ...', []),
        ('"""M."""\nclass A:\n    """A."""\n    def __init__(self): ...', []),
        ('"""M."""\ndef f():\n    """F."""\n    def inner(): ...', []),
    ],
)
def test_what_is_missing_is_found(source: str, found: list[str]) -> None:
    assert list(undocumented(ast.parse(source))) == found
