"""A user of the command line on a machine that has nothing of ours yet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deployment import WAIT_SECONDS

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Newcomer:
    """A user with an empty home; only base images come from the cache of this machine."""

    home: Path
    upstream: str

    def start(self, *words: object, **how: Any) -> subprocess.Popen[str]:
        environment = {
            "HOME": str(self.home),
            "PATH": os.environ["PATH"],
            **{key: os.environ[key] for key in ("PYTHONPATH",) if key in os.environ},
        }
        return subprocess.Popen(
            [sys.executable, "-m", "confide", *(str(word) for word in words)],
            env=environment,
            cwd=self.home,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **how,
        )

    def confide(self, *words: object, said: str = "") -> tuple[int, str, str]:
        """Run to the end; exit code and both streams."""
        process = self.start(*words, stdin=subprocess.PIPE)
        out, err = process.communicate(said, timeout=WAIT_SECONDS)
        return process.returncode, out, err

    def run(self, *words: object) -> tuple[int, list[dict[str, Any]]]:
        """`confide run --json` on the stub engine: exit code and events."""
        code, out, _err = self.confide("run", *words, "--upstream", self.upstream, "--json")
        return code, [json.loads(line) for line in out.splitlines()]
