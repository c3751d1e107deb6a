"""The rules of the house hold in every module, and each rule catches what it is there for."""

from __future__ import annotations

from pathlib import Path

import pytest

import architecture as rules

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "confide"
MODULES = [rules.Module.read(path, PACKAGE) for path in sorted(PACKAGE.rglob("*.py"))]


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps(rule: rules.Rule) -> None:
    broken = [f"confide.{module.name}:{finding}" for module in MODULES for finding in rule(module)]
    assert not broken, f"{rule.__doc__}\n" + "\n".join(broken)


def test_every_package_of_the_source_has_a_place_in_the_order() -> None:
    rooms = {module.room for module in MODULES}
    assert {"wire", "crypto", "appraisal", "node", "cli"} <= rooms, "the walk found no package"
    assert rooms <= frozenset().union(*rules.TIERS)


def test_no_exception_outlives_its_reason() -> None:
    present = {module.name for module in MODULES}
    excused = {name for table in (rules.GUESTS, rules.PURE_GUESTS) for name, _ in table}
    excused |= rules.EXIT_GUESTS.keys() | rules.LONG_FILES.keys()
    assert excused <= present, "an exception names a module that is gone"
    for (name, guest), _ in [*rules.GUESTS.items(), *rules.PURE_GUESTS.items()]:
        module = next(module for module in MODULES if module.name == name)
        assert any(imported.split(".")[0] == guest for _, imported in module.imports()), (
            f"{name} no longer imports {guest}: take it out of the table"
        )
    for name in rules.LONG_FILES:
        module = next(module for module in MODULES if module.name == name)
        assert len(module.text.splitlines()) > rules.MAX_LINES


PLANTED: list[tuple[rules.Rule, str, str]] = [
    # Down only, and never beside.
    (rules.direction, "wire.x", "from confide.crypto.hpke import seal"),
    (rules.direction, "wire.x", "import confide.expectation"),
    (rules.direction, "receipts.x", "from confide.channel import keys"),
    (rules.direction, "node.x", "from confide.client.agent import AgentClient"),
    (rules.direction, "ports", "from confide.adapters.clock import SystemClock"),
    (rules.direction, "cli.x", "from confide import Client"),
    (rules.direction, "wire.x", "def f():\n    from confide.node import app"),
    (rules.direction, "wire.x", "if TYPE_CHECKING:\n    from confide.node import app"),
    (rules.direction, "wire.x", "from confide.nowhere import thing"),
    (rules.direction, "nowhere.x", "X = 1"),
    (rules.relative, "wire.x", "from .reader import Reader"),
    # The rim alone touches the world.
    (rules.purity, "wire.x", "import os"),
    (rules.purity, "wire.x", "import os.path"),
    (rules.purity, "wire.x", "from os import environ"),
    (rules.purity, "wire.x", "import time"),
    (rules.purity, "wire.x", "from time import monotonic"),
    (rules.purity, "wire.x", "import random"),
    (rules.purity, "wire.x", "import secrets as s"),
    (rules.purity, "wire.x", "import socket"),
    (rules.purity, "wire.x", "import subprocess"),
    (rules.purity, "wire.x", "from threading import Lock"),
    (rules.purity, "channel.x", "import asyncio"),
    (rules.purity, "wire.x", "import logging.handlers"),
    (rules.purity, "wire.x", "def f():\n    return open('x')"),
    (rules.purity, "wire.x", "import io\ndef f():\n    return io.open('x')"),
    (rules.purity, "wire.x", "from pathlib import Path\ndef f():\n    return Path('x')"),
    (rules.purity, "wire.x", "def f(p):\n    return p.read_bytes()"),
    (rules.purity, "wire.x", "import datetime\ndef f():\n    return datetime.datetime.now()"),
    (rules.purity, "wire.x", "from datetime import datetime as d\ndef f():\n    return d.utcnow()"),
    (rules.purity, "wire.x", "from datetime import datetime\ndef f(c=datetime.now):\n    return c"),
    (rules.purity, "appraisal.x", "import uuid\ndef f():\n    return uuid.uuid4()"),
    (rules.purity, "simulator.x", "from random import Random"),
    (rules.purity, "ports", "import subprocess"),
    # One home for each dependency.
    (rules.homes, "wire.x", "from cryptography import x509"),
    (rules.homes, "appraisal.x", "import lxml.etree"),
    (rules.homes, "appraisal.x", "if TYPE_CHECKING:\n    from cryptography import x509"),
    (rules.homes, "node.x", "import httpx2"),
    (rules.homes, "node.x", "from urllib.request import urlopen"),
    (rules.homes, "node.x", "import aiohttp"),
    (rules.homes, "node.x", "import sqlite3"),
    (rules.homes, "node.x", "import openai"),
    (rules.homes, "node.x", "from pynvml import nvmlInit"),
    (rules.homes, "client.x", "import starlette.applications"),
    (rules.homes, "adapters.x", "from granian import Granian"),
    (rules.homes, "node.x", "import typer"),
    (rules.homes, "client.x", "from rich.console import Console"),
    (rules.homes, "node.x", "import transformers"),
    (rules.homes, "adapters.x", "import something_new"),
    # Failure is typed, and nothing vanishes under -O.
    (rules.handlers, "cli.x", "try:\n    f()\nexcept:\n    raise"),
    (rules.handlers, "adapters.x", "try:\n    f()\nexcept Exception:\n    g()"),
    (rules.handlers, "adapters.x", "try:\n    f()\nexcept (OSError, Exception):\n    g()"),
    (rules.handlers, "adapters.x", "try:\n    f()\nexcept Exception as e:\n    raise Other from e"),
    (rules.asserts, "node.x", "def f(x):\n    assert x"),
    (rules.exits, "client.x", "import sys\ndef f():\n    sys.exit(1)"),
    (rules.exits, "client.x", "def f():\n    raise SystemExit"),
    # Secrets in constant time.
    (rules.secrets, "node.x", "def f(token, given):\n    return token == given"),
    (rules.secrets, "node.x", "def f(self, given):\n    return given != self.run_token"),
    (rules.secrets, "crypto.x", "def f(mac, a, b):\n    return a == b == mac"),
    # A module says what it is, is not long, and does nothing when it is imported.
    (rules.documented, "wire.x", "X = 1"),
    (rules.length, "wire.x", "X = 1\n" * (rules.MAX_LINES + 1)),
    (rules.side_effects, "node.x", "import httpx2\nclient = httpx2.Client()"),
    (rules.side_effects, "node.x", "from threading import Lock\n_lock = Lock()"),
    (rules.side_effects, "node.x", "from confide.adapters.clock import Clock\nC = Clock()"),
    (rules.side_effects, "node.x", "def _load(): ...\nTABLE = _load()"),
    (rules.side_effects, "node.x", "class Keys: ...\nKEYS = Keys()"),
    (rules.side_effects, "node.x", "print('hello')"),
    (rules.side_effects, "wire.x", "register(1)"),
    (rules.side_effects, "node.x", "import os\nX = os.replace('a', 'b')"),
    (rules.side_effects, "wire.x", "for name in ():\n    pass"),
    (rules.side_effects, "wire.x", "try:\n    import fast\nexcept ImportError:\n    fast = None"),
    (rules.side_effects, "node.x", "import os\nclass Config:\n    home = os.getenv('HOME')"),
    (rules.side_effects, "node.x", "import os\ndef f(home=os.getenv('HOME')): ..."),
    (rules.side_effects, "node.x", "import os\n@register(os.getcwd())\ndef f(): ..."),
    (rules.side_effects, "wire.x", "from functools import cache\n@cache\ndef f(x): ..."),
    (rules.side_effects, "node.x", "import os\nif os.sep == '/':\n    X = 1"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "name", "source"), PLANTED)
