"""The key broker of this installation: its store, its lock, and the one owner, who is the user.

docs/protocols/broker.md §1, release.md §1. Made at first use, kept below the data directory. Broker
and owner are one user on one machine, so nobody is kept from anybody: what the local broker shows
is the exchange, and that a run gets what its owner released and nothing else.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from confide.adapters.files import write_atomically
from confide.broker.owner_key import encode_owner_key, load_owner_key
from confide.errors import FormatError, Reason, Unavailable
from confide.wire.json import Members, is_hex, parse_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from confide.adapters.paths import Paths
    from confide.ports import Entropy

__all__ = ["LOCAL_REPOSITORY", "LocalBroker", "local_broker"]

# The one repository of the local broker.
LOCAL_REPOSITORY: Final = "local"
_SEED_BYTES: Final = 32
_KEY_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class LocalBroker:
    """Where the local broker's files are, and the Ed25519 key by which Expectations name it."""

    paths: Paths
    key: bytes

    @property
    def store(self) -> Path:
        """The sealed store."""
        return self.paths.broker / "store"

    @property
    def master(self) -> Path:
        """The key file that unlocks it."""
        return self.paths.broker / "master"

    @property
    def owner_key(self) -> Path:
        """The private key of the owner."""
        return self.paths.broker / "owner"

    @property
    def owners(self) -> Path:
        """The owners file that the broker starts with."""
        return self.paths.broker / "owners.toml"


def local_broker(paths: Paths, environment: Mapping[str, str], entropy: Entropy) -> LocalBroker:
    """
    Return the broker of this installation; store and keys are made at first use.

    One process at a time. Raises `Unavailable` where a file is damaged or cannot be made.
    """
    found = LocalBroker(paths, b"")
    public = paths.broker / "key"
    if not public.exists():
        paths.broker.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Its public key is written last: what was cut off before that is begun again.
        for path in (found.store, found.master):
            path.unlink(missing_ok=True)
        write_atomically(public, _begin(found, environment).encode() + b"\n", mode=0o644)
    if not found.owner_key.exists():
        write_atomically(found.owner_key, encode_owner_key(entropy.token(_SEED_BYTES)))
    _keep_owners(found)
    text = public.read_text(encoding="ascii", errors="replace").strip()
    if not is_hex(text, _KEY_BYTES):
        raise Unavailable(f"{public} is damaged; confide broker key prints what belongs into it")
    return LocalBroker(paths, bytes.fromhex(text))


def _begin(broker: LocalBroker, environment: Mapping[str, str]) -> str:
    """Begin the store, as `confide broker init` does, and return the broker's public key."""
    words = ["broker", "init", "--store", str(broker.store), "--master", str(broker.master)]
    done = subprocess.run(  # noqa: S603 - our own interpreter and arguments
        [sys.executable, "-m", "confide", *words, "--json"],
        env=dict(environment),
        cwd=broker.paths.broker,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        words = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["it said nothing"]
        raise Unavailable(f"the local broker's store cannot be begun: {words[0][:300]}")
    last = done.stdout.strip().splitlines()[-1]
    said = parse_json(last, what="broker init", reason=Reason.VAULT_FORMAT)
    return Members(said, what="broker init", reason=Reason.VAULT_FORMAT).text("key")


def _keep_owners(broker: LocalBroker) -> None:
    try:
        owner = load_owner_key(broker.owner_key.read_bytes()).public_key.hex()
    except FormatError as error:
        raise Unavailable(
            f"{broker.owner_key} is damaged; restore it from a copy: nobody else can release"
        ) from error
    text = f'[{LOCAL_REPOSITORY}]\nowners = ["{owner}"]\nthreshold = 1\n'.encode()
    if not broker.owners.exists() or broker.owners.read_bytes() != text:
        write_atomically(broker.owners, text, mode=0o644)
