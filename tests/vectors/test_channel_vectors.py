"""Every case of vectors/channel/index.json, with the expectation it states. No case is skipped.

A family of cases is one function; `_RUNNERS` maps the file and pointer to it. `reject` is a
`RemoteProtocolError` (or `ReceiptRejected`), `malformed` is a `FormatError`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from confide.channel import aci, ehbp, single
from confide.channel.events import ChunkOpened, FinalOpened
from confide.channel.exchange import Exchange
from confide.channel.keys import GatewayKey, KeyRing, ResponseKey, recipient_key
from confide.crypto.ed25519 import Ed25519Signer
from confide.crypto.hpke import Psk, Suite, key_schedule, setup_recipient, setup_sender
from confide.crypto.kem import derive_private_key, load_private_key, load_public_key
from confide.errors import FormatError, ReceiptRejected, RemoteProtocolError
from confide.wire.bhttp import Content, End, MessageKind, RequestHead, ResponseHead
from confide.wire.bhttp_decoder import BhttpDecoder
from confide.wire.json import jcs
from confide.wire.ohttp import (
    Aead,
    ChunkDecoder,
    Kdf,
    Kem,
    encode_key_config,
    parse_key_config,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_ROOT = Path(
    os.environ.get("CONFIDE_VECTORS", Path(__file__).resolve().parents[3] / "shared" / "vectors")
)
_INDEX = _ROOT / "channel" / "index.json"
_CASES = json.loads(_INDEX.read_text())["cases"] if _INDEX.is_file() else []


def _unhex(case: dict[str, Any], name: str) -> bytes:
    return bytes.fromhex(case[name])


def _pointer(document: Any, pointer: str) -> Any:
    for part in pointer.strip("/").split("/"):
        document = document[int(part)] if part.isdigit() else document[part]
    return document


# --- HPKE -----------------------------------------------------------------------------------------


def _hpke(case: dict[str, Any], _document: dict[str, Any], _expect: str) -> None:
    kem = Kem(case["kem_id"])
    suite = Suite(kem, Kdf(case["kdf_id"]), Aead(case["aead_id"]))
    psk = Psk(_unhex(case, "psk"), _unhex(case, "psk_id")) if case.get("psk") else None
    sender = load_private_key(kem, _unhex(case, "skSm")) if case.get("skSm") else None
    recipient = load_private_key(kem, _unhex(case, "skRm"))
    info = _unhex(case, "info")
    assert recipient.public_key.raw == _unhex(case, "pkRm")
    for ikm, secret in (("ikmE", "skEm"), ("ikmR", "skRm"), ("ikmS", "skSm")):
        if case.get(ikm):
            assert derive_private_key(kem, _unhex(case, ikm)) == _unhex(case, secret)

    public = sender.public_key if sender else None
    shared = recipient.decapsulate(_unhex(case, "enc"), sender=public)
    assert shared == _unhex(case, "shared_secret")
    schedule = key_schedule(suite, shared, info=info, psk=psk, authenticated=sender is not None)
    assert schedule.context == _unhex(case, "key_schedule_context")
    assert schedule.secret == _unhex(case, "secret")
    assert schedule.exporter_secret == _unhex(case, "exporter_secret")
    assert schedule.key.hex() == case.get("key", "")
    assert schedule.base_nonce.hex() == case.get("base_nonce", "")

    enc, sealing = setup_sender(
        load_public_key(kem, _unhex(case, "pkRm")),
        suite=suite,
        info=info,
        ephemeral=_unhex(case, "skEm"),
        psk=psk,
        sender=sender,
    )
    assert enc == _unhex(case, "enc")
    opening = setup_recipient(enc, recipient, suite=suite, info=info, psk=psk, sender=public)
    wanted = {item["sequence"]: item for item in case.get("encryptions", [])}
    for sequence in range(max(wanted, default=-1) + 1):
        item = wanted.get(sequence)
        aad, plain = (_unhex(item, "aad"), _unhex(item, "pt")) if item else (b"", b"filler")
        sealed = sealing.seal(aad, plain)
        if item:
            assert sealed == _unhex(item, "ct")
        assert opening.open(aad, sealed) == plain
    for item in case["exports"]:
        for context in (sealing, opening):
            exported = context.export(_unhex(item, "exporter_context"), item["L"])
            assert exported == _unhex(item, "exported_value")


# --- OHTTP ----------------------------------------------------------------------------------------


def _ring(case: dict[str, Any]) -> KeyRing:
    config = parse_key_config(_unhex(case, "key_config"))
    assert encode_key_config(config) == _unhex(case, "key_config")
    return KeyRing((GatewayKey(config, load_private_key(config.kem, _unhex(case, "skR"))),))


def _single(case: dict[str, Any], _document: dict[str, Any], _expect: str) -> None:
    recipient = recipient_key(parse_key_config(_unhex(case, "key_config")))
    sealed, client = single.seal_request(
        recipient, _unhex(case, "request_bhttp"), ephemeral=_unhex(case, "skE")
    )
    assert sealed == _unhex(case, "encapsulated_request")
    assert client.enc == _unhex(case, "enc")
    request, node = single.open_request(sealed, _ring(case))
    assert request == _unhex(case, "request_bhttp")
    nonce = _unhex(case, "response_nonce")
    assert node.context.export(case["export_label"].encode(), 16) == _unhex(case, "secret")
    key = node.response_key(nonce)
    assert node.enc + nonce == _unhex(case, "salt")
    assert (key.prk, key.key, key.base_nonce) == tuple(
        _unhex(case, name) for name in ("prk", "aead_key", "aead_nonce")
    )
    response = single.seal_response(node, _unhex(case, "response_bhttp"), nonce=nonce)
    assert response == _unhex(case, "encapsulated_response")
    assert single.open_response(client, response) == _unhex(case, "response_bhttp")


def _single_negative(case: dict[str, Any], document: dict[str, Any], expect: str) -> None:
    whole, value = document["case"], _unhex(case, "value")
    _, client = single.seal_request(
        recipient_key(parse_key_config(_unhex(whole, "key_config"))),
        _unhex(whole, "request_bhttp"),
        ephemeral=_unhex(whole, "skE"),
    )
    read: dict[str, Callable[[], object]] = {
        "encapsulated_request": lambda: single.open_request(value, _ring(whole)),
        "encapsulated_response": lambda: single.open_response(client, value),
        "key_config": lambda: parse_key_config(value),
    }
    with pytest.raises(_ERRORS[expect]):
        read[case["field"]]()


def _drain(exchange: Exchange, cuts: Iterable[bytes]) -> bytes:
    events = [event for cut in cuts for event in exchange.receive(cut)]
    events += exchange.receive_end()
    assert isinstance(events[-1], FinalOpened)
    return b"".join(e.data for e in events if isinstance(e, ChunkOpened | FinalOpened))


def _cuts(raw: bytes, size: int) -> list[bytes]:
    return [raw[start : start + size] for start in range(0, len(raw), size)]


def _client(case: dict[str, Any]) -> Exchange:
    recipient = recipient_key(parse_key_config(_unhex(case, "key_config")))
    return Exchange.client(recipient, ephemeral=_unhex(case, "skE"))


def _chunked(case: dict[str, Any], _document: dict[str, Any], _expect: str) -> None:
    client = _client(case)
    node = Exchange.node(_ring(case), response_nonce=_unhex(case, "response_nonce"))
    wire = [client.seal(_unhex(c, "plaintext"), final=c["final"]) for c in case["request_chunks"]]
    assert b"".join(wire) == _unhex(case, "encapsulated_request")
    assert _drain(node, wire) == _unhex(case, "request_bhttp")
    wire = [node.seal(_unhex(c, "plaintext"), final=c["final"]) for c in case["response_chunks"]]
    assert b"".join(wire) == _unhex(case, "encapsulated_response")
    assert _drain(client, _cuts(b"".join(wire), 1)) == _unhex(case, "response_bhttp")
    assert client.transcript == node.transcript
    expected = hashlib.sha256(_unhex(case, "encapsulated_request")).digest()
    assert node.transcript.request_sha256 == expected
    _intermediate(case)


def _intermediate(case: dict[str, Any]) -> None:
    enc, nonce = _unhex(case, "enc"), _unhex(case, "response_nonce")
    private = load_private_key(Kem.X25519, _unhex(case, "skR"))
    suite = Suite(Kem.X25519, Kdf.HKDF_SHA256, Aead.AES_128_GCM)
    info = _unhex(case, "info")
    context = setup_recipient(enc, private, suite=suite, info=info)
    secret = context.export(case["export_label"].encode(), 16)
    assert secret == _unhex(case, "secret")
    key = ResponseKey(Aead.AES_128_GCM, secret=secret, enc=enc, nonce=nonce)
    names = ("prk", "aead_key", "aead_nonce")
    assert (key.prk, key.key, key.base_nonce) == tuple(_unhex(case, name) for name in names)
    schedule = key_schedule(
        suite, private.decapsulate(enc), info=info, psk=None, authenticated=False
    )
    for base, chunks in (
        (schedule.base_nonce, case["request_chunks"]),
        (key.base_nonce, case["response_chunks"]),
    ):
        for chunk in chunks:
            nonce_i = int.from_bytes(base, "big") ^ chunk["sequence"]
            assert nonce_i.to_bytes(12, "big") == _unhex(chunk, "nonce")
            assert _unhex(chunk, "aad") == (b"final" if chunk["final"] else b"")
    decoder = ChunkDecoder()
    framed = decoder.feed(_unhex(case, "encapsulated_request")[7 + 32 :])
    final = decoder.end()
    assert final is not None
    sealed = [_unhex(chunk, "sealed") for chunk in case["request_chunks"]]
    assert [chunk.sealed for chunk in (*framed, final)] == sealed


def _receiver(field: str, whole: dict[str, Any]) -> Exchange:
    if field == "encapsulated_request":
        return Exchange.node(_ring(whole), response_nonce=bytes(32))
    client = _client(whole)
    client.seal(_unhex(whole, "request_bhttp"), final=True)
    return client


def _chunked_accept(case: dict[str, Any], document: dict[str, Any], _expect: str) -> None:
    for size in (1, 7, 1 << 20):
        receiver = _receiver(case["field"], document["case"])
        assert _drain(receiver, _cuts(_unhex(case, "value"), size)) == _unhex(case, "plaintext")


def _chunked_negative(case: dict[str, Any], document: dict[str, Any], expect: str) -> None:
    for size in (1, 7, 1 << 20):
        with pytest.raises(_ERRORS[expect]):
            _drain(_receiver(case["field"], document["case"]), _cuts(_unhex(case, "value"), size))


# --- Binary HTTP ----------------------------------------------------------------------------------


def _decode(raw: bytes, kind: MessageKind, size: int) -> list[Any]:
    decoder = BhttpDecoder(kind)
    events = [event for cut in _cuts(raw, size) for event in decoder.feed(cut)]
    return [*events, *decoder.end()]


def _bhttp(case: dict[str, Any], _document: dict[str, Any], _expect: str) -> None:
    kind = MessageKind.RESPONSE if "status" in case else MessageKind.REQUEST
    fields = tuple((name.encode(), value.encode()) for name, value in case["headers"])
    head: RequestHead | ResponseHead
    if "status" in case:
        head = ResponseHead(case["status"], fields)
    else:
        head = RequestHead(case["method"], case["scheme"], case["authority"], case["path"], fields)
    for size in (1, 5, 1 << 20):
        events = _decode(_unhex(case, "bytes"), kind, size)
        assert events[0] == head
        assert events[-1] == End(())
        content = b"".join(event.data for event in events if isinstance(event, Content))
        assert content == _unhex(case, "content")


def _bhttp_negative(case: dict[str, Any], _document: dict[str, Any], expect: str) -> None:
    for size in (1, 5, 1 << 20):
        with pytest.raises(_ERRORS[expect]):
            _decode(_unhex(case, "bytes"), MessageKind.REQUEST, size)


# --- EHBP -----------------------------------------------------------------------------------------


def _ehbp_derive(case: dict[str, Any], _document: dict[str, Any], _expect: str) -> None:
    key = ehbp.response_key(
        _unhex(case, "exportedSecret"),
        enc=_unhex(case, "requestEnc"),
        nonce=_unhex(case, "responseNonce"),
    )
    if "derivedKey" in case:
        assert key.key == _unhex(case, "derivedKey")
        assert key.base_nonce == _unhex(case, "derivedNonceBase")
    else:
        opened = ehbp.open_response_body(key, _unhex(case, "encryptedResponse"))
        assert opened.data == _unhex(case, "plaintext")


def _ehbp_frames(body: bytes) -> list[int]:
    """Plaintext lengths of the frames."""
    lengths, at = [], 0
    while at < len(body):
        size = int.from_bytes(body[at : at + 4], "big")
        lengths.append(size - 16)
        at += 4 + size
    return lengths


def _split(raw: bytes, lengths: list[int]) -> list[bytes]:
    parts = []
    for length in lengths:
        parts.append(raw[:length])
        raw = raw[length:]
    return parts


def _ehbp_response_key(case: dict[str, Any]) -> ResponseKey:
    return ehbp.response_key(
        _unhex(case, "exported_secret"),
        enc=_unhex(case, "header_ehbp_encapsulated_key"),
        nonce=_unhex(case, "header_ehbp_response_nonce"),
    )


def _ehbp_roundtrip(case: dict[str, Any], _document: dict[str, Any], _expect: str) -> None:
    recipient = recipient_key(parse_key_config(_unhex(case, "key_config")))
    lengths = _ehbp_frames(_unhex(case, "request_body"))
    enc, body, context = ehbp.seal_request_body(
        recipient,
        _split(_unhex(case, "request_plaintext"), lengths),
        ephemeral=_unhex(case, "skE"),
    )
    assert (enc, body) == (
        _unhex(case, "header_ehbp_encapsulated_key"),
        _unhex(case, "request_body"),
    )
    opened, node = ehbp.open_request_body(enc, body, _ring(case))
    assert opened.data == _unhex(case, "request_plaintext")
    for end in (context, node):
        assert ehbp.response_secret(end) == _unhex(case, "exported_secret")
    key = _ehbp_response_key(case)
    assert key.key == _unhex(case, "response_key")
    assert key.base_nonce == _unhex(case, "response_nonce_base")
    plain = _unhex(case, "response_plaintext")
    sealed = ehbp.seal_response_body(
        key, _split(plain, _ehbp_frames(_unhex(case, "response_body")))
    )
    assert sealed == _unhex(case, "response_body")
    assert ehbp.open_response_body(_ehbp_response_key(case), sealed).data == plain


def _ehbp_edge(case: dict[str, Any], document: dict[str, Any], _expect: str) -> None:
    whole = document["generated"]
    key, body = _ehbp_response_key(whole), _unhex(case, "value")
    if case["required"] == "reject":
        with pytest.raises(RemoteProtocolError):
            ehbp.open_response_body(key, body)
        return
    opened = ehbp.open_response_body(key, body)
    # Never reported as complete: the result is a prefix by type and has nothing that says more.
    assert isinstance(opened, ehbp.PrefixOpened)
    assert not hasattr(opened, "complete")
    plain = _unhex(whole, "response_plaintext")
    assert (opened.data == plain) is (case["required"] == "accept")
    assert plain.startswith(opened.data)


# --- ACI ------------------------------------------------------------------------------------------


def _aci_keyset(case: dict[str, Any], _document: dict[str, Any], _expect: str) -> None:
    assert jcs(case["object"]).decode() == case["jcs"]
    assert aci.keyset_digest(case["object"]) == case["digest"]


def _aci_statement(case: dict[str, Any], document: dict[str, Any], _expect: str) -> None:
    raw = aci.statement(document["keyset"]["digest"], case["nonce"])
    assert raw.decode() == case["statement"]
    assert aci.report_data(raw).hex() == case["report_data"] + "00" * 32
    assert case.get("slot", aci.report_data(raw).hex()) == aci.report_data(raw).hex()


def _aci_session(case: dict[str, Any], _document: dict[str, Any], _expect: str) -> None:
    assert jcs(case["object"]).decode() == case["jcs"]
    assert aci.session_id(case["object"]) == case["session_id"]
    digest = hashlib.sha256(case["evidence_bytes"].encode()).hexdigest()
    assert case["evidence_digest"] == f"sha256:{digest}"


def _aci_receipt(case: dict[str, Any], document: dict[str, Any], _expect: str) -> None:
    keyset = document["keyset"]["object"]
    receipt = aci.verify_receipt(case["document"].encode(), keyset=keyset)
    assert (receipt.receipt_id, receipt.key_id) == ("rcpt-0001", "receipt-1")
    unsigned = case["unsigned_jcs"].encode()
    assert hashlib.sha256(unsigned).hexdigest() == case["unsigned_sha256"]
    signer = Ed25519Signer(_unhex(document["keys"]["receipt_1"], "seed"))
    assert signer.sign(unsigned).hex() == case["signature"]
    for body in ("request_body", "response_body"):
        assert hashlib.sha256(case[body].encode()).hexdigest() in case["document"]


def _aci_aad(case: dict[str, Any], _document: dict[str, Any], _expect: str) -> None:
    wanted = json.loads(case["request_aad"])
    raw = aci.e2ee_request_aad(
        field=wanted["field"], model=wanted["model"], nonce=wanted["nonce"], timestamp=wanted["ts"]
    )
    assert raw.decode() == case["request_aad"]


def _aci_negative(case: dict[str, Any], document: dict[str, Any], expect: str) -> None:
    if "nonce" in case:
        with pytest.raises(_ERRORS[expect]):
            aci.statement(document["keyset"]["digest"], case["nonce"])
        return
    with pytest.raises(_ERRORS[expect]):
        aci.verify_receipt(case["document"].encode(), keyset=document["keyset"]["object"])


# --- the index ------------------------------------------------------------------------------------

_ERRORS: dict[str, tuple[type[Exception], ...]] = {
    "reject": (RemoteProtocolError, ReceiptRejected),
    "malformed": (FormatError,),
}
_RUNNERS: tuple[tuple[str, Callable[[dict[str, Any], dict[str, Any], str], None]], ...] = (
    (r"hpke-.*", _hpke),
    (r"ohttp-rfc9458\.json/case", _single),
    (r"ohttp-rfc9458\.json/negative/\d+", _single_negative),
    (r"ohttp-chunked-draft08\.json/case", _chunked),
    (r"ohttp-chunked-draft08\.json/derived_positive/\d+", _chunked_accept),
    (r"ohttp-chunked-draft08\.json/negative/\d+", _chunked_negative),
    (r"bhttp\.json/cases/\d+", _bhttp),
    (r"bhttp\.json/negative/\d+", _bhttp_negative),
    (r"ehbp\.json/(derive|response_decryption)", _ehbp_derive),
    (r"ehbp\.json/generated", _ehbp_roundtrip),
    (r"ehbp\.json/edge_cases/\d+", _ehbp_edge),
    (r"aci\.json/keyset", _aci_keyset),
    (r"aci\.json/statement/\d+", _aci_statement),
    (r"aci\.json/session", _aci_session),
    (r"aci\.json/receipt", _aci_receipt),
    (r"aci\.json/e2ee_v2", _aci_aad),
    (r"aci\.json/negative/\d+", _aci_negative),
)


@pytest.mark.parametrize("entry", _CASES, ids=[case["id"] for case in _CASES])
def test_case(entry: dict[str, str], vectors: Path) -> None:
    document = json.loads((vectors / "channel" / entry["file"]).read_text())
    case = _pointer(document, entry["pointer"])
    name = entry["file"] + entry["pointer"]
    (run,) = [runner for pattern, runner in _RUNNERS if re.fullmatch(pattern, name)]
    run(case, document, entry["expect"])


def test_the_index_is_what_these_tests_know(vectors: Path) -> None:
    assert vectors == _ROOT
    assert len(_CASES) == 73
