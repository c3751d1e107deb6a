"""ACI receipts against exact bytes; sessions; what an appraisal gets to see."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from confide.channel.aci import session_id
from confide.errors import FormatError, Reason, ReceiptRejected
from confide.formats.aci import FORMAT as ACI
from confide.formats.aci_receipt import AciAnswer, verify_answer, verify_session
from confide.rats import Finding, Status
from confide.simulator.aci import SimulatedAci
from confide.wire.json import parse_json
from confide.wire.service import Capture

if TYPE_CHECKING:
    from pathlib import Path

SERVICE = SimulatedAci(b"aci-tests", datetime(2026, 8, 20, 12, tzinfo=UTC))
REQUEST, RESPONSE = b'{"model":"m"}', b"data: x\n\ndata: [DONE]\n\n"


def _verify(document: Any, request: bytes = REQUEST, response: bytes = RESPONSE) -> AciAnswer:
    raw = document if isinstance(document, bytes) else json.dumps(document).encode()
    return verify_answer(raw, keyset=SERVICE.keyset(), request=request, response=response)


def _events(**last: Any) -> list[Any]:
    events: list[Any] = SERVICE.events(REQUEST, RESPONSE)
    events[2] = {**events[2], **last}
    return events


def test_a_receipt_of_this_exchange() -> None:
    answer = _verify(SERVICE.receipt(REQUEST, RESPONSE))
    assert answer.receipt.key_id == "r1"
    assert len(answer.sessions) == 1
    assert answer.unverified == 0


def test_the_published_receipt(vectors: Path) -> None:
    case: Any = parse_json(
        (vectors / "channel" / "aci.json").read_bytes(), what="x", reason=Reason.SERVICE_FORMAT
    )
    receipt, session = case["receipt"], case["session"]
    answer = verify_answer(
        receipt["document"].encode(),
        keyset=case["keyset"]["object"],
        request=receipt["request_body"].encode(),
        response=receipt["response_body"].encode(),
    )
    found = verify_session(session["jcs"].encode(), sessions=answer.sessions)
    assert found.id == session["session_id"]
    assert found.evidence == session["evidence_bytes"].encode()
    assert found.asserted == ("tee_attested",)


@pytest.mark.parametrize(
    ("request_", "response"),
    [(REQUEST + b" ", RESPONSE), (REQUEST, RESPONSE[:-1]), (RESPONSE, REQUEST), (b"", b"")],
)
def test_other_bytes_are_another_exchange(request_: bytes, response: bytes) -> None:
    with pytest.raises(ReceiptRejected) as caught:
        _verify(SERVICE.receipt(REQUEST, RESPONSE), request_, response)
    assert caught.value.reason is Reason.RESPONSE_SIGNATURE


def test_an_edited_receipt_does_not_verify() -> None:
    document = SERVICE.receipt(REQUEST, RESPONSE) | {"model": "other"}
    with pytest.raises(ReceiptRejected) as caught:
        _verify(document)
    assert caught.value.reason is Reason.RECEIPT_SIGNATURE


@pytest.mark.parametrize("index", [0, 3])
@pytest.mark.parametrize("count", [0, 2])
def test_each_body_stands_exactly_once(index: int, count: int) -> None:
    events = _events()
    events = events[:index] + [events[index]] * count + events[index + 1 :]
    with pytest.raises(ReceiptRejected) as caught:
        _verify(SERVICE.receipt(REQUEST, RESPONSE, events=events))
    assert caught.value.reason is Reason.TRANSCRIPT_BROKEN


def test_an_answer_after_a_required_check_failed() -> None:
    events = _events(result="failed")
    with pytest.raises(ReceiptRejected, match="required check"):
        _verify(SERVICE.receipt(REQUEST, RESPONSE, events=events))
    events = _events(result="failed", required=False)
    answer = _verify(SERVICE.receipt(REQUEST, RESPONSE, events=events))
    assert (answer.sessions, answer.unverified) == ((), 1)


def test_own_event_types_are_allowed() -> None:
    events = _events()
    events.insert(2, {"type": "x.own", "anything": [1]})
    assert _verify(SERVICE.receipt(REQUEST, RESPONSE, events=events)).sessions


@pytest.mark.parametrize(
    "edit",
    [{"result": "maybe"}, {"required": 1}, {"session_id": "x"}, {"session_id": None}],
)
def test_malformed_upstream_events(edit: dict[str, Any]) -> None:
    with pytest.raises(FormatError) as caught:
        _verify(SERVICE.receipt(REQUEST, RESPONSE, events=_events(**edit)))
    assert caught.value.reason is Reason.RECEIPT_FORMAT


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b" " * ((1 << 20) + 1)])
def test_what_is_no_receipt(raw: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        _verify(raw)
    assert caught.value.reason is Reason.RECEIPT_FORMAT


class TestSession:
    """Session documents: id and evidence fit, the rest is the service's word."""

    def _verify(self, document: Any, sessions: tuple[str, ...] | None = None) -> Any:
        ids = sessions or _verify(SERVICE.receipt(REQUEST, RESPONSE)).sessions
        return verify_session(json.dumps(document).encode(), sessions=ids)

    def test_the_session_that_the_receipt_names(self) -> None:
        found = self._verify(SERVICE.session())
        assert found.asserted == ("tee_attested",)
        assert found.expires_at - found.established_at == 3600

    def test_any_edit_makes_another_session(self) -> None:
        document: Any = SERVICE.session()
        document["claims"]["gpu_attested"] = {"status": "asserted"}
        with pytest.raises(ReceiptRejected) as caught:
            self._verify(document)
        assert caught.value.reason is Reason.RECEIPT_NOT_REFERENCED

    def test_evidence_that_is_not_what_it_states(self) -> None:
        document: Any = SERVICE.session()
        document["evidence"]["data"] = "data:text/plain;base64,AAAA"
        with pytest.raises(ReceiptRejected) as caught:
            self._verify(document, (session_id(document),))
        assert caught.value.reason is Reason.DIGEST_MISMATCH

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            ("api_version", "aci/2"),
            ("claims", []),
            ("claims", {"tee_attested": {"status": "sure"}}),
            ("claims", {"tee_attested": 1}),
            ("established_at", "now"),
            ("evidence", {"digest": "x", "data": "data:,x"}),
            ("evidence", {"digest": "x", "data": "data:;base64,A"}),
            ("evidence", {"digest": "x", "data": 1}),
        ],
    )
    def test_malformed_sessions(self, path: str, value: Any) -> None:
        with pytest.raises(FormatError) as caught:
            self._verify({**SERVICE.session(), path: value})
        assert caught.value.reason is Reason.SERVICE_FORMAT


