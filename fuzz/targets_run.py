"""Targets: Expectations, receipts, and what an agent or its image says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from confide.agents.dns import parse_question, refuse_question
from confide.agents.egress import EgressPolicy, parse_destination, printable_destination
from confide.agents.lockfile import canonical_lock, parse_lock
from confide.agents.manifest import parse_agent_manifest
from confide.agents.names import parse_member_name
from confide.agents.oci import Descriptor, ImageConfig, build_config, build_manifest
from confide.agents.oci import parse_config as parse_image_config
from confide.agents.oci import parse_manifest as parse_image_manifest
from confide.agents.packets import parse_dead_packet
from confide.agents.proxy_head import parse_proxy_head
from confide.agents.recipients import Recipient, open_output, seal_output
from confide.agents.reference import parse_reference
from confide.agents.scrub import Scrubber
from confide.agents.state_files import StateEntry, pack_state, unpack_state
from confide.crypto.kem import load_private_key
from confide.errors import Reason
from confide.expectation import diff_expectations, parse_expectation, parse_expectation_toml
from confide.receipts.file import RunProof, parse_proof, parse_receipt_file
from confide.receipts.inline import ReceiptStripper, decode_inline, encode_inline, inline_comment
from confide.receipts.statement import parse_run_statement
from confide.receipts.transcript import parse_events, transcript_head
from confide.wire.json import Members, jcs, parse_json
from confide.wire.ohttp import Kem
from confide.wire.release_receipt import parse_release_receipt
from fuzz import seeds
from fuzz.driver import Target
from fuzz.pieces import cuts, fixed, text

if TYPE_CHECKING:
    from confide.expectation import Expectation
    from confide.receipts.file import ReceiptFile

_HEX = "0123456789abcdef" * 4
_REFERENCE = f"docker.io/library/python_3@sha256:{_HEX}".encode()


def _use(found: Expectation) -> None:
    # Whatever parses can be named, compared and shown.
    assert len(found.digest) == 32
    diff_expectations(found, parse_expectation(seeds.expectation()))


def _toml(raw: bytes) -> None:
    _use(parse_expectation_toml(raw.decode("utf-8", "replace")))


def _toml_seeds() -> tuple[bytes, ...]:
    value = parse_json(seeds.expectation(), what="seed", reason=Reason.EXPECTATION_MISMATCH)
    assert isinstance(value, dict)
    lines: list[str] = []
    tables: list[str] = []
    for name, item in value.items():
        if isinstance(item, dict):
            tables.append(f"[{name}]")
            tables += [f"{key} = {jcs(part).decode()}" for key, part in item.items()]
        else:
            lines.append(f"{name} = {jcs(item).decode()}")
    return ("\n".join((*lines, *tables)).encode(),)


def _proofs() -> tuple[bytes, ...]:
    return tuple(
        RunProof(
            file.run,
            file.inferences,
            file.releases,
            file.agent_after,
            file.model_before,
            file.model_after,
        ).encode()
        for file in _files()
    )


def _files() -> tuple[ReceiptFile, ...]:
    return seeds.receipt(), seeds.asking_receipt()


def _transcript(raw: bytes) -> None:
    value = parse_json(raw, what="input", reason=Reason.TRANSCRIPT_BROKEN)
    members = Members(value, what="input", reason=Reason.TRANSCRIPT_BROKEN)
    transcript_head(parse_events(members.items("transcript")))


def _transcripts() -> tuple[bytes, ...]:
    return tuple(jcs({"transcript": _member("transcript", file.run.payload)}) for file in _files())


def _member(name: str, raw: bytes) -> list[object]:
    top = Members(
        parse_json(raw, what="seed", reason=Reason.RECEIPT_FORMAT),
        what="seed",
        reason=Reason.RECEIPT_FORMAT,
    )
    return list(top.members("predicate").items(name))


def _inline_stream(raw: bytes) -> None:
    stripper = ReceiptStripper()
    given = b"".join(stripper.feed(piece) for piece in cuts(raw))
    held, found = stripper.finish()
    assert raw.startswith(given + held)
    if found is not None:
        decode_inline(found)


def _state(raw: bytes) -> None:
    found = unpack_state(raw, max_bytes=1 << 24)
    # Whatever is read is what would be written: nothing was overlooked.
    assert pack_state(found) == raw


def _states() -> tuple[bytes, ...]:
    entries = (StateEntry("a", None), StateEntry("a/b", b"memory"), StateEntry("c" * 100, b""))
    return (pack_state(entries), pack_state(()))


def _release(raw: bytes) -> None:
    parse_release_receipt(raw).payload()


def _releases() -> tuple[bytes, ...]:
    return tuple(envelope.payload for envelope in seeds.asking_receipt().releases)


def _scrub(raw: bytes) -> None:
    values = {"a": b"aaaaaaaa", "b": b"aaaabaaaa", "c": b"correct horse"}
    whole = Scrubber(values).scrub(raw)
    stream = Scrubber(values, window_bytes=1).stream()
    pieces = b"".join(stream.feed(piece) for piece in cuts(raw)) + stream.finish()
    assert (pieces, stream.count) == (whole.data, whole.count)


def _sealed_outputs() -> tuple[bytes, ...]:
    public = load_private_key(Kem.X25519, b"k" * 32).public_key.raw
    sealed = seal_output(Recipient(public), b"output", run=b"r" * 32, path="a", ephemeral=b"e" * 32)
    return (sealed,)


def _destination(value: str) -> None:
    found = parse_destination(value)
    assert parse_destination(str(found)) == found
    EgressPolicy((found,)).permits(found)
    assert printable_destination(value)


def _dns(raw: bytes) -> None:
    parse_question(raw)
    refuse_question(raw)


_CONFIG = ImageConfig("amd64", "linux", "", ("PATH=/bin",), (_HEX,))
_LOCK = f"six[a]==1.16.0 \\\n    --hash=sha256:{_HEX}\n# note\na-b==1 --hash=sha256:{_HEX}\n"
_MANIFEST = f"""
name = "analyst"
mode = "batch"
entry = ["python3", "/agent/agent.py"]
model = "support-notes"
egress = ["api.example.org:443", "[2001:db8::1]:80"]
[image]
base = "{_REFERENCE.decode()}"
requirements = "requirements.lock"
leave_out = ["sample"]
[limits]
wall_seconds = 5
"""
_TOML = (b"[" * 2000, b"a." * 500, b"1" * 5000, b"0x", b"'''", b"inf", b"1979-05-27T07:32:00Z")
_TOML_MORE = (b"{a=" * 500, b"[[image]]\n", b"\\ud800", b'"""', b"1e9999")
_PROXY = fixed(
    b"CONNECT api.example.org:443 HTTP/1.1\r\nHost: api.example.org\r\n\r\n",
    b"GET http://example.org/a?b HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\n",
)
_QUESTION = b"\x12\x34\x01\x00\x00\x01" + bytes(6) + b"\x03www\x07example\x00\x00\x01\x00\x01"
_TCP4 = bytes.fromhex("4500003c000040004006000001020304c0000201") + bytes.fromhex(
    "d43101bb00000000000000005002ffff00000000"
)
_UDP6 = bytes.fromhex("6000000000081140" + "20010db8" * 4 + "20010db8" * 4) + bytes(8)

