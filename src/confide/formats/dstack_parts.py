"""Parts of dstack answers that other services embed: logs, compose documents, descriptions, GPUs.

Clauses: docs/protocols/dstack.md §1 and §4. Everything is hostile; a log counts after a replay, a
compose document after its hash was compared, and nothing here does either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from confide.errors import Reason
from confide.formats.parts import MAX_DEVICES, parse_device, refuse
from confide.wire.json import JsonLimits, JsonValue, Members, parse_json
from confide.wire.service import Devices

if TYPE_CHECKING:
    from confide.wire.evidence import GpuEvidence

__all__ = ["read_app_compose", "read_event_log", "read_gpu_bundles", "read_vm_config"]

_REASON: Final = Reason.SERVICE_FORMAT
_CLAUSE: Final = "docs/protocols/dstack.md"
_LOG: Final = JsonLimits(max_bytes=4 << 20, max_depth=4)
_INNER: Final = JsonLimits(max_bytes=4 << 20, max_depth=16)
_GPU: Final = JsonLimits(max_bytes=8 << 20, max_depth=12)
# From: docs/protocols/dstack.md §4.1.
_MAX_COMPOSE_BYTES: Final = 256 * 1024
_GPU_FORMAT: Final = "nvidia-nvattest-collect-evidence-json-v1"


def read_event_log(value: JsonValue) -> JsonValue:
    """
    Return the JSON array of a log, which dstack writes as an array or as a string that holds one.

    Raises `FormatError` (LOG_FORMAT) for anything else. Entries are read by the appraisal.
    """
    if isinstance(value, str):
        value = parse_json(
            value.encode("utf-8"), what="event_log", reason=Reason.LOG_FORMAT, limits=_LOG
        )
    if not isinstance(value, list):
        Members({}, what="event_log", reason=Reason.LOG_FORMAT).refuse("not an array")
    return value


def read_app_compose(value: JsonValue) -> bytes | None:
    """
    Return the exact bytes of app-compose.json in an answer of `Info` (v0, v1) or its `tcb_info`.

    `value` is that object, or a string that holds one. The document is a JSON string inside: its
    characters in UTF-8 are what was hashed, and nothing normalises them. None where the answer
    withholds it. Raises `FormatError`.
    """
    value = _object(value, "Info")
    if value is None:
        return None
    found = value.get("app_compose")
    if found is None and "tcb_info" in value:
        inner = _object(value["tcb_info"], "tcb_info")
        found = None if inner is None else inner.get("app_compose")
    if found is None or found == "":
        return None
    if not isinstance(found, str):
        refuse("app_compose: not text", clause=f"{_CLAUSE}#4")
    raw = found.encode("utf-8")
    if len(raw) > _MAX_COMPOSE_BYTES:
        refuse(f"app_compose: {len(raw)} bytes, at most {_MAX_COMPOSE_BYTES}")
    return raw


def _object(value: JsonValue, what: str) -> dict[str, JsonValue] | None:
    """Return an object that may be written as a string; None for an empty string or null."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        value = parse_json(value.encode("utf-8"), what=what, reason=_REASON, limits=_INNER)
    if not isinstance(value, dict):
        refuse(f"{what}: not a JSON object", clause=f"{_CLAUSE}#1")
    return value


def read_vm_config(value: JsonValue, *, mr_config: str = "") -> JsonValue:
    """
    Return the machine description as one object, None where there is none.

    `value` is the object or a string that holds one; the configuration of a whole machine, with the
    description as a string inside, is unwrapped. A document of MRCONFIGID form 3 is kept as member
    `mr_config` (text, exact): the outer one stands for the inner one, as it does for the guest.
    Raises `FormatError`.
    """
    outer = _object(value, "vm_config")
    if outer is None:
        return {"mr_config": mr_config} if mr_config else None
    inner = _object(outer["vm_config"], "vm_config") if "vm_config" in outer else outer
    found = dict(inner or {})
    for said in (outer.get("mr_config"), mr_config):
        if said:
            if found.get("mr_config") not in {None, "", said} and inner is outer:
                refuse("mr_config: two documents that differ", clause=f"{_CLAUSE}#5")
            found["mr_config"] = said
    return found


def read_gpu_bundles(document: bytes, *, nonce: bytes | None) -> Devices:
    """
    Read an answer of `AttestGpu`: bundles of NVIDIA's collected evidence.

    `nonce` is the one the relying party drew; where it drew none, the one that the entries name is
    shown and proves nothing. The record of a boot is refused: it is history, not evidence. Raises
    `FormatError`.
    """
    value = parse_json(document, what="AttestGpu answer", reason=_REASON, limits=_GPU)
    members = Members(value, what="AttestGpu answer", reason=_REASON)
    found: list[GpuEvidence] = []
    nonces: set[bytes | None] = set()
    for bundle in members.items("bundles", max_items=MAX_DEVICES):
        for index, entry in enumerate(_bundle(bundle)):
            device, named = parse_device(entry, what=f"GPU evidence[{index}]")
            found.append(device)
            nonces.add(named)
    members.end()
    if not 0 < len(found) <= MAX_DEVICES:
        refuse(f"AttestGpu answer: {len(found)} devices, 1 to {MAX_DEVICES} wanted")
    if len(nonces) > 1:
        refuse("AttestGpu answer: the devices name different nonces")
    return Devices(devices=tuple(found), nonce=nonce or nonces.pop())


def _bundle(value: JsonValue) -> list[JsonValue]:
    members = Members(value, what="GPU bundle", reason=_REASON)
    members.choice("vendor", ("nvidia",))
    members.choice("format", (_GPU_FORMAT,))
    evidence = members.value("evidence")
    members.end()
    if isinstance(evidence, str):
        raw = evidence.encode("utf-8")
        if raw[:1] not in {b"{", b"["}:
            # Bytes of the guest API are hex in JSON.
            raw = Members({"evidence": evidence}, what="GPU bundle", reason=_REASON).hexes(
                "evidence"
            )
        evidence = parse_json(raw, what="GPU evidence", reason=_REASON, limits=_GPU)
    if isinstance(evidence, dict):
        evidence = evidence.get("evidences")
    if not isinstance(evidence, list):
        refuse("GPU bundle: no list of evidence")
    return evidence
