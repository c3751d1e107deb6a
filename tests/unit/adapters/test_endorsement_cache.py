"""The disk cache: docs/protocols/fetching.md 9."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from vendors import NOW, Vendors

from confide.adapters import endorsement_cache
from confide.adapters.endorsement_cache import DiskCache, StoredAnswer
from confide.crypto.ecdsa import Curve, derive_signing_key
from confide.crypto.issuing import CertificateTemplate, encode_pem, issue_certificate
from confide.errors import Unavailable
from confide.wire.service import SnpPart

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_KEY = "GET https://host/thing "
_ANSWER = StoredAnswer(b"\x00body\xff", {"a-chain": "%0A"}, NOW)


def _only(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_what_was_stored_comes_back_and_nothing_else(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache")
    assert cache.get(_KEY) is None
    cache.put(_KEY, _ANSWER)
    assert cache.get(_KEY) == _ANSWER
    assert cache.get(_KEY + "?") is None
    cache.drop(_KEY)
    assert cache.get(_KEY) is None
    cache.drop(_KEY)


def test_files_are_private_and_nothing_is_left_beside_them(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "cache"
    DiskCache(folder).put(_KEY, _ANSWER)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(_only(folder).stat().st_mode) == 0o600


def _edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def edit(path: Path) -> None:
        document = json.loads(path.read_bytes())
        change(document)
        path.write_text(json.dumps(document))

    return edit


def _instead(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def replace(path: Path) -> None:
        path.rename(path.with_name("moved"))
        make(path)

    return replace


_DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(b"\xff{"),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "large": lambda path: path.write_bytes(b" " * (5 << 20)),
    "a pipe": _instead(os.mkfifo),
    "a folder": _instead(Path.mkdir),
    "a link to the same": _instead(lambda path: path.symlink_to("moved")),
    "a link to elsewhere": _instead(lambda path: path.symlink_to("/dev/zero")),
    "another type": _edit(lambda found: found.update(type="x")),
    "another key": _edit(lambda found: found.update(key="GET https://other/ ")),
    "another body": _edit(lambda found: found.update(body="AAAA")),
    "more members": _edit(lambda found: found.update(more=1)),
    "no time": _edit(lambda found: found.update(fetched="yesterday")),
    "odd headers": _edit(lambda found: found.update(headers={"a": 7})),
    "many headers": _edit(lambda found: found.update(headers={str(n): "" for n in range(9)})),
    "headers of another kind": _edit(lambda found: found.update(headers=[])),
}


@pytest.mark.parametrize("damage", _DAMAGE)
def test_a_damaged_entry_is_a_miss(tmp_path: Path, damage: str) -> None:
    cache = DiskCache(tmp_path)
    cache.put(_KEY, _ANSWER)
    _DAMAGE[damage](_only(tmp_path))
    assert cache.get(_KEY) is None


def test_a_disk_that_does_not_take_it_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = DiskCache(tmp_path / "file" / "cache")
    cache.put(_KEY, _ANSWER)
    assert cache.get(_KEY) is None
    cache.drop(_KEY)


def test_what_is_too_large_is_not_kept(tmp_path: Path) -> None:
    DiskCache(tmp_path).put(_KEY, StoredAnswer(bytes(4 << 20), {}, NOW))
    assert list(tmp_path.iterdir()) == []


def test_the_oldest_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endorsement_cache, "_MAX_FILES", 3)
    cache = DiskCache(tmp_path)
    for number in range(5):
        cache.put(str(number), _ANSWER)
        for path in tmp_path.iterdir():
            if json.loads(path.read_bytes())["key"] == str(number):
                os.utime(path, (number, number))
    kept = {json.loads(path.read_bytes())["key"] for path in tmp_path.iterdir()}
    assert kept == {"2", "3", "4"}


_ALL = ["IntelSGXRootCA.der", "identity", "pckcrl", "tcb"]


class Visits:
    """Fetches of TDX collateral from one running host, each by a new client with one cache."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.vendors = Vendors()

    async def asked(self, *, at: datetime = NOW, fresh: bool = False) -> list[str]:
        """Return what one fetch at `at` asks for."""
        self.vendors.asked.clear()
        self.vendors.clock.time = at
        async with self.vendors.online(cache=self.folder, fresh=fresh) as net:
            await net.sources.tdx.collateral(self.vendors.quote)
        return sorted(each.partition("?")[0].rpartition("/")[2] for each in self.vendors.targets())


def during(story: Callable[[Visits], Awaitable[None]], folder: Path) -> None:
    """Let `story` happen while the host runs."""

    async def main() -> None:
        visits = Visits(folder)
        async with visits.vendors.running():
            await story(visits)

    asyncio.run(main())


def test_a_second_fetch_asks_nobody(tmp_path: Path) -> None:
    async def story(visits: Visits) -> None:
        assert await visits.asked() == _ALL
        assert await visits.asked() == []

    during(story, tmp_path)


def test_fresh_asks_and_keeps(tmp_path: Path) -> None:
    async def story(visits: Visits) -> None:
        assert await visits.asked(fresh=True) == _ALL
        assert await visits.asked(fresh=True) == _ALL
        assert await visits.asked() == []

    during(story, tmp_path)


