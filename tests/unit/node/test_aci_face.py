"""The ACI face on loopback: reports in clear, receipts in the channel, read by two readers."""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from nodes import NOW, SEED, CountingEntropy, FixedClock, fitting_expectation, without
from nodes import roots as simulated_roots
from plain_aci_reader import require_bound, require_receipt
from proven_place import MODEL, running_place

from confide.adapters.prove import prove_node
from confide.appraisal.claim_names import ClaimName
from confide.appraisal.service_profiles import AUDIT
from confide.channel.aci import keyset_document
from confide.errors import Rejected, Unavailable
from confide.formats.verify import verify
from confide.rats import Status
from confide.receipts.inline import RECEIPT_HEADER, ReceiptStripper, decode_inline
from confide.simulator.machine import make_platform
from confide.wire.endorsements import Endorsements
from confide.wire.faces import LACKS, FaceName
from confide.wire.service import Capture

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proven_place import Place, PlacedNode

    from confide.rats import AttestationResult
    from confide.wire.dsse import Envelope

NONCE = hashlib.sha256(b"the caller's nonce").digest()
PATH = "/v1/aci/attestation"
CHAT = "/v1/chat/completions"
ASKED = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}).encode()
STREAMED = json.dumps({**json.loads(ASKED), "stream": True}).encode()


@pytest.fixture
def place() -> Iterator[Place]:
    with running_place() as running:
        yield running


@pytest.fixture
def node(place: Place) -> PlacedNode:
    return place.node(faces=(FaceName.ACI,))


def report(node: PlacedNode, query: str = f"?nonce={NONCE.hex()}") -> dict[str, Any]:
    answer = httpx2.get(node.url + PATH + query)
    assert answer.status_code == 200
    value: dict[str, Any] = answer.json()
    return value


@dataclass
class Got:
    """An answer through the channel, without its inline receipt."""

    status: int
    headers: dict[str, str]
    body: bytes
    receipt: Envelope | None


def sealed(node: PlacedNode, *asks: tuple[str, str, bytes] | str) -> list[Got]:
    """Prove the node and send each of `asks`; "RECEIPT" asks for that of the answer before it."""
    accepted = ("face-aci", "face-ehbp", "gpu-colocation", "physical-attack")
    expectation = without(fitting_expectation(simulated_roots()), accept_not_proven=accepted)

    async def main() -> list[Got]:
        found: list[Got] = []
        async with httpx2.AsyncClient() as http:
            link = await prove_node(
                node.url,
                role="model",
                expectation=expectation,
                roots=simulated_roots(),
                http=http,
                clock=FixedClock(NOW),
                entropy=CountingEntropy(b"client"),
            )
            for ask in asks:
                if isinstance(ask, str):
                    path = "/v1/aci/receipts/" + found[-1].headers["x-receipt-id"]
                    ask = ("GET", path, b"")  # noqa: PLW2901 - what "RECEIPT" stands for
                method, path, body = ask
                fields = (("content-type", "application/json"),)
                async with await link.sealed.request(method, path, fields, body) as answer:
                    found.append(_got(answer.status, dict(answer.headers), await answer.aread()))
        return found

    return asyncio.run(main())


def _got(status: int, headers: dict[str, str], body: bytes) -> Got:
    if RECEIPT_HEADER in headers:
        return Got(status, headers, body, decode_inline(headers[RECEIPT_HEADER]))
    stripper = ReceiptStripper()
    body = stripper.feed(body)
    rest, text = stripper.finish()
    return Got(status, headers, body + rest, None if text is None else decode_inline(text))


def judge(value: dict[str, Any], **beside: bytes) -> AttestationResult:
    """Our own verifier of ACI, end to end, under the simulated roots."""
    capture = Capture(documents={"report": json.dumps(value).encode(), **beside}, nonce=NONCE)
    collateral = make_platform(SEED, NOW, ()).collateral()
    return verify(
        capture,
        Endorsements(tdx=(collateral,)),
        replace(AUDIT, unsafe_simulated=True),
        now=NOW,
        roots=simulated_roots(),
        nonce=NONCE,
    )


# --- reports --------------------------------------------------------------------------------------


