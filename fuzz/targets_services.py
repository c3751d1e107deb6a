"""Targets: readers of what other services present, with the signatures over single answers.

The seeds are SIMULATED services in the exact shapes (`simulator/near.py`, `simulator/aci.py`).
"""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING

from confide.channel.aci import session_id
from confide.errors import Reason
from confide.formats import aci, near
from confide.formats.aci_receipt import verify_answer, verify_session
from confide.formats.near_signature import verify_response
from confide.rats import Finding
from confide.simulator.aci import SimulatedAci
from confide.simulator.near import SimulatedNear, encode_report
from confide.wire.json import parse_json
from confide.wire.service import Capture
from fuzz.driver import Target

if TYPE_CHECKING:
    from confide.formats.format import Format

_NOW = datetime(2026, 8, 20, 12, tzinfo=UTC)
_NONCE = bytes(range(32))
_REQUEST, _RESPONSE = b'{"model":"m"}', b"data: x\n\n"


@cache
def _near() -> SimulatedNear:
    return SimulatedNear(b"fuzz", _NOW, nodes=2, gpus=1)


@cache
def _aci() -> SimulatedAci:
    return SimulatedAci(b"fuzz", _NOW)


def _read(form: Format, raw: bytes, documents: dict[str, bytes]) -> None:
    form.recognise(raw)
    capture = Capture(
        documents={"report": raw, **documents}, nonce=_NONCE, url="https://x/?model=m"
    )
    evidence = form.read(capture)
    assert evidence.attesters
    assert form.answer is not None
    # A finding whatever the documents are: nothing hostile may come out as an exception.
    assert isinstance(form.answer(capture, evidence), Finding)


@cache
def _near_reports() -> tuple[bytes, ...]:
    service = _near()
    return tuple(
        encode_report(document)
        for document in (
            service.direct_report(_NONCE),
            service.direct_report(_NONCE, algorithm="ecdsa", tls=False),
            service.gateway_report(_NONCE),
        )
    )


def _near_report(raw: bytes) -> None:
    bodies = {"signature": _near_signatures()[0], "request": _REQUEST, "response": _RESPONSE}
    _read(near.FORMAT, raw, {**bodies, "ohttp": _near().key_config})


@cache
def _near_signatures() -> tuple[bytes, ...]:
    return tuple(
        json.dumps(_near().signature(_REQUEST, _RESPONSE, algorithm=algorithm)).encode()
        for algorithm in ("ed25519", "ecdsa")
    )


def _near_signature(raw: bytes) -> None:
    algorithm = "ecdsa" if b"ecdsa" in raw else "ed25519"
    report = _signed_by(algorithm)
    evidence = near.FORMAT.read(Capture(documents={"report": report}))
    verify_response(raw, request=_REQUEST, response=_RESPONSE, attesters=evidence.attesters)


@cache
def _signed_by(algorithm: str) -> bytes:
    service = _near()
    if algorithm == "ecdsa":
        return encode_report(service.direct_report(_NONCE, algorithm="ecdsa"))
    return encode_report(service.direct_report(_NONCE))


def _near_ohttp(raw: bytes) -> None:
    near.FORMAT.read(Capture(documents={"report": _near_reports()[0], "ohttp": raw}))


def _ohttp_configs() -> tuple[bytes, ...]:
    config = _near().key_config
    return config, len(config).to_bytes(2, "big") + config


@cache
def _aci_reports() -> tuple[bytes, ...]:
    service = _aci()
    amd = service.report(_NONCE)
    attestation = amd["attestation"]
    assert isinstance(attestation, dict)
    report = base64.b64encode(bytes(0x4A0)).decode()
    attestation |= {"tee_type": "sev_snp", "evidence": {"report": report}}
    return tuple(json.dumps(document).encode() for document in (service.report(_NONCE), amd))


def _aci_report(raw: bytes) -> None:
    receipt = _aci_receipts()[0]
    _read(aci.FORMAT, raw, {"receipt": receipt, "request": _REQUEST, "response": _RESPONSE})


def _aci_receipts() -> tuple[bytes, ...]:
    return (json.dumps(_aci().receipt(_REQUEST, _RESPONSE)).encode(),)


def _aci_answer(raw: bytes) -> None:
    verify_answer(raw, keyset=_aci().keyset(), request=_REQUEST, response=_RESPONSE)


def _aci_sessions() -> tuple[bytes, ...]:
    return (json.dumps(_aci().session()).encode(),)


def _aci_session(raw: bytes) -> None:
    # Whatever it is, it is the session that the receipt names: all of the reader is reached.
    value = parse_json(raw, what="input", reason=Reason.SERVICE_FORMAT)
    known = session_id(value) if isinstance(value, dict) else ""
    verify_session(raw, sessions=(known,))


SERVICE_TARGETS: tuple[Target, ...] = (
    Target("near-report", _near_report, _near_reports, json_values=True),
    Target("near-signature", _near_signature, _near_signatures, json_values=True),
    Target("near-ohttp", _near_ohttp, _ohttp_configs),
    Target("aci-report", _aci_report, _aci_reports, json_values=True),
    Target("aci-answer", _aci_answer, _aci_receipts, json_values=True),
    Target("aci-session", _aci_session, _aci_sessions, json_values=True),
)