def test_nothing_is_kept_longer_than_its_kind_allows(tmp_path: Path) -> None:
    async def story(visits: Visits) -> None:
        await visits.asked()
        day = NOW + timedelta(hours=24)
        assert await visits.asked(at=day - timedelta(seconds=1)) == []
        assert await visits.asked(at=day) == _ALL

    during(story, tmp_path)


def test_nothing_is_kept_past_its_own_end(tmp_path: Path) -> None:
    async def story(visits: Visits) -> None:
        # The platform's statements end 45 days after they were made; these are fetched late.
        end = NOW + timedelta(days=45)
        assert await visits.asked(at=end - timedelta(hours=1)) == _ALL
        assert await visits.asked(at=end - timedelta(seconds=1)) == []
        assert await visits.asked(at=end) == _ALL
        # What is over is not even stored.
        assert await visits.asked(at=end) == _ALL

    during(story, tmp_path)


def test_nothing_is_kept_past_the_end_of_its_signer(tmp_path: Path) -> None:
    key = derive_signing_key(Curve.P256, b"seed", "signer")
    template = CertificateTemplate(
        common_name="SIMULATED signer",
        organization="SIMULATED",
        not_before=NOW - timedelta(days=1),
        not_after=NOW + timedelta(hours=2),
    )
    pem = encode_pem(issue_certificate(template, key.public, issuer=None, issuer_key=key))

    async def story(visits: Visits) -> None:
        honest = visits.vendors.tcb_info()
        header = ("TCB-Info-Issuer-Chain", quote(pem))
        visits.vendors.always["tcb?"] = replace(honest, headers=(header,))
        assert await visits.asked() == _ALL
        assert await visits.asked(at=NOW + timedelta(hours=1)) == []
        assert await visits.asked(at=NOW + timedelta(hours=2)) == ["tcb"]

    during(story, tmp_path)


def test_an_entry_from_the_future_is_not_used(tmp_path: Path) -> None:
    async def story(visits: Visits) -> None:
        await visits.asked(at=NOW + timedelta(hours=2))
        assert await visits.asked() == _ALL

    during(story, tmp_path)


def _rewrite(folder: Path) -> None:
    """Hostile, with right digests: about another platform, a list under another name."""
    cache = DiskCache(folder)
    for path in list(folder.iterdir()):
        key = json.loads(path.read_bytes())["key"]
        stored = cache.get(key)
        assert stored is not None
        body = stored.body.replace(b"5300000000AA", b"5300000000AB").replace(b"PCK", b"PCX")
        cache.put(key, StoredAnswer(body, stored.headers, stored.fetched))


def _take_headers(folder: Path) -> None:
    for path in folder.iterdir():
        _edit(lambda found: found.update(headers={}))(path)


def test_an_entry_that_its_reader_does_not_take_any_more_is_a_miss(tmp_path: Path) -> None:
    async def story(visits: Visits) -> None:
        await visits.asked()
        _rewrite(tmp_path)
        assert await visits.asked() == ["pckcrl", "tcb"]

    during(story, tmp_path)


def test_an_entry_without_the_header_that_is_needed_is_a_miss(tmp_path: Path) -> None:
    async def story(visits: Visits) -> None:
        await visits.asked()
        _take_headers(tmp_path)
        assert await visits.asked() == ["identity", "pckcrl", "tcb"]

    during(story, tmp_path)


def test_a_wrong_answer_is_not_kept(tmp_path: Path) -> None:
    async def story(visits: Visits) -> None:
        visits.vendors.script["tcb"] = [visits.vendors.tcb_info("5300000000ab")]
        with pytest.raises(Unavailable, match="another platform"):
            await visits.asked()
        assert await visits.asked() == ["tcb"]

    during(story, tmp_path)


def test_certificates_are_kept_for_their_life_and_lists_for_a_day(tmp_path: Path) -> None:
    vendors = Vendors()

    async def main() -> None:
        async with vendors.running():
            for days, expected in ((0, 3), (0.5, 0), (2, 1), (29, 1), (31, 3)):
                vendors.clock.time = NOW + timedelta(days=days)
                vendors.asked.clear()
                async with vendors.online(cache=tmp_path) as net:
                    await net.sources.snp.endorsement(SnpPart(report=vendors.report()))
                assert len(vendors.asked) == expected, days

    asyncio.run(main())


def test_manifests_a_week_answers_a_day_key_sets_never(tmp_path: Path) -> None:
    vendors = Vendors()

    async def main() -> None:
        async with vendors.running():
            for hours, expected in ((0, 26), (23, 1), (24, 23), (24 * 8, 26)):
                vendors.clock.time = NOW + timedelta(hours=hours)
                vendors.asked.clear()
                async with vendors.online(cache=tmp_path) as net:
                    await net.sources.nvidia.endorsements(vendors.devices)
                    await net.sources.nras.keys()
                assert len(vendors.asked) == expected, hours

    asyncio.run(main())


def test_times_in_the_cache_are_utc(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path)
    cache.put(_KEY, _ANSWER)
    stored = cache.get(_KEY)
    assert stored is not None
    assert stored.fetched == datetime(2026, 11, 22, 12, tzinfo=UTC)
