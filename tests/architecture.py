"""The rules of the house as functions over one parsed module; test_architecture.py applies them.

Each rule takes a `Module` and yields what breaks it, in words that say what to do. Rules read
syntax, not behaviour: `getattr(os, "environ")` would pass. They keep honest code in its place.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Who may import whom: from the top, a package imports what stands in a later row, and itself.
TIERS = (
    _words("__init__ __main__"),  # the public face and `python -m confide`
    _words("cli web"),
    _words("client node engines"),
    _words("adapters rays simulator trainer"),
    _words("ports"),
    _words("formats tenancy telemetry"),
    _words("agents training inference broker channel receipts tlog"),
    _words("appraisal"),
    _words("crypto trust"),
    _words("expectation"),
    _words("wire"),
    _words("rats errors"),
    _words("reasons version"),
)
# (importer, imported) within one row.
NEIGHBOURS = {
    ("errors", "rats"): "a rejection carries findings",
    ("receipts", "tlog"): "a receipt may come with the proof that it is logged",
    ("rays", "adapters"): "a seat's key reaches Ray in a memory file, as it reaches TLS",
    ("training", "receipts"): "a training record is signed, and held to receipts, like any other",
    ("training", "tlog"): "a training record is logged like a receipt",
    ("training", "agents"): "an image of the owner's is pinned as an agent's is",
    ("training", "inference"): "what came out is named as served weights are",
}
# Pure, and the simulator with them: the same seed and time give the same bytes.
PURE = frozenset({"simulator"}).union(*TIERS[4:])

# Whoever is not the standard library has one home.
HOMES: dict[str, frozenset[str]] = {
    "cryptography": frozenset({"crypto"}),
    "lxml": frozenset({"crypto"}),
    "coincurve": frozenset({"crypto"}),
    "Crypto": frozenset({"crypto"}),
    "rfc8785": frozenset({"wire"}),
    "yaml": frozenset({"wire"}),
    "sigstore": frozenset({"adapters"}),
    "httpx2": frozenset({"adapters"}),
    "aiohttp": frozenset({"adapters"}),
    "yarl": frozenset({"adapters"}),
    "http.client": frozenset({"adapters"}),
    "urllib.request": frozenset({"adapters"}),
    "sqlite3": frozenset({"adapters"}),
    "sqlalchemy": frozenset({"adapters"}),
    "pg8000": frozenset({"adapters"}),
    "shamir_mnemonic": frozenset({"adapters"}),
    "openai": frozenset({"client"}),
    "pynvml": frozenset({"adapters"}),
    "ray": frozenset({"rays"}),
    "starlette": frozenset({"node"}),
    "granian": frozenset({"node"}),
    "typer": frozenset({"cli"}),
    "rich": frozenset({"cli"}),
    **dict.fromkeys(
        _words("torch transformers peft safetensors dp_accounting numpy jinja2"),
        frozenset({"trainer"}),
    ),
}
GUESTS = {
    ("node.agent_gateway", "aiohttp"): "its web server: the agent's endpoint is no ASGI service",
    ("adapters.serve_child", "transformers"): "a process of its own, run by path, never imported",
}
# Modules that no pure package imports, and names that none of them uses.
IMPURE_MODULES = _words(
    "asyncio concurrent ctypes fcntl fileinput getpass glob http.client importlib.resources "
    "locale logging mmap multiprocessing os platform pwd queue random resource sched secrets "
    "select selectors shutil signal socket socketserver sqlite3 ssl subprocess tempfile "
    "threading time urllib.request warnings webbrowser"
)
IMPURE_NAMES = _words(
    "breakpoint input open print __import__ exec eval io.open io.FileIO pathlib.Path "
    "datetime.datetime.now datetime.datetime.utcnow datetime.datetime.today datetime.date.today "
    "sys.argv sys.stdin sys.stdout sys.stderr uuid.uuid1 uuid.uuid4 tarfile.open "
    "zipfile.ZipFile"
)
IMPURE_METHODS = _words(
    "read_bytes read_text write_bytes write_text iterdir rglob unlink mkdir rmdir"
)
PURE_GUESTS = {
    ("agents.session", "socket"): "a type in the signature of a Protocol",
    ("simulator.machine", "asyncio"): "its port is asynchronous: one quote at a time",
}
MAX_LINES = 400
LONG_FILES: dict[str, str] = {}
BROAD = frozenset({"node", "cli"})  # a service and a command answer whatever happens
EXITS = frozenset({"cli", "__main__"})
EXIT_GUESTS = {
    "adapters.serve_child": "a program of its own; its parent reads the status",
    "node.forked": "a forked worker must not return into its parent's code",
    "rays.__main__": "a program of its own; its parent reads the status",
    "rays.tied": "as above",
    "trainer.__main__": "a program of its own; its parent reads the status",
}

# What may be called while a module is imported: constructors of plain values, functions of pure
# packages (they have no effects, the rules above see to it), and no more.
PLAIN_CALLS = _words(
    "base64.b64decode bool bytes bytes.fromhex dict dict.fromkeys enumerate frozenset int len "
    "list max min object range set sorted str sum tuple zip collections.namedtuple "
    "dataclasses.dataclass dataclasses.field dataclasses.replace datetime.datetime "
    "datetime.timedelta datetime.timezone enum.auto enum.unique functools.lru_cache "
    "ipaddress.ip_address ipaddress.ip_network ipaddress.IPv4Network ipaddress.IPv6Network "
    "httpx2.Timeout json.JSONDecoder json.JSONEncoder pathlib.Path re.compile struct.Struct "
    "struct.calcsize types.MappingProxyType typing.NewType typing.ParamSpec typing.TypeVar"
)
# Computed from constants: `"a b".split()`, `b"x".ljust(8)`, `Path(__file__).with_name("x")`.
PLAIN_METHODS = _words(
    "encode endswith items join keys ljust replace rjust split splitlines startswith to_bytes "
    "values with_name"
)
PLAIN_PREFIXES = ("cryptography.hazmat.primitives.",)
# A command line is declared, not run.
DECLARING = {"cli": frozenset({"typer.Typer", "typer.Option", "typer.Argument"})}

DECLARING_METHODS = frozenset({"add_typer", "command", "callback"})

# A name in capitals is a constant of the source, and `key_bytes` is how many, not which.
SECRET = re.compile(r"(^|_)(token|secret|mac|hmac|password|api_key|private_key|seed)$")

Rule = Callable[["Module"], Iterator[str]]
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True, slots=True)
class Module:
    """One file of the package: its dotted name below `confide`, its text, its tree."""

    name: str
    text: str
    tree: ast.Module

    @classmethod
    def parse(cls, name: str, text: str) -> Module:
        """Parse `text` as the module `name` (`wire.tdx`, `errors`)."""
        return cls(name, text, ast.parse(text))

    @classmethod
    def read(cls, path: Path, package: Path) -> Module:
        """Read one file of the package whose folder is `package`."""
        parts = path.relative_to(package).with_suffix("").parts
        if len(parts) > 1 and parts[-1] == "__init__":
            parts = parts[:-1]
        return cls.parse(".".join(parts), path.read_text(encoding="utf-8"))

    @property
    def room(self) -> str:
        """The package or top-level module that it belongs to."""
        return self.name.split(".")[0]

    def imports(self) -> Iterator[tuple[int, str]]:
        """Yield (line, dotted name) of everything imported, `from a import b` as `a.b`."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)

    def type_only(self) -> set[int]:
        """Return the lines that only a type checker reads."""
        return {
            inner.lineno
            for node in ast.walk(self.tree)
            if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
            for inner in node.body
        }

    def names(self) -> dict[str, str]:
        """Return what each imported local name stands for."""
        found: dict[str, str] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    head = alias.name.split(".")[0]
                    found[alias.asname or head] = alias.name if alias.asname else head
            elif isinstance(node, ast.ImportFrom) and not node.level:
                for alias in node.names:
                    found[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        return found


def dotted(node: ast.expr, names: dict[str, str]) -> str | None:
    """Return the full dotted name of `a.b.c`, or None for anything else."""
    match node:
        case ast.Name(id=name):
            return names.get(name, name)
        case ast.Attribute(value=value, attr=attr):
            head = dotted(value, names)
            return None if head is None else f"{head}.{attr}"
        case ast.Subscript(value=value):
            return dotted(value, names)
    return None


def _under(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def _tier(room: str) -> int | None:
    return next((rank for rank, rooms in enumerate(TIERS) if room in rooms), None)


def direction(module: Module) -> Iterator[str]:
    """Imports go down."""
    own = _tier(module.room)
    if own is None:
        yield f"1: the package {module.room!r} has no place in the order"
        return
    for line, name in module.imports():
        if not _under(name, "confide"):
            continue
        room = [*name.split("."), "__init__"][1]
        if _tier(room) is None and name.count(".") == 1:
            room = "__init__"  # `from confide import Client`
        rank = _tier(room)
        if rank is None:
            yield f"{line}: imports {name}, a package without a place in the order"
        elif room != module.room and (module.room, room) not in NEIGHBOURS and rank <= own:
            yield f"{line}: {module.room} may not import {room}, which stands beside or above it"


def relative(module: Module) -> Iterator[str]:
    """Imports are absolute."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield f"{node.lineno}: relative import"


def purity(module: Module) -> Iterator[str]:
    """From the ports down: no clock, files, network, environment, randomness, threads, logging."""
    if module.room not in PURE:
        return
    for line, name in module.imports():
        for impure in IMPURE_MODULES:
            if _under(name, impure) and (module.name, impure) not in PURE_GUESTS:
                yield f"{line}: imports {impure}; take what it gives as an argument"
    names = module.names()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Name | ast.Attribute) and dotted(node, names) in IMPURE_NAMES:
            yield f"{node.lineno}: uses {dotted(node, names)}; take what it gives as an argument"
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in IMPURE_METHODS
        ):
            yield f"{node.lineno}: calls .{node.func.attr}(), which touches files"


def homes(module: Module) -> Iterator[str]:
    """Each dependency is imported from one package."""
    typing = set() if module.room in PURE else module.type_only()
    for line, name in module.imports():
        if line in typing:
            continue  # the type of a client that someone else made
        home = next((key for key in HOMES if _under(name, key)), None)
        top = name.split(".")[0]
        if (module.name, top) in GUESTS:
            continue
        if home is not None and module.room not in HOMES[home]:
            yield f"{line}: only {', '.join(sorted(HOMES[home]))} may import {home}"
        elif home is None and top != "confide" and top not in sys.stdlib_module_names:
            yield f"{line}: {top} has no home; see HOMES"


def handlers(module: Module) -> Iterator[str]:
    """No bare except; below the node no handler that takes everything, unless it re-raises."""
    names = module.names()
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.ExceptHandler):
            continue
        if node.type is None:
            yield f"{node.lineno}: bare except"
            continue
        types = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        broad = {dotted(item, names) for item in types} & {"Exception", "BaseException"}
        last = node.body[-1]
        raises = isinstance(last, ast.Raise) and last.exc is None
        if broad and not raises and module.room not in BROAD:
            yield f"{node.lineno}: except {broad.pop()} below the node"


def asserts(module: Module) -> Iterator[str]:
    """`assert` vanishes under -O, so it never stands in the package."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Assert):
            yield f"{node.lineno}: assert"


def exits(module: Module) -> Iterator[str]:
    """Only a command ends the process."""
    if module.room in EXITS or module.name in EXIT_GUESTS:
        return
    names = module.names()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Name | ast.Attribute) and dotted(node, names) in {
            "sys.exit", "os._exit", "SystemExit", "exit", "quit",
        }:  # fmt: skip
            yield f"{node.lineno}: only the command line ends the process"


def secrets(module: Module) -> Iterator[str]:
    """Secrets are compared in constant time."""
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Compare):
            continue
        sides = [node.left, *node.comparators]
        for left, operator, right in zip(sides, node.ops, sides[1:], strict=False):
            if not isinstance(operator, ast.Eq | ast.NotEq):
                continue
            if any(isinstance(side, ast.Constant) for side in (left, right)):
                continue  # a literal in the source is no secret
            for side in (left, right):
                word = side.id if isinstance(side, ast.Name) else getattr(side, "attr", "")
                if SECRET.search(word):
                    yield f"{node.lineno}: {word} compared with ==; use hmac.compare_digest"


