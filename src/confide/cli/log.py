"""`confide log`: run a log, a witness or a monitor; make keys; look at checkpoints and proofs."""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from confide.adapters.entropy import SystemEntropy
from confide.adapters.files import write_atomically
from confide.adapters.note_keys import draw_note_key
from confide.cli.foreground import run_service, say
from confide.cli.log_add import app as adding
from confide.cli.places import read_bounded, read_signer
from confide.cli.screen import Screen, fields, printable
from confide.errors import ConfigurationError, FormatError, LogRejected
from confide.wire.checkpoint import SignedCheckpoint, parse_checkpoint
from confide.wire.note import SignatureType, VerifierKey, parse_verifier_key
from confide.wire.tlog_policy import LogPolicy, parse_log_policy
from confide.wire.tlog_proof import TlogProof, parse_tlog_proof

if TYPE_CHECKING:
    from confide.adapters.log_s3 import ObjectPlace
    from confide.client.log_monitor import Look
    from confide.tlog.verify import VerifiedHead
    from confide.wire.json import JsonValue

__all__ = ["app"]

app = typer.Typer(
    help="The transparency log: add, serve, witness, monitor, check, show, keygen.",
    no_args_is_help=True,
)
app.add_typer(adding)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Directory that holds the state.")]
Key = Annotated[Path, typer.Option(help="Private key file (confide log keygen).")]
Policy = Annotated[Path, typer.Option(help="Policy file: logs, witnesses, quorum (tlog-policy).")]
Port = Annotated[int, typer.Option(help="TCP port to listen on.")]
Host = Annotated[str, typer.Option(help="Address to listen on.")]
Idle = Annotated[int | None, typer.Option(help="Stop after so many idle seconds.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]


@app.command()
def keygen(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the log or witness, like example.com/log.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where the private key goes.")],
    kind: Annotated[
        str, typer.Option("--for", help="log, witness (Ed25519) or witness-pq (ML-DSA-44).")
    ] = "log",
    as_json: Json = False,
) -> None:
    """Make a key; print the public half as policies and witnesses take it."""
    screen = Screen.of(ctx, as_json=as_json)
    kinds = {
        "log": SignatureType.ED25519,
        "witness": SignatureType.COSIGNATURE,
        "witness-pq": SignatureType.ML_DSA_44,
    }
    if kind not in kinds:
        raise ConfigurationError("--for is log, witness or witness-pq")
    if file.exists():
        raise ConfigurationError(f"{file} exists; a key is never overwritten")
    try:
        key = draw_note_key(file, name, kinds[kind], SystemEntropy())
    except ValueError as error:
        raise ConfigurationError(f"no such name is possible: {error}") from error
    screen.show(fields([("public key", key.encode()), ("private key", str(file))]))
    screen.event("result", {"key": key.encode(), "file": str(file)})


@app.command()
def serve(
    folder: Folder,
    key: Key,
    port: Port,
    policy: Annotated[
        Path | None, typer.Option(help="Policy file with the witnesses and their URLs.")
    ] = None,
    objects: Annotated[
        str,
        typer.Option(
            metavar="URL",
            help="Keep the log in an S3-compatible store, https://host/bucket/prefix; keys from "
            "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION.",
        ),
    ] = "",
    host: Host = "127.0.0.1",
    window_ms: Annotated[
        int, typer.Option(min=0, max=200, help="How long a batch waits for more entries.")
    ] = 20,
    idle_seconds: Idle = None,
) -> None:
    """Run a log in the foreground: take entries, serve tiles, have heads cosigned."""
    from confide.node.serve_log import LogSettings, serve_log  # noqa: PLC0415 - a web server

    settings = LogSettings(
        host=host,
        port=port,
        folder=folder,
        signer=read_signer(key),
        report=say,
        policy=None if policy is None else _policy(policy),
        window_seconds=window_ms / 1000,
        idle_seconds=idle_seconds,
        objects=_objects(objects) if objects else None,
    )
    run_service(serve_log(settings))


def _objects(url: str) -> ObjectPlace:
    from confide.adapters.log_s3 import parse_object_url  # noqa: PLC0415 - an HTTP client

    environment = dict(os.environ)  # noqa: TID251 - the command line reads it once
    return parse_object_url(
        url,
        region=environment.get("AWS_REGION", "us-east-1"),
        access_key_id=environment.get("AWS_ACCESS_KEY_ID", ""),
        secret_key=environment.get("AWS_SECRET_ACCESS_KEY", ""),
    )


@app.command()
def witness(
    folder: Folder,
    key: Annotated[list[Path], typer.Option(help="Private key file; may be given twice.")],
    port: Port,
    log: Annotated[list[str], typer.Option(help="Public key of a log to cosign for.")],
    host: Host = "127.0.0.1",
    idle_seconds: Idle = None,
) -> None:
    """Run a witness in the foreground: cosign heads that only append."""
    from confide.node.serve_log import (  # noqa: PLC0415 - a web server
        WitnessSettings,
        serve_witness,
    )

    settings = WitnessSettings(
        host=host,
        port=port,
        folder=folder,
        signers=tuple(read_signer(each) for each in key),
        logs=tuple(_log_key(each) for each in log),
        idle_seconds=idle_seconds,
    )
    run_service(serve_witness(settings))


def _log_key(text: str) -> VerifierKey:
    try:
        return parse_verifier_key(text)
    except FormatError as error:
        raise ConfigurationError(f"--log: {error.what}") from error


def _policy(path: Path) -> LogPolicy:
    return parse_log_policy(read_bounded(path, "log policy"))


@app.command()
def monitor(
    ctx: typer.Context,
    urls: Annotated[list[str], typer.Argument(metavar="URL...", help="Where the log is served.")],
    policy: Policy,
    state: Annotated[Path, typer.Option(help="File that keeps the last head believed.")],
    max_age: Annotated[int, typer.Option(help="Seconds after which a head is stale.")] = 3600,
    every: Annotated[
        int | None, typer.Option(min=1, help="Look again every so many seconds, for ever.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Follow a log: report a fork, a rollback, a stale head, a witness of two heads.

    Several URLs are servers of one log: their views are compared. Exit codes: 0 nothing is wrong,
    10 something is, 20 no answer.
    """
    screen = Screen.of(ctx, as_json=as_json)
    asyncio.run(
        _follow(screen, urls, _policy(policy), state, timedelta(seconds=max_age), every=every)
    )


async def _follow(
    screen: Screen,
    urls: list[str],
    policy: LogPolicy,
    state: Path,
    max_age: timedelta,
    *,
    every: int | None,
) -> None:
    from confide.adapters.clock import SystemClock  # noqa: PLC0415 - an HTTP client
    from confide.adapters.log_http import HttpLog, log_client  # noqa: PLC0415
    from confide.client.log_monitor import look_at_log  # noqa: PLC0415

    clock = SystemClock()
    async with log_client() as client:
        while True:
            for url in urls:
                known = _known(state)
                look = await look_at_log(
                    HttpLog(client, url),
                    known=known,
                    policy=policy,
                    now=clock.now(),
                    max_age=max_age,
                )
                _report(screen, url, look)
                _keep(state, look)
            if every is None:
                return
            await asyncio.sleep(every)


def _known(state: Path) -> SignedCheckpoint | None:
    return parse_checkpoint(read_bounded(state, "monitor state")) if state.exists() else None


def _keep(state: Path, look: Look) -> None:
    """Keep the head where nothing is wrong; else keep it as evidence, and refuse (7.2)."""
    raw = look.seen.checkpoint.encode()
    if look.good:
        write_atomically(state, raw, mode=0o644)
        return
    write_atomically(state.with_name(f"{state.name}.contradiction"), raw, mode=0o644)
    raise LogRejected(look.findings)


def _report(screen: Screen, url: str, look: Look) -> None:
    rows = [("server", printable(url)), *_head_rows(look.seen)]
    mark = ("✓ nothing is wrong", "green") if look.good else ("✗ something is wrong", "red")
    screen.show(Text.assemble("\n", mark), fields(rows))
    screen.event("result", {"server": url, "good": look.good, **_head_document(look.seen)})


def _head_rows(head: VerifiedHead) -> list[tuple[str, str]]:
    seen = ", ".join(f"{printable(each.witness)} at {each.at:%FT%TZ}" for each in head.cosigned)
    return [
        ("log", printable(head.origin)),
        ("size", str(head.size)),
        ("root", head.root.hex()),
        ("witnesses", seen or "none"),
    ]


def _head_document(head: VerifiedHead) -> dict[str, JsonValue]:
    return {
        "log": head.origin,
        "size": head.size,
        "root": head.root.hex(),
        "logged_by": None if head.logged_by is None else f"{head.logged_by:%FT%TZ}",
        "witnesses": [{"name": each.witness, "at": f"{each.at:%FT%TZ}"} for each in head.cosigned],
    }


@app.command()
def check(
    ctx: typer.Context,
    folder: Folder,
    key: Annotated[str, typer.Option(help="Public key of the log.")],
    as_json: Json = False,
) -> None:
    """Read all of a stopped log again, and name every tile that does not fit its head."""
    from confide.adapters.clock import SystemClock  # noqa: PLC0415
    from confide.adapters.log_files import FileLog  # noqa: PLC0415
    from confide.node.log_check import check_log  # noqa: PLC0415
    from confide.tlog.verify import verify_head  # noqa: PLC0415
    from confide.wire.tlog_policy import LogEntry, Quorum  # noqa: PLC0415

    screen = Screen.of(ctx, as_json=as_json)
    if not (folder / "head").exists():
        raise ConfigurationError(f"{folder} holds no log")
    store = FileLog(folder)
    try:
        raw = store.read("head")
        policy = LogPolicy((LogEntry(_log_key(key)),), (), Quorum(0, ()))
        head = verify_head(parse_checkpoint(raw or b""), policy=policy, now=SystemClock().now())
        found = tuple(check_log(store, head.checkpoint.head))
    finally:
        store.close()
    if found:
        raise LogRejected(found)
    screen.show(Text.assemble(("✓ every tile fits the head", "green")), fields(_head_rows(head)))
    screen.event("result", _head_document(head))


@app.command()
def show(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Checkpoint or proof file.")],
    policy: Policy,
    digest: Annotated[
        str, typer.Option(metavar="HEX", help="SHA-256 of what a proof should be of.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Verify a checkpoint, or a proof of what has the SHA-256 --digest, offline; show it.

    Exit codes: 0 it holds, 10 it does not, 30 it is neither.
    """
    from confide.adapters.clock import SystemClock  # noqa: PLC0415
    from confide.tlog.verify import verify_head, verify_logged  # noqa: PLC0415

    screen = Screen.of(ctx, as_json=as_json)
    found = _parse(read_bounded(file, "file"))
    believed, now = _policy(policy), SystemClock().now()
    if isinstance(found, SignedCheckpoint):
        head = verify_head(found, policy=believed, now=now)
        rows, document = _head_rows(head), _head_document(head)
    else:
        logged = verify_logged(found, digest=_digest(digest), made=None, policy=believed, now=now)
        rows = [("index", str(logged.index)), *_head_rows(logged.head)]
        document = {"index": logged.index, **_head_document(logged.head)}
    screen.show(Text.assemble(("✓ it holds", "green")), fields(rows))
    screen.event("result", document)


def _parse(raw: bytes) -> SignedCheckpoint | TlogProof:
    return parse_tlog_proof(raw) if raw.startswith(b"c2sp.org/") else parse_checkpoint(raw)


def _digest(text: str) -> bytes:
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b""
    if len(raw) != 32:
        raise ConfigurationError("--digest is the SHA-256 of what was logged: 64 hex characters")
    return raw
