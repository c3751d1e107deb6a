"""What a receipt means, for a person and for a program. The verdict is `verify_receipt`'s alone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from confide.appraisal.ear import claim_document, finding_document
from confide.cli.broker_account import BrokerAccount, broker_account
from confide.cli.exits import finding_lines, problem_of
from confide.cli.screen import (
    fields,
    hanging,
    heading,
    human_bytes,
    printable,
    shortened,
    simulated_line,
)
from confide.rats import Status

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import RenderableType

    from confide.cli.exits import Problem
    from confide.cli.tuned_model import TunedModel
    from confide.expectation import Expectation
    from confide.rats import Claim
    from confide.receipts.statement import RunStatement
    from confide.receipts.transcript import Event
    from confide.receipts.verify import VerifiedRun
    from confide.wire.json import JsonValue

__all__ = [
    "Account",
    "Output",
    "account_of",
    "claim_lists",
    "counted",
    "proof_document",
    "proof_screen",
    "verdict",
]

_NODES = (("agent node", "agent"), ("model node", "model"))


@dataclass(frozen=True, slots=True)
class Output:
    """One recorded output. `file` is the local file that is equal to it, where files were given."""

    sha256: str
    size: int
    file: str | None


@dataclass(frozen=True, slots=True)
class Account:
    """What happened in a run, counted from its transcript."""

    result: str
    seconds: float
    inputs: int
    input_bytes: int
    calls: int
    unanswered: int
    egress_allowed: int
    egress_refused: int
    refused_to: tuple[str, ...]
    turns: int
    end: str
    status: int | None
    outputs: tuple[Output, ...]
    broker: BrokerAccount

    def document(self) -> dict[str, JsonValue]:
        """Return the members of the JSON object."""
        return {
            "result": self.result,
            "seconds": self.seconds,
            "inputs": {"files": self.inputs, "bytes": self.input_bytes},
            "model_calls": {"count": self.calls, "unanswered": self.unanswered},
            "egress": {
                "allowed": self.egress_allowed,
                "refused": self.egress_refused,
                "refused_to": list(self.refused_to),
            },
            "turns": self.turns,
            "exit": {"end": self.end, "status": self.status},
            "outputs": [
                {"sha256": item.sha256, "bytes": item.size, "file": item.file}
                for item in self.outputs
            ],
            **self.broker.document(),
        }

    def rows(self) -> list[tuple[str, str]]:
        """Return what happened as `label, sentence` rows."""
        calls = f"{self.calls}, each with a receipt of the model node"
        if self.unanswered:
            calls = (
                f"{self.calls}, of which {self.unanswered} got no answer; the others have receipts"
            )
        egress = f"{self.egress_allowed} allowed, {self.egress_refused} refused"
        if self.refused_to:
            egress += f" ({', '.join(self.refused_to)})"
        status = "" if self.status is None else f" with status {self.status}"
        rows = [
            ("inputs", f"{counted(self.inputs, 'file')}, {human_bytes(self.input_bytes)}"),
            *self.broker.rows(),
            ("model calls", calls if self.calls else "none"),
            ("network", egress),
            ("agent", f"{self.end}{status}; the run took {self.seconds:.0f} s: {self.result}"),
        ]
        if self.turns:
            rows.insert(1, ("turns", str(self.turns)))
        total = sum(item.size for item in self.outputs)
        rows.append(("outputs", f"{counted(len(self.outputs), 'file')}, {human_bytes(total)}"))
        equal = (item for item in self.outputs if item.file is not None)
        return [*rows, *(("", f"{o.file}  {human_bytes(o.size)}  equal") for o in equal)]


def counted(number: int, noun: str) -> str:
    """Return `1 file`, `2 files`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _int(event: Event, name: str) -> int:
    value = event[name]
    return value if isinstance(value, int) else 0


def account_of(statement: RunStatement, files: Mapping[str, bytes] | None) -> Account:
    """
    Count what `statement` says. `files` are local files: relative name to SHA-256.

    Counts what is written; whether to believe it is the verdict's business.
    """
    kinds: dict[str, list[Event]] = {}
    for event in statement.events:
        kinds.setdefault(event.kind, []).append(event)
    inputs, calls = kinds.get("input", []), kinds.get("model-call", [])
    # An allowed connection is written twice, when it opens and when it ends.
    egress = [event for event in kinds.get("egress", []) if event["outcome"] != "closed"]
    refused = [event for event in egress if not event["allowed"]]
    ended = kinds.get("agent-exited", [])
    status = ended[-1]["status"] if ended else None
    dropped = _int(ended[-1], "egress_unreported") if ended else 0
    return Account(
        result=printable(statement.result),
        seconds=(statement.finished - statement.started).total_seconds(),
        inputs=len(inputs),
        input_bytes=sum(_int(event, "bytes") for event in inputs),
        calls=len(calls),
        unanswered=sum(event["receipt"] is None for event in calls),
        egress_allowed=len(egress) - len(refused),
        egress_refused=len(refused) + dropped,
        refused_to=tuple(
            list(dict.fromkeys(printable(str(e["destination"]), max_chars=80) for e in refused))[:5]
        ),
        turns=len(kinds.get("turn-in", [])),
        end=printable(str(ended[-1]["end"])) if ended else "never started or never ended",
        status=status if isinstance(status, int) else None,
        outputs=tuple(_output(event, files) for event in kinds.get("output", [])),
        broker=broker_account(kinds),
    )


