"""What a run got from its broker, against what it may have: step receipt/14. Pure.

Clauses: docs/protocols/receipt.md §7, state.md 2.3 and 4.6. Establishes that the broker which the
Expectation names released each secret that it lists, once, and nothing else, to this Expectation;
and that a state was saved only on top of the one that was opened. Says nothing about the owners'
reasons: their statement is named in each receipt.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Final

from confide.appraisal.steps import Refused
from confide.crypto.ed25519 import verify_ed25519
from confide.crypto.errors import BadSignature
from confide.errors import Reason
from confide.wire.dsse import pae
from confide.wire.release_receipt import ReleaseReceipt, StateStep, parse_release_receipt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from confide.expectation import Expectation
    from confide.receipts.transcript import Event, Field
    from confide.wire.dsse import Envelope

__all__ = ["verify_releases"]

_STATE_ENDS: Final = ("state-saved", "state-kept")


def verify_releases(
    events: Sequence[Event], releases: Sequence[Envelope], expectation: Expectation
) -> str:
    """
    Compare what `events` say with the broker's receipts and with `expectation`.

    Returns what was found in words. Raises `Refused` or `FormatError`.
    """
    kinds: dict[str, list[Event]] = {}
    for event in events:
        kinds.setdefault(event.kind, []).append(event)
    taken = _Receipts(releases, expectation)
    broker = expectation.broker
    found = kinds.get("secret-released", [])
    listed = sorted(use.name for use in broker.uses)
    if sorted(str(event["name"]) for event in found) != listed:
        raise Refused(
            Reason.SECRET_MISMATCH, "other secrets were released than the Expectation lists"
        )
    for event in found:
        taken.require(event, broker.resource(str(event["name"])), "version", state=None)
    _require_state(kinds, taken, expectation)
    taken.require_none_left()
    return f"{len(found)} secrets{', a state' if broker.state else ''}"


def _require_state(
    kinds: dict[str, list[Event]], taken: _Receipts, expectation: Expectation
) -> None:
    opened = kinds.get("state-opened", [])
    ends = [event for kind in _STATE_ENDS for event in kinds.get(kind, [])]
    # An agent whose end is not recorded has not saved either.
    ended = int(expectation.broker.state and "agent-exited" in kinds)
    if len(opened) != int(expectation.broker.state) or len(ends) != ended:
        raise Refused(
            Reason.SECRET_MISMATCH, "a state is opened and saved or kept once, where it is asked"
        )
    resource = expectation.broker.state_resource(expectation.name)
    for event in opened:
        step = StateStep("open", _count(event["counter"]), event.digest("digest"))
        taken.require(event, resource, "digest", state=step)
    for event in (event for event in ends if event.kind == "state-saved"):
        counter = _count(event["counter"])
        if counter != _count(opened[0]["counter"]) + 1:
            raise Refused(Reason.STATE_FORK, "saved as another number than follows the opened one")
        step = StateStep("save", counter, event.digest("digest"))
        taken.require(event, resource, "digest", state=step)


def _count(value: Field) -> int:
    return value if isinstance(value, int) else -1


class _Receipts:
    """The broker's receipts of one run, each to be accounted for once."""

    def __init__(self, releases: Sequence[Envelope], expectation: Expectation) -> None:
        self._left = {envelope.digest: envelope for envelope in releases}
        self._unique = len(self._left) == len(releases)
        self._expectation = expectation

    def require(
        self, event: Event, resource: str, version: str, *, state: StateStep | None
    ) -> None:
        envelope = self._left.pop(event.digest("receipt"), None)
        if envelope is None:
            raise Refused(Reason.RECEIPT_MISSING, f"{event.kind} has no receipt of its own")
        receipt = self._verified(envelope)
        if receipt.resource != resource or receipt.state != state:
            raise Refused(Reason.SECRET_MISMATCH, "a release receipt is about something else")
        if receipt.version != event.digest(version):
            raise Refused(Reason.SECRET_MISMATCH, "a release receipt names another version")

    def _verified(self, envelope: Envelope) -> ReleaseReceipt:
        """Return a release to this Expectation that its broker signed."""
        key = bytes.fromhex(self._expectation.broker.key)
        if not envelope.signatures:
            raise Refused(Reason.RECEIPT_SIGNATURE, "a release receipt without a signature")
        for keyid, signature in envelope.signatures:
            if keyid != key.hex():
                raise Refused(Reason.RECEIPT_SIGNATURE, "signed by another broker")
            try:
                verify_ed25519(key, signature, pae(envelope.payload))
            except BadSignature as error:
                raise Refused(Reason.RECEIPT_SIGNATURE, error.what) from error
        receipt = parse_release_receipt(envelope.payload)
        if receipt.broker != key or receipt.reason is not None:
            raise Refused(Reason.SECRET_MISMATCH, "a receipt of another broker, or of a refusal")
        against = receipt.against or b""
        if receipt.accepts != "expectation" or not hmac.compare_digest(
            against, self._expectation.digest
        ):
            raise Refused(Reason.EXPECTATION_MISMATCH, "released to another Expectation")
        return receipt

    def require_none_left(self) -> None:
        if self._left or not self._unique:
            raise Refused(
                Reason.RECEIPT_NOT_REFERENCED, "a release receipt that the transcript does not name"
            )
