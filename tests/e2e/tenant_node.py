"""A model node with keys as its operator starts it, and clients as their users write them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deployment import MODEL, WAIT_SECONDS

import confide
from confide.adapters.clock import SystemClock
from confide.adapters.receipt_db import UnsafeKeepNone
from confide.adapters.software import running_kernel
from confide.client.expect import inference_expectation_for
from confide.client.local import local_reference

if TYPE_CHECKING:
    from pathlib import Path

    import openai
    from deployment import Installation, Node

    from confide.expectation import Expectation

# As vLLM and SGLang describe themselves, as far as it matters here.
SALTED: Any = {
    "paths": {
        "/v1/chat/completions": {
            "post": {
                "requestBody": {
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/C"}}}
                }
            }
        }
    },
    "components": {"schemas": {"C": {"properties": {"model": {}, "cache_salt": {}}}}},
}


@dataclass
class KeyedNode:
    """One node process in front of the stub engine; `more` are words of its command line."""

    installation: Installation
    more: tuple[str, ...] = ()
    database: str = ""
    node: Node = field(init=False)
    wanted: Expectation = field(init=False)

    def __post_init__(self) -> None:
        self.database = self.database or str(self.installation.root / "keys.sqlite3")

    @property
    def file(self) -> Path:
        """The ledger, where it is a file."""
        return self.installation.root / "keys.sqlite3"

    def start(self) -> None:
        words = ("--model", MODEL, "--upstream", self.installation.upstream)
        self.node = self.installation.start("model", *words, "--keys", self.database, *self.more)
        self.wanted = inference_expectation_for(
            local_reference(
                seed=self.installation.engine.seed(),
                roots=self.installation.roots,
                software=self.installation.software,
                kernel=running_kernel(),
                model=MODEL,
                weights=None,
                now=SystemClock().now(),
            )
        )

    def keys(self, *words: str) -> dict[str, Any]:
        """Run `confide keys`; return its result."""
        done = subprocess.run(
            [
                *(sys.executable, "-m", "confide", "keys", *words),
                *("--database", self.database, "--json"),
            ],
            env=self.installation.environment, capture_output=True, text=True, check=False,
            timeout=WAIT_SECONDS,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result

    def client(self, api_key: str, **options: Any) -> openai.OpenAI:
        """The SDK's own client, over the proven node."""
        return confide.openai_client(
            self.node.url,
            policy=self.wanted,
            roots=self.installation.roots,
            receipts=UnsafeKeepNone(),
            api_key=api_key,
            **{"max_retries": 0, **options},
        )
