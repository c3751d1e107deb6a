"""`__all__` is what a module offers: complete, sorted, true."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from types import ModuleType

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "confide"
# Programs: run, never imported.
_PROGRAMS = {"__main__.py", "adapters/serve_child.py", "trainer/__main__.py"} | {
    f"rays/{name}.py" for name in ("__main__", "idle", "tied")
}
_FILES = sorted(path for path in PACKAGE.rglob("*.py"))
MODULES = [
    ".".join(["confide", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(
        ".__init__"
    )
    for path in _FILES
    if path.relative_to(PACKAGE).as_posix() not in _PROGRAMS
]


def _defined(module: ModuleType) -> set[str]:
    """Return the public classes, functions and constants that the module itself defines."""
    source = Path(module.__file__ or "").read_text(encoding="utf-8")
    found: set[str] = set()
    for node in ast.parse(source).body:
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                found.add(name)
            case ast.AsyncFunctionDef(name=name) | ast.AnnAssign(target=ast.Name(id=name)):
                found.add(name)
            case ast.Assign(value=ast.Call(func=ast.Name(id="TypeVar" | "ParamSpec"))):
                pass  # a word of the signatures, not a thing
            case ast.Assign(targets=targets):
                found.update(target.id for target in targets if isinstance(target, ast.Name))
    return {name for name in found if not name.startswith("_")}


@pytest.mark.parametrize("name", MODULES)
def test_all_is_accurate(name: str) -> None:
    module = importlib.import_module(name)
    offered: list[str] | None = getattr(module, "__all__", None)
    defined = _defined(module)
    if offered is None:
        assert name.startswith("confide.cli.") or not defined, (
            f"no __all__, but it defines {sorted(defined)}"
        )
        return
    assert len(offered) == len(set(offered)), "a name twice"
    absent = [entry for entry in offered if not hasattr(module, entry)]
    assert not absent, f"__all__ names what is not there: {absent}"
    if name.startswith("confide.cli."):
        return  # a verb's functions are for the command line, which finds them by registration
    # A name without an underscore that is not offered is neither public nor private.
    assert defined <= set(offered), f"missing in __all__: {sorted(defined - set(offered))}"
    assert not [entry for entry in offered if entry.startswith("_") and entry != "__version__"]


def test_the_modules_were_found() -> None:
    assert {"confide", "confide.errors", "confide.wire.reader", "confide.cli.main"} <= set(MODULES)