def _output(event: Event, files: Mapping[str, bytes] | None) -> Output:
    path, digest = event.digest("path"), event.digest("sha256")
    named = None
    for name, found in (files or {}).items():
        if found == digest:
            same = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest() == path
            shown = printable(name)
            named = shown if same else (named or f"{shown} (recorded under another name)")
            if same:
                break
    return Output(digest.hex(), _int(event, "bytes"), named)


def verdict(
    *, accepted: bool, simulated: bool, what: str, banner: bool = True
) -> list[RenderableType]:
    """Return the first lines: verdict, SIMULATED, and what that means (`banner`)."""
    word, style = ("ACCEPTED", "bold green") if accepted else ("REJECTED", "bold red")
    suffix = (" (SIMULATED)", "bold yellow") if simulated else ""
    first = Text.assemble((word, style), suffix, f"  {what}")
    return [first, simulated_line()] if simulated and banner else [first]


def claim_lists(run: VerifiedRun) -> tuple[list[tuple[str, Claim]], list[tuple[str, Claim]]]:
    """Return proven and unproven claims of both nodes, each with the node's role."""
    claims = [("agent", claim) for claim in run.agent.result.claims]
    claims += [("model", claim) for claim in run.model.result.claims]
    proven = [item for item in claims if item[1].status is Status.PASS]
    return proven, [item for item in claims if item[1].status is not Status.PASS]


def _proven(run: VerifiedRun) -> list[RenderableType]:
    parts: list[RenderableType] = [heading("Proven")]
    proven, _missing = claim_lists(run)
    for title, role in _NODES:
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True, min_width=17)
        table.add_column(overflow="fold")
        table.add_column(style="dim", no_wrap=True)
        for owner, claim in proven:
            if owner == role:
                mark = Text.assemble(("    ✓ ", "green"), claim.name)
                # Short enough for 80 columns; SIMULATED stays on every row it belongs to.
                source = claim.source.replace("measured node software", "node")
                table.add_row(mark, Text(shortened(printable(claim.value))), Text(source))
        parts += [Text(f"  {title}", style="dim"), table]
    return parts


def _unproven(run: VerifiedRun) -> list[RenderableType]:
    _proven_claims, missing = claim_lists(run)
    named: dict[str, str] = {}
    for _role, claim in missing:
        named.setdefault(claim.name, shortened(printable(claim.value)))
    rows = [f"{name}: {value}" for name, value in named.items()]
    rows += [printable(text) for text in run.statement.not_proven]
    lines = [hanging("  - ", row, mark_style="yellow") for row in rows]
    return [heading("Not proven", "the Expectation accepts these, or no receipt can"), *lines]


def _digests(run: VerifiedRun) -> list[RenderableType]:
    expectation = run.expectation
    return [
        heading("Digests", "SHA-256"),
        fields(
            [
                ("expectation", expectation.digest.hex()),
                ("image", expectation.agent.image),
                ("weights", expectation.model.weights or "not measured: served elsewhere"),
                ("receipt", run.digest.hex()),
            ]
        ),
    ]


def proof_screen(
    run: VerifiedRun, account: Account, *, model: TunedModel | None = None
) -> list[RenderableType]:
    """Return everything below the verdict of an accepted receipt; `model` is how it was trained."""
    return [
        *_proven(run),
        *([] if model is None else model.proven()),
        heading("What happened"),
        fields(account.rows()),
        *([] if model is None else model.made()),
        *_unproven(run),
        *([] if model is None else model.unproven()),
        *_digests(run),
    ]


def rejected_screen(problem: Problem, account: Account | None) -> list[RenderableType]:
    """Return everything below the verdict of a refused receipt: why, what to do, what it says."""
    parts: list[RenderableType] = [heading("Failed steps"), *finding_lines(problem.findings)]
    parts += [heading("What to do"), *(Text(f"  {text}") for text in problem.advice)]
    if account is not None:
        parts += [heading("What the receipt says", "not believed"), fields(account.rows())]
    return parts


def proof_document(
    run: VerifiedRun | None,
    failure: Exception | None,
    *,
    account: Account | None,
    expectation: Expectation | None,
    receipt: bytes,
    simulated: bool,
) -> dict[str, JsonValue]:
    """Return the members that every JSON result about a receipt has."""
    problem = None if failure is None else problem_of(failure)
    claims: list[JsonValue] = []
    if run is not None:
        proven, missing = claim_lists(run)
        claims = [{"node": role, **claim_document(claim)} for role, claim in (*proven, *missing)]
    return {
        "verdict": "rejected" if run is None else "accepted",
        "exit": 0 if problem is None else problem.code,
        "simulated": simulated,
        "receipt": receipt.hex(),
        "expectation": None if expectation is None else expectation.digest.hex(),
        "image": None if expectation is None else expectation.agent.image,
        "model": None
        if expectation is None
        else {"name": expectation.model.name, "weights": expectation.model.weights or None},
        "claims": claims,
        "happened": None if account is None else account.document(),
        "not_proven": [] if run is None else list(run.statement.not_proven),
        "failures": [] if problem is None else [finding_document(f) for f in problem.findings],
        "advice": [] if problem is None else list(problem.advice),
    }