RUN_TARGETS: tuple[Target, ...] = (
    Target(
        "expectation-json",
        lambda raw: _use(parse_expectation(raw)),
        lambda: (seeds.expectation(), seeds.asking_receipt().expectation),
        json_values=True,
    ),
    Target("expectation-toml", _toml, _toml_seeds, tokens=(*_TOML, *_TOML_MORE)),
    Target(
        "receipt-file",
        parse_receipt_file,
        lambda: tuple(file.encode() for file in _files()),
        json_values=True,
    ),
    Target("run-proof", parse_proof, _proofs, json_values=True),
    Target(
        "run-statement",
        parse_run_statement,
        lambda: tuple(file.run.payload for file in _files()),
        json_values=True,
    ),
    Target("transcript", _transcript, _transcripts, json_values=True),
    Target(
        "inline-header",
        text(decode_inline),
        lambda: tuple(encode_inline(item).encode() for item in seeds.receipt().inferences),
    ),
    Target(
        "inline-stream",
        _inline_stream,
        lambda: (b"data: a\n\n" + inline_comment(seeds.receipt().inferences[0]),),
        tokens=(b": confide-receipt ", b"\n: confide-receipt ", b"\n"),
    ),
    Target(
        "agent-manifest",
        parse_agent_manifest,
        fixed(_MANIFEST.encode()),
        tokens=(*_TOML, *_TOML_MORE),
    ),
    Target(
        "lockfile",
        lambda raw: canonical_lock(parse_lock(raw)),
        fixed(_LOCK.encode()),
        tokens=(b"\\\n", b"==", b"--hash=sha256:", b" #", b"[" * 40),
    ),
    Target(
        "image-reference",
        text(parse_reference),
        fixed(_REFERENCE, b"oci:/a b@sha256:" + _HEX.encode()),
        tokens=(b"_" * 60, b"-_" * 30, b"a" * 60, b"!@sha256:"),
    ),
    Target(
        "image-manifest",
        parse_image_manifest,
        fixed(build_manifest(Descriptor("a", _HEX, 1), (Descriptor("b", _HEX, 2),))),
        json_values=True,
    ),
    Target(
        "image-config",
        parse_image_config,
        fixed(build_config(_CONFIG, diff_ids=(_HEX,), entry=("a",), environment=(), labels=())),
        json_values=True,
    ),
    Target(
        "member-name",
        text(parse_member_name),
        fixed(b"tables/may.csv", "é/ü.txt".encode()),
        tokens=(b"../", b"//", b"\n", b"\\", b"a" * 300),
    ),
    Target(
        "egress-destination",
        text(_destination),
        fixed(b"api.example.org:443", b"192.0.2.1:443", b"[2001:db8::1]:443", b"0x7f.1:80"),
        tokens=(b"0x", b"1" * 400, b"::", b"%eth0", b"[", b"]", b".", "²".encode(), b"a-" * 40),
    ),
    Target("proxy-head", parse_proxy_head, _PROXY, tokens=(b"\r\n", b"1" * 400, b"http://", b"@")),
    Target("dns-question", _dns, fixed(_QUESTION)),
    Target("dead-packet", parse_dead_packet, fixed(_TCP4, _UDP6)),
    Target("state-archive", _state, _states, tokens=(b"ustar\x0000", bytes(512), b"../", b"\0")),
    Target("release-receipt", _release, _releases, json_values=True),
    Target(
        "scrub",
        _scrub,
        fixed(b"say aaaaaaaabaaaa correct horse", b"Y29ycmVjdCBob3JzZQ=="),
        tokens=(b"aaaa", b"b", b"correct hors", b"%20horse"),
    ),
    Target(
        "sealed-output",
        lambda raw: open_output(b"k" * 32, raw, run=b"r" * 32, path="a"),
        _sealed_outputs,
    ),
)
