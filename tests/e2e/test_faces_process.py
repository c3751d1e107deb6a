"""`confide node model --face ehbp --face aci` as a process, asked by clients of those protocols."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import socket
import ssl
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import load_der_x509_certificate
from deployment import MODEL, Installation
from openai import OpenAI
from plain_aci_reader import require_bound, require_receipt

from confide.adapters.clock import SystemClock
from confide.adapters.entropy import SystemEntropy
from confide.adapters.prove import prove_node
from confide.adapters.software import running_kernel
from confide.appraisal.service_profiles import AUDIT
from confide.client.expect import inference_expectation_for
from confide.client.local import local_reference
from confide.errors import Reason, Rejected
from confide.formats.verify import verify
from confide.node.ehbp import ALGORITHM
from confide.rats import Status
from confide.simulator.machine import make_platform
from confide.wire.endorsements import Endorsements
from confide.wire.service import Capture

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deployment import Node
    from stub_openai import StubOpenAI

    from confide.appraisal.node import VerifiedNode
    from confide.expectation import Expectation

CHAT = "/v1/chat/completions"
ASKED: Any = {"model": MODEL, "messages": [{"role": "user", "content": "which label?"}]}
_ABSENT = "EHBP'S OWN CLIENT NOT RUN: tinfoil is not installed (requirements/dev.txt)"
NONCE = hashlib.sha256(b"a nonce of this test").digest()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory, stub: StubOpenAI) -> Installation:
    made = Installation(tmp_path_factory.mktemp("faces"), stub.url)
    made.paths.make_private()
    return made


@pytest.fixture
def ehbp() -> Any:
    """The package of the protocol's own client."""
    return pytest.importorskip("ehbp", reason=_ABSENT)


@pytest.fixture
def httpx() -> Any:
    """What that client stands on."""
    return pytest.importorskip("httpx", reason=_ABSENT)


@pytest.fixture(scope="module")
def tls_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def node(installation: Installation, tls_port: int) -> Iterator[Node]:
    faces = ("--face", "ehbp", "--face", "aci", "--face-tls-port", str(tls_port))
    running = installation.start(
        "model", "--model", MODEL, "--upstream", installation.upstream, *faces
    )
    try:
        yield running
    finally:
        running.stop()


def wanted(installation: Installation, *faces: str) -> Expectation:
    reference = local_reference(
        seed=installation.engine.seed(),
        roots=installation.roots,
        software=installation.software,
        kernel=running_kernel(),
        model=MODEL,
        weights=None,
        now=SystemClock().now(),
    )
    expectation = inference_expectation_for(reference)
    accepted = (*expectation.hardware.accept_not_proven, *faces)
    return replace(expectation, hardware=replace(expectation.hardware, accept_not_proven=accepted))


def proven(installation: Installation, node: Node, *faces: str) -> VerifiedNode:
    async def prove() -> VerifiedNode:
        async with httpx2.AsyncClient(trust_env=False) as http:
            link = await prove_node(
                node.url,
                role="model",
                expectation=wanted(installation, *faces),
                roots=installation.roots,
                http=http,
                clock=SystemClock(),
                entropy=SystemEntropy(),
            )
        return link.node

    return asyncio.run(prove())


def test_who_does_not_accept_the_faces_accepts_no_such_node(
    installation: Installation, node: Node
) -> None:
    for accepted in ((), ("face-ehbp",), ("face-aci",)):
        with pytest.raises(Rejected) as caught:
            proven(installation, node, *accepted)
        assert caught.value.reason is Reason.CLAIM_NOT_PROVEN


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_of_ehbp(
    installation: Installation, node: Node, ehbp: Any, httpx: Any, stream: bool
) -> None:
    keyset = proven(installation, node, "face-ehbp", "face-aci").keyset
    [key] = [key for key in keyset.keys if key.algorithm == ALGORITHM]
    transport = ehbp.EHBPTransport.from_public_key_hex(key.public_key.hex())
    with (
        httpx.Client(transport=transport) as http,
        OpenAI(
            base_url=node.url + "/v1",
            api_key="k",
            http_client=http,
        ) as client,
    ):
        if stream:
            pieces = client.chat.completions.create(**ASKED, stream=True)
            said = "".join(piece.choices[0].delta.content or "" for piece in pieces)
        else:
            said = client.chat.completions.create(**ASKED).choices[0].message.content
    assert said == "billing"


