"""`confide verify https://…` and `--fetch`, against a service and a PCCS on this machine."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import pytest
from http_stand_ins import Reply, StandIn, in_background
from vendors import Vendors

from confide.simulator.near import SimulatedNear, encode_report
from confide.simulator.nvidia import simulated_nvidia_roots
from confide.trust.roots import encode_roots_file, make_simulated_roots

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from http_stand_ins import Asked
    from sessions import Cli


class Place:
    """A service that serves one quote, a PCCS that knows its platform as of now, and its roots."""

    def __init__(self, folder: Path) -> None:
        self.vendors = Vendors(now=datetime.now(UTC))
        self.service = StandIn(lambda _: Reply(self.vendors.quote))
        roots = make_simulated_roots(
            self.vendors.platform.anchor(), simulated_nvidia_roots(self.vendors.seed)
        )
        self.roots = folder / "roots.json"
        self.roots.write_bytes(encode_roots_file(roots))
        self.saved = folder / "quote"
        self.saved.write_bytes(self.vendors.quote)

    @property
    def look(self) -> tuple[str, ...]:
        """The words with which somebody looks at this service."""
        return "--simulated-roots", str(self.roots), "--policy", "audit"

    @property
    def pccs(self) -> tuple[str, str]:
        """Where statements about the platform are."""
        return "--pccs", self.vendors.url


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """Service and vendors, answering."""
    found = Place(tmp_path)
    with in_background(found.vendors), in_background(found.service):
        yield found


def test_a_live_service_is_judged_now(cli: Cli, place: Place) -> None:
    url = f"{place.service.url}/quote"
    seen = cli("verify", url, *place.look, *place.pccs)
    assert (seen.code, seen.err) == (0, "")
    assert f"source     {url}, live" in seen.out
    assert "by the clock of this machine" in seen.out
    result = cli("verify", url, *place.look, *place.pccs, "--json").result
    assert (result["live"], result["sha256"], result["unavailable"]) == (True, None, [])


def test_a_file_is_fetched_for_only_when_asked(cli: Cli, place: Place) -> None:
    offline = cli("verify", place.saved, *place.look)
    assert offline.code == 10
    assert "collateral-missing" in offline.out
    assert place.vendors.asked == []
    assert cli("verify", place.saved, *place.look, "--fetch", *place.pccs).code == 0


def test_vendors_that_fail_leave_no_verdict(cli: Cli, place: Place) -> None:
    place.vendors.always = {"tcb": Reply(status=404)}
    seen = cli("verify", place.saved, *place.look, "--fetch", *place.pccs)
    assert (seen.code, seen.out) == (20, "")
    assert seen.err.startswith("unavailable: no verdict: ")


def test_times_and_pccs_are_for_what_they_are_for(cli: Cli, place: Place) -> None:
    url = f"{place.service.url}/quote"
    assert cli("verify", url, "--at", "2026-11-22T12:00:00Z").code == 2
    assert cli("verify", place.saved, *place.pccs).code == 2
    assert place.service.asked == []


@pytest.mark.parametrize("status", [404, 302])
def test_a_service_that_does_not_answer_is_20(cli: Cli, place: Place, status: int) -> None:
    other = StandIn(lambda _: Reply(b"no", status=status))
    with in_background(other):
        seen = cli("verify", f"{other.url}/quote", *place.look, *place.pccs)
    assert (seen.code, seen.out) == (20, "")
    assert seen.err.startswith("unavailable: ")


@pytest.mark.parametrize("answer", [b"", b"<html>login</html>", b"[" * 50_000])
def test_a_service_that_answers_something_else_is_30(cli: Cli, place: Place, answer: bytes) -> None:
    other = StandIn(lambda _: Reply(answer))
    with in_background(other):
        seen = cli("verify", f"{other.url}/quote", *place.look, *place.pccs)
    assert seen.code == 30
    assert "Traceback" not in seen.err


def test_a_service_that_answers_about_another_model_is_refused(cli: Cli, tmp_path: Path) -> None:
    near = SimulatedNear(b"live", datetime.now(UTC), nodes=1, gpus=1)

    def answer(asked: Asked) -> Reply:
        nonce = parse_qs(urlsplit(asked.target).query).get("nonce")
        if nonce is None:
            return Reply(status=404)
        return Reply(encode_report(near.gateway_report(bytes.fromhex(nonce[0]))))

    roots = tmp_path / "roots.json"
    roots.write_bytes(encode_roots_file(near.roots()))
    bundle = tmp_path / "service.bundle"
    service = StandIn(answer)
    with in_background(service):
        saved = cli(
            "capture", service.url, "--format", "near", "--model", "mine/model",
            "--no-endorsements", "-o", bundle,
        )  # fmt: skip
    assert saved.code == 0, saved.err
    assert "model=mine%2Fmodel" in service.asked[0].target
    words = ("verify", bundle, "--simulated-roots", roots, "--policy", "audit")
    assert "names another model than the one asked for" in cli(*words).out
    seen = cli(*words, "--model", "mine/model")
    assert seen.code == 10
    assert "model-mismatch" in seen.out