def test_a_planted_violation_is_found(rule: rules.Rule, name: str, source: str) -> None:
    assert list(rule(rules.Module.parse(name, source)))


ALLOWED: list[tuple[str, str]] = [
    ("cli.x", "import typer\napp = typer.Typer()\napp.add_typer(typer.Typer())"),
    ("node.x", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import httpx2"),
    ("node.x", "def f():\n    try:\n        g()\n    except Exception:\n        answer()"),
    (
        "adapters.x",
        "def f():\n    try:\n        g()\n    except BaseException:\n        undo()\n        raise",
    ),
    ("node.x", "from confide.wire.der import encode_oid\nOID = encode_oid('1.2.3')"),
    ("wire.x", "import struct\n_HEAD = struct.Struct('>HH')\nNAMES = frozenset({'a'})"),
    ("wire.x", "def _sizes(): ...\nSIZES = _sizes()\nLATER = lambda: register(1)"),
    ("wire.x", "from functools import lru_cache\n@lru_cache(maxsize=4)\ndef f(x): ..."),
    ("node.x", "def f(token):\n    return token == ''"),
    ("crypto.x", "def f(key, aead):\n    return len(key) != aead.key_bytes"),
    ("wire.x", "import datetime\nEPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)"),
    ("wire.x", "def f(container):\n    return container.open(b'')"),
]


@pytest.mark.parametrize(("name", "source"), ALLOWED)
def test_honest_code_is_left_alone(name: str, source: str) -> None:
    module = rules.Module.parse(name, f'"""What it is."""\n{source}\n')
    assert [finding for rule in rules.RULES for finding in rule(module)] == []


def test_every_rule_has_something_planted_against_it() -> None:
    assert {rule for rule, _, _ in PLANTED} == set(rules.RULES)
