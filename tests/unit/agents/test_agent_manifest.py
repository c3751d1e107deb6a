"""agent.toml, locks, references, names: what passes and what is refused."""

from __future__ import annotations

import pytest

from confide.agents.lockfile import canonical_lock, parse_lock
from confide.agents.manifest import parse_agent_manifest
from confide.agents.names import parse_member_name
from confide.agents.reference import parse_reference
from confide.errors import FormatError, Reason
from confide.expectation import Limits

_GOOD = b"""
name = "analyst"
mode = "batch"
entry = ["python3", "/agent/agent.py"]
model = "support-notes"
egress = ["API.example.org:443"]
[image]
requirements = "requirements.lock"
leave_out = ["sample"]
[limits]
wall_seconds = 5
"""
_HASH = "a" * 64
_PIN = f"docker.io/library/python@sha256:{_HASH}"


def test_a_full_manifest() -> None:
    manifest = parse_agent_manifest(_GOOD)
    assert manifest.entry == ("python3", "/agent/agent.py")
    assert [str(item) for item in manifest.egress] == ["api.example.org:443"]
    assert manifest.limits == Limits(wall_seconds=5)
    assert manifest.base is None
    assert manifest.existing is None
    assert manifest.leave_out == ("sample",)


def test_an_agent_says_which_secrets_it_needs_and_whether_it_remembers() -> None:
    assert (parse_agent_manifest(_GOOD).secrets, parse_agent_manifest(_GOOD).state) == ((), False)
    asking = b'secrets = ["db-password", "TOKEN=token"]\nstate = true\n' + _GOOD
    manifest = parse_agent_manifest(asking)
    assert [str(use) for use in manifest.secrets] == ["db-password", "TOKEN=token"]
    assert manifest.state is True


def test_an_existing_image_needs_no_entry() -> None:
    raw = f'name="a"\nmode="chat"\nmodel="m"\n[image]\nexisting="{_PIN}"\n'.encode()
    manifest = parse_agent_manifest(raw)
    assert str(manifest.existing) == _PIN
    assert manifest.entry == ()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'name = "analyst"', b'name = "Analyst"'),
        (b'name = "analyst"', b""),
        (b'mode = "batch"', b'mode = "daemon"'),
        (b'entry = ["python3", "/agent/agent.py"]', b""),
        (b'entry = ["python3", "/agent/agent.py"]', b'entry = "python3"'),
        (b'entry = ["python3", "/agent/agent.py"]', b'entry = ["a\\u0000b"]'),
        (b"wall_seconds = 5", b"wall_second = 5"),
        (b"wall_seconds = 5", b"wall_seconds = 0"),
        (b"wall_seconds = 5", b"wall_seconds = true"),
        (b"[limits]", b"surprise = 1\n[limits]"),
        (b'leave_out = ["sample"]', b'leave_out = ["../sample"]'),
        (b"name =", b'secrets = ["LD_PRELOAD=x"]\nname ='),
        (b"name =", b'secrets = ["a", "a"]\nname ='),
        (b"name =", b'secrets = "a"\nname ='),
        (b"name =", b"state = 1\nname ="),
        (b"name =", b"\xff ="),
        (b"name =", b"name = ="),
    ],
)
def test_a_broken_manifest_is_refused(before: bytes, after: bytes) -> None:
    assert before in _GOOD
    with pytest.raises(FormatError):
        parse_agent_manifest(_GOOD.replace(before, after, 1))


def test_an_existing_image_excludes_a_build() -> None:
    raw = f'name="a"\nmode="chat"\nmodel="m"\n[image]\nexisting="{_PIN}"\nbase="default"\n'
    with pytest.raises(FormatError):
        parse_agent_manifest(raw.encode())


def test_a_tag_alone_is_not_an_image() -> None:
    for tag in ("python:3.11", "python", "python:latest@sha1:00"):
        with pytest.raises(FormatError) as refused:
            parse_reference(tag)
        assert refused.value.reason is Reason.IMAGE_NOT_PINNED


@pytest.mark.parametrize(
    "text", [f"python@sha256:{_HASH[:-1]}", f"python@sha256:{'A' * 64}", f"-x@sha256:{_HASH}",
             f"a b@sha256:{_HASH}", f"oci:@sha256:{_HASH}", f"oci:a\nb@sha256:{_HASH}"],
)  # fmt: skip
def test_a_bad_pin_is_refused(text: str) -> None:
    with pytest.raises(FormatError) as refused:
        parse_reference(text)
    assert refused.value.reason is Reason.IMAGE_FORMAT


def test_references_read_back() -> None:
    for text in (_PIN, f"oci:/some/where@sha256:{_HASH}", f"localhost:5000/a/b@sha256:{_HASH}"):
        assert str(parse_reference(text)) == text


def test_underscores_separate_and_are_part_of_words() -> None:
    for name in ("a__b", "a_._b", "a__", "a-.B_1"):
        assert parse_reference(f"{name}@sha256:{_HASH}").name == name
    # The last one took exponential time.
    for name in ("a_", "aB", "a_-", "a" + "_" * 200 + "!"):
        with pytest.raises(FormatError):
            parse_reference(f"{name}@sha256:{_HASH}")


def test_a_lock_means_the_same_in_every_spelling() -> None:
    first, second = f"--hash=sha256:{_HASH}", f"--hash=sha256:{'b' * 64}"
    one = f"b_X==1.0 \\\n    {first} \\\n    {second}\na==2 {first}\n"
    two = f"# locked\na==2 {first}  # why\n\nB-x==1.0 {second} {first}\n"
    assert canonical_lock(parse_lock(one.encode())) == canonical_lock(parse_lock(two.encode()))


@pytest.mark.parametrize(
    "line",
    [
        "a==1",
        f"a>=1 --hash=sha256:{_HASH}",
        f"a==1 --hash=md5:{_HASH}",
        f"a @ https://example.org/a.whl --hash=sha256:{_HASH}",
        "--index-url https://example.org",
        "-e .",
        f"a==1; python_version<'4' --hash=sha256:{_HASH}",
        f"a==1 --hash=sha256:{_HASH}\nA==1 --hash=sha256:{_HASH}",
        f"a==1 --hash=sha256:{_HASH}é",
    ],
)
def test_a_lock_holds_only_locked_packages(line: str) -> None:
    with pytest.raises(FormatError) as refused:
        parse_lock(line.encode())
    assert refused.value.reason is Reason.LOCK_FORMAT


@pytest.mark.parametrize(
    "name",
    ["", "/etc/passwd", "../x", "a/../b", "a//b", "./a", "a/", "new\nline", "a\0b", "back\\slash",
     "x" * 256, "é" * 128, "/".join(["d"] * 600), "\ud800", "right\u202eleft"],
)  # fmt: skip
def test_a_hostile_name_is_refused(name: str) -> None:
    with pytest.raises(FormatError) as refused:
        parse_member_name(name)
    assert refused.value.reason is Reason.FILE_NAME


@pytest.mark.parametrize(
    "name", ["notes.csv", "tables/may 2026.csv", "müller.txt", "...", "x" * 255]
)
def test_a_plain_name_passes(name: str) -> None:
    assert parse_member_name(name) == name