def documented(module: Module) -> Iterator[str]:
    """Every module says what it is."""
    if not ast.get_docstring(module.tree):
        yield "1: no module docstring"


def length(module: Module) -> Iterator[str]:
    """A long file is a design question."""
    lines = len(module.text.splitlines())
    if lines > MAX_LINES and module.name not in LONG_FILES:
        yield f"{MAX_LINES}: {lines} lines; would two names say it better?"


def side_effects(module: Module) -> Iterator[str]:
    """Importing a module defines things and does nothing."""
    if module.name != "__main__":
        yield from _effects(module.tree.body, module, module.names())


def _effects(body: list[ast.stmt], module: Module, names: dict[str, str]) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from _effects(node.body, module, names)
        evaluated = _evaluated(node, module, names)
        if evaluated is None:
            yield f"{node.lineno}: {type(node).__name__} while importing"
        for expression in evaluated or ():
            if expression is not None and dotted(expression, names) == "functools.cache":
                yield f"{node.lineno}: a cache without a bound"
            for inside in _outside_lambda(expression):
                if isinstance(inside, ast.Call) and not _is_plain(inside, module, names):
                    called = dotted(inside.func, names) or ast.unparse(inside.func)
                    yield f"{inside.lineno}: calls {called} while importing"


def _evaluated(
    node: ast.stmt, module: Module, names: dict[str, str]
) -> list[ast.expr | None] | None:
    """Return the expressions that an import evaluates, or None for what may not stand there."""
    match node:
        case ast.Import() | ast.ImportFrom() | ast.Pass() | ast.Expr(value=ast.Constant()):
            found: list[ast.expr | None] = []
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            found = [*node.args.defaults, *node.args.kw_defaults, *node.decorator_list]
        case ast.ClassDef():
            found = [*node.bases, *(word.value for word in node.keywords), *node.decorator_list]
        case ast.Assign() | ast.AnnAssign():
            found = [node.value]
        case ast.Expr(value=ast.Call() as call) if module.room in DECLARING:
            found = [call]
        case ast.If(test=test, orelse=[]) if _is_switch(test, names):
            found = []
        case _:
            return None
    return found


