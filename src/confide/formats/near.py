"""NEAR AI Cloud: from its attestation reports, gateway and direct shape, to our `Evidence`.

Clauses: docs/protocols/near.md. The report data that each attester should have signed is computed
from what it presents; nothing is verified here. Remarks say what NEAR AI does not prove, or what
its own documents contradict.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs, urlsplit

from confide.appraisal.claim_names import ClaimName
from confide.crypto.ed25519 import verify_ed25519
from confide.crypto.errors import BadSignature
from confide.crypto.ethereum import address_of
from confide.errors import FormatError, Reason
from confide.formats.foreign import MAX_REPORT_BYTES
from confide.formats.format import Format, Request
from confide.formats.near_report import Attestation, OhttpKey, Report, key_config_of, parse_report
from confide.formats.near_signature import response_finding
from confide.wire.json import JsonLimits, parse_json
from confide.wire.service import (
    Attester,
    Devices,
    Evidence,
    LaunchDocument,
    PresentedKey,
    Remark,
    ReportBinding,
    TdxPart,
)

if TYPE_CHECKING:
    from confide.wire.json import JsonValue
    from confide.wire.service import Capture

__all__ = ["FORMAT", "read_near"]

_NAME: Final = "near"
_GATEWAY: Final = "gateway"
_DOC: Final = "docs/protocols/near.md"
_LIMITS: Final = (
    "A signature has no time, no nonce and no parameters; one node keeps it for minutes (N10).",
    "A gateway may state the digest of the request itself: the model may have got another (N11).",
    "Logs and metrics leave the machine; where other services are is not measured (N13).",
    "The prefix cache is shared by all tenants, and its hits can be seen (N16).",
    "That a gateway asks the machines shown is its own word; others have no TEE at all (N17).",
)


def _unproven(claim: ClaimName, text: str, clause: int = 6) -> Remark:
    return Remark(claim=claim, text=text, clause=f"{_DOC}#{clause}")


def _failed(claim: ClaimName, text: str, clause: int) -> Remark:
    return Remark(claim=claim, text=text, clause=f"{_DOC}#{clause}", failed=True)


_KEY_LIFETIME: Final = "keys follow from the application's id, not from its code (N4)"
_WEIGHTS: Final = "weights go by revision names and nothing measures them (N14)"
_GPU_BINDING: Final = "report data does not commit to the devices' evidence (N8)"
_NO_SWITCHES: Final = "reports of NEAR AI show no switches (N8)"
_PLAIN: Final = "report data of this form commits to no TLS key (N12)"
_NO_NONCE: Final = "no nonce was sent: the report may come from a cache (N15)"
_NO_MODEL: Final = "the gateway shows no model machine: what answers is not attested (N17)"
_OTHER_MODEL: Final = "the report names another model than the one asked for (N14)"
_ACTIONS: Final = {
    "canonical": "containers start after boot; no hardware vouches for the log of it (N2)",
    "escaped": "containers start after boot; no hardware vouches for the log, an older one (N2)",
    "neither": "containers start after boot; the log of it has not the digest it states (N2)",
}


def _recognise(raw: bytes) -> bool:
    """
    Whether `raw` is a report of NEAR AI, gateway or direct shape.

    Bytes that are no strict JSON count as one where they name its members, so that the reader can
    say what is wrong with them.
    """
    if len(raw) > MAX_REPORT_BYTES:
        return False
    try:
        value: JsonValue = parse_json(
            raw,
            what="report",
            reason=Reason.SERVICE_FORMAT,
            limits=JsonLimits(max_bytes=MAX_REPORT_BYTES),
        )
    except FormatError:
        return b'"gateway_attestation"' in raw or (
            b'"intel_quote"' in raw and b'"signing_address"' in raw
        )
    if not isinstance(value, dict):
        return False
    return "gateway_attestation" in value or {"intel_quote", "signing_address"} <= value.keys()


def _plan(nonce: bytes) -> tuple[Request, ...]:
    """Return the requests of a live capture; `model` comes with the query of the user's URL."""
    query = f"nonce={nonce.hex()}&include_tls_fingerprint=true"
    return (
        Request(
            document="report",
            path=f"/v1/attestation/report?{query}",
            keeps_query=True,
            defaults=(("signing_algo", "ed25519"),),
        ),
        Request(
            document="ohttp",
            path="/.well-known/ohttp-gateway",
            max_bytes=4096,
            optional=True,
        ),
    )


