"""Targets: encodings of dstack, its answers, and one machine judged over hostile documents."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from typing import TYPE_CHECKING

from dstack_logs import COMPOSE, cbor, events, machine, measurement
from dstack_wire import msgpack, ratls_certificate, v0_envelope, v1_document

from confide.appraisal.dstack_log import read_dstack_events
from confide.appraisal.firmware_log import judge_ccel
from confide.appraisal.launch import MrConfigV3, parse_mr_config_v3
from confide.appraisal.lite import read_measurement
from confide.appraisal.steps import Refused
from confide.errors import Reason
from confide.formats.dstack import FORMAT
from confide.formats.dstack_parts import read_gpu_bundles
from confide.wire.azure import parse_hcl_report, runtime_data_binding
from confide.wire.cbor import parse_cbor
from confide.wire.dstack import (
    RATLS_ATTESTATION,
    RATLS_EVENT_LOG,
    RATLS_QUOTE,
    decode_log_extension,
    parse_envelope,
    parse_ratls_certificate,
)
from confide.wire.msgpack import parse_msgpack
from confide.wire.rtmr_log import RuntimeEvent, encode_log, parse_log
from confide.wire.service import Capture
from fuzz import seeds
from fuzz.driver import Target
from fuzz.pieces import document, fixed

if TYPE_CHECKING:
    from confide.wire.json import JsonValue

_REASON = Reason.SERVICE_FORMAT
_ZERO = bytes(48)


def _answer(raw: bytes) -> None:
    """Read the main document; whatever comes out of it is judged as a machine would be."""
    FORMAT.recognise(raw)
    evidence = FORMAT.read(Capture(documents={"quote": raw}))
    for attester in evidence.attesters:
        replace(
            machine(),
            log=attester.runtime_log,
            vm_config=attester.vm_config,
        ).judge()


def _judged(value: JsonValue) -> None:
    """Judge `{log, vm_config}` against registers of an honest machine."""
    if isinstance(value, dict):
        log, described = value.get("log"), value.get("vm_config")
        replace(machine(), log=log, vm_config=described).judge()


def _measured(value: JsonValue) -> None:
    """A guest measures what it likes: digests hold, names and payloads are hostile."""
    if not isinstance(value, list):
        return
    found = [
        RuntimeEvent(str(item.get("name")), str(item.get("payload")).encode("latin-1", "replace"))
        for item in value
        if isinstance(item, dict)
    ]
    entries = parse_log(encode_log(found))
    refused = Refused
    try:
        _ = read_dstack_events(entries).gpu_evidence_sha256
    except refused:
        return


def _info(raw: bytes) -> None:
    FORMAT.read(Capture(documents={"quote": b"\x04\x00quote", "info": raw}))


def _firmware(raw: bytes) -> None:
    verdict = judge_ccel(raw, quoted=(_ZERO, _ZERO, _ZERO, _ZERO), runtime_elsewhere=False)
    verdict.described()


def _answers() -> tuple[bytes, ...]:
    plain = json.dumps(
        {
            "quote": b"\x04\x00quote".hex(),
            "event_log": json.dumps(machine().log),
            "report_data": "11" * 32,
            "vm_config": json.dumps(machine().vm_config),
        }
    )
    sealed = json.dumps({"attestation": v0_envelope().hex()})
    return (plain.encode(), sealed.encode(), *seeds.vectors("dstack/*quote*.json"))


def _machines() -> tuple[bytes, ...]:
    return (json.dumps({"log": machine().log, "vm_config": machine().vm_config}).encode(),)


def _boots() -> tuple[bytes, ...]:
    boot = events(gpu_attestation=b'{"evidence_sha256":"' + b"00" * 32 + b'"}')
    return (
        json.dumps(
            [{"name": event.name, "payload": event.payload.decode("latin-1")} for event in boot]
        ).encode(),
    )


def _certificates() -> tuple[bytes, ...]:
    return (
        ratls_certificate({RATLS_QUOTE: b"\x04\x00quote", RATLS_EVENT_LOG: b"[]"})[0],
        ratls_certificate({RATLS_ATTESTATION: v0_envelope()})[0],
    )


def _blobs() -> tuple[bytes, ...]:
    runtime = b'{"keys":[]}'
    found = []
    for kind, at in ((2, 0x50), (4, 128)):
        hardware = bytearray(1184)
        hardware[at : at + 64] = runtime_data_binding(runtime)
        numbers = b"".join(n.to_bytes(4, "little") for n in (31, 1, kind, 1, len(runtime)))
        found.append(b"HCLA" + bytes(28) + bytes(hardware) + numbers + runtime)
    return tuple(found)


def _bundles() -> tuple[bytes, ...]:
    entry = {"arch": "HOPPER", "nonce": "11" * 32, "evidence": "AAAA", "certificate": "AAAA"}
    kind = "nvidia-nvattest-collect-evidence-json-v1"
    bundle = {"vendor": "nvidia", "format": kind, "evidence": {"evidences": [entry]}}
    return (json.dumps({"bundles": [bundle]}).encode(),)


_MR_CONFIG = MrConfigV3(compose_hash=bytes(32), key_provider="kms", init_script_hashes=(bytes(32),))

DSTACK_TARGETS: tuple[Target, ...] = (
    Target(
        "cbor",
        lambda raw: parse_cbor(raw, what="input", reason=_REASON),
        lambda: (measurement(), cbor({"a": [1, 300, b"x", "y"]})),
        tokens=(b"\xa1", b"\x9b", b"\x5b" + b"\xff" * 8, b"\x81", b"\xc0", b"\x5f"),
    ),
    Target(
        "msgpack",
        lambda raw: parse_msgpack(raw, what="input", reason=_REASON),
        lambda: (msgpack(v1_document()),),
        tokens=(b"\x81", b"\x91", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xc7"),
    ),
    Target(
        "dstack-envelope",
        parse_envelope,
        lambda: (v0_envelope(), msgpack(v1_document()), *seeds.vectors("dstack/attestation-*")),
        tokens=(b"\x00\x00", b"\xfe\xff\xff\xff", b"\x01\x01"),
    ),
    Target("dstack-ratls", parse_ratls_certificate, _certificates, tokens=(b"\x30\x80", b"\xa3")),
    Target(
        "dstack-ratls-log",
        decode_log_extension,
        fixed(b"[]", b"ELGZv1" + gzip.compress(b"[]", mtime=0)),
        tokens=(b"ELGZv1",),
    ),
    Target("dstack-measurement", read_measurement, lambda: (measurement(),)),
    Target("dstack-mr-config", parse_mr_config_v3, fixed(_MR_CONFIG.encode()), json_values=True),
    Target("dstack-answer", _answer, _answers, json_values=True),
    Target("dstack-certificate", _answer, _certificates),
    Target(
        "dstack-info",
        _info,
        lambda: (
            json.dumps({"tcb_info": json.dumps({"app_compose": COMPOSE.decode()})}).encode(),
            *seeds.vectors("dstack/*tcb_info.json"),
        ),
        json_values=True,
    ),
    Target("dstack-gpu", lambda raw: read_gpu_bundles(raw, nonce=None), _bundles, json_values=True),
    Target("dstack-machine", document(_judged), _machines, json_values=True),
    Target("dstack-boot", document(_measured), _boots, json_values=True),
    Target("azure-blob", parse_hcl_report, _blobs),
    Target(
        "ccel-judged",
        _firmware,
        lambda: (seeds.agent().firmware_log, *seeds.vectors("eventlog/ccel-*.bin")),
    ),
)
