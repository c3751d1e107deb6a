"""Without any one of the steps of receipt.md §7, some bad receipt is accepted.

Every bad receipt here is refused by the whole procedure first. Steps that establish a value which
later steps stand on are replaced by one that establishes it without looking.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from mutants import without
from runs import Story, predicate, refusals, resealed, sha, tell, verify, world

from confide.appraisal.binding import parse_statement
from confide.errors import Reason
from confide.expectation import parse_expectation
from confide.receipts import verify as procedure
from confide.receipts.statement import parse_run_statement
from confide.wire.dsse import Envelope
from confide.wire.json import jcs, parse_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from confide.receipts.file import ReceiptFile
    from confide.wire.release_receipt import ReleaseReceipt

    Bad = tuple[ReceiptFile, dict[str, Any]]

OTHER = Story("other")


def _not_canonical() -> Bad:
    def spaced(document: dict[str, Any]) -> bytes:
        return jcs(document).replace(b'":', b'": ', 1)

    return resealed(tell(), lambda _: None, encode=spaced), {}


def _other_head() -> Bad:
    return resealed(tell(), lambda document: predicate(document).update(head="00" * 32)), {}


def _other_expectation() -> Bad:
    return tell(), {"expectation": replace(world().expectation, name="another")}


def _after_another_run() -> Bad:
    return replace(tell(), agent_after=tell(OTHER).agent_after), {}


def _foreign_signature() -> Bad:
    run = tell().run
    return replace(tell(), run=Envelope(run.payload, (("3", bytes(64)),))), {}


def _before_another_boot() -> Bad:
    place = world(b"second boot")
    nonce = sha("owner's nonce", "first")
    before = asyncio.run(place.agent.attest("channel", nonce, place.expectation.digest))
    return replace(tell(), agent_before=before), {}


def _image_not_measured() -> Bad:
    return tell(Story("no image", unmeasured="confide-agent-image")), {}


def _model_before_another_run() -> Bad:
    return replace(tell(), model_before=tell(OTHER).model_before), {}


def _call_without_receipt() -> Bad:
    return replace(tell(), inferences=()), {}


def _closing_of_another_run() -> Bad:
    return replace(tell(), model_after=tell(OTHER).model_after), {}


def _other_outputs() -> Bad:
    return tell(), {"outputs": [bytes(32)]}


def _failed_run() -> Bad:
    return tell(Story("failed", status=1)), {}


def _released_to_another(receipt: ReleaseReceipt) -> ReleaseReceipt:
    return replace(receipt, against=bytes(32))


def _secret_for_another_expectation() -> Bad:
    return tell(Story("misled", secrets=("token",), forge=_released_to_another)), {}


def _parse_anything(state: Any) -> None:
    value = parse_json(state.file.run.payload, what="x", reason=Reason.RECEIPT_FORMAT)
    state.statement = parse_run_statement(jcs(value))


def _take_expectation(state: Any) -> None:
    state.expectation = parse_expectation(state.file.expectation)


def _take_agent(state: Any) -> None:
    said = parse_statement(state.file.agent_after.statement)
    state.agent = procedure._appraise(
        state,
        state.file.agent_after,
        role="agent",
        purpose=said.purpose,
        nonce=said.nonce,
        claim=said.claim,
    )


def _take_model(state: Any) -> None:
    said = parse_statement(state.file.model_before.statement)
    state.model = procedure._appraise(
        state,
        state.file.model_before,
        role="model",
        purpose="channel",
        nonce=said.nonce,
        claim=None,
    )


def _take_closing(state: Any) -> None:
    state.model_after = state.model


# Step to what it alone refuses, and to what stands in for it where a value is needed.
MUTANTS: dict[str, tuple[Callable[[], Bad], Callable[[Any], None] | None]] = {
    "receipt/1": (_not_canonical, _parse_anything),
    "receipt/2": (_other_head, None),
    "receipt/3": (_other_expectation, _take_expectation),
    "receipt/4": (_after_another_run, _take_agent),
    "receipt/5": (_foreign_signature, None),
    "receipt/6": (_before_another_boot, None),
    "receipt/7": (_image_not_measured, None),
    "receipt/8": (_model_before_another_run, _take_model),
    "receipt/9": (_call_without_receipt, None),
    "receipt/10": (_closing_of_another_run, _take_closing),
    "receipt/11": (_other_outputs, None),
    "receipt/12": (_failed_run, None),
    "receipt/14": (_secret_for_another_expectation, None),
}


def test_every_step_has_its_mutant() -> None:
    assert list(MUTANTS) == [step.id for step in procedure.VERIFY_STEPS]


@pytest.mark.parametrize("step", MUTANTS)
def test_without_the_step_a_bad_receipt_is_accepted(
    monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    make, blind = MUTANTS[step]
    file, known = make()
    assert set(refusals(file, **known)) == {step.removeprefix("receipt/")}
    monkeypatch.setattr(procedure, "VERIFY_STEPS", without(procedure.VERIFY_STEPS, step, blind))
    verify(file, **known)
