"""`confide broker`: begin the store of a key broker, change its lock, back it up, restore it."""

from __future__ import annotations

import hashlib
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from confide.adapters.entropy import SystemEntropy
from confide.broker.keys import IDENTITY, BrokerKeys
from confide.broker.master import KEY_BYTES, lock_master, parse_header
from confide.broker.vault import Vault
from confide.cli.broker_serve import app as serving
from confide.cli.broker_unlock import (
    Master,
    PassphraseFile,
    Share,
    Store,
    StoreOptions,
    open_place,
    open_sealed_store,
    unlock,
)
from confide.cli.screen import Screen, fields, human_bytes
from confide.errors import ConfigurationError

if TYPE_CHECKING:
    from confide.broker.master import Header
    from confide.cli.broker_lock import NewLock

__all__ = ["app"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="The key broker: init, serve, key, relock, backup, restore.",
)
app.add_typer(serving)

Json = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
SharesOut = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Write one file for each share, mode 0600.")
]
_KEY_FILE = "Lock with this key file, made where there is none."
_ASK = "Lock with a passphrase, asked for twice."
_FROM_FILE = "Lock with the passphrase in this file."
_SPLIT = "Lock with N shares of which K unlock, like 2/3."


@app.command()
def init(
    ctx: typer.Context,
    store: Store = "",
    master: Annotated[Path | None, typer.Option(metavar="FILE", help=_KEY_FILE)] = None,
    passphrase: Annotated[bool, typer.Option("--passphrase", help=_ASK)] = False,
    passphrase_file: Annotated[Path | None, typer.Option(metavar="FILE", help=_FROM_FILE)] = None,
    split: Annotated[str, typer.Option(metavar="K/N", help=_SPLIT)] = "",
    shares_out: SharesOut = None,
    as_json: Json = False,
) -> None:
    """Begin a store: draw the master key and the broker's own keys, locked as you say."""
    from confide.cli.broker_lock import LockChoice, make_lock  # noqa: PLC0415
    from confide.node.broker_store import Edit, SealedStore  # noqa: PLC0415

    screen = Screen.of(ctx, as_json=as_json)
    choice = LockChoice("--", master, passphrase, passphrase_file, split, shares_out)
    entropy = SystemEntropy()
    with closing(open_place(store, create=True)) as opened:
        if opened.header() is not None:
            raise ConfigurationError("there is a store already; a store is begun once")
        new = make_lock(choice, screen)
        key = entropy.token(KEY_BYTES)
        keys = BrokerKeys(sign=entropy.token(32), seal=entropy.token(32))
        sealed = SealedStore(opened, Vault(key), entropy)
        sealed.begin(_locked(key, new).encode(), [Edit(*IDENTITY, 0, keys.encode())])
    _show_keys(screen, "✓ the store is begun", keys)


@app.command("key")
def show_key(
    ctx: typer.Context,
    store: Store = "",
    master: Master = None,
    passphrase_file: PassphraseFile = None,
    share: Share = None,
    as_json: Json = False,
) -> None:
    """Print the public keys by which Expectations and owners name this broker."""
    screen = Screen.of(ctx, as_json=as_json)
    options = StoreOptions.of(store, master, passphrase_file, share)
    _, keys, opened = open_sealed_store(options)
    opened.close()
    _show_keys(screen, "✓ the store opens", keys)


def _show_keys(screen: Screen, done: str, keys: BrokerKeys) -> None:
    rows = {
        "key": keys.key.hex(),
        "fingerprint": hashlib.sha256(keys.key).hexdigest(),
        "seal": keys.opener.public_key.raw.hex(),
    }
    screen.show(Text(done, style="green"), fields(list(rows.items())))
    screen.event("result", {**rows})


@app.command()
def relock(
    ctx: typer.Context,
    store: Store = "",
    master: Master = None,
    passphrase_file: PassphraseFile = None,
    share: Share = None,
    new_master: Annotated[Path | None, typer.Option(metavar="FILE", help=_KEY_FILE)] = None,
    new_passphrase: Annotated[bool, typer.Option("--new-passphrase", help=_ASK)] = False,
    new_passphrase_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help=_FROM_FILE)
    ] = None,
    new_split: Annotated[str, typer.Option(metavar="K/N", help=_SPLIT)] = "",
    shares_out: SharesOut = None,
    as_json: Json = False,
) -> None:
    """Lock the same master key in another way.

    Backups made before open with the old lock for ever: destroy them, or keep its key as safe as
    the new one.
    """
    from confide.cli.broker_lock import LockChoice, make_lock  # noqa: PLC0415

    screen = Screen.of(ctx, as_json=as_json)
    options = StoreOptions.of(store, master, passphrase_file, share)
    choice = LockChoice(
        "--new-", new_master, new_passphrase, new_passphrase_file, new_split, shares_out
    )
    with closing(open_place(store)) as opened:
        key = unlock(opened.header(), options)
        new = make_lock(choice, screen)
        header = _locked(key, new)
        opened.replace_header(header.encode())
    kind = str(header.lock.members()["lock"])
    screen.show(Text("✓ the store is locked anew", style="green"), fields([("lock", kind)]))
    screen.event("result", {"lock": kind})


def _locked(master: bytes, new: NewLock) -> Header:
    return lock_master(master, new.lock, key=new.key, salt=SystemEntropy().token(32))


@app.command()
def backup(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where the backup goes.")],
    store: Store = "",
    master: Master = None,
    passphrase_file: PassphraseFile = None,
    share: Share = None,
    as_json: Json = False,
) -> None:
    """Write all of the store, sealed, to a new file; the broker may go on meanwhile."""
    from confide.adapters.broker_backup import back_up  # noqa: PLC0415

    screen = Screen.of(ctx, as_json=as_json)
    options = StoreOptions.of(store, master, passphrase_file, share)
    with closing(open_place(store)) as opened:
        size = back_up(opened, unlock(opened.header(), options), file)
    rows = [("file", str(file)), ("size", human_bytes(size))]
    screen.show(Text("✓ backed up", style="green"), fields(rows))
    screen.event("result", {"file": str(file), "bytes": size})


@app.command()
def restore(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The backup.")],
    store: Store = "",
    master: Master = None,
    passphrase_file: PassphraseFile = None,
    share: Share = None,
    as_json: Json = False,
) -> None:
    """Begin an empty store, of either kind, with a backup; all of it is verified before.

    What unlocks the backup is what unlocked the store when it was made.
    """
    from confide.adapters.broker_backup import read_header  # noqa: PLC0415
    from confide.adapters.broker_backup import restore as restore_into  # noqa: PLC0415

    screen = Screen.of(ctx, as_json=as_json)
    options = StoreOptions.of(store, master, passphrase_file, share)
    raw = read_header(file)
    key = unlock(raw, options)
    with closing(open_place(store, create=True)) as opened:
        count = restore_into(file, opened, key)
    kind = str(parse_header(raw).lock.members()["lock"])
    rows = [("records", str(count)), ("lock", kind)]
    screen.show(Text("✓ restored", style="green"), fields(rows))
    screen.event("result", {"records": count, "lock": kind})
