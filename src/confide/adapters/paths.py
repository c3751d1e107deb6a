"""Where Confide keeps things: the XDG base directories, never the working directory.

Source: XDG Base Directory Specification 0.8. The environment is an argument; the command line
reads it once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from confide.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Paths"]


@dataclass(frozen=True, slots=True)
class Paths:
    """
    The four places.

    `config`: what the user chose (trusted simulated roots). `data`: receipts, built images, the
    local log.
    `cache`: downloads, safe to delete. `state`: running nodes, their logs, the simulated platform.
    """

    config: Path
    data: Path
    cache: Path
    state: Path

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Paths:
        """Resolve the places. Raises `ConfigurationError` without a home directory."""
        home = environment.get("HOME", "")
        if not home.startswith("/"):
            raise ConfigurationError("HOME is not set to an absolute path; set it and try again")

        def place(variable: str, default: str) -> Path:
            # The specification: a relative path in the variable is to be ignored.
            value = environment.get(variable, "")
            base = Path(value) if value.startswith("/") else Path(home) / default
            return base / "confide"

        return cls(
            config=place("XDG_CONFIG_HOME", ".config"),
            data=place("XDG_DATA_HOME", ".local/share"),
            cache=place("XDG_CACHE_HOME", ".cache"),
            state=place("XDG_STATE_HOME", ".local/state"),
        )

    @property
    def simulated_seed(self) -> Path:
        """Secret seed of this installation's SIMULATED platform."""
        return self.state / "simulated" / "seed"

    @property
    def simulated_roots(self) -> Path:
        """The roots file of this installation's SIMULATED platform."""
        return self.config / "simulated-roots.json"

    @property
    def nodes(self) -> Path:
        """The record of locally running nodes."""
        return self.state / "nodes.json"

    @property
    def log_policy(self) -> Path:
        """Whose word counts about the local log: what `--log-policy` wants."""
        return self.config / "local-log-policy"

    @property
    def log(self) -> Path:
        """The local log: its key, and its entries."""
        return self.data / "log"

    @property
    def witness(self) -> Path:
        """The local witness: its key, and what it cosigned last."""
        return self.data / "witness"

    @property
    def images(self) -> Path:
        """OCI layouts of built agents, by digest."""
        return self.data / "images"

    @property
    def runs(self) -> Path:
        """Receipts and outputs of runs."""
        return self.data / "runs"

    @property
    def trainings(self) -> Path:
        """Keys, progress and results of trainings, a folder for each."""
        return self.data / "training"

    @property
    def broker(self) -> Path:
        """The local key broker: its store and what unlocks it, its owner's key."""
        return self.data / "broker"

    @property
    def broker_store(self) -> Path:
        """The key broker's store, unless it is said to be elsewhere."""
        return self.data / "broker.store"

    @property
    def api_keys(self) -> Path:
        """The API keys of a model node and what they used: docs/protocols/tenancy.md#1.4."""
        return self.data / "keys.sqlite3"

    @property
    def receipts(self) -> Path:
        """Receipts of the answers that this user's programs got: docs/protocols/client.md#5."""
        return self.data / "receipts.sqlite3"

    @property
    def endorsements(self) -> Path:
        """The cache of vendors' statements: docs/protocols/fetching.md#9."""
        return self.cache / "endorsements"

    def make_private(self) -> None:
        """Create the four places with mode 0700."""
        for path in (self.config, self.data, self.cache, self.state):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
