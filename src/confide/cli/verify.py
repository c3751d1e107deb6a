"""`confide verify`: a receipt, a training record, a replay, a bundle, or a live service.

What stands in the file decides what is verified, never which roots or policy it is held to.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from confide.cli.screen import Screen
from confide.cli.service_targets import Options, is_url, read_target
from confide.cli.service_verify import verify_service
from confide.errors import ConfigurationError

__all__ = ["app"]

app = typer.Typer(add_completion=False)
# Structure and not text: inside a string of JSON these quotation marks would be escaped.
_RECEIPT = re.compile(
    rb'"type"\s{0,8}:\s{0,8}"confide/(receipt|training-record|training-replay)/v1"'
)


_ANSWER = re.compile(rb'"type"\s{0,8}:\s{0,8}"confide/inference-receipt/v1"')


@app.command()
def verify(
    ctx: typer.Context,
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="A receipt, a training record, a bundle, evidence of any format, or https://…",
        ),
    ],
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="strict|audit|FILE",
            help="Evidence: what to accept; see `confide policy`. Default: strict.",
        ),
    ] = None,
    nonce: Annotated[
        str | None,
        typer.Option(
            metavar="HEX", help="Evidence: the nonce you drew; without it nothing is fresh."
        ),
    ] = None,
    endorsements: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Evidence: a bundle, TDX collateral, AMD certificates (PEM), a manifest or a "
            "Sigstore bundle to use.",
        ),
    ] = None,
    fetch: Annotated[
        bool, typer.Option("--fetch", help="Evidence: ask the vendors for missing endorsements.")
    ] = False,
    format_: Annotated[
        str, typer.Option("--format", metavar="NAME", help="Evidence: its format, if not clear.")
    ] = "",
    model: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Evidence: the model you mean (near); another one's is refused."
        ),
    ] = "",
    pccs: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Evidence: ask this PCCS, not Intel."),
    ] = None,
    expectation: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Receipt: the Expectation you hold; it must be under it."
        ),
    ] = None,
    outputs: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Receipt: directory with the outputs; they must be the run's."
        ),
    ] = None,
    beside: Annotated[
        list[Path] | None,
        typer.Option(
            "--with",
            metavar="FILE",
            help="Receipt: the record of the model's training. Training record: a receipt, or the "
            "record of its base. Either: the proof of a row (`confide data prove`). Each must "
            "belong to the others.",
        ),
    ] = None,
    log_proof: Annotated[
        Path | None,
        typer.Option(help="Receipt: a proof file to use instead of the proof inside."),
    ] = None,
    log_policy: Annotated[
        Path | None,
        typer.Option(
            help="Receipt: which log and witnesses count (tlog-policy); its log proof must hold."
        ),
    ] = None,
    log_key: Annotated[
        str | None,
        typer.Option(
            metavar="VKEY",
            help="Receipt: instead of a policy, the log's public key alone; no time is proven.",
        ),
    ] = None,
    require_log: Annotated[
        bool, typer.Option("--require-log", help="Receipt: refuse one without a log proof.")
    ] = False,
    simulated_roots: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|sha256:HEX",
            help="Accept SIMULATED evidence under these roots, for testing. With a digest, the "
            "roots inside a receipt are used if they have it.",
        ),
    ] = None,
    at: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="When to check validity: `now`, or a time like 2026-11-22T12:00:00Z. Default: now "
            "for evidence; for a receipt the end of the run by the node's own clock.",
        ),
    ] = "",
    explain: Annotated[
        bool, typer.Option("--explain", help="Say what each claim means, and show every step.")
    ] = False,
    ear: Annotated[
        bool,
        typer.Option("--ear", help="Evidence: print an EAR claims set (JSON) and nothing else."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Verify a receipt, a training record, evidence or a live service: what is proven, what not.

    Files are verified offline unless --fetch is given. Exit codes: 0 accepted, 10 rejected, 20
    unavailable or of a kind not judged here, 30 malformed, 2 usage.
    """
    screen = Screen.of(ctx, as_json=as_json or ear)
    raw = None if is_url(target) else read_target(target)
    found = None if raw is None else _RECEIPT.search(raw)
    if raw is not None and found is None and _ANSWER.search(raw):
        raise ConfigurationError(
            "this is the receipt of an answer: confide receipts verify FILE verifies it"
        )
    if raw is not None and found is not None:
        _refuse(
            "not for a receipt",
            policy=policy,
            nonce=nonce,
            endorsements=endorsements,
            fetch=fetch,
            format=format_,
            model=model,
            pccs=pccs,
            ear=ear,
        )
        # A verifier of its own, that evidence has no need of.
        from confide.cli.receipt_log import read_demand  # noqa: PLC0415

        log = read_demand(proof=log_proof, policy=log_policy, key=log_key, required=require_log)
        if found[1] == b"receipt":
            from confide.cli.verify_receipt import verify_receipt_file  # noqa: PLC0415

            code = verify_receipt_file(
                screen,
                raw,
                expectation=expectation,
                outputs=outputs,
                log=log,
                simulated_roots=simulated_roots,
                at=at,
                explain=explain,
                beside=beside or (),
            )
        elif found[1] == b"training-replay":
            from confide.cli.verify_replay import verify_replay_file  # noqa: PLC0415

            _refuse(
                "not for the result of a replay",
                outputs=outputs,
                log_proof=log_proof,
                log_policy=log_policy,
                log_key=log_key,
                require_log=require_log,
            )
            code = verify_replay_file(
                screen,
                raw,
                expectation=expectation,
                simulated_roots=simulated_roots,
                at=at,
                explain=explain,
                beside=beside or (),
            )
        else:
            from confide.cli.verify_training import verify_record_file  # noqa: PLC0415

            code = verify_record_file(
                screen,
                raw,
                expectation=expectation,
                outputs=outputs,
                log=log,
                simulated_roots=simulated_roots,
                at=at,
                explain=explain,
                beside=beside or (),
            )
    else:
        _refuse(
            "for a receipt or a training record alone",
            expectation=expectation,
            outputs=outputs,
            log_proof=log_proof,
            log_policy=log_policy,
            log_key=log_key,
            require_log=require_log,
            **{"with": beside},
        )
        if ear:
            _refuse("not with --ear, which prints one document", json=as_json, explain=explain)
        options = Options(
            policy="strict" if policy is None else policy,
            nonce=nonce,
            endorsements=tuple(endorsements or ()),
            fetch=fetch,
            format=format_,
            model=model,
            pccs=pccs,
            simulated_roots=simulated_roots,
            at=at,
        )
        code = verify_service(screen, target, raw, options, explain=explain, ear=ear)
    if code:
        raise typer.Exit(code)


def _refuse(why: str, **given: object) -> None:
    """Refuse options that would silently do nothing."""
    idle = [f"--{name.replace('_', '-')}" for name, value in given.items() if value]
    if idle:
        raise ConfigurationError(f"{', '.join(idle)}: {why}")
