"""`confide capture`, in process, against services on this machine."""

from __future__ import annotations

import json
import stat
from typing import TYPE_CHECKING

import pytest
from http_stand_ins import Reply, StandIn, authority_pem, in_background, server_spki
from vendors import Vendors

from confide.wire.bundle import decode_bundle

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sessions import Cli


class Place:
    """A service that serves one quote, and a PCCS that knows its platform as of now."""

    def __init__(self) -> None:
        from datetime import UTC, datetime  # noqa: PLC0415 - the command reads the same clock

        self.vendors = Vendors(now=datetime.now(UTC))
        self.service = StandIn(lambda _: Reply(self.vendors.quote))

    @property
    def words(self) -> tuple[str, ...]:
        return self.service.url + "/quote?x=1", "--pccs", self.vendors.url


@pytest.fixture
def place() -> Iterator[Place]:
    found = Place()
    with in_background(found.vendors), in_background(found.service):
        yield found


def test_evidence_and_endorsements_are_saved(cli: Cli, place: Place, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.json"
    said = cli("capture", *place.words, "-o", bundle, "--json")
    assert said.code == 0, said.err
    found, endorsements = decode_bundle(bundle.read_bytes())
    assert found.documents == {"report": place.vendors.quote}
    assert found.url == place.words[0]
    assert (found.nonce, found.tls_spki_sha256, found.format) == (None, None, "")
    assert len(endorsements.tdx) == 1
    assert stat.S_IMODE(bundle.stat().st_mode) == 0o600
    result = said.result
    assert result["endorsements"]["tdx"] == 1
    assert result["absent"] == []
    assert len(result["sha256"]) == 64


def test_the_screen_says_that_nothing_is_verified(cli: Cli, place: Place, tmp_path: Path) -> None:
    said = cli("capture", *place.words, "-o", tmp_path / "bundle.json")
    assert said.code == 0
    assert "nothing in it is verified yet" in said.out


def test_a_second_capture_uses_the_cache_and_fresh_does_not(
    cli: Cli, place: Place, tmp_path: Path
) -> None:
    assert cli("capture", *place.words, "-o", tmp_path / "1").code == 0
    count = len(place.vendors.asked)
    assert cli("capture", *place.words, "-o", tmp_path / "2").code == 0
    assert len(place.vendors.asked) == count
    assert cli("capture", *place.words, "-o", tmp_path / "3", "--fresh").code == 0
    assert len(place.vendors.asked) == 2 * count


def test_evidence_alone(cli: Cli, place: Place, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.json"
    said = cli("capture", *place.words, "-o", bundle, "--no-endorsements")
    assert said.code == 0
    assert place.vendors.asked == []
    assert decode_bundle(bundle.read_bytes())[1].tdx == ()


def test_without_endorsements_nothing_is_saved_unless_it_is_asked_for(
    cli: Cli, place: Place, tmp_path: Path
) -> None:
    place.vendors.always["tcb?"] = Reply(status=404)
    bundle = tmp_path / "bundle.json"
    said = cli("capture", *place.words, "-o", bundle)
    assert said.code == 20
    assert "PCCS: no TDX TCB info of FMSPC 5300000000aa" in said.err.replace("\n", " ")
    assert "--partial" in said.err
    assert not bundle.exists()
    said = cli("capture", *place.words, "-o", bundle, "--partial", "--json")
    assert said.code == 0
    assert len(said.result["absent"]) == 1
    assert decode_bundle(bundle.read_bytes())[1].tdx == ()


def test_what_is_no_evidence_is_malformed(cli: Cli, place: Place, tmp_path: Path) -> None:
    place.service.always["/"] = Reply(b"hello")
    said = cli("capture", *place.words, "-o", tmp_path / "bundle.json")
    assert said.code == 30
    assert not (tmp_path / "bundle.json").exists()


def test_a_service_that_is_not_there_is_unavailable(cli: Cli, place: Place, tmp_path: Path) -> None:
    place.service.always["/"] = Reply(status=418)
    said = cli("capture", *place.words, "-o", tmp_path / "bundle.json")
    assert said.code == 20
    assert "418" in said.err


def test_a_file_is_never_overwritten(cli: Cli, place: Place, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.json"
    bundle.write_bytes(b"mine")
    assert cli("capture", *place.words, "-o", bundle).code == 2
    assert bundle.read_bytes() == b"mine"
    assert place.service.asked == []


@pytest.mark.parametrize(
    "words",
    [
        ("https://host", "--nonce", "abc"),
        ("https://host", "--nonce", "ab" * 32),
        ("https://host", "--format", "bare"),
        ("https://host", "--model", "m"),
        ("https://user:pw@host",),
        ("ftp://host",),
        ("https://host", "--pccs", "http://pccs.example"),
    ],
)
def test_usage(cli: Cli, tmp_path: Path, words: tuple[str, ...]) -> None:
    assert cli("capture", *words, "-o", tmp_path / "bundle.json").code == 2


def test_over_tls_the_key_of_the_connection_is_recorded(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hashlib  # noqa: PLC0415 - one test

    authority = tmp_path / "authority.pem"
    authority.write_text(authority_pem())
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    service = StandIn(lambda _: Reply(b"anything"))
    bundle = tmp_path / "bundle.json"
    with in_background(service, tls=True):
        said = cli("capture", service.url, "-o", bundle, "--no-endorsements", "--json")
    assert said.code == 0, said.err
    expected = hashlib.sha256(server_spki()).hexdigest()
    assert said.result["tls_spki_sha256"] == expected
    assert json.loads(bundle.read_bytes())["capture"]["tls_spki_sha256"] == expected
