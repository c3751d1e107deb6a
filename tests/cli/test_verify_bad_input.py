"""Hostile and broken input through the real command: exit code, one-line cause, advice, no more."""

from __future__ import annotations

import base64
import gzip
import json
import os
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import reader_cases as cases
from service_files import AT, Files, Service, service, with_document, write
from services import NONCE

from confide.wire.bundle import encode_bundle
from confide.wire.evidence import NvidiaEndorsements, RimDocument
from confide.wire.json import jcs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sessions import Cli, Session

_TDX_V2 = "https://tinfoil.sh/predicate/tdx-guest/v2"


@pytest.fixture
def near(tmp_path: Path) -> Files:
    """A simulated NEAR service behind a gateway, in files."""
    return write(service("near"), tmp_path)


def _report() -> bytes:
    return service("near").capture.documents["report"]


def _bundle() -> bytes:
    return service("near").bundle


def one_cause(seen: Session, code: int) -> str:
    """Return the line that says why: one line, before what to do, and nothing like a traceback."""
    assert seen.code == code, seen
    assert seen.out == ""
    first, *rest = seen.err.splitlines()
    assert first.partition(": ")[0] in {"malformed", "configuration"}
    assert "Traceback" not in seen.err
    assert len(first) < 400
    assert all(line.startswith(("  to do  ", "  known  ")) for line in rest)
    if code == 30:
        assert any(line.startswith("  to do  ") for line in rest)
    return first


def _tinfoil(body: bytes) -> bytes:
    return jcs({"format": _TDX_V2, "body": base64.b64encode(body).decode()})


_DOCUMENTS: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "evidence: empty"),
    "one byte": (lambda: b"\xff", "1 bytes of no known format"),
    "noise": (lambda: bytes(range(7, 251)) * 40, "of no known format"),
    "zeros": (lambda: bytes(5000), "of no known format"),
    "null": (lambda: b"null", "of no known format"),
    "an empty object": (lambda: b"{}", "of no known format"),
    "an empty list": (lambda: b"[]", "of no known format"),
    "a web page": (lambda: b"<!DOCTYPE html><title>503</title>", "XML or HTML"),
    "gzip": (lambda: gzip.compress(_report()), "compressed with gzip"),
    "UTF-16": (lambda: _report().decode().encode("utf-16"), "UTF-16"),
    "UTF-16 without a mark": (lambda: _report().decode().encode("utf-16-le"), "UTF-16"),
    "UTF-16 of the other order": (lambda: _report().decode().encode("utf-16-be"), "UTF-16"),
    "UTF-32": (lambda: _report().decode().encode("utf-32"), "UTF-32"),
    "UTF-7": (lambda: b"+AHs-" + _report()[1:], "not JSON at byte 0"),
    "a byte order mark": (lambda: b"\xef\xbb\xbf" + _report(), "byte order mark"),
    "a bundle after a mark": (lambda: b"\xef\xbb\xbf" + _bundle(), "byte order mark"),
    "a bundle in UTF-16": (lambda: _bundle().decode().encode("utf-16"), "UTF-16"),
    "bytes that are not UTF-8": (lambda: _report().replace(b'"', b'"\xff', 1), "not UTF-8 at"),
    "latin-1": (lambda: b'{"gateway_attestation":"\xe9"}', "not UTF-8 at"),
    "half a surrogate pair": (lambda: b'{"gateway_attestation":"\\ud800"}', "surrogate"),
    "NaN": (lambda: b'{"gateway_attestation":NaN}', "NaN"),
    "a number of 5,000 digits": (lambda: b'{"gateway_attestation":%s}' % (b"9" * 5000), "integer"),
    "a deep list": (lambda: b"[" * 100_000 + b"]" * 100_000, "of no known format"),
    "a deep object": (lambda: b'{"gateway_attestation":' * 50_000, "nested deeper than 32"),
    "a deep bundle": (
        lambda: b'{"type":"confide/bundle/v1","capture":' + b"[" * 100_000,
        "bundle: nested deeper than 32",
    ),
    "a member twice": (
        lambda: _report().replace(b"{", b'{"gateway_attestation":{},', 1),
        "a member twice",
    ),
    "a bundle's member twice": (
        lambda: _bundle().replace(b"{", b'{"blobs":{},', 1),
        "bundle: an object has a member twice",
    ),
    "something after the end": (lambda: _report() + b"x", "not JSON at byte"),
    "a bundle that is cut": (lambda: _bundle()[:-100], "its end is missing"),
    "a quote that is cut": (lambda: cases.quote()[:700], "TDX quote: "),
    "a quote with a tail": (lambda: cases.quote() + b"\1" * 8, "after the signature"),
    "a gzip bomb": (lambda: _tinfoil(gzip.compress(bytes(64 << 20))), "Tinfoil"),
    "a small gzip bomb": (lambda: _tinfoil(gzip.compress(bytes(1 << 20))), "Tinfoil body"),
    "gzip with a tail": (lambda: _tinfoil(gzip.compress(cases.quote()) + b"x"), "gzip"),
    "gzip twice": (lambda: _tinfoil(gzip.compress(cases.quote()) * 2), "gzip"),
    "gzip that is cut": (lambda: _tinfoil(gzip.compress(cases.quote())[:-9]), "gzip"),
}