def _is_switch(test: ast.expr, names: dict[str, str]) -> bool:
    if dotted(test, names) == "typing.TYPE_CHECKING":
        return True
    return isinstance(test, ast.Compare) and dotted(test.left, names) == "__name__"


def _outside_lambda(expression: ast.AST | None) -> Iterator[ast.AST]:
    if expression is None or isinstance(expression, ast.Lambda):
        return
    yield expression
    for child in ast.iter_child_nodes(expression):
        yield from _outside_lambda(child)


def _is_plain(call: ast.Call, module: Module, names: dict[str, str]) -> bool:
    own = {node.name for node in module.tree.body if isinstance(node, Definition)}
    frozen = {
        node.name
        for node in module.tree.body
        if isinstance(node, ast.ClassDef)
        and any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)
    }
    name = dotted(call.func, names) or ""
    module_function = name.split(".")[0] in sys.stdlib_module_names  # `os.replace` is none of them
    if isinstance(call.func, ast.Attribute) and call.func.attr in PLAIN_METHODS:
        return not module_function
    declared = DECLARING.get(module.room, frozenset())
    if name in declared or (declared and name.rpartition(".")[2] in DECLARING_METHODS):
        return True
    if name in own:
        return name in frozen or module.room in PURE
    ours = _under(name, "confide") and name.split(".")[1] in PURE
    return name in PLAIN_CALLS or name.startswith(PLAIN_PREFIXES) or ours


RULES: tuple[Rule, ...] = (
    direction, relative, purity, homes, handlers, asserts, exits, secrets, documented, length,
    side_effects,
)  # fmt: skip
