"""Opening a broker's store: where it is, and the key, passphrase or shares that unlock it.

docs/protocols/broker.md §7. Secrets come from files that only this user reads or from a terminal
without echo; never from the command line, which every user of a machine sees.
"""

from __future__ import annotations

import getpass
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from confide.adapters.entropy import SystemEntropy
from confide.adapters.paths import Paths
from confide.broker.keys import IDENTITY, BrokerKeys, parse_broker_keys
from confide.broker.master import (
    FileLock,
    PassphraseLock,
    ShareLock,
    open_master,
    parse_header,
)
from confide.broker.vault import Vault
from confide.cli.places import require_no_password
from confide.errors import ConfigurationError, FormatError, Reason

if TYPE_CHECKING:
    from confide.adapters.broker_sql import SqlStore
    from confide.broker.master import Header
    from confide.node.broker_store import SealedStore
    from confide.ports import KeyStore

__all__ = [
    "Master",
    "PassphraseFile",
    "Share",
    "Store",
    "StoreOptions",
    "ask",
    "open_place",
    "open_sealed_store",
    "unlock",
]

Store = Annotated[
    str,
    typer.Option(
        metavar="PATH|URL",
        help="File of the store, or postgresql://user@host/database (password from PGPASSWORD).",
    ),
]
Master = Annotated[
    Path | None, typer.Option("--master", metavar="FILE", help="Key file that unlocks the store.")
]
PassphraseFile = Annotated[
    Path | None,
    typer.Option("--passphrase-file", metavar="FILE", help="File with the passphrase."),
]
Share = Annotated[
    list[Path] | None,
    typer.Option("--share", metavar="FILE", help="File with one share; give it k times."),
]


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """Where the store is (empty: below the data directory), and files that unlock it."""

    store: str = ""
    master: Path | None = None
    passphrase_file: Path | None = None
    shares: tuple[Path, ...] = ()

    @classmethod
    def of(
        cls, store: str, master: Path | None, passphrase_file: Path | None, share: list[Path] | None
    ) -> StoreOptions:
        """Take the options as the command line has them."""
        return cls(store, master, passphrase_file, tuple(share or ()))


def open_place(store: str, *, create: bool = False) -> SqlStore:
    """Open the store at `store`, sealed as it is. Raises `ConfigurationError`, `Unavailable`."""
    from confide.adapters.broker_sql import open_store  # noqa: PLC0415 - loads SQLAlchemy

    environment = dict(os.environ)  # noqa: TID251 - the command line reads it once
    require_no_password(store, "--store")
    place = store or str(Paths.from_environment(environment).broker_store)
    return open_store(place, password=environment.get("PGPASSWORD"), create=create)


def open_sealed_store(options: StoreOptions) -> tuple[SealedStore, BrokerKeys, KeyStore]:
    """
    Open and unlock a store; return it, the broker's keys out of it, and what to close at the end.

    Every record is counted in (7.5). Raises `ConfigurationError` for a store that is not begun or
    not unlocked, `FormatError` for one that is damaged or was changed by others, `Unavailable`.
    """
    from confide.node.broker_store import SealedStore  # noqa: PLC0415 - of a node

    store = open_place(options.store)
    try:
        sealed = SealedStore(store, Vault(unlock(store.header(), options)), SystemEntropy())
        sealed.verify()
        return sealed, _keys(sealed), store
    except BaseException:
        store.close()
        raise


def _keys(sealed: SealedStore) -> BrokerKeys:
    entry = sealed.get(*IDENTITY)
    if entry is None:
        raise FormatError(
            "broker store: the broker's keys are not in it; restore a backup",
            reason=Reason.VAULT_FORMAT,
            clause="docs/protocols/broker.md#1.2",
        )
    return parse_broker_keys(entry.value)


def unlock(raw: bytes | None, options: StoreOptions) -> bytes:
    """Return the master key that the header `raw` wraps, asking where a terminal is there."""
    if raw is None:
        raise ConfigurationError("the store is empty; confide broker init begins one")
    header = parse_header(raw)
    return open_master(header, key=_key(header, options))


def _key(header: Header, options: StoreOptions) -> bytes:
    from confide.adapters.master_key import (  # noqa: PLC0415 - loads the words of SLIP-0039
        join_shares,
        passphrase_key,
        read_key_file,
        read_secret_text,
    )

    lock = header.lock
    match lock:
        case FileLock():
            _refuse_others(options, "a key file", "--master")
            if options.master is None:
                raise ConfigurationError("this store is locked with a key file; give --master FILE")
            return read_key_file(options.master)
        case PassphraseLock():
            _refuse_others(options, "a passphrase", "--passphrase-file")
            if options.passphrase_file is not None:
                text = read_secret_text(options.passphrase_file, "passphrase file")
            else:
                text = ask("Passphrase of the store", "--passphrase-file FILE")
            return passphrase_key(text, lock)
        case ShareLock():
            needed = f"{lock.threshold} of {lock.count} shares"
            _refuse_others(options, needed, "--share")
            texts = [read_secret_text(path, "share file") for path in options.shares] or [
                ask(f"Share {number} of {lock.threshold}", f"--share FILE ({needed})")
                for number in range(1, lock.threshold + 1)
            ]
            return join_shares(texts, lock)


def _refuse_others(options: StoreOptions, lock: str, fitting: str) -> None:
    """Refuse an option that does nothing for this lock."""
    given = {
        "--master": options.master,
        "--passphrase-file": options.passphrase_file,
        "--share": options.shares,
    }
    for name, value in given.items():
        if value and name != fitting:
            raise ConfigurationError(
                f"this store is locked with {lock}: {fitting}, and not {name}, unlocks it"
            )


def ask(what: str, instead: str) -> str:
    """Ask for a secret on the terminal, without echo; `instead` says what to do without one."""
    if not sys.stdin.isatty():
        raise ConfigurationError(f"there is no terminal to ask on; give {instead}")
    try:
        return getpass.getpass(f"{what}: ", stream=sys.stderr)
    except EOFError:
        raise ConfigurationError("nothing was given") from None