def test_our_verifier_accepts_the_report_and_says_what_it_lacks(node: PlacedNode) -> None:
    result = judge(report(node))
    for name in ("hardware", "keys", "event-log", "freshness"):
        assert result.claim(name).status is Status.PASS, name
    for claim in (ClaimName.GPU, ClaimName.MODEL_WEIGHTS, ClaimName.WORKLOAD_COMPLETE):
        assert result.claim(claim.value).status is Status.NOT_PROVEN


def test_a_reader_written_from_the_description_accepts_it_too(node: PlacedNode) -> None:
    keyset = require_bound(report(node), NONCE.hex())
    assert keyset == keyset_document(node.identity.current.keys.keyset, tls_spki_sha256=None)
    assert [key["algo"] for key in keyset["e2ee_public_keys"]] == [
        "confide-channel-mlkem768-x25519",
        "confide-channel-x25519",
    ]


def test_the_key_of_ehbp_is_bound_where_that_face_is_on(place: Place) -> None:
    node = place.node(faces=(FaceName.ACI, FaceName.EHBP))
    keyset = require_bound(report(node), NONCE.hex())
    [key] = [key for key in keyset["e2ee_public_keys"] if key["algo"].startswith("ehbp-")]
    raw = httpx2.get(node.url + "/.well-known/hpke-keys").content
    assert raw[3:35].hex() == key["public_key"]
    assert raw[0] == int(key["key_id"])


def test_without_a_nonce_nothing_is_fresh(node: PlacedNode) -> None:
    value = report(node, "")
    require_bound(value, None)
    assert judge(value).claim("freshness").status is Status.NOT_PROVEN


def test_the_report_names_what_each_face_lacks(node: PlacedNode) -> None:
    own = report(node)["attestation"]["evidence"]["confide"]
    assert own["lacks"] == [LACKS[FaceName.ACI]]
    assert own["keyset"] == node.identity.current.keys.keyset.digest.hex()


@pytest.mark.parametrize(
    "query",
    [
        "?nonce=",
        "?nonce=00",
        f"?nonce={NONCE.hex().upper()}",
        f"?nonce={NONCE.hex()}00",
        f"?nonce={NONCE.hex()}&nonce={NONCE.hex()}",
        f"?nonce={NONCE.hex()}&" + "x=1&" * 300,
    ],
    ids=["empty", "short", "upper case", "long", "twice", "a long query"],
)
def test_anything_else_than_a_nonce_is_refused_as_aci_refuses(node: PlacedNode, query: str) -> None:
    answer = httpx2.get(node.url + PATH + query)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert answer.headers["x-aci-version"] == "aci/1"


def test_a_report_is_asked_for_with_get(node: PlacedNode) -> None:
    assert httpx2.post(node.url + PATH).status_code == 405


def test_every_rotation_has_a_report_of_its_own(node: PlacedNode) -> None:
    before = report(node)["workload_keyset_digest"]
    node.rotate()
    after = report(node)
    require_bound(after, NONCE.hex())
    assert after["workload_keyset_digest"] != before


def test_there_is_no_report_once_something_measured_changed(node: PlacedNode) -> None:
    async def changed() -> None:
        raise Unavailable("weights were touched")

    object.__setattr__(node.identity.current.attester, "unchanged", changed)
    answer = httpx2.get(node.url + PATH)
    assert answer.status_code == 503
    assert "weights" not in answer.text


# --- receipts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [ASKED, STREAMED], ids=["whole", "streamed"])
def test_a_call_has_a_receipt_that_both_readers_accept(node: PlacedNode, asked: bytes) -> None:
    value = report(node)
    answer, receipt = sealed(node, ("POST", CHAT, asked), "RECEIPT")
    assert answer.headers["x-aci-keyset-digest"] == value["workload_keyset_digest"]
    keyset = require_bound(value, NONCE.hex())
    read = require_receipt(receipt.body, keyset, asked, answer.body)
    assert read["chat_id"] == "c-1"
    assert (read["model"], read["endpoint"], read["method"]) == (MODEL, CHAT, "POST")
    assert read["served_at"] == int(NOW.timestamp())
    result = judge(value, receipt=receipt.body, request=asked, response=answer.body)
    assert result.claim(ClaimName.RESPONSE_SIGNATURE.value).status is Status.PASS


