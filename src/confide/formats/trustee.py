"""Evidence of Confidential Containers: attestation bodies for Trustee, and bare agent evidence.

Clauses: docs/protocols/trustee.md, which names the sources. Report data is recomputed from what
was presented; a token of Trustee is somebody's verdict and no evidence.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from confide.appraisal.claim_names import ClaimName
from confide.errors import FormatError, Reason, Unsupported
from confide.formats.format import Format, Request
from confide.formats.parts import MAX_DEVICES, only_document, parse_device, parse_object, refuse
from confide.formats.trustee_tee import Machine, read_tee, tee_of
from confide.wire.jose import parse_compact_jws
from confide.wire.json import JsonValue, Members, b64decode, jcs
from confide.wire.service import (
    Attester,
    Devices,
    Evidence,
    LaunchDocument,
    PresentedKey,
    Remark,
    ReportBinding,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from confide.wire.service import Capture

__all__ = ["FORMAT", "NAME", "composite_report_data", "device_report_data"]

NAME: Final = "trustee"
_CLAUSE: Final = "docs/protocols/trustee.md"
_REASON: Final = Reason.SERVICE_FORMAT
# Names in a capture: the main document first, then what may stand beside it.
_ATTESTATION, _EVIDENCE = "attestation", "evidence"
_CHALLENGE, _REQUEST, _ADDITIONAL, _INIT_DATA = (
    "challenge",
    "request",
    "additional-evidence",
    "init-data",
)
_BESIDE: Final = frozenset((_CHALLENGE, _REQUEST, _ADDITIONAL, _INIT_DATA))
# From: guest-components rcar_client.rs, DEFAULT_HASH_ALGORITHM; kbs-types HashAlgorithm.
_DEFAULT_HASH: Final = "sha384"
_HASHES: Final = ("sha256", "sha384", "sha512")
_MAX_NONCE: Final = 64
_HEX_NONCE: Final = re.compile(rb"[0-9a-f]{64}")
_SCHEME_RCAR: Final = "kbs/0.4.0"
_SCHEME_AGENT: Final = "attestation-agent"
# From: confidential-containers.md §1: the keys that Trustee wraps secrets for.
_KEY_MEMBERS: Final = {"EC": ("crv", "kty", "x", "y"), "RSA": ("e", "kty", "n")}
_KEY_ALGORITHMS: Final = {"EC": ("ECDH-ES+A256KW",), "RSA": ("RSA-OAEP-256", "RSA1_5")}
_WEAK: Final = "RSA1_5"


def device_report_data(algorithm: str, *, nonce: str, tee_pubkey: JsonValue) -> bytes:
    """Return H(JCS{nonce, tee-pubkey}): what devices are asked with; the GPU nonce heads it."""
    return hashlib.new(algorithm, jcs({"nonce": nonce, "tee-pubkey": tee_pubkey})).digest()


def composite_report_data(
    algorithm: str, *, nonce: str, tee_pubkey: JsonValue, additional_evidence: str
) -> bytes:
    """Return the 64 bytes that the processor commits to: a hash, filled with zeros."""
    document = {
        "additional-evidence": additional_evidence,
        "nonce": nonce,
        "tee-pubkey": tee_pubkey,
    }
    return hashlib.new(algorithm, jcs(document)).digest().ljust(64, b"\0")


def _recognise(document: bytes) -> bool:
    if _is_token(document):
        return True
    if not any(word in document for word in _WORDS):
        return False
    try:
        value = parse_object(document, what="document")
    except FormatError:
        return False
    if "tee-evidence" in value:
        return True
    return tee_of(value) is not None


_WORDS: Final = (
    b'"tee-evidence"',
    b'"cc_eventlog"',
    b'"attestation_report"',
    b'"hcl_report"',
    b'"svn"',
    b'"vcek"',
)


def _is_token(document: bytes) -> bool:
    """Whether `document` is an EAR token of Trustee, alone or in the answer that carries it."""
    text = document.strip()
    if text.startswith(b"{") and b'"token"' in text and len(text) < 1 << 17:
        try:
            value = parse_object(text, what="document")
        except FormatError:
            return False
        token = value.get("token")
        text = token.encode() if isinstance(token, str) and len(value) == 1 else b""
    if not text.startswith(b"eyJ") or len(text) > 1 << 17:
        return False
    try:
        jws = parse_compact_jws(text.decode("ascii"), what="token", reason=_REASON)
        claims = jws.payload(what="token", reason=_REASON)
    except (FormatError, UnicodeDecodeError):
        return False
    profile = claims.get("eat_profile")
    return isinstance(profile, str) and "trustee" in profile.lower()


def _plan(nonce: bytes) -> tuple[Request, ...]:
    # Hex needs no escaping and has exactly the 64 bytes of report data.
    return tuple(
        Request(
            document=document,
            path=f"/aa/{document}?runtime_data={nonce.hex()}",
            # A guest without devices has no answer to the second.
            optional=document == _ADDITIONAL,
        )
        for document in (_EVIDENCE, _ADDITIONAL)
    )


def _read(capture: Capture) -> Evidence:
    main = {name: raw for name, raw in capture.documents.items() if name not in _BESIDE}
    raw = only_document(replace(capture, documents=main), (_ATTESTATION, _EVIDENCE), what="Trustee")
    if _is_token(raw):
        raise Unsupported(
            "a token of an attestation service, which is its verdict and no evidence: ask for the "
            "attestation body or the agent's evidence, and judge that"
        )
    value = parse_object(raw, what="Trustee evidence")
    beside = {name: raw for name, raw in capture.documents.items() if name in _BESIDE}
    attester = (
        _read_attestation(value, beside) if "tee-evidence" in value else _read_agent(value, beside)
    )
    return Evidence(
        format=NAME,
        attesters=(attester,),
        nonce=capture.nonce,
        tls_spki_sha256=capture.tls_spki_sha256,
        limits=_LIMITS,
    )


def _read_attestation(value: dict[str, JsonValue], beside: Mapping[str, bytes]) -> Attester:
    if "runtime-data" not in value:
        raise Unsupported("an attestation of a protocol before 0.4.0, which binds no devices")
    top = Members(value, what="attestation", reason=_REASON)
    runtime = top.members("runtime-data")
    nonce, key = runtime.text("nonce", max_chars=256), runtime.value("tee-pubkey")
    runtime.end()
    tee_evidence = top.members("tee-evidence")
    primary = tee_evidence.value("primary_evidence")
    additional = tee_evidence.text("additional_evidence", max_chars=1 << 23)
    tee_evidence.end()
    init_data = None
    if top.has("init-data") and not top.null("init-data"):
        init_data = _init_data(top.members("init-data"))
    top.end()
    challenge = b64decode(nonce, what="attestation: nonce", reason=_REASON)
    if not 0 < len(challenge) <= _MAX_NONCE:
        runtime.refuse(f"a nonce of {len(challenge)} bytes")
    machine = read_tee(primary, told=_told_tee(beside), init_data=init_data)
    algorithm, remarks = _algorithm(beside, machine, nonce=nonce, key=key, additional=additional)
    expected = composite_report_data(
        algorithm, nonce=nonce, tee_pubkey=key, additional_evidence=additional
    )
    gpu_nonce = device_report_data(algorithm, nonce=nonce, tee_pubkey=key)[:32]
    devices, more = _devices(additional, gpu_nonce)
    presented, weak = _key(key)
    covers = {"tee-pubkey"} | ({"gpu-evidence"} if devices is not None else set())
    binding = ReportBinding(
        scheme=_SCHEME_RCAR, expected=expected, nonce=challenge, covers=frozenset(covers)
    )
    attester = _attester(machine, binding, devices, init_data)
    return replace(attester, keys=(presented,), remarks=(*attester.remarks, *remarks, *more, *weak))


def _algorithm(
    beside: Mapping[str, bytes], machine: Machine, *, nonce: str, key: JsonValue, additional: str
) -> tuple[str, tuple[Remark, ...]]:
    """
    Return the hash of this exchange: what the challenge selected, else what the report shows.

    Without the challenge all three are tried: each commits to the same document, so whichever
    matches proves the same. None matching leaves the default, which then does not match either.
    """
    if _CHALLENGE in beside:
        challenge = Members(
            parse_object(beside[_CHALLENGE], what="challenge"), what="challenge", reason=_REASON
        )
        remarks: tuple[Remark, ...] = ()
        if challenge.text("nonce", max_chars=256) != nonce:
            remarks = (_failed(ClaimName.FRESHNESS, "another nonce than the challenge has"),)
        extra = challenge.value("extra-params") if challenge.has("extra-params") else None
        named = extra.get("selected-hash-algorithm") if isinstance(extra, dict) else None
        if named is None:
            return _DEFAULT_HASH, remarks
        if isinstance(named, str) and named.lower() in _HASHES:
            return named.lower(), remarks
        raise Unsupported("a challenge that selects another hash than SHA-256, -384 or -512")
    for algorithm in _HASHES:
        expected = composite_report_data(
            algorithm, nonce=nonce, tee_pubkey=key, additional_evidence=additional
        )
        if expected == machine.report_data:
            return algorithm, ()
    return _DEFAULT_HASH, ()


def _told_tee(beside: Mapping[str, bytes]) -> str | None:
    if _REQUEST not in beside:
        return None
    request = parse_object(beside[_REQUEST], what="request")
    tee = request.get("tee")
    return tee if isinstance(tee, str) else None


def _init_data(members: Members) -> bytes:
    # Other formats have no exact bytes that hardware could have measured.
    if members.text("format", max_chars=16) != "toml":
        raise Unsupported("init-data that is not TOML")
    body = members.text("body", max_chars=1 << 20)
    members.end()
    return body.encode()


def _read_agent(value: dict[str, JsonValue], beside: Mapping[str, bytes]) -> Attester:
    init_data = beside.get(_INIT_DATA)
    if tee_of(value) is None and value.keys() != {"quote"}:
        refuse("neither an attestation body nor evidence of an agent", clause=f"{_CLAUSE}#2")
    machine = read_tee(value, told=_told_tee(beside), init_data=init_data)
    expected, nonce = _asked(machine.report_data)
    devices: Devices | None = None
    remarks: tuple[Remark, ...] = ()
    if beside.get(_ADDITIONAL, b"").strip():
        text = beside[_ADDITIONAL].decode("utf-8", "replace")
        gpu_nonce = expected[:32] if expected is not None else None
        devices, remarks = _devices(text, gpu_nonce)
        remarks = (*remarks, _open(ClaimName.GPU_BINDING, "asked for apart from the processor"))
    binding = ReportBinding(scheme=_SCHEME_AGENT, expected=expected, nonce=nonce)
    attester = _attester(machine, binding, devices, init_data)
    no_key = _open(ClaimName.KEYS, "evidence of the agent alone names no key")
    return replace(attester, remarks=(*attester.remarks, *remarks, no_key))


def _asked(report_data: bytes) -> tuple[bytes | None, bytes | None]:
    """
    Return report data and the nonce that it is, None and None where it is something else.

    The agent is asked with a nonce of 32 bytes and puts nothing beside it: in hex, or as it is
    and filled with zeros. That it is the caller's nonce is judged elsewhere.
    """
    if _HEX_NONCE.fullmatch(report_data):
        return report_data, bytes.fromhex(report_data.decode("ascii"))
    if not any(report_data[32:]) and any(report_data):
        return report_data, report_data[:32]
    return None, None


def _devices(text: str, nonce: bytes | None) -> tuple[Devices | None, tuple[Remark, ...]]:
    """Read the map of additional evidence; `nonce` is what every device must have signed."""
    if not text.strip():
        return None, (_open(ClaimName.GPU, "no evidence of devices came along"),)
    value = parse_object(text.encode(), what="additional evidence")
    remarks: tuple[Remark, ...] = ()
    if value.keys() - {"nvidia"}:
        remarks = (_open(ClaimName.GPU, "devices of a kind that is not judged here"),)
    if "nvidia" not in value:
        return None, remarks
    members = Members(value["nvidia"], what="additional evidence", reason=_REASON)
    entries = members.items("device_evidence_list", max_items=MAX_DEVICES)
    members.end()
    if not entries:
        refuse("additional evidence: an empty list of devices", clause=f"{_CLAUSE}#4")
    found = tuple(
        parse_device(entry, what=f"additional evidence[{index}]")[0]
        for index, entry in enumerate(entries)
    )
    return Devices(devices=found, nonce=nonce), remarks


def _key(value: JsonValue) -> tuple[PresentedKey, tuple[Remark, ...]]:
    """Return the wrapping key as its RFC 7638 thumbprint."""
    members = Members(value, what="tee-pubkey", reason=_REASON)
    kind = members.text("kty", max_chars=16)
    if kind not in _KEY_MEMBERS:
        raise Unsupported("a wrapping key that is neither EC nor RSA")
    algorithm = members.choice("alg", _KEY_ALGORITHMS[kind])
    document: dict[str, JsonValue] = {"kty": kind}
    for name in _KEY_MEMBERS[kind]:
        if name != "kty":
            document[name] = members.text(name, max_chars=2048)
    members.end()
    thumbprint = hashlib.sha256(jcs(document)).digest()
    key = PresentedKey(
        name="tee-pubkey", use="encryption", algorithm="jwk-thumbprint-sha256", value=thumbprint
    )
    if algorithm == _WEAK:
        return key, (_failed(ClaimName.KEYS, "secrets would be wrapped with RSA PKCS#1 v1.5"),)
    return key, ()


def _attester(
    machine: Machine, binding: ReportBinding, devices: Devices | None, init_data: bytes | None
) -> Attester:
    launch = LaunchDocument(kind="init-data", raw=init_data) if init_data is not None else None
    if machine.paravisor:
        # Azure: the hardware vouches for the paravisor's runtime data and nothing else.
        binding = ReportBinding(
            scheme="azure/hcl", expected=machine.expected, nonce=None, covers=frozenset()
        )
    return Attester(
        name="guest",
        tdx=machine.tdx,
        snp=machine.snp,
        binding=binding,
        devices=devices,
        firmware_log=machine.firmware_log,
        launch=launch,
        paravisor=machine.paravisor,
        remarks=(*machine.remarks, *_REMARKS),
    )


def _failed(claim: ClaimName, text: str) -> Remark:
    return Remark(claim=claim, text=text, clause=f"{_CLAUSE}#4", failed=True)


def _open(claim: ClaimName, text: str) -> Remark:
    return Remark(claim=claim, text=text, clause=f"{_CLAUSE}#6")


# Only what no launch document and no policy could prove: a remark lowers and never raises.
_REMARKS: Final = (
    _open(ClaimName.TLS, "the wrapping key is not the key of a TLS connection"),
    _open(ClaimName.MODEL_WEIGHTS, "nothing names weights"),
    _open(ClaimName.RESPONSE_SIGNATURE, "answers are not signed"),
)
_LIMITS: Final = (
    "Evidence for a key broker shows that secrets would reach this guest, not who answers you.",
)

FORMAT: Final = Format(
    name=NAME,
    title="Confidential Containers (Trustee) evidence",
    recognise=_recognise,
    read=_read,
    plan=_plan,
)
