"""SEV-SNP reports in other clothes: the JSON of the `sev` crate, and the certificate table.

Clauses: docs/protocols/trustee.md §3 (JSON), docs/protocols/bare.md §3 (table). The bytes are put
together again exactly; if a member was altered, the report's signature no longer verifies. That
is found in appraisal, not here.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

from confide.crypto.x509 import split_pem_chain
from confide.errors import FormatError, Reason
from confide.formats.parts import pem_certificate
from confide.wire.json import JsonValue, Members, b64decode, is_hex
from confide.wire.reader import Reader
from confide.wire.service import SnpPart

__all__ = ["REPORT_BYTES", "read_cert_chain", "read_certificate_table", "read_report_json"]

_REASON: Final = Reason.SERVICE_FORMAT
_WHAT: Final = "SNP report"
# From: AMD 56860, "ATTESTATION_REPORT structure".
REPORT_BYTES: Final = 1184
_MAX_ENTRIES: Final = 16
_MAX_CERTIFICATE: Final = 16 * 1024
# From: RFC 7493 §2.2: what JSON numbers carry.
_MAX_JSON: Final = (1 << 53) - 1

# From: AMD 56860, ATTESTATION_REPORT; names as the `sev` crate serialises them.
_NUMBERS: Final = (
    ("version", 0, 4),
    ("guest_svn", 4, 4),
    ("policy", 8, 8),
    ("vmpl", 48, 4),
    ("sig_algo", 52, 4),
    ("plat_info", 64, 8),
)
_BYTES: Final = (
    ("family_id", 16, 16),
    ("image_id", 32, 16),
    ("report_data", 80, 64),
    ("measurement", 144, 48),
    ("host_data", 192, 32),
    ("id_key_digest", 224, 48),
    ("author_key_digest", 272, 48),
    ("report_id", 320, 32),
    ("report_id_ma", 352, 32),
    ("chip_id", 416, 64),
)
_TCBS: Final = (
    ("current_tcb", 56),
    ("reported_tcb", 384),
    ("committed_tcb", 480),
    ("launch_tcb", 496),
)
_VERSIONS: Final = (("current", 488), ("committed", 492))
_CPUID: Final = (("cpuid_fam_id", 392), ("cpuid_mod_id", 393), ("cpuid_step", 394))
_MITIGATIONS: Final = (("launch_mit_vector", 504), ("current_mit_vector", 512))
# Of releases before 5.0, which spell out what is reserved.
_RESERVED: Final = (("_reserved_1", 392, 24), ("_reserved_4", 504, 168))
_RESERVED_BYTES: Final = (("_reserved_2", 491), ("_reserved_3", 495))
_SIGNATURE: Final = 672

# From: GHCB specification 2.00, §4.1.8.1 (extended guest request).
_GUIDS: Final = {
    "63da758d-e664-4564-adc5-f4b93be8accd": "VCEK",
    "a8074bc2-a25a-483e-aae6-39c045a0b8a1": "VLEK",
    "4ab7b379-bbac-4fe4-a02f-05aef327c782": "ASK",
    "c0b406a4-a803-4952-9743-3fb6014cd0ae": "ARK",
    "92f81bc3-5811-4d3d-97ff-d19f88dc67ea": "CRL",
}


def _put(report: bytearray, at: int, value: bytes) -> None:
    report[at : at + len(value)] = value


def _octets(value: JsonValue, size: int, what: str) -> bytes:
    """Return `size` bytes written as an array of numbers or as lower-case hex."""
    if isinstance(value, str) and is_hex(value, size):
        return bytes.fromhex(value)
    if isinstance(value, list) and len(value) == size:
        # A boolean is an int to Python, and no octet to anyone else.
        numbers = [item for item in value if type(item) is int and 0 <= item <= 255]
        if len(numbers) == size:
            return bytes(numbers)
    raise FormatError(f"{what}: not {size} octets", reason=_REASON, clause="RFC 8259 §5")


def read_report_json(value: JsonValue) -> bytes:
    """
    Return the 1,184 bytes of a report given as an object, base64, hex or an array of octets.

    Raises `FormatError`: unknown or absent members, numbers out of range, another size.
    """
    if isinstance(value, list):
        return _octets(value, REPORT_BYTES, _WHAT)
    if isinstance(value, str):
        if is_hex(value, REPORT_BYTES):
            return bytes.fromhex(value)
        raw = b64decode(value, what=_WHAT, reason=_REASON)
        if len(raw) != REPORT_BYTES:
            raise FormatError(
                f"{_WHAT}: {len(raw)} bytes instead of {REPORT_BYTES}",
                reason=_REASON,
                clause="AMD 56860",
            )
        return raw
    members = Members(value, what=_WHAT, reason=_REASON)
    report = bytearray(REPORT_BYTES)
    for name, at, size in _NUMBERS:
        high = min((1 << 8 * size) - 1, _MAX_JSON)
        _put(report, at, members.integer(name, high=high).to_bytes(size, "little"))
    for name, at, size in _BYTES:
        _put(report, at, _octets(members.value(name), size, f"{_WHAT}: {name}"))
    for name, at in _TCBS:
        _put(report, at, _tcb(members.members(name)))
    _key_info(members, report)
    _versions(members, report)
    _optional(members, report)
    _signature(members.members("signature"), report)
    members.end()
    return bytes(report)


def _key_info(members: Members, report: bytearray) -> None:
    # `_author_key_en` is what releases before 5.0 call the same four bytes.
    name = "key_info" if members.has("key_info") else "_author_key_en"
    _put(report, 72, members.integer(name, high=0xFFFFFFFF).to_bytes(4, "little"))
    if members.has("_reserved_0"):
        _put(report, 76, members.integer("_reserved_0", high=0xFFFFFFFF).to_bytes(4, "little"))


def _tcb(members: Members) -> bytes:
    if members.has("fmc") and not members.null("fmc"):
        # From: tdx.md section D and the crate: Turin: FMC, boot loader, TEE, SNP, …, microcode.
        order = ("fmc", "bootloader", "tee", "snp")
        head = bytes(members.integer(name, high=255) for name in order)
        found = head + bytes(3) + bytes((members.integer("microcode", high=255),))
    else:
        head = bytes(members.integer(name, high=255) for name in ("bootloader", "tee"))
        middle = bytes(4)
        if members.has("_reserved"):
            middle = _octets(members.value("_reserved"), 4, f"{_WHAT}: reserved")
        tail = bytes(members.integer(name, high=255) for name in ("snp", "microcode"))
        found = head + middle + tail
    members.end()
    return found


def _versions(members: Members, report: bytearray) -> None:
    for name, at in _VERSIONS:
        if members.has(name):
            inner = members.members(name)
            parts = [inner.integer(part, high=255) for part in ("build", "minor", "major")]
            inner.end()
        else:
            parts = [
                members.integer(f"{name}_{part}", high=255) for part in ("build", "minor", "major")
            ]
        _put(report, at, bytes(parts))


def _optional(members: Members, report: bytearray) -> None:
    for name, at in _CPUID:
        if members.has(name) and not members.null(name):
            report[at] = members.integer(name, high=255)
    for name, at in _MITIGATIONS:
        if members.has(name) and not members.null(name):
            _put(report, at, members.integer(name).to_bytes(8, "little"))
    for name, at, size in _RESERVED:
        if members.has(name):
            _put(report, at, _octets(members.value(name), size, f"{_WHAT}: reserved"))
    for name, at in _RESERVED_BYTES:
        if members.has(name):
            report[at] = members.integer(name, high=255)


def _signature(members: Members, report: bytearray) -> None:
    for index, name in enumerate(("r", "s")):
        raw = _octets(members.value(name), 72, f"{_WHAT}: signature")
        _put(report, _SIGNATURE + 72 * index, raw)
    if members.has("_reserved"):
        tail = _octets(members.value("_reserved"), 368, f"{_WHAT}: signature")
        _put(report, _SIGNATURE + 144, tail)
    members.end()


def read_cert_chain(report: bytes, value: JsonValue) -> SnpPart:
    """
    Return the part of `report` and a list `[{cert_type, data}]`, which may be null or empty.

    `data` is an array of octets or base64. Raises `FormatError`.
    """
    if value is None:
        return SnpPart(report=report)
    if not isinstance(value, list) or len(value) > _MAX_ENTRIES:
        raise FormatError(
            f"certificate list: not at most {_MAX_ENTRIES} entries",
            reason=_REASON,
            clause="docs/protocols/trustee.md#3",
        )
    found: dict[str, bytes] = {}
    for item in value:
        members = Members(item, what="certificate entry", reason=_REASON)
        kind, data = members.value("cert_type"), members.value("data")
        members.end()
        raw = (
            b64decode(data, what="certificate entry", reason=_REASON)
            if isinstance(data, str)
            else _octets(data, len(data) if isinstance(data, list) else -1, "certificate entry")
        )
        if isinstance(kind, str):
            _keep(found, kind.upper(), raw)
        elif not isinstance(kind, dict):
            members.refuse("cert_type is neither a name nor an identifier")
    return _snp_part(report, found)


def read_certificate_table(report: bytes, table: bytes) -> SnpPart:
    """
    Return the part of `report` and the certificate `table` of an extended guest request.

    Identifiers are read in both byte orders. An empty or zeroed table brings nothing along.
    Raises `FormatError`.
    """
    reader = Reader(
        table, what="certificate table", clause="docs/protocols/bare.md#3", truncated=_REASON
    )
    found: dict[str, bytes] = {}
    for _ in range(_MAX_ENTRIES):
        if not reader.remaining:
            return _snp_part(report, found)
        guid, offset, length = reader.take(16), reader.u32le(), reader.u32le()
        if guid == bytes(16):
            return _snp_part(report, found)
        body = Reader(
            table, what="certificate table", clause="docs/protocols/bare.md#3", truncated=_REASON
        )
        body.take(offset)
        data = body.take(length)
        name = _GUIDS.get(str(UUID(bytes=guid))) or _GUIDS.get(str(UUID(bytes_le=guid)))
        if name is not None:
            _keep(found, name, data)
    raise FormatError(
        f"certificate table: more than {_MAX_ENTRIES} entries",
        reason=_REASON,
        clause="docs/protocols/bare.md#3",
    )


def _keep(found: dict[str, bytes], name: str, raw: bytes) -> None:
    if name in found:
        raise FormatError(
            "certificates: one kind stands twice",
            reason=_REASON,
            clause="docs/protocols/bare.md#3",
        )
    if len(raw) > _MAX_CERTIFICATE:
        raise FormatError(
            f"certificates: {len(raw)} bytes, at most {_MAX_CERTIFICATE}",
            reason=_REASON,
            clause="docs/protocols/bare.md#3",
        )
    found[name] = raw


def _snp_part(report: bytes, found: dict[str, bytes]) -> SnpPart:
    if "VCEK" in found and "VLEK" in found:
        raise FormatError(
            "certificates: a VCEK and a VLEK for one report",
            reason=_REASON,
            clause="docs/protocols/bare.md#3",
        )
    leaf = found.get("VCEK") or found.get("VLEK") or b""
    if leaf.startswith(b"-----BEGIN"):
        leaf = split_pem_chain(leaf, max_certificates=1, what="SNP leaf", reason=_REASON)[0]
    chain = b"".join(pem_certificate(found[name]) for name in ("ASK", "ARK") if name in found)
    return SnpPart(report=report, leaf_der=leaf or None, chain_pem=chain or None)
