"""The screen of `confide verify` for evidence: worst news first, short enough for one screen.

Reads a result and decides nothing. Whatever stands in evidence goes through `printable`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rich.table import Table
from rich.text import Text

from confide.appraisal.claim_names import ClaimName
from confide.appraisal.claim_words import WORDS
from confide.cli.report import verdict
from confide.cli.screen import fields, hanging, heading, printable, shortened, whose_roots
from confide.cli.service_advice import advice_of, deciding, plain
from confide.cli.step_words import STEP_WORDS
from confide.rats import Status
from confide.reasons import Reason
from confide.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import RenderableType

    from confide.appraisal.service_policy import Policy
    from confide.cli.service_targets import Loaded
    from confide.errors import Rejected
    from confide.rats import AttestationResult, Claim, Finding
    from confide.trust.roots import Roots
    from confide.wire.service import Attester

__all__ = ["MARKS", "evidence_screen", "value_of"]

MARKS = {
    Status.PASS: ("✓", "green"),
    Status.NOT_PROVEN: ("-", "yellow"),
    Status.FAIL: ("✗", "red"),
}
# No verifier can show these: the limits say so, in a section of their own.
_NEVER = frozenset({ClaimName.PHYSICAL_ATTACK, ClaimName.GPU_COLOCATION})
# What is missing is the relying party's word, not the service's.
_YOURS = "your policy lists nothing to compare these with"
_MAX_VALUE = 160
_MAX_LONG_VALUE = 1000
_MAX_ADVICE = 4
_MAX_NAMED = 4
_HOW_TO_READ = (
    "Each line is one claim, in the same words for every service: what was found, and on whose "
    "word. Proven: a vendor's signature, or a computation that you could repeat, shows it. Not "
    "proven: nobody vouches for it, so it may be so or not. Contradicted: the evidence says the "
    "opposite. A service is as good as its worst machine. The policy says which claims you "
    "require; the rest is reported. Steps are numbered; the clause beside each says what is done."
)


class _Row(NamedTuple):
    """One claim, or several with one cause: the names, what was found, whose word."""

    names: tuple[str, ...]
    text: str
    aside: str


def evidence_screen(
    loaded: Loaded,
    result: AttestationResult,
    refused: Rejected | None,
    *,
    policy: Policy,
    roots: Roots,
    named: str,
    explain: bool,
) -> list[RenderableType]:
    """
    Return everything that `confide verify` says about evidence.

    `named` is how the caller named the policy. With `explain`, claims say what they mean, values
    are shown in full, and every step follows.
    """
    parts = _headline(loaded, result, refused, policy, roots)
    if explain:
        parts.append(Text(f"\n{_HOW_TO_READ}", style="dim italic"))
    decided = deciding(refused) if refused is not None else []
    if refused is not None:
        parts += _refusal(result, decided, named)
        if explain:
            parts += _meanings(decided, result)
    told = {item.subject.rpartition("/")[2] for item in decided}
    rest = [claim for claim in result.claims if claim.name not in told]
    failed = [claim for claim in rest if claim.status is Status.FAIL]
    if failed:
        parts += [heading("Contradicted", "tolerated by the policy")]
        parts += _claims(failed, explain=explain)
    unproven = [
        claim for claim in rest if claim.status is Status.NOT_PROVEN and claim.name not in _NEVER
    ]
    parts += [heading("Not proven", "the policy does not require these")]
    parts += _claims(unproven, explain=explain)
    proven = [claim for claim in rest if claim.status is Status.PASS]
    parts += [heading("Proven"), *_claims(proven, explain=explain)]
    parts += [heading("What no check here shows")]
    parts += [hanging("  · ", printable(limit), style="dim") for limit in result.limits]
    parts += [
        heading("Checked", f"by confide {__version__}"),
        _checked(loaded, result, policy, roots),
    ]
    if explain:
        parts += [heading("Every step"), *_steps(result)]
    return parts


def _headline(
    loaded: Loaded,
    result: AttestationResult,
    refused: Rejected | None,
    policy: Policy,
    roots: Roots,
) -> list[RenderableType]:
    machines = [_machine(attester) for attester in loaded.evidence.attesters]
    few = ", ".join(machines[:_MAX_NAMED])
    more = f" and {len(machines) - _MAX_NAMED} more" if len(machines) > _MAX_NAMED else ""
    what = f"by the policy {policy.name}: {loaded.evidence.format} evidence of {few}{more}"
    count = {status: sum(c.status is status for c in result.claims) for status in Status}
    required = sorted(policy.claims.require, key=list(ClaimName).index)  # type: ignore[arg-type]
    demands = ", ".join(required) if len(required) <= _MAX_NAMED else f"{len(required)} claims"
    summary = (
        f"{count[Status.PASS]} claims proven, {count[Status.NOT_PROVEN]} not proven, "
        f"{count[Status.FAIL]} contradicted; the policy requires {demands or 'none'}"
    )
    shown = verdict(accepted=refused is None, simulated=roots.simulated, what=what)
    return [*shown, Text(f" {summary}", style="dim")]


def _machine(attester: Attester) -> str:
    """Return the name of one machine and what it presents."""
    parts = ["Intel TDX"] if attester.tdx is not None else []
    parts += ["AMD SEV-SNP"] if attester.snp is not None else []
    if attester.devices is not None and attester.devices.devices:
        count = len(attester.devices.devices)
        parts.append(f"{count} device{'' if count == 1 else 's'}")
    shown = printable(attester.name, max_chars=40)
    return f"{shown} ({', '.join(parts) or 'no processor'})"


def _refusal(result: AttestationResult, decided: list[Finding], named: str) -> list[RenderableType]:
    total = len(result.parts)
    rows: dict[str, list[tuple[str, str, str]]] = {}
    for item in decided:
        machine, _, name = item.subject.rpartition("/")
        text, step = plain(item)
        if item.reason is not Reason.CLAIM_NOT_PROVEN:
            text = f"{item.reason}: {text}"
        told = _short(text, _MAX_VALUE)
        rows.setdefault(told, []).append((name, machine, step))
    found = [
        _Row(
            _by_machine(items, total),
            text,
            f"[{', '.join(dict.fromkeys(step for _, _, step in items))}]",
        )
        for text, items in rows.items()
    ]
    advice = advice_of(decided, named)
    return [
        heading("Refused", "what the policy requires, and what the evidence contradicts"),
        *_rows(found, MARKS[Status.FAIL]),
        *(hanging("  → ", text, mark_style="cyan") for text in advice[:_MAX_ADVICE]),
    ]


def _by_machine(found: list[tuple[str, str, str]], total: int) -> tuple[str, ...]:
    """Return the names, each with the machines it is about where that is not all of them."""
    machines: dict[str, list[str]] = {}
    for name, machine, _ in found:
        machines.setdefault(name, []).append(printable(machine, max_chars=40))
    return tuple(
        f"{name} ({', '.join(few)})" if len(few := [*dict.fromkeys(where)]) < total else name
        for name, where in machines.items()
    )


def _meanings(decided: list[Finding], result: AttestationResult) -> list[RenderableType]:
    """Return what each refused claim would have shown, and what may be the case instead."""
    names = dict.fromkeys(item.subject.rpartition("/")[2] for item in decided)
    claims = [claim for claim in result.claims if claim.name in names]
    return [heading("What was refused, claim by claim"), *_claims(claims, explain=True)]


def _claims(claims: list[Claim], *, explain: bool) -> list[RenderableType]:
    """Return claims of any status, those with one and the same cause together."""
    if not claims:
        return [Text("  none", style="dim")]
    if explain:
        return [_explained(claims)]
    rows: dict[str, list[Claim]] = {}
    for claim in claims:
        rows.setdefault(_cause(claim), []).append(claim)
    found = [
        _Row(
            tuple(claim.name for claim in group),
            _YOURS if cause == _YOURS and len(group) > 1 else value_of(group[0]),
            group[0].source if group[0].status is Status.PASS else "",
        )
        for cause, group in rows.items()
    ]
    return _rows(found, MARKS[claims[0].status])


def _cause(claim: Claim) -> str:
    """Return what claims of one row have in common."""
    if claim.status is not Status.NOT_PROVEN:
        return claim.name
    if "the policy lists n" in claim.value or "the policy does not say which" in claim.value:
        return _YOURS
    return claim.value


def value_of(claim: Claim, *, max_chars: int = _MAX_VALUE) -> str:
    """Return the value of a claim as it may stand on a screen, long hex shortened."""
    return _short(_told(claim), max_chars)


def _short(text: str, max_chars: int) -> str:
    # In this order: hex that is cut in the middle would not be known as hex.
    return printable(shortened(text), max_chars=max_chars)


def _told(claim: Claim) -> str:
    """Return the value without the frame that a nested finding has around it."""
    return plain(claim)[0] if claim.status is Status.FAIL else claim.value


def _rows(rows: Iterable[_Row], mark: tuple[str, str]) -> list[RenderableType]:
    """Return one line for each claim, and a hanging paragraph for each group with one cause."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, min_width=20)
    table.add_column(overflow="fold")
    table.add_column(style="dim", no_wrap=True)
    groups: list[RenderableType] = []
    for row in rows:
        sign = (f"  {mark[0]} ", mark[1])
        if len(row.names) == 1 and len(row.names[0]) <= _LONGEST:
            table.add_row(Text.assemble(sign, row.names[0]), Text(row.text), Text(row.aside))
        else:
            text = Text.assemble(", ".join(row.names), (f": {row.text}", "dim"))
            text.append(f"  {row.aside}".rstrip(), "dim")
            groups.append(hanging(sign[0], text, mark_style=sign[1]))
    return [*([table] if table.row_count else []), *groups]