@pytest.mark.parametrize("name", _DOCUMENTS)
def test_what_is_no_evidence_is_30_and_says_why(cli: Cli, tmp_path: Path, name: str) -> None:
    make, why = _DOCUMENTS[name]
    path = tmp_path / "document"
    path.write_bytes(make())
    for words in ((), ("--policy", "audit")):
        assert why in one_cause(cli("verify", path, *words), 30)
    (event,) = cli("verify", path, "--json").events
    assert (event["event"], event["exit"], event["kind"]) == ("error", 30, "malformed")
    assert event["advice"]


def test_a_gigabyte_is_refused_after_16_mib(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "giant"
    with path.open("wb") as file:
        file.write(b'{"gateway_attestation":"')
        file.truncate(1 << 30)
    assert "more than 16 MiB" in one_cause(cli("verify", path), 30)
    for option in ("--endorsements", "--policy", "--simulated-roots"):
        seen = cli("verify", _small(tmp_path), option, path)
        assert "is larger than 16777216 bytes" in one_cause(seen, 2)


def _small(folder: Path) -> Path:
    path = folder / "quote"
    path.write_bytes(cases.quote())
    return path


# --- targets --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("", "no target"),
        ("/nowhere/at/all", "No such file"),
        ("/", "Is a directory"),
        ("ftp://service.example/", "ftp:// is not spoken here"),
        ("near://service.example/", "near:// is not spoken here"),
        ("a\0b", "no such name"),
        ("x\x1b[2J", "\\x1b[2J cannot be read"),
    ],
)
def test_targets_that_are_none(cli: Cli, target: str, why: str) -> None:
    assert why in one_cause(cli("verify", target), 2)


