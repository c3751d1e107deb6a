"""`confide open FILE`: an output that was sealed to your key, checked against its receipt."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Annotated

import typer

from confide.adapters.files import write_atomically
from confide.agents.recipients import open_output
from confide.cli.places import read_bounded
from confide.cli.screen import Screen, fields, simulated_line
from confide.cli.verify_receipt import receipt_roots
from confide.errors import ConfigurationError, Reason, ReceiptRejected
from confide.rats import Finding, Status
from confide.receipts.file import parse_receipt_file
from confide.receipts.statement import parse_run_statement
from confide.receipts.verify import verify_receipt

__all__ = ["app"]

app = typer.Typer()
_SEALED_NAME = re.compile(r"(.+)\.\d+\.sealed\Z")


@app.command()
def open_(
    ctx: typer.Context,
    sealed: Annotated[Path, typer.Argument(metavar="FILE", help="The sealed output.")],
    key: Annotated[Path, typer.Option(help="Private key made by `confide key`.")],
    receipt: Annotated[Path, typer.Option(help="Receipt of the run.")],
    output: Annotated[Path, typer.Option(help="Where the opened file goes.")],
    name: Annotated[str, typer.Option(help="Path below /output; default: from FILE.")] = "",
    simulated_roots: Annotated[
        str | None,
        typer.Option(metavar="FILE|sha256:HEX", help="As of `confide verify`."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Open an output sealed to your key, once its receipt verified and names exactly it."""
    screen = Screen.of(ctx, as_json=as_json)
    if output.exists():
        raise ConfigurationError(f"{output} exists; name another --output")
    file = parse_receipt_file(read_bounded(receipt, "receipt"))
    run = verify_receipt(
        file,
        roots=receipt_roots(simulated_roots, file.roots),
        now=parse_run_statement(file.run.payload).finished,
        expectation=None,
        nonce=None,
        outputs=None,
    )
    path = name or _path_of(sealed)
    data = open_output(_private_key(key), sealed.read_bytes(), run=run.statement.run, path=path)
    digest = hashlib.sha256(data).digest()
    if digest not in run.statement.outputs:
        raise ReceiptRejected(
            (
                Finding(
                    Status.FAIL,
                    "receipt/11",
                    "docs/protocols/receipt.md#7",
                    "sealed output",
                    "opened, but no output of this run",
                    Reason.OUTPUT_MISMATCH,
                ),
            )
        )
    write_atomically(output, data, mode=0o600)
    if run.simulated:
        screen.show(simulated_line())
    screen.show(fields([("opened", str(output)), ("sha256", digest.hex())]))
    screen.event(
        "result", {"file": str(output), "sha256": digest.hex(), "simulated": run.simulated}
    )


def _path_of(sealed: Path) -> str:
    found = _SEALED_NAME.match(sealed.name)
    if found is None:
        raise ConfigurationError("FILE is not called NAME.N.sealed; say --name")
    return found.group(1)


def _private_key(path: Path) -> bytes:
    try:
        secret = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} is no private key of `confide key`") from error
    if len(secret) != 32:
        raise ConfigurationError(f"{path} is no private key of `confide key`")
    return secret