def read_near(capture: Capture) -> Evidence:
    """
    Return the evidence in a report of NEAR AI (document `report`, optionally `ohttp`).

    The first attester is the one in which TLS ends. Raises `FormatError`, and `Unsupported` for
    GPUs of a family that is not judged here.
    """
    report = parse_report(capture)
    found: list[_Draft] = []
    if report.gateway is not None:
        found.append(_draft(_GATEWAY, report.gateway))
    found += [_draft(f"model[{at}]", item) for at, item in enumerate(report.models)]
    _add_tls(found[0])
    _add_remarks(found, report, capture)
    for key in report.ohttp:
        _add_ohttp(found, key, capture.documents.get("ohttp"))
    return Evidence(
        format=_NAME,
        attesters=tuple(draft.attester() for draft in found),
        nonce=capture.nonce,
        tls_spki_sha256=capture.tls_spki_sha256,
        limits=_LIMITS,
    )


@dataclass(slots=True)
class _Draft:
    """One attester while it is put together."""

    name: str
    source: Attestation
    keys: list[PresentedKey]
    covers: set[str]
    remarks: list[Remark]

    def attester(self) -> Attester:
        source, tls = self.source, self.source.fingerprint is not None
        return Attester(
            name=self.name,
            role="gateway" if self.name == _GATEWAY else "workload",
            tdx=TdxPart(quote=source.quote),
            binding=ReportBinding(
                scheme="near/tls" if tls else "near/plain",
                expected=_report_data(source),
                nonce=source.nonce,
                covers=frozenset(self.covers),
            ),
            keys=tuple(self.keys),
            devices=Devices(devices=source.gpus.devices, nonce=source.nonce)
            if source.gpus is not None
            else None,
            runtime_log=source.log,
            vm_config=source.vm_config,
            launch=LaunchDocument(kind=_launch_kind(source.log), raw=source.launch)
            if source.launch is not None
            else None,
            remarks=tuple(self.remarks),
        )


def _launch_kind(log: JsonValue) -> str:
    """Return what `app_compose` is: of dstack, or of a Confide node that speaks this protocol."""
    entries = log if isinstance(log, list) else []
    runtime = (item for item in entries if isinstance(item, dict) and item.get("imr") == 3)
    own = next((item.get("event") == "confide-node" for item in runtime), False)
    return "confide-launch" if own else "dstack-compose"


def _report_data(source: Attestation) -> bytes:
    """Return the 64 bytes that the report data should be (near.md §2)."""
    if source.fingerprint is None:
        return source.address.ljust(32, b"\0") + source.nonce
    return hashlib.sha256(source.address + source.fingerprint).digest() + source.nonce


def _draft(name: str, source: Attestation) -> _Draft:
    """Return the attester with its keys and the remarks that its own object gives rise to."""
    ecdsa = source.algorithm == "ecdsa"
    algorithm = "ethereum-address" if ecdsa else "ed25519"
    keys = [PresentedKey(name="signing", use="signing", algorithm=algorithm, value=source.address)]
    covers, remarks = {"signing"}, [_unproven(ClaimName.KEY_LIFETIME, _KEY_LIFETIME)]
    if source.public_key is not None:
        keys.append(
            PresentedKey(
                name="encryption",
                use="encryption",
                algorithm="secp256k1" if ecdsa else "ed25519",
                value=source.public_key,
            )
        )
        if (address_of(source.public_key) if ecdsa else source.public_key) == source.address:
            covers.add("encryption")
        else:
            text = "signing_public_key is not the key of signing_address (N18)"
            remarks.append(_failed(ClaimName.KEYS, text, 3))
    if source.gpus is not None:
        remarks.append(_unproven(ClaimName.GPU_BINDING, _GPU_BINDING))
        if len(source.gpus.devices) > 1:
            remarks.append(_unproven(ClaimName.GPU_TOPOLOGY, _NO_SWITCHES))
        if source.gpus.nonces != {source.nonce}:
            text = "the devices' payload names another nonce than the report"
            remarks.append(_failed(ClaimName.GPU_FRESHNESS, text, 4))
    return _Draft(name, source, keys, covers, remarks)


