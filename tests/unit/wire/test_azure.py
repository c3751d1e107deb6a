"""Azure's paravisor blobs: recognised, bound to their runtime data, never taken for a guest."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from confide.errors import FormatError, Reason, Unsupported
from confide.wire.azure import is_hcl_report, parse_hcl_report, runtime_data_binding

if TYPE_CHECKING:
    from pathlib import Path

RUNTIME = b'{"keys":[],"vm-configuration":{"secure-boot":true}}'
AT = {2: 0x50, 4: 128}


def blob(
    kind: int = 2,
    *,
    runtime: bytes = RUNTIME,
    data: bytes | None = None,
    hash_type: int = 1,
    size: int | None = None,
    hardware_tail: bytes = b"",
) -> bytes:
    hardware = bytearray(1184)
    at = AT.get(kind, 0x50)
    hardware[at : at + 64] = runtime_data_binding(runtime) if data is None else data
    if hardware_tail:
        hardware[-len(hardware_tail) :] = hardware_tail
    length = len(runtime) if size is None else size
    request = struct.pack("<5I", 0, 1, kind, hash_type, length)
    head = b"HCLA" + struct.pack("<7I", 2, 1184, 2, 0, 0, 0, 0)
    return head + bytes(hardware) + request + runtime


@pytest.mark.parametrize(("number", "kind", "size"), [(2, "snp", 1184), (4, "tdx", 1024)])
def test_a_blob_gives_its_report_and_runtime_data(number: int, kind: str, size: int) -> None:
    raw = blob(number)
    assert is_hcl_report(raw)
    for padded in (raw, raw + bytes(512)):
        found = parse_hcl_report(padded)
        assert (found.kind, len(found.report), found.runtime_data) == (kind, size, RUNTIME)
        assert found.report_data == runtime_data_binding(RUNTIME)


@pytest.mark.parametrize(
    "raw",
    [
        blob().replace(b"true", b"True"),
        blob(data=bytes(64)),
        blob(data=runtime_data_binding(RUNTIME)[:-1] + b"\x01"),
        blob(4, data=bytes(64)),
        blob(size=len(RUNTIME) - 1)[:-1],
    ],
)
def test_runtime_data_that_the_hardware_does_not_commit_to_is_refused(raw: bytes) -> None:
    with pytest.raises(FormatError) as refused:
        parse_hcl_report(raw)
    assert refused.value.reason is Reason.REPORT_DATA_MISMATCH


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"HCLA",
        b"hcla" + blob()[4:],
        blob()[:-1],
        blob() + b"\x01",
        blob(size=0xFFFFFFFF),
        blob(size=40_000),
        blob(4, hardware_tail=b"\x01"),
        blob() + bytes(65 * 1024),
    ],
)
def test_a_malformed_blob_is_refused(raw: bytes) -> None:
    with pytest.raises(FormatError) as refused:
        parse_hcl_report(raw)
    assert refused.value.reason is Reason.SERVICE_FORMAT


@pytest.mark.parametrize("raw", [blob(1), blob(5), blob(hash_type=2), blob(hash_type=3)])
def test_other_hardware_and_other_hashes_are_not_judged(raw: bytes) -> None:
    with pytest.raises(Unsupported):
        parse_hcl_report(raw)


def test_evidence_of_others_is_not_taken_for_a_blob(vectors: Path) -> None:
    for name in ("tdx/real/quote-v4-uptodate-near.bin", "dstack/attestation-scale-v0.bin"):
        assert not is_hcl_report((vectors / name).read_bytes())
