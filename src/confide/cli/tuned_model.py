"""How the model behind a run was trained, walked from the run's receipt to the rows, for a screen.

docs/protocols/training-record.md §8. Everything is verified before there is a `TunedModel`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.text import Text

from confide.adapters.clock import SystemClock
from confide.cli.image_words import limits_of, record_document
from confide.cli.lineage_case import lineage_document, lineage_screen, verify_beside
from confide.cli.receipt_log import log_document, log_line
from confide.cli.screen import fields, hanging, heading, printable, shortened
from confide.cli.training_screen import claims_table, coarser, made_rows
from confide.errors import ConfigurationError
from confide.rats import Status
from confide.training.lineage import Served, walk_lineage
from confide.training.logged import verify_logged_record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from confide.cli.lineage_case import Beside
    from confide.cli.receipt_log import LogDemand
    from confide.rats import Finding
    from confide.receipts.verify import VerifiedRun
    from confide.tlog.verify import VerifiedInclusion
    from confide.training.any_record import AnyVerified
    from confide.training.lineage import Link
    from confide.trust.roots import Roots
    from confide.wire.json import JsonValue

__all__ = ["TunedModel", "walk_model"]


@dataclass(frozen=True, slots=True)
class TunedModel:
    """The walk from a verified run, and the training at its middle. Made by `walk_model` alone."""

    beside: Beside
    links: tuple[Link, ...]
    findings: tuple[Finding, ...]
    logged: VerifiedInclusion | None

    @property
    def record(self) -> AnyVerified:
        """The record of the training that made what was served."""
        return self.beside.records[0]

    def proven(self) -> list[RenderableType]:
        """Return what was proven of the node that trained."""
        return [Text("  training node", style="dim"), claims_table(self.record)]

    def made(self) -> list[RenderableType]:
        """Return what was trained, and the walk."""
        record = self.record
        rows = fields(made_rows(record.record, record))
        return [
            heading("How the model was made"),
            *coarser(record.record),
            rows,
            *lineage_screen(self.links, self.beside.rows),
        ]

    def unproven(self) -> list[RenderableType]:
        """Return what nobody has proven of the training."""
        claims = self.record.node.result.claims
        rows = [
            f"of the training node, {claim.name}: {shortened(printable(claim.value))}"
            for claim in claims
            if claim.status is not Status.PASS
        ]
        rows += [f"of the training: {text}" for text in limits_of(self.record.record)]
        return [hanging("  - ", row, mark_style="yellow") for row in rows]

    def checked(self) -> list[tuple[str, str]]:
        """Return what was checked, as `label, sentence`."""
        finished = self.record.record.finished
        if self.logged is not None:
            log = log_line(self.logged)
        else:
            log = "not checked: no proof inside, or no --log-policy that says whose word counts"
        return [
            ("training", f"{finished:%F %T} UTC: its end by the training node's own clock"),
            ("record of", f"the Expectation inside it, {self.record.expectation.digest.hex()}"),
            ("record log", log),
        ]

    def document(self) -> dict[str, JsonValue]:
        """Return the members of the JSON result."""
        said = record_document(self.record.record)
        return {
            "training": {
                "record": self.record.digest.hex(),
                "dataset_root": self.record.record.dataset_root.hex(),
                "environment": said.get("environment"),
                "lineage": lineage_document(self.links),
                "granularity": said["granularity"],
                "not_proven": list(limits_of(self.record.record)),
                "log": None if self.logged is None else log_document(self.logged),
            }
        }


def walk_model(
    run: VerifiedRun, documents: Sequence[bytes], *, roots: Roots, log: LogDemand
) -> TunedModel:
    """
    Verify `documents` and walk from `run` over the first record among them.

    Raises `Rejected` and `FormatError` for what does not hold, `ConfigurationError` without a
    record.
    """
    beside = verify_beside(documents, roots)
    if not beside.records:
        raise ConfigurationError(
            "--with: a receipt is walked with the record of its model's training; give that too"
        )
    served = (Served("agent run", run.digest, run.expectation), *beside.served)
    record = beside.records[0]
    links, findings = walk_lineage(
        record, served=served, earlier=beside.records[1:], rows=beside.rows
    )
    logged = None
    proof = beside.proofs[0]
    if log.policy is not None and (proof is not None or log.required):
        now = SystemClock().now()
        logged = verify_logged_record(record, proof=proof, policy=log.policy, now=now)
        findings += logged.findings
    return TunedModel(beside, links, findings, logged)