# Wider names would take the room of what was found.
_LONGEST = max(len(name) for name in ClaimName) + 10


def _explained(claims: list[Claim]) -> RenderableType:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, min_width=20)
    table.add_column(overflow="fold")
    for claim in claims:
        words = WORDS[ClaimName(claim.name)]
        mark, colour = MARKS[claim.status]
        proven = claim.status is Status.PASS
        told = [(printable(_told(claim), max_chars=_MAX_LONG_VALUE), "bold")]
        told += [("\nA pass shows: ", "dim"), (words.proven, "")]
        if not proven:
            told += [("\nOtherwise: ", "dim"), (words.otherwise, ""), ("\nTo do: ", "dim")]
            told += [(words.todo, "")]
        source = f", on the word of: {printable(claim.source)}" if proven else ""
        told += [(f"\nstep {claim.step}{source}  [{claim.clause}]\n", "dim")]
        table.add_row(Text.assemble((f"  {mark} ", colour), claim.name), Text.assemble(*told))
    return table


def _checked(
    loaded: Loaded, result: AttestationResult, policy: Policy, roots: Roots
) -> RenderableType:
    named = whose_roots(roots, "Intel, AMD and NVIDIA")
    nonce = loaded.evidence.nonce
    opened = len(policy.relaxations)
    left = f"leaves {opened} field{'' if opened == 1 else 's'} open" if opened else "nothing open"
    time = f"{loaded.now:%Y-%m-%d %H:%M:%S} UTC, {loaded.clock}"
    if result.not_after > result.now:
        time += f"; endorsements hold until {result.not_after:%Y-%m-%d %H:%M} UTC"
    rows = [
        ("time", time),
        ("roots", named),
        ("policy", f"{policy.name} {policy.digest[:16]}…, {left} (confide policy explain)"),
        ("nonce", nonce.hex() if nonce is not None else "none of yours; pass it with --nonce HEX"),
        ("source", f"{printable(loaded.name)}, {'live' if loaded.live else 'saved'}"),
    ]
    rows += [("sha256", loaded.sha256)] if loaded.sha256 else []
    rows += [("missing", printable(text)) for text in loaded.unavailable[:_MAX_NAMED]]
    if len(loaded.unavailable) > _MAX_NAMED:
        rows += [("", f"and {len(loaded.unavailable) - _MAX_NAMED} more: --json lists them")]
    return fields(rows)


def _steps(result: AttestationResult) -> list[RenderableType]:
    found: list[RenderableType] = []
    for part in result.parts:
        found.append(Text(f"  {printable(part.subject)}", style="bold"))
        for item in part.findings:
            detail = _short(f"{item.reason or ''} {item.detail}".strip(), _MAX_VALUE)
            mark, colour = MARKS[item.status]
            line = Text.assemble(
                (f"{item.step}  ", "bold"),
                STEP_WORDS.get(item.step, ""),
                f": {detail}" if detail else "",
                (f"  {printable(item.subject)}  [{item.clause}]", "dim"),
            )
            found.append(hanging(f"    {mark} ", line, mark_style=colour))
    return found
