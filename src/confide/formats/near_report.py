"""The documents of NEAR AI's attestation report as frozen values. Nothing here is believed.

Clauses: docs/protocols/near.md §1 and §4. `near` turns these values into `Evidence`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from confide.crypto.x509 import split_pem_chain
from confide.errors import FormatError, Reason, Unsupported
from confide.formats.foreign import (
    hex_bytes,
    json_value,
    launch_bytes,
    object_of,
    present,
    report_object,
)
from confide.formats.parts import refuse
from confide.wire.certificate_key import subject_public_key_info
from confide.wire.evidence import GpuEvidence
from confide.wire.json import jcs
from confide.wire.ohttp import parse_key_config, parse_key_configs

if TYPE_CHECKING:
    from confide.wire.json import JsonValue, Members
    from confide.wire.service import Capture

__all__ = [
    "ActionLog",
    "Attestation",
    "GpuSet",
    "OhttpKey",
    "Report",
    "key_config_of",
    "parse_report",
]

_CLAUSE: Final = "docs/protocols/near.md#1"
_MAX_ATTESTERS: Final = 64
_MAX_DEVICES: Final = 16
_MAX_CERTIFICATES: Final = 10
# From: nvidia.md §1.3: a device report has at most 0x2000 bytes.
_MAX_REPORT_BYTES: Final = 0x2000
_MAX_CHAIN_BYTES: Final = 64 * 1024
# From: near-wire.md §3.1: members that only the outer object of the direct shape has.
_OUTER: Final = frozenset(
    {
        "all_attestations",
        "compose_manager_attestation",
        "ohttp_key_config",
        "ohttp_attestation",
    }
)
_ARCHITECTURES: Final = ("HOPPER", "BLACKWELL")
_HEX_TEXT: Final = frozenset(b"0123456789abcdefABCDEF")


@dataclass(frozen=True, slots=True)
class GpuSet:
    """The devices of one attestation, and the nonces (32 bytes) that the text names."""

    devices: tuple[GpuEvidence, ...]
    nonces: frozenset[bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attestation:
    """
    One attestation object.

    `address` is 20 bytes for ecdsa and 32 for ed25519, `public_key` 64 or 32 bytes. `launch` are
    the exact bytes of the app-compose.
    """

    algorithm: Literal["ecdsa", "ed25519"]
    address: bytes
    public_key: bytes | None
    nonce: bytes
    quote: bytes
    log: JsonValue
    fingerprint: bytes | None
    gpus: GpuSet | None
    launch: bytes | None
    vm_config: JsonValue
    model: str


@dataclass(frozen=True, slots=True)
class ActionLog:
    """The compose manager's account: whether its digest fits, which no hardware says."""

    spelling: Literal["canonical", "escaped", "neither"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OhttpKey:
    """A key configuration (exact bytes) and who signed it; `signer` is None where nobody did."""

    config: bytes
    signer: bytes | None
    signature: bytes
    consistent: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A whole report; `gateway` is None in the direct shape. `certificate_spki` is a SHA-256."""

    gateway: Attestation | None
    models: tuple[Attestation, ...]
    certificate_spki: bytes | None
    actions: tuple[ActionLog, ...]
    ohttp: tuple[OhttpKey, ...]


def parse_report(capture: Capture) -> Report:
    """Parse the document `report`; `FormatError`, or `Unsupported` for an unknown GPU family."""
    value = report_object(capture, what="NEAR report")
    top = object_of(value, "NEAR report")
    collected = _Collected(_MAX_ATTESTERS - top.has("gateway_attestation"))
    if not present(top, "gateway_attestation"):
        collected.add(value, "NEAR report")
        return collected.report(None, None)
    gateway = _parse_attestation(top.members("gateway_attestation"), "gateway_attestation")
    if present(top, "model_attestations"):
        for at, item in enumerate(top.items("model_attestations", max_items=_MAX_ATTESTERS)):
            collected.add(item, f"model_attestations[{at}]")
    return collected.report(gateway, _certificate_spki(top))


def _certificate_spki(top: Members) -> bytes | None:
    if not present(top, "tls_certificate"):
        return None
    what = "NEAR report: tls_certificate"
    text = top.text("tls_certificate", max_chars=1 << 18)
    if not text.isascii():
        refuse(f"{what}: not ASCII", clause=_CLAUSE)
    chain = split_pem_chain(
        text.encode("ascii"),
        max_certificates=_MAX_CERTIFICATES,
        what=what,
        reason=Reason.SERVICE_FORMAT,
    )
    # From: RFC 5280 §4.1: web servers have keys of more kinds than the chains judged elsewhere.
    spki = subject_public_key_info(chain[0], what=f"{what}[0]", reason=Reason.SERVICE_FORMAT)
    return hashlib.sha256(spki).digest()


class _Collected:
    """Model attestations in order, each with its canonical bytes, and what stood beside them."""

    __slots__ = ("_actions", "_found", "_ohttp", "_room")

    def __init__(self, room: int) -> None:
        self._room = room
        self._found: list[tuple[bytes, Attestation]] = []
        self._actions: list[ActionLog] = []
        self._ohttp: list[OhttpKey] = []

    def add(self, value: JsonValue, what: str) -> None:
        """Add the direct object `value`, all it holds."""
        members = object_of(value, what)
        self._attestation(value, what, once=False)
        if present(members, "all_attestations"):
            for at, item in enumerate(members.items("all_attestations", max_items=_MAX_ATTESTERS)):
                self._attestation(item, f"{what}: all_attestations[{at}]", once=True)
        if present(members, "compose_manager_attestation"):
            self._actions.append(_parse_actions(members.members("compose_manager_attestation")))
        if (key := _parse_ohttp(members)) is not None:
            self._ohttp.append(key)

    def _attestation(self, value: JsonValue, what: str, *, once: bool) -> None:
        if not isinstance(value, dict):
            refuse(f"{what}: an object was expected", clause=_CLAUSE)
        plain = {name: item for name, item in value.items() if name not in _OUTER}
        raw = jcs(plain)
        if once and any(raw == known for known, _ in self._found):
            return
        if len(self._found) == self._room:
            refuse(f"{what}: more than {_MAX_ATTESTERS} attestations", clause=_CLAUSE)
        self._found.append((raw, _parse_attestation(object_of(plain, what), what)))

    def report(self, gateway: Attestation | None, certificate_spki: bytes | None) -> Report:
        """Return the report of these models behind `gateway`."""
        return Report(
            gateway=gateway,
            models=tuple(parsed for _, parsed in self._found),
            certificate_spki=certificate_spki,
            actions=tuple(self._actions),
            ohttp=tuple(self._ohttp),
        )


def _parse_attestation(members: Members, what: str) -> Attestation:
    algorithm: Literal["ecdsa", "ed25519"] = members.choice("signing_algo", ("ecdsa", "ed25519"))
    ecdsa = algorithm == "ecdsa"
    address = hex_bytes(
        members, "signing_address", 20 if ecdsa else 32, prefix="0x" if ecdsa else ""
    )
    public_key = None
    if present(members, "signing_public_key"):
        public_key = hex_bytes(members, "signing_public_key", 64 if ecdsa else 32)
    fingerprint = None
    if present(members, "tls_cert_fingerprint"):
        fingerprint = hex_bytes(members, "tls_cert_fingerprint", 32)
    gpus = None
    if present(members, "nvidia_payload"):
        payload = json_value(members, "nvidia_payload", what=what)
        gpus = _parse_gpus(object_of(payload, f"{what}: nvidia_payload"))
    log = json_value(members, "event_log", what=what)
    if not isinstance(log, list):
        members.refuse("event_log is not an array")
    launch, vm_config = _parse_info(members, what)
    return Attestation(
        algorithm=algorithm,
        address=address,
        public_key=public_key,
        nonce=hex_bytes(members, "request_nonce", 32),
        quote=hex_bytes(members, "intel_quote"),
        log=log,
        fingerprint=fingerprint,
        gpus=gpus,
        launch=launch,
        vm_config=vm_config,
        model=members.text("model_name") if present(members, "model_name") else "",
    )


def _parse_info(members: Members, what: str) -> tuple[bytes | None, JsonValue]:
    """Return the launch document and the machine description; both are only candidates."""
    info = members.members("info")
    vm_config = json_value(info, "vm_config", what=what) if present(info, "vm_config") else None
    if not present(info, "tcb_info"):
        return None, vm_config
    tcb_info = object_of(json_value(info, "tcb_info", what=what), f"{what}: tcb_info")
    launch = launch_bytes(tcb_info, "app_compose") if present(tcb_info, "app_compose") else None
    return launch, vm_config


def _parse_gpus(payload: Members) -> GpuSet:
    if (arch := payload.text("arch", max_chars=64)) not in _ARCHITECTURES:
        raise Unsupported("NEAR report: GPUs of a family that is not judged here")
    nonces = {hex_bytes(payload, "nonce", 32)}
    devices: list[GpuEvidence] = []
    for at, item in enumerate(payload.items("evidence_list", max_items=_MAX_DEVICES)):
        entry = object_of(item, f"NEAR report: evidence_list[{at}]")
        if present(entry, "arch") and entry.text("arch", max_chars=64) != arch:
            entry.refuse("arch is another one than that of the set")
        if present(entry, "nonce"):
            nonces.add(hex_bytes(entry, "nonce", 32))
        chain = entry.base64("certificate")
        if not 0 < len(chain) <= _MAX_CHAIN_BYTES:
            entry.refuse(f"certificate is empty or longer than {_MAX_CHAIN_BYTES} bytes")
        devices.append(GpuEvidence(_report_bytes(entry), chain))
    if not devices:
        payload.refuse("evidence_list is empty")
    return GpuSet(tuple(devices), frozenset(nonces))


def _report_bytes(entry: Members) -> bytes:
    raw = entry.base64("evidence")
    # An SPDM request starts with its version, 0x11, which is no hex digit: nothing is both.
    if _HEX_TEXT.issuperset(raw):
        if len(raw) % 2:
            entry.refuse("evidence is hex of half a byte")
        raw = bytes.fromhex(raw.decode("ascii"))
    if not 0 < len(raw) <= _MAX_REPORT_BYTES:
        entry.refuse(f"evidence is empty or longer than {_MAX_REPORT_BYTES} bytes")
    return raw


def _parse_actions(members: Members) -> ActionLog:
    """Recompute the digest of the action log in both known spellings."""
    actions: JsonValue = members.items("actions", max_items=65_536)
    claimed = hex_bytes(members, "actions_hash", 32)
    if hashlib.sha256(jcs(actions)).digest() == claimed:
        return ActionLog("canonical")
    escaped = json.dumps(actions, sort_keys=True, separators=(",", ":"))
    if hashlib.sha256(escaped.encode("ascii")).digest() == claimed:
        return ActionLog("escaped")
    return ActionLog("neither")


def key_config_of(raw: bytes, what: str) -> bytes:
    """
    Return the bytes of the one key configuration in `raw`, with or without its length in front.

    Raises `FormatError` with SERVICE_FORMAT for anything else.
    """
    try:
        if len(raw) >= 2 and int.from_bytes(raw[:2], "big") == len(raw) - 2:
            parse_key_configs(raw)
            return raw[2:]
        parse_key_config(raw)
    except FormatError as error:
        raise FormatError(
            f"{what}: {error.what}",
            reason=Reason.SERVICE_FORMAT,
            clause=error.clause,
            offset=error.offset,
        ) from error
    return raw


def _parse_ohttp(side: Members) -> OhttpKey | None:
    stated = None
    if present(side, "ohttp_key_config"):
        stated = key_config_of(hex_bytes(side, "ohttp_key_config"), "ohttp_key_config")
    if not present(side, "ohttp_attestation"):
        if stated is None:
            return None
        return OhttpKey(config=stated, signer=None, signature=b"", consistent=True)
    signed = side.members("ohttp_attestation")
    signed.choice("signing_algo", ("ed25519",))
    config = hex_bytes(signed, "key_config")
    key_config_of(config, "ohttp_attestation: key_config")
    return OhttpKey(
        config=config,
        signer=hex_bytes(signed, "signing_key", 32),
        signature=hex_bytes(signed, "signature", 64),
        consistent=stated is None or stated == config,
    )