def _add_remarks(found: list[_Draft], report: Report, capture: Capture) -> None:
    """Add what concerns the report as a whole, or the place of an attester in it."""
    models = found[1:] if report.gateway is not None else found
    for draft in found:
        if capture.nonce is None:
            draft.remarks.append(_unproven(ClaimName.FRESHNESS, _NO_NONCE))
    asked = _asked_model(capture.url)
    for draft in models:
        draft.remarks.append(_unproven(ClaimName.MODEL_WEIGHTS, _WEIGHTS))
        if asked and draft.source.model and draft.source.model != asked:
            draft.remarks.append(_failed(ClaimName.MODEL_WEIGHTS, _OTHER_MODEL, 6))
    for log in report.actions:
        remark = _unproven(ClaimName.WORKLOAD_COMPLETE, _ACTIONS[log.spelling])
        models[0].remarks.append(remark)
    if not models:
        found[0].remarks.append(_unproven(ClaimName.WORKLOAD_COMPLETE, _NO_MODEL))
    if report.certificate_spki is not None:
        _add_certificate(found[0], report.certificate_spki)


def _add_tls(first: _Draft) -> None:
    """
    Add the TLS key of the machine in which the connection ends.

    The fingerprints of others are in the report data expected of them, and no keys for the caller:
    a connection ends in one machine.
    """
    value = first.source.fingerprint
    if value is None:
        first.remarks.append(_unproven(ClaimName.TLS, _PLAIN))
        return
    first.keys.append(PresentedKey(name="tls", use="tls", algorithm="spki-sha256", value=value))
    first.covers.add("tls")


def _add_certificate(gateway: _Draft, spki: bytes) -> None:
    # In the plain form nothing commits to the certificate: it is shown, and no key of ours.
    if gateway.source.fingerprint not in {None, spki}:
        text = "the certificate shown has another key than tls_cert_fingerprint says"
        gateway.remarks.append(_failed(ClaimName.TLS, text, 3))


def _asked_model(url: str) -> str:
    """Return the one model that `url` asks for, empty where it asks for none or for several."""
    try:
        models = parse_qs(urlsplit(url).query, max_num_fields=64).get("model", [])
    except ValueError:
        return ""
    return models[0] if len(models) == 1 else ""


def _add_ohttp(found: list[_Draft], key: OhttpKey, served: bytes | None) -> None:
    """Add an OHTTP key to the attester whose attested key signed it, else to the first model."""
    signers = [d for d in found if d.source.algorithm == "ed25519"]
    owner = next((d for d in signers if d.source.address == key.signer), None)
    remarks: list[Remark] = []
    if not key.consistent:
        text = "ohttp_key_config is not the configuration that was signed"
        remarks.append(_failed(ClaimName.KEYS, text, 3))
    if served is not None and key_config_of(served, "ohttp document") != key.config:
        text = "the OHTTP key served is not the one in the report"
        remarks.append(_failed(ClaimName.KEYS, text, 3))
    if key.signer is None:
        remarks.append(_unproven(ClaimName.KEYS, "nobody signed the OHTTP key", 3))
    elif not _is_signed(key):
        text = "the signature over the OHTTP key does not verify"
        remarks.append(_failed(ClaimName.KEYS, text, 3))
    elif owner is None and signers:
        text = "the OHTTP key is signed by another key than the attested ones"
        remarks.append(_failed(ClaimName.KEYS, text, 3))
    elif owner is None:
        text = "the signer of the OHTTP key is not attested: ask with signing_algo=ed25519"
        remarks.append(_unproven(ClaimName.KEYS, text, 3))
    draft = owner or next((d for d in found if d.name != _GATEWAY), found[0])
    name = "ohttp" if not any(k.use == "ohttp" for k in draft.keys) else f"ohttp-{len(draft.keys)}"
    draft.keys.append(
        PresentedKey(name=name, use="ohttp", algorithm="ohttp-key-config", value=key.config)
    )
    if not remarks:
        draft.covers.add(name)
    draft.remarks += remarks


def _is_signed(key: OhttpKey) -> bool:
    try:
        verify_ed25519(key.signer or b"", key.signature, key.config)
    except BadSignature:
        return False
    return True


FORMAT: Final = Format(
    name=_NAME,
    title="NEAR AI Cloud attestation report",
    recognise=_recognise,
    read=read_near,
    plan=_plan,
    answer=response_finding,
)
