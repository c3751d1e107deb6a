"""NEAR AI's signature over one response: exact bytes, attested keys, and every way to be wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest
from near_service import NONCE, capture, service

from confide.errors import FormatError, Reason, ReceiptRejected
from confide.formats.near import FORMAT as NEAR
from confide.formats.near_signature import SignedResponse, response_finding, verify_response
from confide.rats import Finding, Status

_REQUEST = b'{"model":"simulated/model-8b","stream":true}'
_RESPONSE = b'data: {"id":"chatcmpl-1"}\n\ndata: [DONE]\n\n'
_ALGORITHMS = pytest.mark.parametrize("algorithm", ["ecdsa", "ed25519"])
_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


def _answer(**options: Any) -> dict[str, Any]:
    return service().signature(_REQUEST, _RESPONSE, **options)


def _verify(
    answer: Any, *, request: bytes = _REQUEST, response: bytes = _RESPONSE, algorithm: str
) -> SignedResponse:
    document = service().direct_report(NONCE, algorithm=algorithm)  # type: ignore[arg-type]
    raw = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    return verify_response(
        raw,
        request=request,
        response=response,
        attesters=NEAR.read(capture(document)).attesters,
    )


def _refused(answer: Any, *, algorithm: str = "ed25519", **bodies: bytes) -> str:
    with pytest.raises(ReceiptRejected) as caught:
        _verify(answer, algorithm=algorithm, **bodies)
    assert caught.value.reason is Reason.RESPONSE_SIGNATURE
    return caught.value.failures[0].detail


@_ALGORITHMS
@pytest.mark.parametrize("model", ["simulated/model-8b", "a:b/c:1", "é/x", None])
def test_both_forms_and_both_algorithms(algorithm: str, model: str | None) -> None:
    found = _verify(_answer(algorithm=algorithm, model=model), algorithm=algorithm)
    assert found.attester == "model[0]"
    assert found.key.name == "signing"
    assert found.model == (model or "")
    assert found.kind == "provider_tee"


@_ALGORITHMS
def test_another_machine_of_the_report_may_have_signed(algorithm: str) -> None:
    answer = _answer(algorithm=algorithm, node=service().nodes[1])
    assert _verify(answer, algorithm=algorithm).attester == "model[1]"


@_ALGORITHMS
def test_a_key_that_no_attester_commits_to(algorithm: str) -> None:
    answer = _answer(algorithm=algorithm, node=service().gateway)
    assert "not one that the report commits to" in _refused(answer, algorithm=algorithm)


def test_the_other_algorithm_of_the_same_machine_is_not_attested() -> None:
    assert "commits to" in _refused(_answer(algorithm="ecdsa"), algorithm="ed25519")


@_ALGORITHMS
@pytest.mark.parametrize(
    "bodies",
    [
        {"request": _REQUEST + b"\n"},
        {"request": b""},
        {"response": _RESPONSE[:-1]},
        {"response": _RESPONSE.replace(b"\n\n", b"\n")},
        {"request": _RESPONSE, "response": _REQUEST},
    ],
)
def test_one_byte_more_or_less_is_another_exchange(
    algorithm: str, bodies: dict[str, bytes]
) -> None:
    answer = _answer(algorithm=algorithm)
    assert "another" in _refused(answer, algorithm=algorithm, **bodies)


@_ALGORITHMS
def test_no_flipped_bit_of_the_signature_passes(algorithm: str) -> None:
    genuine = _answer(algorithm=algorithm)
    prefix = "0x" if algorithm == "ecdsa" else ""
    raw = bytes.fromhex(genuine["signature"].removeprefix("0x"))
    for bit in range(0, 8 * len(raw), 7):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        _refused(genuine | {"signature": prefix + flipped.hex()}, algorithm=algorithm)


@_ALGORITHMS
def test_the_model_inside_the_text_is_signed(algorithm: str) -> None:
    answer = _answer(algorithm=algorithm)
    answer["text"] = answer["text"].replace("model-8b", "model-9b")
    _refused(answer, algorithm=algorithm)


def test_the_kind_is_optional() -> None:
    answer = _answer()
    del answer["signature_kind"]
    assert not _verify(answer, algorithm="ed25519").kind


def test_the_signer_named_must_be_the_signer() -> None:
    answer = _answer(algorithm="ecdsa")
    answer["signing_address"] = "0x" + service().nodes[1].address("ecdsa").hex()
    assert "not by the address" in _refused(answer, algorithm="ecdsa")


def test_the_second_form_of_an_ecdsa_signature_is_refused() -> None:
    answer = _answer(algorithm="ecdsa")
    raw = bytes.fromhex(answer["signature"][2:])
    high = _ORDER - int.from_bytes(raw[32:64], "big")
    other = raw[:32] + high.to_bytes(32, "big") + bytes([55 - raw[64]])
    _refused(answer | {"signature": "0x" + other.hex()}, algorithm="ecdsa")


def test_letter_case_of_an_address_carries_no_meaning() -> None:
    answer = _answer(algorithm="ecdsa")
    answer["signing_address"] = "0x" + answer["signing_address"][2:].upper()
    assert _verify(answer, algorithm="ecdsa").attester == "model[0]"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("STREAM_DISCONNECTED", "client disconnected"),
        ("SIGNATURE_UNSUPPORTED", "signs nothing"),
        ("<script>", "answers an error"),
    ],
)
def test_an_error_instead_of_a_signature(code: str, words: str) -> None:
    detail = _refused({"error_code": code, "message": "peer text"})
    assert words in detail
    assert code not in detail


_DIGEST = "0" * 64


@pytest.mark.parametrize(
    "edit",
    [
        {"text": _DIGEST},
        {"text": ""},
        {"text": f":{_DIGEST}:{_DIGEST}"},
        {"text": f"m:{_DIGEST}:{_DIGEST[:-1]}"},
        {"text": f"m:{'A' * 64}:{_DIGEST}"},
        {"text": f"m:{_DIGEST}:{_DIGEST}\n"},
        {"text": f"{'m' * 600}:{_DIGEST}:{_DIGEST}"},
        {"text": 5},
        {"signature_kind": "other"},
    ],
)
def test_malformed_texts(edit: dict[str, Any]) -> None:
    with pytest.raises(FormatError) as caught:
        _verify(_answer() | edit, algorithm="ed25519")
    assert caught.value.reason is Reason.SERVICE_FORMAT


@pytest.mark.parametrize(
    "edit",
    [
        {"signing_algo": "rsa"},
        {"signature": "00" * 63},
        {"signature": "0x" + "00" * 64},
        {"signature": " " + "00" * 64},
        {"signing_address": "00" * 20},
    ],
)
def test_malformed_signatures(edit: dict[str, Any]) -> None:
    with pytest.raises(FormatError) as caught:
        _verify(_answer() | edit, algorithm="ed25519")
    assert caught.value.reason is Reason.SERVICE_FORMAT


def test_malformed_answers() -> None:
    for raw in (b"", b"[]", b'{"text":"a","text":"b"}', b" " * (64 * 1024 + 1), b"\xff"):
        with pytest.raises(FormatError) as caught:
            _verify(raw, algorithm="ed25519")
        assert caught.value.reason is Reason.SERVICE_FORMAT


class TestFinding:
    """What an appraisal gets to see."""

    def _find(self, **documents: bytes) -> Finding:
        found = capture(service().direct_report(NONCE), beside=documents)
        return response_finding(found, NEAR.read(found))

    def test_a_signed_response_names_the_attester(self) -> None:
        answer = json.dumps(_answer()).encode()
        found = self._find(signature=answer, request=_REQUEST, response=_RESPONSE)
        assert (found.status, found.subject) == (Status.PASS, "model[0]")
        assert NEAR.answer is response_finding

    def test_nothing_presented_is_nothing_proven(self) -> None:
        answer = json.dumps(_answer()).encode()
        for documents in ({}, {"signature": answer}, {"signature": answer, "request": _REQUEST}):
            assert self._find(**documents).status is Status.NOT_PROVEN

    @pytest.mark.parametrize(
        ("answer", "reason"),
        [
            (b"{", Reason.SERVICE_FORMAT),
            (b'{"error_code":"STREAM_DISCONNECTED"}', Reason.RESPONSE_SIGNATURE),
        ],
    )
    def test_hostile_documents_fail_and_raise_nothing(self, answer: bytes, reason: Reason) -> None:
        found = self._find(signature=answer, request=_REQUEST, response=_RESPONSE)
        assert (found.status, found.reason) == (Status.FAIL, reason)
        # An attester that exists: a failure that nobody looks up would be lost.
        assert found.subject == "model[0]"
