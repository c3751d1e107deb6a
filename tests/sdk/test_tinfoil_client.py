"""The EHBP face and its own client: the unmodified `tinfoil` package, and the SDK in front of it.

What `tinfoil` verifies about its own enclaves, no node of ours can show: its attestation step is
answered here with the key that our own verifier proved. Everything after that step is its code:
HPKE and frames (`ehbp`), bound origins, another try after a rotation, the OpenAI SDK on top.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from typing import TYPE_CHECKING, Any

import ehbp
import httpx
import httpx2
import openai
import pytest
from ehbp import EHBPTransport
from nodes import NOW, CountingEntropy, FixedClock, fitting_expectation, without
from nodes import roots as simulated_roots
from openai import AsyncOpenAI, OpenAI
from proven_place import MODEL
from tinfoil import SecureClient  # type: ignore[import-untyped]
from tinfoil.client import GroundTruth  # type: ignore[import-untyped]

from confide.adapters.prove import prove_node
from confide.channel.ehbp import open_receipt, response_key
from confide.crypto.ed25519 import verify_ed25519
from confide.errors import Rejected
from confide.node.ehbp import ALGORITHM, SEALED_RECEIPT_FIELD
from confide.reasons import Reason
from confide.receipts.inline import ReceiptStripper, decode_inline
from confide.wire.dsse import Envelope, pae, parse_envelope
from confide.wire.faces import FaceName
from confide.wire.json import parse_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proven_place import Place, PlacedNode

    from confide.wire.keyset import Keyset

MESSAGES: Any = [{"role": "user", "content": "What colour?"}]
ANSWER = "The answer is blue."
CHAT = "/v1/chat/completions"


@pytest.fixture
def node(place: Place) -> PlacedNode:
    return place.node(faces=(FaceName.EHBP,))


def proven_keyset(node: PlacedNode) -> Keyset:
    """The keyset, after the appraisal that every client of ours makes."""
    expectation = without(
        fitting_expectation(simulated_roots()),
        accept_not_proven=("face-ehbp", "gpu-colocation", "physical-attack"),
    )

    async def prove() -> Keyset:
        async with httpx2.AsyncClient() as http:
            link = await prove_node(
                node.url,
                role="model",
                expectation=expectation,
                roots=simulated_roots(),
                http=http,
                clock=FixedClock(NOW),
                entropy=CountingEntropy(b"prover"),
            )
        return link.node.keyset

    return asyncio.run(prove())


def hpke_key(keyset: Keyset) -> str:
    [key] = [key for key in keyset.keys if key.algorithm == ALGORITHM]
    return key.public_key.hex()


class ProvenByUs(SecureClient):  # type: ignore[misc] # it has no types
    """`SecureClient` whose verification is ours; the rest of it is untouched."""

    def __init__(self, node: PlacedNode) -> None:
        self.proofs = 0
        self.node = node
        super().__init__(
            enclave="simulated.invalid", base_url=node.url + "/v1/", user_cache_secret="none"
        )
        # What it would add to every body is refused by a node (ehbp-face.md 6.4).
        self._user_cache_secret = ""

    def verify(self) -> GroundTruth:
        self.proofs += 1
        key = hpke_key(proven_keyset(self.node))
        self._ground_truth = GroundTruth("", "", "", key)
        return self._ground_truth


@pytest.fixture
def secure(node: PlacedNode) -> ProvenByUs:
    return ProvenByUs(node)


@pytest.fixture
def client(secure: ProvenByUs) -> Iterator[OpenAI]:
    url = secure.node.url + "/v1/"
    http = secure.make_secure_http_client()
    with OpenAI(base_url=url, api_key="k", http_client=http, max_retries=0) as made:
        yield made


def test_a_whole_answer(client: OpenAI, place: Place) -> None:
    made = client.chat.completions.create(model=MODEL, messages=MESSAGES)
    assert made.choices[0].message.content == ANSWER
    assert place.engine.seen[-1]["messages"] == MESSAGES


def test_a_streamed_answer(client: OpenAI) -> None:
    pieces = client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
    words = [piece.choices[0].delta.content or "" for piece in pieces if piece.choices]
    assert len(words) > 2
    assert "".join(words) == ANSWER


def test_the_async_client(secure: ProvenByUs) -> None:
    url, http = secure.node.url + "/v1/", secure.make_secure_async_http_client()

    async def ask() -> str | None:
        async with AsyncOpenAI(base_url=url, api_key="k", http_client=http) as client:
            made = await client.chat.completions.create(model=MODEL, messages=MESSAGES)
            return made.choices[0].message.content

    assert asyncio.run(ask()) == ANSWER


def test_a_body_of_many_frames(client: OpenAI, place: Place) -> None:
    long: Any = [{"role": "user", "content": "word " * 60_000}]
    made = client.chat.completions.create(model=MODEL, messages=long)
    assert made.choices[0].message.content == ANSWER
    assert place.engine.seen[-1]["messages"] == long


def test_a_refusal_inside_comes_back_sealed_and_is_an_error_of_the_sdk(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="another", messages=MESSAGES)
    assert caught.value.code == "model_not_found"


def test_after_a_rotation_the_client_proves_again_and_asks_once_more(
    secure: ProvenByUs, client: OpenAI, place: Place
) -> None:
    asked = secure.proofs
    secure.node.rotate()
    client.chat.completions.create(model=MODEL, messages=MESSAGES)
    assert secure.proofs == asked, "the old key still opens during the overlap"
    secure.node.restart(b"another boot")
    client.chat.completions.create(model=MODEL, messages=MESSAGES)
    assert secure.proofs == asked + 1
    assert len(place.engine.seen) >= 2


def test_a_node_with_the_face_is_refused_where_it_was_not_accepted(node: PlacedNode) -> None:
    async def prove() -> None:
        async with httpx2.AsyncClient() as http:
            await prove_node(
                node.url,
                role="model",
                expectation=fitting_expectation(simulated_roots()),
                roots=simulated_roots(),
                http=http,
                clock=FixedClock(NOW),
                entropy=CountingEntropy(b"prover"),
            )

    with pytest.raises(Rejected) as caught:
        asyncio.run(prove())
    assert caught.value.reason is Reason.CLAIM_NOT_PROVEN


def test_the_clients_own_discovery_gives_the_proven_key(node: PlacedNode) -> None:
    with ehbp.Client.discover(node.url) as client:
        assert client.server_identity.public_key_hex() == hpke_key(proven_keyset(node))


def test_a_key_that_is_not_the_nodes_is_told_as_the_client_knows_it(node: PlacedNode) -> None:
    wrong = EHBPTransport.from_public_key_hex(f"{9:064x}")
    with (
        httpx.Client(transport=wrong) as http,
        pytest.raises(ehbp.KeyConfigMismatchError, match="key configuration mismatch"),
    ):
        http.post(node.url + CHAT, json={"model": MODEL, "messages": MESSAGES})


def test_a_request_without_a_body_is_not_sealed_and_not_served(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.models.list()


def test_the_secret_that_the_client_adds_by_itself_is_refused_in_words(
    secure: ProvenByUs, client: OpenAI, place: Place
) -> None:
    # ehbp-face.md 6.4: a promise to keep caches apart is not taken where it cannot be kept.
    secure._user_cache_secret = "of this user"
    http = secure.make_secure_http_client()
    with (
        client.with_options(http_client=http) as adding,
        pytest.raises(openai.BadRequestError, match="does not take") as caught,
    ):
        adding.chat.completions.create(model=MODEL, messages=MESSAGES)
    assert caught.value.code == "unknown_parameter"
    assert place.engine.seen == []


def require_about(envelope: Envelope, keyset: Keyset, request: bytes, response: bytes) -> None:
    ((key_id, signature),) = envelope.signatures
    keys = {str(key.id): key.public_key for key in keyset.keys if key.algorithm == "Ed25519"}
    verify_ed25519(keys[key_id], signature, pae(envelope.payload))
    record = json.loads(envelope.payload)["predicate"]["record"]
    assert record["way"] == "ehbp"
    assert record["request"] == hashlib.sha256(request).hexdigest()
    assert record["response"] == hashlib.sha256(response).hexdigest()


@pytest.mark.parametrize("stream", [False, True])
def test_the_receipt_is_sealed_too(node: PlacedNode, stream: bool) -> None:
    keyset = proven_keyset(node)
    identity = ehbp.ServerIdentity.from_public_key_hex(hpke_key(keyset))
    request = json.dumps({"model": MODEL, "messages": MESSAGES, "stream": stream}).encode()
    sealed = identity.encrypt_request_body(request)
    assert sealed is not None
    headers = {"ehbp-encapsulated-key": sealed.encapsulated_key.hex()}
    answer = httpx.post(node.url + CHAT, content=sealed.body, headers=headers)
    nonce = bytes.fromhex(answer.headers["ehbp-response-nonce"])
    body = sealed.token.decrypt_response_body(nonce, answer.content)
    assert "confide-receipt" not in answer.headers
    if stream:
        stripper = ReceiptStripper()
        body = stripper.feed(body)
        rest, text = stripper.finish()
        assert text is not None
        require_about(decode_inline(text), keyset, request, body + rest)
        return
    key = response_key(sealed.token.exported_secret, enc=sealed.encapsulated_key, nonce=nonce)
    raw = open_receipt(key, base64.b64decode(answer.headers[SEALED_RECEIPT_FIELD]))
    envelope = parse_envelope(parse_json(raw, what="receipt", reason=Reason.RECEIPT_FORMAT))
    require_about(envelope, keyset, request, body)