def test_a_pipe_that_nobody_writes_to_is_empty(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    assert "empty" in one_cause(cli("verify", path), 30)
    assert one_cause(cli("verify", _small(tmp_path), "--endorsements", path), 30)


# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize("nonce", ["", "00", "zz" * 32, "0x" + "00" * 32, "00" * 33, "00 " * 32])
def test_a_nonce_of_the_wrong_size(cli: Cli, tmp_path: Path, nonce: str) -> None:
    seen = cli("verify", _small(tmp_path), "--nonce", nonce)
    assert "64 hex digits" in one_cause(seen, 2)


@pytest.mark.parametrize(
    "moment",
    [
        "noon",
        "0",
        "2025-07-04",
        "2025-07-04T10:16:31",
        "2025-07-04 10:16:31Z",
        "2025-07-04T10:16:31+02:00",
        "2025-07-04T10:16:31.5Z",
        "2025-13-01T00:00:00Z",
        "2016-12-31T23:59:60Z",
        "10000-01-01T00:00:00Z",
    ],
)
def test_times_that_are_not_utc_to_the_second(cli: Cli, tmp_path: Path, moment: str) -> None:
    seen = cli("verify", _small(tmp_path), "--at", moment)
    assert "UTC time like" in one_cause(seen, 2)


@pytest.mark.parametrize(
    ("moment", "reason"),
    [
        ("0001-01-01T00:00:00Z", "cert-not-yet-valid"),
        ("1969-12-31T23:59:59Z", "cert-not-yet-valid"),
        ("2019-12-31T23:59:59Z", "cert-not-yet-valid"),
        ("2051-01-01T00:00:00Z", "cert-expired"),
        ("9999-12-31T23:59:59Z", "cert-expired"),
    ],
)
def test_clocks_that_are_far_off_refuse_and_say_so(
    cli: Cli, near: Files, moment: str, reason: str
) -> None:
    words = ("--simulated-roots", near.roots, "--policy", "audit", "--at", moment)
    seen = cli("verify", near.bundle, *words)
    assert seen.code == 10
    assert f"hardware: {reason}" in seen.out or f"{reason}: " in seen.out
    assert "--at TIME" in seen.out


@pytest.mark.parametrize("raw", [b"", b"hello", b"{}", b"\xff\xfe", b"[" * 1000])
def test_endorsements_that_are_none_are_never_passed_over(
    cli: Cli, tmp_path: Path, raw: bytes
) -> None:
    path = tmp_path / "endorsements.json"
    path.write_bytes(raw)
    # No TDX in sight, so that nothing would look into the file later on.
    files = write(service("snp"), tmp_path)
    seen = cli("verify", files.bundle, *files.look, "--endorsements", path)
    assert "endorsements endorsements.json: neither a bundle" in one_cause(seen, 30)


@pytest.mark.parametrize("option", ["--endorsements", "--policy", "--simulated-roots"])
def test_files_of_options_that_cannot_be_read(cli: Cli, tmp_path: Path, option: str) -> None:
    for path in (tmp_path / "missing", tmp_path):
        one_cause(cli("verify", _small(tmp_path), option, path), 2)


# --- what stands in a bundle ----------------------------------------------------------------------


def _with_rims(edit: Callable[[bytes], bytes]) -> Service:
    found = service("near")
    nvidia = found.endorsements.nvidia
    rims = tuple(RimDocument(rim.id, edit(rim.xml)) for rim in nvidia.rims)
    changed = replace(found.endorsements, nvidia=NvidiaEndorsements(rims, nvidia.ocsp))
    return replace(found, endorsements=changed)


def _entities(xml: bytes) -> bytes:
    bomb = b'<!ENTITY a0 "xxxxxxxxxx">' + b"".join(
        b'<!ENTITY a%d "%s">' % (at, b"&a%d;" % (at - 1) * 10) for at in range(1, 12)
    )
    return b"<!DOCTYPE SoftwareIdentity [" + bomb + b"]>" + xml


def _external(xml: bytes) -> bytes:
    return b'<!DOCTYPE SoftwareIdentity SYSTEM "file:///etc/passwd">' + xml


def _wrapped(xml: bytes) -> bytes:
    """The signed document inside another one of the attacker's, which stands where it is read."""
    end = xml.index(b">") + 1
    return xml[:end] + _payload(xml).replace(b"Hash", b"Hash0") + xml + b"</SoftwareIdentity>"


def _payload(xml: bytes) -> bytes:
    return xml[xml.index(b"<ns0:Payload") : xml.index(b"</ns0:Payload>") + len(b"</ns0:Payload>")]


def _first(xml: bytes) -> bytes:
    """Another payload before the signed one, found first by whoever looks for names alone."""
    return xml.replace(b"<ns0:Payload", _payload(xml) + b"<ns0:Payload", 1)


def _last(xml: bytes) -> bytes:
    """Another payload after the signed one, found last."""
    return xml.replace(b"</SoftwareIdentity>", _payload(xml) + b"</SoftwareIdentity>")


@pytest.mark.parametrize(
    "edit",
    [_entities, _external, _wrapped, _first, _last, lambda xml: xml[:-20], lambda _: b"<"],
)
def test_hostile_manifests_prove_no_firmware(
    cli: Cli, tmp_path: Path, edit: Callable[[bytes], bytes]
) -> None:
    files = write(_with_rims(edit), tmp_path)
    seen = cli("verify", files.bundle, *files.look, "--json")
    assert seen.code in {10, 30}
    if seen.code == 10:
        claims = {c["name"]: c["status"] for c in seen.result["ear"]["confide"]["claims"]}
        assert claims["gpu-firmware"] != "pass"
        assert any(f["reason"].startswith("rim-") for f in seen.result["problem"]["findings"])
    human = cli("verify", files.bundle, *files.look)
    assert human.code == seen.code
    assert "Traceback" not in human.out + human.err


def _chain(edit: Callable[[list[str]], list[str]]) -> Service:
    """The NEAR service with the certificates of its GPU put in another order."""
    found = service("near")
    report = json.loads(found.capture.documents["report"])
    machine = report["model_attestations"][0]
    payload = json.loads(machine["nvidia_payload"])
    for entry in payload["evidence_list"]:
        pem = base64.b64decode(entry["certificate"]).decode()
        mark = "-----END CERTIFICATE-----\n"
        blocks = [block + mark for block in pem.split(mark) if block.strip()]
        entry["certificate"] = base64.b64encode("".join(edit(blocks)).encode()).decode()
    machine["nvidia_payload"] = json.dumps(payload)
    return with_document(found, json.dumps(report).encode())


@pytest.mark.parametrize(
    "edit",
    [
        lambda blocks: blocks[::-1],
        lambda blocks: [*blocks, blocks[0]],
        lambda blocks: blocks[:-1],
        lambda blocks: [blocks[1], blocks[0], *blocks[2:]],
        lambda blocks: [_with_tail(blocks[0]), *blocks[1:]],
    ],
    ids=["reversed", "one too many", "one short", "two swapped", "DER with a tail"],
)
def test_certificates_in_odd_order_prove_no_device(
    cli: Cli, tmp_path: Path, edit: Callable[[list[str]], list[str]]
) -> None:
    files = write(_chain(edit), tmp_path)
    seen = cli("verify", files.bundle, *files.look, "--json")
    assert seen.code in {10, 30}
    assert "Traceback" not in seen.out + seen.err
    (event,) = seen.events
    text = json.dumps(event)
    assert "chain" in text or "cert" in text


def _with_tail(block: str) -> str:
    lines = block.strip().splitlines()
    der = base64.b64decode("".join(lines[1:-1])) + b"\0\0"
    return "\n".join([lines[0], base64.b64encode(der).decode(), lines[-1]]) + "\n"


def test_a_blob_that_is_not_what_it_is_called(cli: Cli, near: Files, tmp_path: Path) -> None:
    document = json.loads(near.bundle.read_bytes())
    name = next(iter(document["blobs"]))
    document["blobs"][name] = base64.b64encode(b"something else").decode()
    path = tmp_path / "edited.bundle"
    path.write_bytes(jcs(document))
    assert "digest-mismatch" in one_cause(cli("verify", path, *near.look), 30)


def test_evidence_of_another_format_than_the_bundle_says(cli: Cli, tmp_path: Path) -> None:
    found = service("near")
    mixed = replace(service("aci").capture, format="near")
    path = tmp_path / "mixed.bundle"
    path.write_bytes(encode_bundle(mixed, found.endorsements))
    assert "NEAR report" in one_cause(cli("verify", path), 30)
    assert "format" in one_cause(cli("verify", path, "--format", "nearr"), 2)


# --- as a process ---------------------------------------------------------------------------------


def _process(*words: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "confide", *(str(word) for word in words)],
        input=stdin,
        capture_output=True,
        check=False,
        timeout=60,
    )


