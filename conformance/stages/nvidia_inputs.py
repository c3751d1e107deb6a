"""What NVIDIA cases name: evidence, manifests, roots and times, with the edits a case asks for.

Format: the README beside the index. An edit may stand alone or in a list.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from confide.appraisal.steps import Refused
from confide.crypto.x509 import Certificate, parse_certificate_der, parse_pem_chain
from confide.errors import Reason
from confide.trust.nvidia import NVIDIA_ROOTS, NvidiaRoots
from confide.wire.evidence import GpuEvidence
from conformance.verdict import Unclear

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "Case",
    "Device",
    "devices_of",
    "instant",
    "one_device",
    "patched",
    "pem_chain",
    "replaced",
    "roots",
    "subject_chain",
]

Case = dict[str, Any]
# One device, and the chips that its collector's word for it covers.
Device = tuple[GpuEvidence, frozenset[str]]

# What the collector says it is; the certificates decide (step 13a).
_ARCHITECTURES = {
    "HOPPER": ("gpu", frozenset({"GH100"})),
    "BLACKWELL": ("gpu", frozenset({"GB100"})),
    "LS10": ("switch", frozenset({"LS10"})),
}
_CERTIFICATE = re.compile(rb"<(?:\w+:)?X509Certificate>([^<]*)</")


def instant(case: Case) -> datetime:
    """Return `now` of the case: RFC 3339, or Unix seconds; without a zone it is UTC."""
    now = case["now"]
    if isinstance(now, int | float):
        return datetime.fromtimestamp(now, UTC)
    found = datetime.fromisoformat(now)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def roots(case: Case, folder: Path) -> NvidiaRoots:
    """Return the roots that the index names, the pinned ones where it names none."""
    named = case.get("_index", {}).get("roots")
    if not named:
        return NVIDIA_ROOTS
    ders = [
        pem_chain((folder / named[name]).read_bytes(), at_most=1)[0].der
        for name in ("device", "rim")
    ]
    pinned = (NVIDIA_ROOTS.device, NVIDIA_ROOTS.rim)
    return NvidiaRoots(device=ders[0], rim=ders[1], simulated=tuple(ders) != pinned)


def pem_chain(pem: bytes, *, at_most: int = 5) -> tuple[Certificate, ...]:
    """Parse a PEM chain. Raises `FormatError`."""
    return parse_pem_chain(
        pem, max_certificates=at_most, what="chain", reason=Reason.CHAIN_MALFORMED
    )


def _listed(edits: Any) -> list[Case]:
    return edits if isinstance(edits, list) else [edits]


def patched(raw: bytes, operations: Any) -> bytes:
    """Return `raw` with the byte edits made in order. Raises `Unclear`."""
    data = bytearray(raw)
    for operation in _listed(operations):
        if operation["op"] == "xor":
            for at, byte in enumerate(bytes.fromhex(operation["hex"])):
                data[operation["offset"] + at] ^= byte
        elif operation["op"] == "append":
            data += bytes.fromhex(operation["hex"])
        elif operation["op"] == "truncate":
            del data[operation["length"] :]
        else:
            raise Unclear(f"an operation that is not defined: {operation['op']}")
    return bytes(data)


def replaced(text: bytes, edits: Any) -> bytes:
    """Return `text` with the first `count` occurrences replaced, all where no count is given."""
    for edit in _listed(edits):
        count = edit.get("count", -1)
        text = text.replace(edit["find"].encode(), edit["replace"].encode(), count)
    return text


def _decoded(item: Case, name: str, reason: Reason) -> bytes:
    try:
        return base64.b64decode(item[name], validate=True)
    except (binascii.Error, KeyError, TypeError, ValueError) as error:
        raise Refused(reason, f"{name} is absent or not base64") from error


def _entry(item: Case) -> Device:
    try:
        kind, chips = _ARCHITECTURES[item.get("arch", "HOPPER").upper()]
    except (KeyError, AttributeError) as error:
        raise Refused(Reason.ARCH_MISMATCH, "an architecture that is not known") from error
    report = _decoded(item, "evidence", Reason.REPORT_MALFORMED)
    chain = _decoded(item, "certificate", Reason.CHAIN_MALFORMED)
    return GpuEvidence(report, chain, "switch" if kind == "switch" else "gpu"), chips


def devices_of(case: Case, folder: Path) -> list[list[Device]]:
    """Return the devices of each evidence file, edited as `patch_device` says."""
    names = case["files"]["evidence"]
    names = [names] if isinstance(names, str) else names
    found = [
        [_entry(item) for item in json.loads((folder / name).read_text("utf-8"))] for name in names
    ]
    for edit in _listed(case.get("patch_device", [])):
        number = edit.get("file", 0)
        # The place of a file in the list, or its name.
        entries = found[names.index(number) if isinstance(number, str) else number]
        device, chips = entries[edit["index"]]
        report = patched(device.report, edit["patch"])
        entries[edit["index"]] = (GpuEvidence(report, device.chain_pem, device.kind), chips)
    return found


def one_device(case: Case, folder: Path) -> Device:
    """Return the device of a case about one, edited as `patch` says."""
    device, chips = devices_of(case, folder)[0][case.get("index", 0)]
    report = patched(device.report, case.get("patch", []))
    return GpuEvidence(report, device.chain_pem, device.kind), chips


def subject_chain(subject: Case, folder: Path) -> tuple[Certificate, ...]:
    """Return the chain that holds the certificate an OCSP answer is asked about, unverified."""
    if "evidence" in subject:
        items = json.loads((folder / subject["evidence"]).read_text("utf-8"))
        return pem_chain(_entry(items[subject.get("index", 0)])[0].chain_pem)
    return tuple(
        parse_certificate_der(
            base64.b64decode(text), what="certificate", reason=Reason.RIM_MALFORMED
        )
        for text in _CERTIFICATE.findall((folder / subject["rim"]).read_bytes())
    )