def test_a_receipt_names_our_own_receipt_of_the_call(node: PlacedNode) -> None:
    answer, receipt = sealed(node, ("POST", CHAT, ASKED), "RECEIPT")
    assert answer.receipt is not None
    *_, last = json.loads(receipt.body)["event_log"]
    digest = f"sha256:{answer.receipt.digest.hex()}"
    own = json.loads(answer.receipt.payload)["predicate"]["id"]
    expected = {"type": "confide.receipt", "id": own, "digest": digest, "finish": "complete"}
    assert last == expected


def test_an_engine_beside_the_node_is_named_as_not_verified(node: PlacedNode) -> None:
    assert report(node)["service_capabilities"]["serving"] == "aggregator"
    _, receipt = sealed(node, ("POST", CHAT, ASKED), "RECEIPT")
    [event] = [e for e in json.loads(receipt.body)["event_log"] if e["type"] == "upstream.verified"]
    assert (event["result"], event["required"]) == ("failed", False)


def test_other_bytes_are_not_what_the_receipt_is_about(node: PlacedNode) -> None:
    answer, receipt = sealed(node, ("POST", CHAT, ASKED), "RECEIPT")
    with pytest.raises(Rejected):
        judge(report(node), receipt=receipt.body, request=ASKED + b" ", response=answer.body)


def test_a_refusal_has_a_receipt_without_a_model_or_a_forwarded_body(node: PlacedNode) -> None:
    asked = json.dumps({"model": "another", "messages": []}).encode()
    answer, receipt = sealed(node, ("POST", CHAT, asked), "RECEIPT")
    assert answer.status == 404
    keyset = require_bound(report(node), NONCE.hex())
    read = require_receipt(receipt.body, keyset, asked, answer.body)
    assert read["model"] is None
    kinds = [event["type"] for event in read["event_log"]]
    assert kinds == ["request.received", "response.returned", "confide.receipt"]


def test_after_a_rotation_the_receipt_is_of_the_keyset_that_was_sealed_to(
    node: PlacedNode,
) -> None:
    before = report(node)
    first, _ = sealed(node, ("POST", CHAT, ASKED), "RECEIPT")
    node.rotate()
    later, receipt = sealed(node, ("POST", CHAT, ASKED), "RECEIPT")
    assert first.headers["x-aci-keyset-digest"] == before["workload_keyset_digest"]
    assert later.headers["x-aci-keyset-digest"] != before["workload_keyset_digest"]
    require_receipt(receipt.body, require_bound(report(node), NONCE.hex()), ASKED, later.body)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/aci/receipts/",
        "/v1/aci/receipts/c-1",
        "/v1/aci/receipts/aci-" + "0" * 32,
        "/v1/aci/sessions/" + "0" * 64,
        "/v1/aci/keys",
    ],
)
def test_what_is_not_there_looks_like_nothing(node: PlacedNode, path: str) -> None:
    _, answer = sealed(node, ("POST", CHAT, ASKED), ("GET", path, b""))
    assert answer.status == 404
    assert json.loads(answer.body)["error"]["code"] == "not_found"


def test_no_session_is_listed(node: PlacedNode) -> None:
    [answer] = sealed(node, ("GET", "/v1/aci/sessions", b""))
    assert json.loads(answer.body) == {"api_version": "aci/1", "sessions": []}


def test_what_has_no_receipt_names_none(node: PlacedNode) -> None:
    [answer] = sealed(node, ("GET", "/v1/models", b""))
    assert answer.headers["x-aci-version"] == "aci/1"
    assert "x-receipt-id" not in answer.headers


@pytest.mark.parametrize("path", ["/v1/aci/receipts/x", "/v1/aci/sessions", CHAT])
def test_nothing_but_reports_is_served_in_clear(node: PlacedNode, path: str) -> None:
    assert httpx2.get(node.url + path).status_code == 404


def test_off_unless_named(place: Place) -> None:
    node = place.node()
    assert httpx2.get(node.url + PATH).status_code == 404
    accepted = sealed(node, ("POST", CHAT, ASKED), ("GET", "/v1/aci/sessions", b""))
    assert "x-receipt-id" not in accepted[0].headers
    assert accepted[1].status == 404
