"""What an agent-run receipt states, parsed. Believed only inside a `VerifiedRun`.

Clause: docs/protocols/receipt.md §4. Bytes to value; verifies nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from confide.errors import Reason
from confide.receipts.issue import AGENT_RUN
from confide.receipts.transcript import Event, parse_events
from confide.wire.dsse import parse_statement_payload
from confide.wire.keyset import parse_time

if TYPE_CHECKING:
    from datetime import datetime

__all__ = ["RunStatement", "parse_run_statement"]

_REASON = Reason.RECEIPT_FORMAT


@dataclass(frozen=True, slots=True)
class RunStatement:
    """The predicate of an agent-run receipt, parsed; believed only inside a `VerifiedRun`."""

    run: bytes
    nonce: bytes
    keyset: bytes
    expectation: bytes
    started: datetime
    finished: datetime
    result: str
    events: tuple[Event, ...]
    head: bytes
    outputs: tuple[bytes, ...]
    not_proven: tuple[str, ...]


def parse_run_statement(payload: bytes) -> RunStatement:
    """Parse the payload of an agent-run receipt. Raises `FormatError`; believes nothing."""
    subjects, predicate = parse_statement_payload(payload, predicate_type=AGENT_RUN)
    statement = RunStatement(
        run=predicate.hexes("run", 32),
        nonce=predicate.hexes("nonce", 32),
        keyset=predicate.hexes("keyset", 32),
        expectation=predicate.hexes("expectation", 32),
        started=parse_time(predicate.text("started"), what="started", reason=_REASON),
        finished=parse_time(predicate.text("finished"), what="finished", reason=_REASON),
        result=predicate.text("result"),
        events=parse_events(predicate.items("transcript", max_items=1 << 20)),
        head=predicate.hexes("head", 32),
        outputs=tuple(digest for _, digest in subjects),
        not_proven=predicate.texts("not_proven"),
    )
    predicate.end()
    return statement