class TestFinding:
    """What an appraisal gets to see."""

    def _find(self, **beside: Any) -> Finding:
        documents = {"report": json.dumps(SERVICE.report(None)).encode()} | {
            name: value if isinstance(value, bytes) else json.dumps(value).encode()
            for name, value in beside.items()
        }
        capture = Capture(documents=documents)
        assert ACI.answer is not None
        return ACI.answer(capture, ACI.read(capture))

    def test_a_receipt_names_the_attester(self) -> None:
        receipt = SERVICE.receipt(REQUEST, RESPONSE)
        found = self._find(
            receipt=receipt, request=REQUEST, response=RESPONSE, session=SERVICE.session()
        )
        assert (found.status, found.subject) == (Status.PASS, "service")
        assert "its own words" in found.detail

    def test_what_the_service_could_not_verify_is_counted(self) -> None:
        receipt = SERVICE.receipt(
            REQUEST, RESPONSE, events=_events(result="failed", required=False)
        )
        found = self._find(receipt=receipt, request=REQUEST, response=RESPONSE)
        assert found.status is Status.PASS
        assert found.detail.endswith("1 not")

    def test_nothing_presented_is_nothing_proven(self) -> None:
        receipt = SERVICE.receipt(REQUEST, RESPONSE)
        for beside in ({}, {"receipt": receipt}, {"receipt": receipt, "response": RESPONSE}):
            assert self._find(**beside).status is Status.NOT_PROVEN

    def test_hostile_documents_fail_and_raise_nothing(self) -> None:
        receipt = SERVICE.receipt(REQUEST, RESPONSE)
        other = self._find(receipt=receipt, request=b"", response=RESPONSE)
        assert (other.status, other.reason) == (Status.FAIL, Reason.RESPONSE_SIGNATURE)
        broken = self._find(receipt=b"{", request=REQUEST, response=RESPONSE)
        assert (broken.status, broken.reason) == (Status.FAIL, Reason.RECEIPT_FORMAT)
        assert other.subject == broken.subject == "service"
