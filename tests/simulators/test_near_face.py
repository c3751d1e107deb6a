"""The NEAR face from outside: who knows the wire description alone verifies and talks to it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from near_face_place import (
    EVENTS,
    FINGERPRINT,
    MODEL,
    WHOLE,
    NearPlace,
    endorsements,
    event,
    streamed,
    whole,
)
from near_stranger import (
    Ed25519Session,
    Node,
    check_report,
    check_signature,
    data_lines,
    keccak256,
    session,
)
from nodes import NOW, roots

from confide.appraisal.claim_names import ClaimName
from confide.appraisal.service_profiles import AUDIT, STRICT
from confide.errors import (
    ConfigurationError,
    EvidenceRejected,
    PolicyRejected,
    Rejected,
    Unavailable,
)
from confide.formats.verify import verify
from confide.node.near import NearFace
from confide.rats import Status
from confide.trust.roots import VENDOR_ROOTS
from confide.wire.service import Capture

if TYPE_CHECKING:
    import httpx2

    from confide.appraisal.service_policy import Policy
    from confide.rats import AttestationResult
    from confide.trust.roots import Roots

NONCE = hashlib.sha256(b"the caller's nonce").digest()
CHAT = "/v1/chat/completions"
ALGORITHMS = ["ecdsa", "ed25519"]
QUESTION: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "secret"}]}


@pytest.fixture
def place() -> NearPlace:
    return NearPlace()


@pytest.fixture
def tls_place() -> NearPlace:
    return NearPlace(tls=True)


def report(place: NearPlace, algorithm: str = "ecdsa", **query: str) -> httpx2.Response:
    asked = {"nonce": NONCE.hex(), "signing_algo": algorithm, **query}
    words = "&".join(f"{name}={value}" for name, value in asked.items())
    return place.call("GET", f"/v1/attestation/report?{words}")


def proven(place: NearPlace, algorithm: str = "ecdsa") -> Node:
    return check_report(report(place, algorithm).content, nonce=NONCE, fingerprint=None)


# The report


def test_the_strangers_keccak_is_that_of_ethereum() -> None:
    empty = "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"
    assert keccak256(b"").hex() == empty
    assert len({keccak256(bytes(size)) for size in (134, 135, 136, 137, 272)}) == 5


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_stranger_verifies_the_report(place: NearPlace, algorithm: str) -> None:
    node = proven(place, algorithm)
    assert node.algorithm == algorithm
    for path in ("/.well-known/ohttp-gateway", "/v1/ohttp/config"):
        answer = place.call("GET", path)
        assert answer.headers["content-type"] == "application/ohttp-keys"
        assert answer.content == node.ohttp_config


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_form_with_a_tls_key_binds_it(tls_place: NearPlace, algorithm: str) -> None:
    found = report(tls_place, algorithm, include_tls_fingerprint="true").content
    check_report(found, nonce=NONCE, fingerprint=FINGERPRINT)
    plain = report(tls_place, algorithm).content
    check_report(plain, nonce=NONCE, fingerprint=None)


def test_a_node_without_tls_of_its_own_names_no_fingerprint(place: NearPlace) -> None:
    found = report(place, include_tls_fingerprint="true").content
    check_report(found, nonce=NONCE, fingerprint=None)


def test_ecdsa_and_a_fresh_nonce_are_what_is_left_out(place: NearPlace) -> None:
    first, second = (place.call("GET", "/v1/attestation/report").json() for _ in range(2))
    assert first["signing_algo"] == "ecdsa"
    assert first["request_nonce"] != second["request_nonce"]


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("nonce=00", 400),
        ("nonce=" + "0" * 63 + "g", 400),
        ("nonce=", 400),
        ("nonce=" + "00" * 33, 400),
        ("signing_algo=rsa", 400),
        ("signing_algo=", 400),
        ("include_tls_fingerprint=yes", 400),
        ("signing_algo=ecdsa&signing_algo=ed25519", 400),
        ("nonce=%ff", 400),
        ("signing_address=0x" + "00" * 20, 404),
        ("model=another", 404),
    ],
)
def test_what_cannot_be_answered_is_refused(place: NearPlace, query: str, status: int) -> None:
    answer = place.call("GET", f"/v1/attestation/report?{query}")
    assert answer.status_code == status
    assert "intel_quote" not in answer.text


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_node_is_found_by_its_address_in_any_case(place: NearPlace, algorithm: str) -> None:
    named = report(place, algorithm).json()["signing_address"]
    upper = "0x" + named[2:].upper() if algorithm == "ecdsa" else named.upper()
    assert report(place, algorithm, signing_address=upper, model=MODEL).status_code == 200


def test_keys_rotate_with_the_keyset_and_the_old_ones_answer_during_the_overlap(
    place: NearPlace,
) -> None:
    old, old_config = proven(place), proven(place).ohttp_config
    place.identity.rotate()
    new = proven(place)
    assert (new.address, new.ohttp_config) != (old.address, old_config)
    assert new.ohttp_config[0] != old_config[0], "the key id of one is not that of the other"
    assert report(place, signing_address="0x" + old.address.hex()).status_code == 200
    place.simulated.clock.time = NOW + timedelta(hours=3)
    place.identity.tick()
    assert report(place, signing_address="0x" + old.address.hex()).status_code == 404


def test_the_keys_are_in_the_attested_keyset(place: NearPlace) -> None:
    keyset = {key.algorithm: key for key in place.simulated.keys.keyset.keys}
    assert keyset["near-secp256k1"].public_key == proven(place, "ecdsa").public_key
    assert keyset["near-Ed25519"].public_key == proven(place, "ed25519").public_key
    assert proven(place).ohttp_config[3:35] == keyset["near-X25519"].public_key
    assert {keyset[name].purpose for name in keyset if name.startswith("near-")} == {"face"}


def test_there_is_no_report_once_something_measured_changed(place: NearPlace) -> None:
    async def refuse() -> None:
        raise Unavailable("something measured has changed")

    object.__setattr__(place.identity.current.attester, "unchanged", refuse)
    answer = report(place)
    assert answer.status_code == 503
    assert "measured" not in answer.text, "what went wrong inside is not told outside"


def test_a_machine_launched_with_another_document_gives_no_report(place: NearPlace) -> None:
    face = NearFace(
        identity=place.identity,
        machine=place.machine(launch=b'{"another": "document"}'),
        inner=place.node,
        model=MODEL,
        fingerprint=None,
    )
    place.app._faces = (face,)
    assert report(place).status_code == 503


@pytest.mark.parametrize("launch", [None, b"\xff"])
def test_the_face_refuses_a_machine_without_a_launch_document(
    place: NearPlace, launch: bytes | None
) -> None:
    with pytest.raises(ConfigurationError, match="launch"):
        NearFace(
            identity=place.identity,
            machine=place.machine(launch=launch),
            inner=place.node,
            model=MODEL,
            fingerprint=None,
        )


# Our own verifier


def verified(
    place: NearPlace,
    policy: Policy,
    *,
    known: Roots | None = None,
    edit: Any = None,
    **beside: bytes,
) -> AttestationResult:
    found = report(place, "ed25519", include_tls_fingerprint="true").json()
    if edit is not None:
        edit(found)
    documents = {
        "report": json.dumps(found).encode(),
        "ohttp": place.call("GET", "/.well-known/ohttp-gateway").content,
        **beside,
    }
    capture = Capture(documents=documents, nonce=NONCE, tls_spki_sha256=FINGERPRINT)
    return verify(capture, endorsements(), policy, now=NOW, roots=known or roots(), nonce=NONCE)


LOOKING = replace(AUDIT, unsafe_simulated=True)


def test_our_own_verifier_of_near_proves_the_node(tls_place: NearPlace) -> None:
    result = verified(tls_place, LOOKING)
    assert result.simulated
    passed = {claim.name for claim in result.claims if claim.status is Status.PASS}
    assert passed >= {
        name.value
        for name in (
            *(ClaimName.HARDWARE, ClaimName.TCB, ClaimName.DEBUG_OFF, ClaimName.FRESHNESS),
            *(ClaimName.KEYS, ClaimName.TLS, ClaimName.EVENT_LOG, ClaimName.WORKLOAD),
            *(ClaimName.GPU, ClaimName.GPU_FIRMWARE, ClaimName.GPU_FRESHNESS),
        )
    }
    assert result.claim("workload").value.startswith("confide-launch")
    assert not [claim for claim in result.claims if claim.status is Status.FAIL]


@pytest.mark.parametrize("policy", [STRICT, AUDIT])
def test_policies_refuse_what_is_simulated_unless_they_say_otherwise(
    tls_place: NearPlace, policy: Policy
) -> None:
    with pytest.raises(Rejected):
        verified(tls_place, policy)


def test_the_strict_policy_refuses_a_node_that_nobody_expects(tls_place: NearPlace) -> None:
    with pytest.raises(PolicyRejected):
        verified(tls_place, replace(STRICT, unsafe_simulated=True))


def test_the_vendors_roots_did_not_sign_it(tls_place: NearPlace) -> None:
    with pytest.raises(EvidenceRejected):
        verified(tls_place, LOOKING, known=VENDOR_ROOTS)


def _key(found: dict[str, Any]) -> None:
    found["signing_public_key"] = "11" * 32


def _address(found: dict[str, Any]) -> None:
    found |= {"signing_address": "11" * 32, "signing_public_key": "11" * 32}


def _nonce(found: dict[str, Any]) -> None:
    found["request_nonce"] = "00" * 32


def _event(found: dict[str, Any]) -> None:
    found["event_log"][-2]["event_payload"] = "00"


def _firmware(found: dict[str, Any]) -> None:
    found["event_log"][0]["digest"] = "00" * 48


def _launch(found: dict[str, Any]) -> None:
    found["info"]["tcb_info"]["app_compose"] += " "


def _ohttp(found: dict[str, Any]) -> None:
    found["ohttp_attestation"]["signature"] = "00" * 64


@pytest.mark.parametrize("edit", [_key, _address, _nonce, _event, _firmware, _launch, _ohttp])
def test_an_edited_report_is_refused(tls_place: NearPlace, edit: Any) -> None:
    def both(found: dict[str, Any]) -> None:
        edit(found)
        outer = ("all_attestations", "ohttp_key_config", "ohttp_attestation")
        found["all_attestations"] = [
            {name: value for name, value in found.items() if name not in outer}
        ]

    with pytest.raises(Rejected):
        verified(tls_place, LOOKING, edit=both)


# Signatures


def ask_in_clear(place: NearPlace, **changed: Any) -> tuple[bytes, httpx2.Response]:
    raw = json.dumps({**QUESTION, **changed}).encode()
    return raw, place.call("POST", CHAT, body=raw, tls=True)


def look_up(place: NearPlace, name: str, algorithm: str, *, tls: bool = True) -> httpx2.Response:
    path = f"/v1/signature/{name}?model={MODEL}&signing_algo={algorithm}"
    return place.call("GET", path, tls=tls)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_answer_is_signed_over_the_bytes_that_went(
    place: NearPlace, algorithm: str, *, stream: bool
) -> None:
    place.upstream.answer = streamed() if stream else whole()
    raw, answer = ask_in_clear(place, stream=stream)
    assert answer.status_code == 200
    assert answer.content.startswith(b"".join(EVENTS) if stream else json.dumps(WHOLE).encode())
    for name in ("chatcmpl-0123", answer.headers["confide-chat-id"]):
        signed = look_up(place, name, algorithm).json()
        assert signed["signature_kind"] == "provider_tee"
        check_signature(
            signed,
            node=proven(place, algorithm),
            model=MODEL,
            request=raw,
            response=answer.content,
        )


def test_our_own_verifier_accepts_the_signature(tls_place: NearPlace) -> None:
    raw, answer = ask_in_clear(tls_place)
    signed = look_up(tls_place, "chatcmpl-0123", "ed25519").content
    result = verified(tls_place, LOOKING, signature=signed, request=raw, response=answer.content)
    assert result.claim("response-signature").status is Status.PASS
    with pytest.raises(Rejected):
        verified(tls_place, LOOKING, signature=signed, request=raw, response=answer.content + b" ")


def test_a_refusal_is_not_signed(place: NearPlace) -> None:
    _, answer = ask_in_clear(place, model="another")
    assert answer.status_code == 404
    assert look_up(place, answer.headers["confide-chat-id"], "ecdsa").status_code == 404


def test_an_answer_without_an_id_is_found_by_ours(place: NearPlace) -> None:
    place.upstream.answer = whole(id=None)
    _, answer = ask_in_clear(place)
    assert look_up(place, "chatcmpl-0123", "ecdsa").status_code == 404
    assert look_up(place, answer.headers["confide-chat-id"], "ecdsa").status_code == 200


@pytest.mark.parametrize("query", ["signing_algo=rsa", "model=another"])
def test_a_look_up_of_something_else_is_refused(place: NearPlace, query: str) -> None:
    ask_in_clear(place)
    answer = place.call("GET", f"/v1/signature/chatcmpl-0123?{query}", tls=True)
    assert answer.status_code in (400, 404)


def test_signatures_are_kept_for_twenty_minutes(place: NearPlace) -> None:
    ask_in_clear(place)
    place.simulated.clock.time = NOW + timedelta(seconds=1200)
    assert look_up(place, "chatcmpl-0123", "ecdsa").status_code == 200
    place.simulated.clock.time = NOW + timedelta(seconds=1201)
    answer = look_up(place, "chatcmpl-0123", "ecdsa")
    assert (answer.status_code, answer.json()["error"]["message"]) == (
        404,
        "Chat id not found or expired",
    )


def test_digests_of_hidden_texts_are_not_told_where_others_listen(place: NearPlace) -> None:
    ask_in_clear(place)
    assert look_up(place, "chatcmpl-0123", "ecdsa", tls=False).status_code == 404


def test_a_signature_outlives_the_keyset_it_belongs_to(place: NearPlace) -> None:
    old = proven(place)
    raw, answer = ask_in_clear(place)
    place.identity.rotate()
    signed = look_up(place, "chatcmpl-0123", "ecdsa").json()
    check_signature(signed, node=old, model=MODEL, request=raw, response=answer.content)


# What is refused, and what is not there


@pytest.mark.parametrize(
    "path",
    [CHAT, "/v1/completions", "/v1/embeddings", "/v1/rerank", "/v1/score", "/v1/tokenize"],
)
def test_calls_in_clear_are_refused_where_others_listen(place: NearPlace, path: str) -> None:
    answer = place.call("POST", path, body=QUESTION)
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "plaintext_refused"
    assert place.upstream.seen == []


def test_over_the_nodes_own_tls_other_routes_are_served(place: NearPlace) -> None:
    place.upstream.answer = whole(data=[])
    answer = place.call("POST", "/v1/embeddings", body={"model": MODEL, "input": "x"}, tls=True)
    assert answer.status_code == 200
    answer = place.call("POST", "/v1/tokenize", body={"model": MODEL, "prompt": "x"}, tls=True)
    assert answer.status_code == 200
    assert [path for path, _ in place.upstream.seen] == ["/v1/embeddings", "/tokenize"]


@pytest.mark.parametrize("path", ["/v1/models", "/v1/model/list"])
def test_the_catalogue_is_told_to_everybody(place: NearPlace, path: str) -> None:
    answer = place.call("GET", path)
    assert [model["id"] for model in answer.json()["data"]] == [MODEL]


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", CHAT), ("POST", "/v1/attestation/report"), ("GET", "/ohttp"), ("PUT", "/v1/models")],
)
def test_another_method_is_refused(place: NearPlace, method: str, path: str) -> None:
    assert place.call(method, path).status_code == 405


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/attestation/report"),
        ("GET", "/v1/signature/chatcmpl-0123"),
        ("GET", "/.well-known/ohttp-gateway"),
        ("GET", "/v1/ohttp/config"),
        ("POST", "/ohttp"),
        ("GET", "/v1/models"),
        ("POST", CHAT),
    ],
)
@pytest.mark.parametrize("tls", [False, True])
def test_without_the_face_none_of_its_routes_is_there(method: str, path: str, *, tls: bool) -> None:
    place = NearPlace(faces=())
    assert place.call(method, path, tls=tls).status_code == 404


@pytest.mark.parametrize(
    "path", ["/v1/receipts/rcpt-1", "/confide/v1/closing", "/v1/responses", "/sleep"]
)
def test_the_face_leads_to_no_other_route(place: NearPlace, path: str) -> None:
    for method in ("GET", "POST"):
        assert place.call(method, path, tls=True).status_code == 404


def test_the_header_of_a_listener_cannot_be_sent(place: NearPlace) -> None:
    headers = {"confide.tls": "1", "x-forwarded-proto": "https", "forwarded": "proto=https"}
    assert place.call("POST", CHAT, body=QUESTION, headers=headers).status_code == 403


# Receipts


def test_a_call_in_clear_carries_its_receipt_and_says_its_way(place: NearPlace) -> None:
    raw, answer = ask_in_clear(place)
    assert "confide-receipt" in answer.headers
    (predicate,) = place.receipts()
    assert predicate["record"]["way"] == "near/tls"
    assert predicate["sealed_request"] == hashlib.sha256(raw).hexdigest()
    assert predicate["keyset"] == place.simulated.keys.keyset.digest.hex()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("stream", [False, True])
def test_digests_of_plaintext_do_not_travel_beside_sealed_fields(
    place: NearPlace, algorithm: str, *, stream: bool
) -> None:
    place.upstream.answer = streamed() if stream else whole()
    body, headers = sealed_question(place, algorithm, stream=stream)
    answer = place.call("POST", CHAT, body=body, headers=headers)
    (predicate,) = place.receipts()
    record = predicate["record"]
    assert record["way"] == f"near/e2ee-{algorithm}"
    for digest in (record["request"], record["response"]):
        assert digest not in answer.text
        assert all(digest not in value for value in answer.headers.values())
    assert "confide-receipt" not in answer.text
    assert "confide-receipt" not in answer.headers


# Sealed fields


def sealed_question(
    place: NearPlace, algorithm: str, **changed: Any
) -> tuple[dict[str, Any], dict[str, str]]:
    client = session(proven(place, algorithm))
    messages = [{"role": "user", "content": client.seal("secret")}]
    return {"model": MODEL, "messages": messages, **changed}, client.headers


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_stranger_asks_and_reads_with_sealed_fields(place: NearPlace, algorithm: str) -> None:
    node = proven(place, algorithm)
    client = session(node)
    raw = json.dumps(
        {"model": MODEL, "messages": [{"role": "user", "content": client.seal("secret")}]}
    ).encode()
    answer = place.call("POST", CHAT, body=raw, headers=client.headers)
    assert answer.status_code == 200
    assert place.upstream.seen == [(CHAT, QUESTION)]
    message = answer.json()["choices"][0]["message"]
    assert message["role"] == "assistant"
    assert client.open(message["content"]) == "the answer"
    assert client.open(message["reasoning"]) == "because"
    assert "answer" not in answer.text
    assert answer.json()["usage"]["total_tokens"] == 5
    signed = look_up(place, "chatcmpl-0123", algorithm, tls=False).json()
    check_signature(signed, node=node, model=MODEL, request=raw, response=answer.content)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_delta_of_a_stream_is_sealed_by_itself(place: NearPlace, algorithm: str) -> None:
    node = proven(place, algorithm)
    client = session(node)
    tool = {"index": 0, "id": "functions.pay:0", "type": "function"}
    place.upstream.answer = streamed(
        b": a comment that says secret things\n\n",
        *EVENTS[:3],
        event(tool_calls=[{**tool, "function": {"name": "pay", "arguments": "{}"}}]),
        EVENTS[3],
    )
    raw = json.dumps(
        {
            "model": MODEL,
            "messages": [{"role": "user", "content": client.seal("secret")}],
            "stream": True,
        }
    ).encode()
    answer = place.call("POST", CHAT, body=raw, headers=client.headers)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *lines, done = data_lines(answer.content)
    assert done == "[DONE]"
    deltas = [json.loads(line)["choices"][0]["delta"] for line in lines]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert [client.open(delta["content"]) for delta in deltas[1:3]] == ["the ", "answer"]
    call = deltas[3]["tool_calls"][0]
    assert client.open(call["function"]["name"]) == "pay"
    assert client.open(call["id"]) == "functions.pay:0", "an id can hold the name of a function"
    for word in ("answer", "secret", "pay"):
        assert word not in answer.text
    signed = look_up(place, "chatcmpl-0123", algorithm, tls=False).json()
    check_signature(signed, node=node, model=MODEL, request=raw, response=answer.content)


def test_all_fields_are_opened_and_sealed_for_who_asks(place: NearPlace) -> None:
    client = session(proven(place, "ed25519"))
    schema = {"type": "object", "properties": {"to": {"type": "string"}}}
    body = {
        "model": MODEL,
        "messages": [
            {
                "role": "user",
                "name": client.seal("alice"),
                "content": [
                    {"type": "text", "text": client.seal("look")},
                    {
                        "type": "image_url",
                        "image_url": {"url": client.seal("data:image/png;base64,AA==")},
                    },
                ],
            },
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": "call-1",
                        "type": "function",
                        "function": {"name": client.seal("pay"), "arguments": client.seal("{}")},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "call-1", "content": client.seal("")},
        ],
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": client.seal("pay"),
                    "description": client.seal("pays"),
                    "parameters": client.seal(json.dumps(schema)),
                },
            }
        ],
        "tool_choice": {"type": "function", "function": {"name": client.seal("pay")}},
    }
    headers = {**client.headers, "x-encrypt-all-fields": "true"}
    assert place.call("POST", CHAT, body=body, headers=headers).status_code == 200
    ((_, seen),) = place.upstream.seen
    assert seen["messages"][0]["name"] == "alice"
    assert seen["messages"][0]["content"][1]["image_url"]["url"].startswith("data:image/png")
    assert seen["messages"][1]["tool_calls"][0]["function"] == {"name": "pay", "arguments": "{}"}
    assert seen["messages"][2]["content"] == ""
    assert seen["tools"][0]["function"]["parameters"] == schema
    assert seen["tool_choice"]["function"] == {"name": "pay"}


PARTS = [
    {"type": "text", "text": "look"},
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
]


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (json.dumps(PARTS), PARTS),
        ("[1, 2]", "[1, 2]"),
        ("[]", "[]"),
        ("[not JSON", "[not JSON"),
        ('[{"type": 1}]', '[{"type": 1}]'),
        ('{"type": "text"}', '{"type": "text"}'),
    ],
)
def test_content_parts_come_sealed_as_one_field(place: NearPlace, text: str, read: Any) -> None:
    client = session(proven(place, "ed25519"))
    body = {"model": MODEL, "messages": [{"role": "user", "content": client.seal(text)}]}
    assert place.call("POST", CHAT, body=body, headers=client.headers).status_code == 200
    assert place.upstream.seen[0][1]["messages"][0]["content"] == read


def test_the_model_key_alone_asks_for_no_sealed_fields(place: NearPlace) -> None:
    headers = {"x-model-pub-key": proven(place).public_key.hex()}
    assert place.call("POST", CHAT, body=QUESTION, headers=headers).status_code == 403
    answer = place.call("POST", CHAT, body=QUESTION, headers=headers, tls=True)
    assert answer.json()["choices"][0]["message"]["content"] == "the answer"


def test_completions_are_sealed_too(place: NearPlace) -> None:
    client = session(proven(place, "ecdsa"))
    place.upstream.answer = whole(choices=[{"index": 0, "text": "words", "stop_reason": 17}])
    body = {"model": MODEL, "prompt": [client.seal("one"), client.seal("two")]}
    answer = place.call("POST", "/v1/completions", body=body, headers=client.headers)
    assert place.upstream.seen[0][1]["prompt"] == ["one", "two"]
    choice = answer.json()["choices"][0]
    assert client.open(choice["text"]) == "words"
    assert choice["stop_reason"] is None, "a number can be a token of the text"


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("tools", {"tools": [{"type": "function"}]}),
    ("tool_choice", {"tool_choice": {"type": "function"}}),
    ("stop", {"stop": "END"}),
    ("user", {"user": "alice"}),
    ("logprobs", {"logprobs": True}),
    ("response_format", {"response_format": {"type": "json_schema", "json_schema": {}}}),
    ("metadata", {"metadata": {"a": "b"}}),
]


@pytest.mark.parametrize(("member", "changed"), REFUSED, ids=[name for name, _ in REFUSED])
def test_what_would_stay_readable_is_refused_by_name(
    place: NearPlace, member: str, changed: dict[str, Any]
) -> None:
    body, headers = sealed_question(place, "ed25519", **changed)
    answer = place.call("POST", CHAT, body=body, headers=headers)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == "not_protected"
    assert error["message"].startswith(member)
    assert place.upstream.seen == []


def test_a_route_whose_answers_cannot_be_sealed_is_refused(place: NearPlace) -> None:
    client = session(proven(place, "ed25519"))
    body = {"model": MODEL, "input": client.seal("secret")}
    answer = place.call("POST", "/v1/embeddings", body=body, headers=client.headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "not_protected")


def _headers(place: NearPlace) -> dict[str, str]:
    return Ed25519Session(proven(place, "ed25519").public_key).headers


BAD_HEADERS: dict[str, dict[str, str | None]] = {
    "no client key": {"x-client-pub-key": None},
    "no algorithm": {"x-signing-algo": None},
    "neither": {"x-client-pub-key": None, "x-signing-algo": None},
    "another algorithm": {"x-signing-algo": "rsa"},
    "no hex": {"x-client-pub-key": "zz" * 32},
    "short": {"x-client-pub-key": "11" * 31},
    "long": {"x-client-pub-key": "11" * 33},
    "of ecdsa": {"x-signing-algo": "ecdsa"},
    "no point": {"x-client-pub-key": "02" + "00" * 31},
    "version 0": {"x-encryption-version": "0"},
    "version 3": {"x-encryption-version": "3"},
    "version in words": {"x-encryption-version": "two"},
    "all fields": {"x-encrypt-all-fields": "yes"},
    "another model key": {"x-model-pub-key": "11" * 32},
}


@pytest.mark.parametrize("changed", BAD_HEADERS.values(), ids=BAD_HEADERS)
def test_bad_combinations_of_headers_are_400(
    place: NearPlace, changed: dict[str, str | None]
) -> None:
    given: dict[str, str | None] = {**_headers(place), **changed}
    headers = {name: value for name, value in given.items() if value is not None}
    body, _ = sealed_question(place, "ed25519")
    for tls in (False, True):
        answer = place.call("POST", CHAT, body=body, headers=headers, tls=tls)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "invalid_encryption_headers"
    assert place.upstream.seen == []


def test_a_header_that_stands_twice_is_400(place: NearPlace) -> None:
    given = _headers(place)
    body, _ = sealed_question(place, "ed25519")
    headers = [*given.items(), ("x-client-pub-key", given["x-client-pub-key"])]
    assert place.call("POST", CHAT, body=body, headers=headers).status_code == 400


@pytest.mark.parametrize("version", [None, "1"])
def test_version_1_of_ed25519_is_refused_and_told_why(
    place: NearPlace, version: str | None
) -> None:
    body, headers = sealed_question(place, "ed25519")
    del headers["x-encryption-version"]
    if version is not None:
        headers["x-encryption-version"] = version
    answer = place.call("POST", CHAT, body=body, headers=headers)
    assert answer.status_code == 400
    assert "different ciphers" in answer.json()["error"]["message"]


def test_the_model_key_of_the_report_is_accepted(place: NearPlace) -> None:
    for algorithm in ALGORITHMS:
        body, headers = sealed_question(place, algorithm)
        headers["x-model-pub-key"] = proven(place, algorithm).public_key.hex()
        assert place.call("POST", CHAT, body=body, headers=headers).status_code == 200


def _flipped(sealed: str) -> str:
    return sealed[:-1] + ("0" if sealed[-1] != "0" else "1")


@pytest.mark.parametrize(
    "content",
    ["in clear", "00", "zz", "1", None, _flipped, 7, {"a": "b"}],
    ids=["clear", "short", "no hex", "odd", "other key", "flipped", "number", "object"],
)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_whatever_does_not_open_fails_in_the_same_words(
    place: NearPlace, algorithm: str, content: Any
) -> None:
    client = session(proven(place, algorithm))
    if content is None:
        other = replace(client, node_key=proven(NearPlaceElsewhere(), algorithm).public_key)
        content = other.seal("secret")
    elif callable(content):
        content = content(client.seal("secret"))
    body = {"model": MODEL, "messages": [{"role": "user", "content": content}]}
    answer = place.call("POST", CHAT, body=body, headers=client.headers)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["message"]) == ("decryption_failed", "Decryption failed")
    assert place.upstream.seen == []


def NearPlaceElsewhere() -> NearPlace:  # noqa: N802 - another node
    place = NearPlace()
    place.identity.rotate()
    return place


def _other_encoding(sealed: str, algorithm: str) -> str:
    """The same field with another encoding of its ephemeral key: the secret stays the same."""
    raw = bytearray.fromhex(sealed)
    if algorithm == "ed25519":
        raw[31] ^= 0x80
        return raw.hex()
    prime = 2**256 - 2**32 - 977
    negated = prime - int.from_bytes(raw[33:65], "big")
    return (bytes(raw[:33]) + negated.to_bytes(32, "big") + bytes(raw[65:])).hex()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("disguised", [False, True])
def test_a_field_that_somebody_saw_cannot_be_sent_again(
    place: NearPlace, algorithm: str, *, disguised: bool
) -> None:
    body, headers = sealed_question(place, algorithm)
    assert place.call("POST", CHAT, body=body, headers=headers).status_code == 200
    # Somebody who listened asks the model to repeat it, sealed to a key of his own.
    listener = session(proven(place, algorithm))
    seen = body["messages"][0]["content"]
    seen = _other_encoding(seen, algorithm) if disguised else seen
    messages = [
        {"role": "user", "content": seen},
        {"role": "user", "content": listener.seal("Repeat the text above.")},
    ]
    stolen = {"model": MODEL, "messages": messages}
    answer = place.call("POST", CHAT, body=stolen, headers=listener.headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "replayed")
    assert len(place.upstream.seen) == 1


def test_one_field_twice_in_a_request_is_refused(place: NearPlace) -> None:
    client = session(proven(place, "ed25519"))
    message = {"role": "user", "content": client.seal("secret")}
    body = {"model": MODEL, "messages": [message, message]}
    assert place.call("POST", CHAT, body=body, headers=client.headers).status_code == 409


def test_a_window_that_is_full_refuses(place: NearPlace) -> None:
    place.face._keyring.current.window._max_fields = 1
    first, headers = sealed_question(place, "ed25519")
    assert place.call("POST", CHAT, body=first, headers=headers).status_code == 200
    second, headers = sealed_question(place, "ed25519")
    assert place.call("POST", CHAT, body=second, headers=headers).status_code == 503


def test_requests_to_the_keys_before_a_rotation_are_opened_during_the_overlap(
    place: NearPlace,
) -> None:
    before = place.simulated.keys.keyset.digest
    body, headers = sealed_question(place, "ed25519")
    place.identity.rotate()
    assert place.call("POST", CHAT, body=body, headers=headers).status_code == 200
    (predicate,) = place.receipts()
    assert predicate["keyset"] == before.hex()
    place.simulated.clock.time = NOW + timedelta(hours=3)
    assert place.call("POST", CHAT, body=body, headers=headers).status_code == 400


def test_a_stream_that_cannot_be_read_ends_in_an_error_and_nothing_leaks(place: NearPlace) -> None:
    place.upstream.answer = streamed(EVENTS[1], b"data: secret, not JSON\n\n", EVENTS[2])
    body, headers = sealed_question(place, "ed25519", stream=True)
    answer = place.call("POST", CHAT, body=body, headers=headers)
    lines = [json.loads(line) for line in data_lines(answer.content)]
    assert lines[-1]["error"]["code"] == "engine_failed"
    assert len(lines) == 2
    assert "secret" not in answer.text


def test_an_engine_that_fails_in_a_sealed_call_says_no_text(place: NearPlace) -> None:
    place.upstream.answer = whole()
    place.upstream.answer.status = 400
    body, headers = sealed_question(place, "ed25519")
    answer = place.call("POST", CHAT, body=body, headers=headers)
    assert answer.status_code == 400
    assert "answer" not in answer.text
