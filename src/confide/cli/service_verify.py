"""`confide verify` of evidence: one screen that tells the truth, worst news first."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from confide.appraisal.claim_names import ClaimName
from confide.appraisal.claim_words import WORDS
from confide.appraisal.ear import ear_document
from confide.appraisal.service import appraise_service
from confide.cli import exits
from confide.cli.report import verdict
from confide.cli.screen import fields, heading, printable, shortened
from confide.cli.service_targets import load, read_policy, service_roots
from confide.client.provenance import verify_bundles
from confide.errors import Rejected
from confide.rats import Status
from confide.version import __version__

if TYPE_CHECKING:
    from rich.console import RenderableType

    from confide.appraisal.service_policy import Policy
    from confide.cli.screen import Screen
    from confide.cli.service_targets import Loaded, Options
    from confide.rats import AttestationResult, Claim, Finding
    from confide.trust.roots import Roots

__all__ = ["judge", "verify_service"]

_MARKS = {
    Status.PASS: ("✓", "green"),
    Status.NOT_PROVEN: ("-", "yellow"),
    Status.FAIL: ("✗", "red"),
}
_MAX_VALUE = 160


def judge(
    loaded: Loaded, policy: Policy, roots: Roots
) -> tuple[AttestationResult, Rejected | None]:
    """Return what is proven, and why it was refused where it was."""
    try:
        result = appraise_service(
            loaded.evidence,
            loaded.endorsements,
            policy=policy,
            roots=roots,
            now=loaded.now,
            provenance=verify_bundles(loaded.evidence, loaded.endorsements, policy),
            answer=loaded.answer,
            subject=loaded.evidence.format,
        )
    except Rejected as error:
        if error.result is None:
            raise
        return error.result, error
    return result, None


def verify_service(
    screen: Screen, target: str, raw: bytes | None, options: Options, *, explain: bool, ear: bool
) -> int:
    """
    Verify the evidence of `target` and show what was found; return the exit code.

    Raises `FormatError`, `Unsupported`, `Unavailable`, `ConfigurationError`.
    """
    policy, roots = read_policy(options.policy), service_roots(options.simulated_roots)
    if roots.simulated:
        # The caller named the roots; that is the permission.
        policy = _allow_simulated(policy)
    loaded = load(target, raw, options)
    result, refused = judge(loaded, policy, roots)
    accepted = refused is None
    if ear:
        document = ear_document(result, accepted=accepted, version=__version__)
        sys.stdout.write(json.dumps(document, ensure_ascii=True, indent=2) + "\n")
        return exits.ACCEPTED if accepted else exits.REJECTED
    _show(screen, loaded, result, refused, policy, roots, explain=explain)
    screen.event(
        "result",
        {
            "outcome": "accepted" if accepted else "rejected",
            "format": loaded.evidence.format,
            "target": loaded.name,
            "at": loaded.now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "policy": {
                "name": policy.name,
                "digest": policy.digest,
                "relaxations": list(policy.relaxations),
            },
            "unavailable": list(loaded.unavailable),
            "problem": None if refused is None else exits.problem_of(refused).document(),
            "ear": ear_document(result, accepted=accepted, version=__version__),
        },
    )
    return exits.ACCEPTED if accepted else exits.REJECTED


def _allow_simulated(policy: Policy) -> Policy:
    from dataclasses import replace  # noqa: PLC0415

    return replace(policy, unsafe_simulated=True)


def _show(
    screen: Screen,
    loaded: Loaded,
    result: AttestationResult,
    refused: Rejected | None,
    policy: Policy,
    roots: Roots,
    *,
    explain: bool,
) -> None:
    machines = len(result.parts)
    what = f"{loaded.evidence.format} evidence of {machines} machine{'s' if machines != 1 else ''}"
    parts = verdict(accepted=refused is None, simulated=roots.simulated, what=what)
    if refused is not None:
        parts += _refusal(refused)
    by_status = {status: [c for c in result.claims if c.status is status] for status in Status}
    if by_status[Status.FAIL]:
        note = "the evidence contradicts these" if refused else "tolerated by the policy"
        parts += [heading("Contradicted", note), _table(by_status[Status.FAIL], explain=explain)]
    unproven = by_status[Status.NOT_PROVEN]
    parts += [heading("Not proven", _required(unproven, policy)), _table(unproven, explain=explain)]
    parts += [heading("Proven"), _table(by_status[Status.PASS], explain=explain)]
    parts += [heading("What no check here shows")]
    parts += [Text(f"  · {printable(limit)}", style="dim") for limit in result.limits]
    parts += [heading("Checked"), _checked(loaded, policy, roots)]
    if explain:
        parts += [heading("Every step"), *_steps(result)]
    screen.show(*parts)


def _refusal(refused: Rejected) -> list[RenderableType]:
    deciding = _deciding(refused)
    names = dict.fromkeys(item.subject.rpartition("/")[2] for item in deciding)
    lines = [
        Text.assemble(
            ("  ✗ ", "red"),
            f"{item.subject}: ",
            (f"{item.reason}", "bold"),
            f"  {shortened(printable(item.detail, max_chars=_MAX_VALUE))}",
            (f"  [{item.step}]", "dim"),
        )
        for item in deciding
    ]
    known = {name.value for name in ClaimName}
    advice = [
        Text.assemble(("  → ", "cyan"), WORDS[ClaimName(name)].todo)
        for name in names
        if name in known
    ]
    return [heading("Refused"), *lines, *advice[:4]]


def _deciding(refused: Rejected) -> list[Finding]:
    """Return the findings that decided: those of claims, not of the steps behind them."""
    claims = {name.value for name in ClaimName}
    found = [item for item in refused.failures if item.subject.rpartition("/")[2] in claims]
    return found or list(refused.failures)


def _required(claims: list[Claim], policy: Policy) -> str:
    missing = [claim.name for claim in claims if claim.name in policy.claims.require]
    return f"required: {', '.join(missing)}" if missing else "the policy does not require these"


def _table(claims: list[Claim], *, explain: bool) -> RenderableType:
    if not claims:
        return Text("  none", style="dim")
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, min_width=20)
    table.add_column(overflow="fold")
    table.add_column(style="dim", no_wrap=True)
    for names, claim in _grouped(claims, explain=explain):
        mark, colour = _MARKS[claim.status]
        value = shortened(printable(claim.value, max_chars=_MAX_VALUE))
        source = claim.source if claim.status is Status.PASS else ""
        table.add_row(Text.assemble((f"  {mark} ", colour), names), Text(value), Text(source))
        if explain:
            words = WORDS[ClaimName(claim.name)]
            text = words.proven if claim.status is Status.PASS else words.otherwise
            table.add_row(Text(""), Text(text, style="dim italic"), Text(claim.step))
    return table


def _grouped(claims: list[Claim], *, explain: bool) -> list[tuple[str, Claim]]:
    """Return claims with one and the same cause as one row, so that a screen holds them all."""
    rows: dict[str, list[Claim]] = {}
    for claim in claims:
        together = claim.status is Status.NOT_PROVEN and not explain
        rows.setdefault(claim.value if together else claim.name, []).append(claim)
    return [(",\n    ".join(claim.name for claim in group), group[0]) for group in rows.values()]


def _checked(loaded: Loaded, policy: Policy, roots: Roots) -> Table:
    moment = loaded.now.strftime("%Y-%m-%d %H:%M:%S UTC")
    clock = "this machine's clock" if loaded.live else "the time validity was checked at"
    named = (
        f"SIMULATED {roots.name.partition(':')[2][:16]}…, because you named them"
        if roots.simulated
        else "of Intel, AMD and NVIDIA"
    )
    nonce = loaded.evidence.nonce
    rows = [
        ("time", f"{moment}: {clock}"),
        ("roots", named),
        ("policy", f"{policy.name}, {policy.digest[:16]}…  (confide policy explain {policy.name})"),
        ("left open", _left_open(policy)),
        ("nonce", nonce.hex() if nonce is not None else "none of yours: --nonce HEX"),
        ("source", f"{loaded.name}, {'live' if loaded.live else 'saved'}"),
    ]
    rows += [("missing", printable(text)) for text in loaded.unavailable[:5]]
    return fields(rows)


def _left_open(policy: Policy) -> str:
    found = policy.relaxations
    few = ", ".join(item.partition(":")[0] for item in found[:3])
    return f"{few} and {len(found) - 3} more" if len(found) > 3 else few or "nothing"


def _steps(result: AttestationResult) -> list[RenderableType]:
    found: list[RenderableType] = []
    for part in result.parts:
        found.append(Text(f"  {part.subject}", style="bold"))
        for item in part.findings:
            mark, colour = _MARKS[item.status]
            detail = shortened(printable(f"{item.reason or ''} {item.detail}".strip()))
            found.append(
                Text.assemble(
                    (f"  {mark} ", colour),
                    f"{item.step}",
                    (f"  {item.subject}  ", "dim"),
                    detail,
                    (f"  [{item.clause}]", "dim"),
                )
            )
    return found