def test_a_replayed_request_is_refused(node: Node, stub: StubOpenAI, ehbp: Any, httpx: Any) -> None:
    key = httpx2.get(node.url + "/.well-known/hpke-keys", trust_env=False, timeout=60).content
    identity = ehbp.ServerIdentity.unmarshal_public_config(key)
    sealed = identity.encrypt_request_body(json.dumps(ASKED).encode())
    assert sealed is not None
    headers = {"ehbp-encapsulated-key": sealed.encapsulated_key.hex()}
    before = stub.prompts
    found = [
        httpx.post(node.url + CHAT, content=sealed.body, headers=headers).status_code
        for _ in range(3)
    ]
    assert found == [200, 409, 409]
    assert stub.prompts == before + 1


def test_nothing_in_clear_is_served_in_clear(node: Node, stub: StubOpenAI) -> None:
    before = stub.prompts
    for face_path in (CHAT, "/v1/models", "/v1/aci/receipts/x", "/v1/receipts/x"):
        answer = httpx2.post(node.url + face_path, json=ASKED, trust_env=False, timeout=60)
        assert answer.status_code == 404
    assert stub.prompts == before


def test_an_aci_report_of_the_process(installation: Installation, node: Node) -> None:
    url = f"{node.url}/v1/aci/attestation?nonce={NONCE.hex()}"
    raw = httpx2.get(url, trust_env=False, timeout=60).content
    require_bound(json.loads(raw), NONCE.hex())
    now = SystemClock().now()
    collateral = make_platform(installation.engine.seed(), now, ()).collateral()
    result = verify(
        Capture(documents={"report": raw}, nonce=NONCE),
        Endorsements(tdx=(collateral,)),
        replace(AUDIT, unsafe_simulated=True),
        now=now,
        roots=installation.roots,
        nonce=NONCE,
    )
    for claim in ("hardware", "keys", "event-log", "freshness"):
        assert result.claim(claim).status is Status.PASS, claim


class Pinned:
    """
    A client of ACI: TLS to a key that the report names, and ordinary HTTP inside.

    The key is looked at on a connection of its own: nobody stands between in these tests.
    """

    def __init__(self, port: int, keyset: dict[str, Any]) -> None:
        self._address = ("127.0.0.1", port)
        [self._pin] = [key["spki_sha256"] for key in keyset["tls_public_keys"]]

    def _require_pinned(self, connection: ssl.SSLSocket) -> None:
        certificate = load_der_x509_certificate(connection.getpeercert(binary_form=True) or b"")
        spki = certificate.public_key().public_bytes(
            Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        )
        assert hashlib.sha256(spki).hexdigest() == self._pin

    def ask(self, method: str, path: str, body: bytes = b"") -> httpx2.Response:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with (
            socket.create_connection(self._address, timeout=40) as raw,
            context.wrap_socket(raw) as connection,
        ):
            self._require_pinned(connection)
        with httpx2.Client(verify=context, trust_env=False) as http:
            url = f"https://127.0.0.1:{self._address[1]}{path}"
            return http.request(
                method, url, content=body, headers={"content-type": "application/json"}
            )


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_of_aci_over_the_nodes_own_tls(node: Node, tls_port: int, stream: bool) -> None:
    url = f"{node.url}/v1/aci/attestation?nonce={NONCE.hex()}"
    keyset = require_bound(httpx2.get(url, trust_env=False, timeout=60).json(), NONCE.hex())
    client = Pinned(tls_port, keyset)
    request = json.dumps({**ASKED, "stream": stream}).encode()
    answer = client.ask("POST", CHAT, request)
    assert answer.status_code == 200
    assert b"confide-receipt" not in answer.content, "the stream is what its receipt hashes"
    receipt = client.ask("GET", "/v1/aci/receipts/" + answer.headers["x-receipt-id"])
    read = require_receipt(receipt.content, keyset, request, answer.content)
    [own] = [event for event in read["event_log"] if event["type"] == "confide.receipt"]
    envelope = client.ask("GET", "/v1/receipts/" + own["id"]).json()
    payload = json.loads(base64.b64decode(envelope["payload"]))
    assert payload["predicate"]["record"]["way"] == "aci/tls"


def test_the_closing_of_runs_is_no_business_of_a_face(node: Node, tls_port: int) -> None:
    url = f"{node.url}/v1/aci/attestation"
    keyset = require_bound(httpx2.get(url, trust_env=False, timeout=60).json(), None)
    assert Pinned(tls_port, keyset).ask("POST", "/confide/v1/closing", b"{}").status_code == 404