def test_standard_input_is_read_once_and_bounded(near: Files) -> None:
    seen = _process("verify", "-", *near.look, stdin=near.bundle.read_bytes())
    assert (seen.returncode, seen.stderr) == (0, b"")
    assert b"source     standard input, saved" in seen.stdout
    empty = _process("verify", "-")
    assert (empty.returncode, empty.stdout) == (30, b"")
    assert empty.stderr.startswith(b"malformed: evidence: empty")
    large = _process("verify", "-", stdin=b" " * ((16 << 20) + 1))
    assert large.returncode == 30
    assert b"more than 16 MiB" in large.stderr


def test_the_whole_way_as_a_process(near: Files, tmp_path: Path) -> None:
    accepted = _process("verify", near.bundle, *near.look, "--nonce", NONCE.hex(), "--json")
    assert accepted.returncode == 0
    (line,) = accepted.stdout.splitlines()
    result: dict[str, Any] = json.loads(line)
    assert result["outcome"] == "accepted"
    assert _process("verify", near.bundle, "--at", AT).returncode == 10
    (tmp_path / "deep").write_bytes(b'{"gateway_attestation":' * 100_000)
    deep = _process("verify", tmp_path / "deep")
    assert deep.returncode == 30
    assert b"Traceback" not in deep.stderr
