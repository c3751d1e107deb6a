"""Facts of dstack samples, in the words of vectors/dstack/README.md."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from confide.appraisal.dstack import DstackRegisters, mr_aggregated
from confide.appraisal.eventlog import replay_digests, replay_runtime, runtime_part
from confide.appraisal.launch import MRCONFIG_UNSET, mrconfigid_form1
from confide.appraisal.lite import acpi_digests, read_lite_inputs
from confide.wire.rtmr_log import parse_log

if TYPE_CHECKING:
    from confide.appraisal.dstack import DstackFacts
    from confide.appraisal.dstack_log import DstackEvents
    from confide.wire.json import JsonValue
    from confide.wire.rtmr_log import LogEntry
    from confide.wire.service import Attester
    from confide.wire.tdx import TdxQuote

__all__ = ["answer_facts", "differences"]

# Of a case: the note on a published document, which is no file of it.
_NOT_READ = frozenset({"published_app_compose_sha256", "published_app_compose_matches"})


def differences(expected: object, facts: dict[str, Any]) -> tuple[str, ...]:
    """Return where `facts` are not what the case says."""
    if not isinstance(expected, dict):
        return ()
    found: list[str] = []
    for name, value in expected.items():
        if name in _NOT_READ:
            continue
        if name not in facts:
            found.append(f"{name} was not read")
        elif isinstance(value, dict) and isinstance(facts[name], dict):
            found += [f"{name}: {text}" for text in differences(value, facts[name])]
        elif facts[name] != value:
            found.append(f"{name} is {facts[name]}, not {value}")
    return tuple(found)


def answer_facts(
    attester: Attester, quote: TdxQuote, facts: DstackFacts, files: dict[str, bytes]
) -> dict[str, Any]:
    """Return everything that was read of a quote with its log and descriptions."""
    found = _quote_facts(quote)
    raw = attester.tdx.quote if attester.tdx else b""
    found |= {"quote_bytes": len(raw), "report_data_field": _report_data(attester)}
    entries = parse_log(attester.runtime_log)
    found |= _log_facts(entries, quote)
    if facts.events is not None:
        found |= _identity(facts.events, quote)
    found |= _described(attester.vm_config, entries, facts)
    for name, document in files.items():
        if b"rtmr0" in document[:4096] and name.endswith(".json"):
            found |= _told(document)
    document = next(iter(files.values()))
    found |= {"first_byte": document[:1].hex(), "embedded_quote_offset": document.find(raw)}
    return found


def _report_data(attester: Attester) -> str | None:
    return attester.binding.expected.hex() if attester.binding.expected else None


def _quote_facts(quote: TdxQuote) -> dict[str, Any]:
    body, registers = quote.body, DstackRegisters.of(quote.body)
    plain = hashlib.sha256(body.mr_td + b"".join(body.rtmr))
    full = plain.copy()
    full.update(body.mr_config_id + body.mr_owner + body.mr_owner_config)
    unset = not (body.mr_config_id + body.mr_owner + body.mr_owner_config).strip(b"\0")
    ours = mr_aggregated(registers)
    return {
        "quote": {
            "version": quote.version,
            "tee_type": "0x81",
            "tee_tcb_svn": body.tee_tcb_svn.hex(),
            "mrseam": body.mr_seam.hex(),
            "mrsignerseam": body.mr_signer_seam.hex(),
            "seamattributes": body.seam_attributes.hex(),
            "tdattributes": body.td_attributes.hex(),
            "xfam": body.xfam.hex(),
            "mrtd": body.mr_td.hex(),
            "mrconfigid": body.mr_config_id.hex(),
            "mrowner": body.mr_owner.hex(),
            "mrownerconfig": body.mr_owner_config.hex(),
            "rtmr": [register.hex() for register in body.rtmr],
            "report_data": body.report_data.hex(),
        },
        # Ours is the one that applies to this quote; the other one is shown for comparison.
        "mr_aggregated_without_config": (ours if unset else plain.digest()).hex(),
        "mr_aggregated_with_config": (full.digest() if unset else ours).hex(),
        "mrconfigid_form": body.mr_config_id[0],
        "mrconfigid_is_zero": body.mr_config_id == MRCONFIG_UNSET,
    }


def _log_facts(entries: tuple[LogEntry, ...], quote: TdxQuote) -> dict[str, Any]:
    runtime = runtime_part(entries)
    replayed = {**replay_digests(entries), 3: replay_runtime(runtime)}
    return {
        "events": len(entries),
        "replay_matches": [replayed.get(index) == quote.body.rtmr[index] for index in range(4)],
        "rtmr3_events": [
            [entry.event.name, _shown(entry.event.name, entry.event.payload)] for entry in runtime
        ],
    }


def _shown(name: str, payload: bytes) -> str:
    if name == "key-provider":
        return f"sha256:{hashlib.sha256(payload).hexdigest()}"
    return payload.hex()


def _identity(events: DstackEvents, quote: TdxQuote) -> dict[str, Any]:
    found = {
        "compose_hash": events.compose_hash.hex(),
        "contains_compose_hash": events.compose_hash.hex(),
        "app_id": events.app_id.hex(),
        "app_id_is_compose_prefix": events.app_id == events.compose_hash[:20],
        "mrconfigid_equals_01_compose_hash": quote.body.mr_config_id
        == mrconfigid_form1(events.compose_hash),
        "events_after_system_ready": list(events.after_ready),
    }
    if events.os_image_hash is not None:
        found["os_image_hash_event"] = events.os_image_hash.hex()
    return found


def _described(
    vm_config: JsonValue, entries: tuple[LogEntry, ...], facts: DstackFacts
) -> dict[str, Any]:
    if not isinstance(vm_config, dict):
        return {}
    found: dict[str, Any] = {"os_image_hash": vm_config.get("os_image_hash")}
    inputs = read_lite_inputs(vm_config)
    if inputs is not None and facts.os_image_hash is not None:
        names = ("acpi-loader", "acpi-rsdp", "acpi-tables")
        found["tdx_lite"] = {
            "sha256_checksum_file": hashlib.sha256(inputs.checksum_file).hexdigest(),
            "checksum_file": inputs.checksum_file.decode("ascii"),
            "sha256_measurement_cbor": hashlib.sha256(inputs.measurement).hexdigest(),
            "measurement_bytes": len(inputs.measurement),
            "recomputed_from_measurement": ["mrtd", "rtmr0", "rtmr1", "rtmr2"],
            "acpi_digests": [
                [name, digest.hex()]
                for name, digest in zip(names, acpi_digests(entries), strict=True)
            ],
        }
    return found


def _told(document: bytes) -> dict[str, Any]:
    """Return what `tcb_info` says; nothing of it is evidence."""
    value = json.loads(document)
    device = value.get("device_id")
    return {
        "device_id": device,
        "device_id_is_sha256_of_empty": device == hashlib.sha256(b"").hexdigest(),
        "os_image_hash": value.get("os_image_hash"),
    }
