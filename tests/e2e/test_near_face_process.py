"""A model node with the NEAR face as a process: its clients know the wire description alone."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import ssl
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from deployment import AGENTS, Installation
from engine_peers import Engine, Peer, routed
from near_stranger import check_report, check_signature, data_lines, session

from confide.adapters.clock import SystemClock
from confide.adapters.entropy import SystemEntropy
from confide.adapters.image_build import read_agent_manifest
from confide.adapters.prove import SealedNode, prove_node
from confide.adapters.software import running_kernel
from confide.client.expect import expectation_for
from confide.client.local import local_reference
from confide.errors import Reason, Rejected
from confide.wire.faces import FaceName

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from deployment import Node

    from confide.expectation import Expectation

MODEL = "m"
CHAT = "/v1/chat/completions"
NONCE = hashlib.sha256(b"a nonce of this test").digest()
EVENT = b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":"hello"}}]}\n\n'
DONE = b"data: [DONE]\n\n"


@dataclass
class Place:
    """A node process, its TLS port, and what it takes to prove it."""

    installation: Installation
    node: Node
    tls_port: int
    http: httpx2.AsyncClient

    def expectation(self, *accepted: str) -> Expectation:
        reference = local_reference(
            seed=self.installation.engine.seed(),
            roots=self.installation.roots,
            software=self.installation.software,
            kernel=running_kernel(),
            model=MODEL,
            weights=None,
            now=SystemClock().now(),
        )
        made = expectation_for(read_agent_manifest(AGENTS / "probe"), "00" * 32, reference)
        names = (*made.hardware.accept_not_proven, *accepted)
        return replace(made, hardware=replace(made.hardware, accept_not_proven=names))

    async def prove(self, *accepted: str) -> SealedNode:
        return await prove_node(
            self.node.url,
            role="model",
            expectation=self.expectation(*accepted),
            roots=self.installation.roots,
            http=self.http,
            clock=SystemClock(),
            entropy=SystemEntropy(),
        )

    async def certificate(self) -> tuple[bytes, str]:
        """Return the SHA-256 of the key that ends TLS, and its certificate in PEM."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        _, writer = await asyncio.open_connection("127.0.0.1", self.tls_port, ssl=context)
        try:
            der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        finally:
            writer.close()
            await writer.wait_closed()
        spki = (
            x509.load_der_x509_certificate(der)
            .public_key()
            .public_bytes(
                serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )
        return hashlib.sha256(spki).digest(), ssl.DER_cert_to_PEM_cert(der)


def _written(folder: Path) -> list[bytes]:
    """Everything that lies in the installation while its node runs."""
    return [path.read_bytes() for path in folder.rglob("*") if path.is_file()]


async def _answer(peer: Peer, body: bytes) -> None:
    if json.loads(body).get("stream"):
        head = "content-type: text/event-stream\r\n"
        await peer.answer(EVENT + DONE, head=head)
    else:
        message = {"role": "assistant", "content": "hello"}
        whole = {"id": "chatcmpl-1", "choices": [{"index": 0, "message": message}]}
        await peer.answer(json.dumps(whole).encode(), head="content-type: application/json\r\n")


@asynccontextmanager
async def serving(tmp: Path, talk: Any = _answer) -> AsyncIterator[Place]:
    async with Engine(routed(talk)).serving() as url, httpx2.AsyncClient(trust_env=False) as http:
        installation = Installation(tmp, "")
        installation.paths.make_private()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            tls_port = probe.getsockname()[1]
        words = ("--model", MODEL, "--upstream", url, "--face", "near")
        node = await asyncio.to_thread(
            installation.start, "model", *words, "--face-tls-port", str(tls_port)
        )
        try:
            yield Place(installation, node, tls_port, http)
        finally:
            await asyncio.to_thread(node.stop)


@pytest.mark.parametrize("algorithm", ["ecdsa", "ed25519"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_stranger_verifies_asks_and_checks_the_signature(
    tmp_path: Path, algorithm: str, *, stream: bool
) -> None:
    async def main() -> None:
        async with serving(tmp_path) as place:
            fingerprint, _ = await place.certificate()
            query = f"nonce={NONCE.hex()}&signing_algo={algorithm}&include_tls_fingerprint=true"
            url = f"{place.node.url}/v1/attestation/report?{query}"
            report = (await place.http.get(url)).content
            node = check_report(report, nonce=NONCE, fingerprint=fingerprint)
            client = session(node)
            messages = [{"role": "user", "content": client.seal("secret")}]
            raw = json.dumps({"model": MODEL, "messages": messages, "stream": stream}).encode()
            answer = await place.http.post(
                place.node.url + CHAT, content=raw, headers=client.headers
            )
            assert answer.status_code == 200
            if stream:
                line, done = data_lines(answer.content)
                assert done == "[DONE]"
                sealed = json.loads(line)["choices"][0]["delta"]["content"]
            else:
                sealed = answer.json()["choices"][0]["message"]["content"]
            assert client.open(sealed) == "hello"
            path = f"/v1/signature/chatcmpl-1?model={MODEL}&signing_algo={algorithm}"
            signed = (await place.http.get(place.node.url + path)).json()
            check_signature(signed, node=node, model=MODEL, request=raw, response=answer.content)

    asyncio.run(main())


def test_tls_ends_in_the_node_with_the_key_that_the_report_names(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as place:
            fingerprint, pem = await place.certificate()
            pinned = ssl.create_default_context(cadata=pem)
            pinned.check_hostname = False
            async with httpx2.AsyncClient(
                trust_env=False, verify=pinned, base_url=f"https://127.0.0.1:{place.tls_port}"
            ) as client:
                path = f"/v1/attestation/report?nonce={NONCE.hex()}&include_tls_fingerprint=true"
                report = (await client.get(path)).content
                check_report(report, nonce=NONCE, fingerprint=fingerprint)
                asked = {"model": MODEL, "messages": [{"role": "user", "content": "in clear"}]}
                assert (await client.post(CHAT, json=asked)).status_code == 200
            refused = await place.http.post(place.node.url + CHAT, json=asked)
            assert (refused.status_code, refused.json()["error"]["code"]) == (
                403,
                "plaintext_refused",
            )
            written = await asyncio.to_thread(_written, tmp_path)
            assert written
            assert not [raw for raw in written if b"PRIVATE KEY" in raw]

    asyncio.run(main())


def test_the_evidence_says_so_and_the_face_has_to_be_accepted(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as place:
            with pytest.raises(Rejected) as refusal:
                await place.prove()
            assert refusal.value.failures[-1].reason is Reason.CLAIM_NOT_PROVEN
            proven = await place.prove("face-near")
            assert proven.node.events.faces == (FaceName.NEAR,)
            raw = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "x"}]})
            kind = (("content-type", "application/json"),)
            async with await proven.sealed.request("POST", CHAT, kind, raw.encode()) as answer:
                assert json.loads(await answer.aread())["choices"]

    asyncio.run(main())


def test_a_caller_that_leaves_has_no_signature_and_is_told_why(tmp_path: Path) -> None:
    async def held(peer: Peer, _body: bytes) -> None:
        head = b"HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\n"
        await peer.send(head + b"content-length: 100000\r\n\r\n" + EVENT)
        await peer.gone()

    async def main() -> None:
        async with serving(tmp_path, held) as place:
            url = f"{place.node.url}/v1/attestation/report?nonce={NONCE.hex()}"
            report = (await place.http.get(url)).content
            client = session(check_report(report, nonce=NONCE, fingerprint=None))
            messages = [{"role": "user", "content": client.seal("secret")}]
            asked = {"model": MODEL, "messages": messages, "stream": True}
            call = place.http.stream(
                "POST", place.node.url + CHAT, json=asked, headers=client.headers
            )
            async with call as answer:
                assert answer.status_code == 200
                async for _ in answer.aiter_bytes():
                    break
            found: dict[str, Any] = {}
            while "error_code" not in found:
                path = f"{place.node.url}/v1/signature/chatcmpl-1"
                found = (await place.http.get(path)).json()
                assert "signature" not in found
            assert found["error_code"] == "STREAM_DISCONNECTED"

    asyncio.run(main())


def test_a_tls_port_without_a_face_is_refused(tmp_path: Path) -> None:
    installation = Installation(tmp_path, "")
    installation.paths.make_private()
    node = installation.launch(
        "model", "--model", MODEL, "--upstream", "http://127.0.0.1:9/v1", "--face-tls-port", "1"
    )
    assert node.process.wait() != 0
    assert "--face-tls-port" in node.log.read_text()
