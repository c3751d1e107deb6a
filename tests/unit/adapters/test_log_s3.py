"""A log in an object store: signed requests, one writer, and nothing acknowledged without a PUT."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING

import httpx2
import log_world as world
import pytest
from log_world import FixedClock, entry

from confide.adapters.log_s3 import ObjectPlace, S3Log, WriterToken, parse_object_url, sign_request
from confide.crypto.merkle import hash_leaf
from confide.errors import ConfigurationError, Unavailable
from confide.node.log_check import check_log
from confide.node.log_keeper import LogKeeper

if TYPE_CHECKING:
    from pathlib import Path

PLACE = ObjectPlace("https://s3.example", "logs", "a b/", "eu-1", "AKIA", "very secret")


class Objects(httpx2.BaseTransport):
    """An object store with conditional writes, which believes only what is signed."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.requests = 0
        self.fails = -1

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        body = request.read()
        number, self.requests = self.requests, self.requests + 1
        if number == self.fails:
            return httpx2.Response(503)
        if not self._signed(request, body):
            return httpx2.Response(403)
        path = request.url.raw_path.decode()
        if request.method == "PUT":
            if request.headers.get("if-none-match") == "*" and path in self.objects:
                return httpx2.Response(412)
            self.objects[path] = body
            return httpx2.Response(200)
        if request.method == "DELETE":
            self.objects.pop(path, None)
            return httpx2.Response(204)
        found = self.objects.get(path)
        return httpx2.Response(404) if found is None else httpx2.Response(200, content=found)

    @staticmethod
    def _signed(request: httpx2.Request, body: bytes) -> bool:
        given = request.headers["authorization"]
        found = re.search(r"SignedHeaders=([^,]+),", given)
        assert found is not None
        added = {"x-amz-date", "x-amz-content-sha256"}
        again = sign_request(
            PLACE,
            request.method,
            request.url.raw_path.decode(),
            headers={n: request.headers[n] for n in found[1].split(";") if n not in added},
            payload_sha256=sha256(body).hexdigest(),
            now=world.NOW,
        )
        return again["authorization"] == given


class Drawn:
    """Entropy that counts."""

    def __init__(self, start: int = 0) -> None:
        self.next = start

    def token(self, size: int) -> bytes:
        self.next += 1
        return self.next.to_bytes(size, "big")


def _open(store: Objects, folder: Path, start: int = 0) -> S3Log:
    token = WriterToken(folder, entropy=Drawn(start))
    try:
        return S3Log(PLACE, token=token, clock=FixedClock(), transport=store)
    except BaseException:
        token.close()
        raise


def test_the_signature_is_that_of_the_specification() -> None:
    # From: AWS, "Signature calculations: transferring payload in a single chunk", GET Object.
    place = ObjectPlace(
        "https://examplebucket.s3.amazonaws.com",
        "examplebucket",
        "",
        "us-east-1",
        "AKIAIOSFODNN7EXAMPLE",
        "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    )
    headers = sign_request(
        place,
        "GET",
        "/test.txt",
        headers={"host": "examplebucket.s3.amazonaws.com", "range": "bytes=0-9"},
        payload_sha256=sha256(b"").hexdigest(),
        now=datetime(2013, 5, 24, tzinfo=UTC),
    )
    wanted = "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
    assert headers["authorization"].endswith(f"Signature={wanted}")


def test_a_log_goes_on_where_it_was_and_its_objects_are_the_tiles(tmp_path: Path) -> None:
    store = Objects()
    for turn in range(2):
        log = _open(store, tmp_path / "writer")
        keeper = LogKeeper.open(log, world.LOG)
        assert keeper.head.head.size == 300 * turn
        keeper.append([entry(300 * turn + n) for n in range(300)])
        keeper.publish(keeper.head)
        assert list(check_log(log, keeper.head.head)) == []
        log.close()
    leaves = [hash_leaf(entry(n)) for n in range(600)]
    assert keeper.head.head.root == world.tree_root(leaves)
    assert store.objects["/logs/a%20b/tile/0/000"] == b"".join(leaves[:256])
    assert "/logs/a%20b/lock" not in store.objects


def test_another_writer_is_excluded_and_the_same_one_goes_on_after_a_crash(tmp_path: Path) -> None:
    store = Objects()
    first = _open(store, tmp_path / "a")
    with pytest.raises(ConfigurationError, match="in use by another process"):
        _open(store, tmp_path / "a")
    with pytest.raises(ConfigurationError, match="another writer"):
        _open(store, tmp_path / "b", start=100)
    # Killed: the object stays, the local lock does not.
    first._token.close()
    with pytest.raises(ConfigurationError, match="another writer"):
        _open(store, tmp_path / "b", start=100)
    _open(store, tmp_path / "a", start=200).close()
    _open(store, tmp_path / "b", start=100).close()


def test_what_a_failed_request_leaves_loses_nothing_acknowledged(tmp_path: Path) -> None:
    batches = (1, 255, 300)

    def work(store: Objects, folder: Path) -> int:
        done = 0
        try:
            log = _open(store, folder)
        except Unavailable:
            return done
        try:
            keeper = LogKeeper.open(log, world.LOG)
            for size in batches:
                keeper.append([entry(done + n) for n in range(size)])
                done += size
        except Unavailable:
            pass
        store.fails = -1
        log.close()
        return done

    counted = Objects()
    assert work(counted, tmp_path / "count") == sum(batches)
    for number in range(counted.requests):
        store = Objects()
        store.fails = number
        done = work(store, tmp_path / f"w{number}")
        store.fails = -1
        log = _open(store, tmp_path / f"w{number}")
        keeper = LogKeeper.open(log, world.LOG)
        size = keeper.head.head.size
        assert size >= done
        assert keeper.head.head.root == world.tree_root(hash_leaf(entry(n)) for n in range(size))
        assert list(check_log(log, keeper.head.head)) == []
        log.close()


def test_an_object_store_that_does_not_answer_is_unavailable(tmp_path: Path) -> None:
    store = Objects()
    store.fails = 0
    with pytest.raises(Unavailable, match="503"):
        _open(store, tmp_path / "a")

    class Gone(httpx2.BaseTransport):
        def handle_request(self, _request: httpx2.Request) -> httpx2.Response:
            raise httpx2.ConnectError("refused")

    token = WriterToken(tmp_path / "b", entropy=Drawn())
    with pytest.raises(Unavailable, match="no answer"):
        S3Log(PLACE, token=token, clock=FixedClock(), transport=Gone())
    token.close()
    log = _open(store, tmp_path / "c")
    store.objects["/logs/a%20b/head"] = bytes(1 << 21)
    with pytest.raises(Unavailable, match="more than"):
        log.read("head")
    log.close()


def test_places_are_named_by_url() -> None:
    keys = {"region": "r", "access_key_id": "a", "secret_key": "hidden"}
    found = parse_object_url("https://s3.example:9000/bucket/p/q", **keys)
    assert (found.endpoint, found.bucket, found.prefix) == (
        "https://s3.example:9000",
        "bucket",
        "p/q/",
    )
    assert parse_object_url("http://h/bucket/", **keys).prefix == ""
    assert "hidden" not in repr(found)
    for url in ("bucket", "ftp://h/b", "https://h", "https://h/b?x=y"):
        with pytest.raises(ConfigurationError):
            parse_object_url(url, **keys)
    with pytest.raises(ConfigurationError, match="AWS_ACCESS_KEY_ID"):
        parse_object_url("https://h/b", region="r", access_key_id="", secret_key="")
