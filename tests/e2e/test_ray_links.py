"""Links between seats by Ray: two that were admitted carry anything, nobody else gets in.

docs/protocols/training-ranks.md §6. Real programs of Ray, at addresses of this machine alone.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from own_network import own_network
from ray_seats import MEMORY, TOKEN, gone, listening, of_ray, programs, ray_seat, two_by_ray
from seat_links import identities, loopback
from training_seats import tls_key

from confide.adapters.memory_file import memory_descriptor, memory_file
from confide.errors import Unavailable
from confide.rays.links import RayLinks
from confide.rays.order import LINKS_NAME, STORE_BYTES, ray_environment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from confide.adapters.rank_tls import SeatIdentity

STREAM = hashlib.shake_256(b"gradients").digest(20_000_000)
# From: RFC 9113 §3.4, what a client of HTTP/2 begins with, and an empty SETTINGS frame.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000")
SETTINGS = 4
# What others of this machine may read of a process.
_TOLD = ("cmdline", "environ")
Pair = tuple[RayLinks, RayLinks]


@pytest.fixture(scope="module", autouse=True)
def apart() -> Iterator[None]:
    with own_network() as given:
        if not given:
            pytest.skip("RAY NOT TESTED: it listens at every address; a network apart needs root")
        yield


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with two_by_ray() as links:
        for sender, receiver in (links, links[::-1]):
            sender.outer[1].sendall(b"hello")
            assert exactly(receiver.outer[0], 5) == b"hello"
        yield links


def exactly(link: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size and (piece := link.recv(size - len(data))):
        data += piece
    return bytes(data)


def folder_of(links: RayLinks) -> Path:
    """The folder of a seat, as its raylet was told."""
    words = Path(f"/proc/{of_ray(links, 'raylet')}/cmdline").read_bytes().split(b"\0")
    [folder] = [word.partition(b"=")[2] for word in words if word.startswith(b"--temp_dir=")]
    return Path(folder.decode()).parent


def test_what_one_seat_sends_the_other_receives_both_ways(pair: Pair) -> None:
    for sender, receiver in (pair, pair[::-1]):
        sending = threading.Thread(target=sender.outer[1].sendall, args=(STREAM,))
        sending.start()
        assert exactly(receiver.outer[0], len(STREAM)) == STREAM
        sending.join()


def test_nothing_runs_but_what_carries_the_links(pair: Pair) -> None:
    python = Path(f"/proc/{os.getpid()}/exe").readlink().name
    for links, first in zip(pair, (True, False), strict=True):
        found = sorted(programs(links).values())
        ours = [name for name in found if name.startswith("python") or name == python]
        assert len(ours) == 1, "who holds the seat"
        theirs = ["gcs_server", "raylet"] if first else ["raylet"]
        assert sorted(set(found) - set(ours)) == sorted([*theirs, "idle.py", "ray::Carrier"])
        # A raylet takes its two agents from nobody else.
        assert found.count("idle.py") == 2


def test_what_it_writes_is_in_memory_and_for_nobody_else(pair: Pair) -> None:
    for links in pair:
        folder = folder_of(links)
        assert folder.is_relative_to(MEMORY)
        assert folder.stat().st_mode & 0o777 == 0o700
        words = Path(f"/proc/{of_ray(links, 'raylet')}/cmdline").read_bytes().split(b"\0")
        told = dict(word.decode().split("=", 1) for word in words if b"=" in word)
        for option in ("--fallback_directory", "--log_dir", "--session_dir", "--resource_dir"):
            assert Path(told[option]).is_relative_to(folder), option
        assert told["--plasma_directory"] == str(MEMORY)
        for pid in programs(links):
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                flags, place = line.split()[1], line.split()[-1]
                # What is mapped to be written, and not a copy of its own, is memory.
                if "w" in flags and "s" in flags and place.startswith("/"):
                    assert Path(place).is_relative_to(MEMORY), line


def test_neither_key_nor_token_nor_what_was_sent_is_to_be_found(pair: Pair) -> None:
    for number, links in enumerate(pair):
        key = b"".join(tls_key(f"job {number}").pkcs8_pem().splitlines()[1:-1])
        secrets = (key[:40], TOKEN.hex().encode(), STREAM[:32])
        files = [path for path in folder_of(links).rglob("*") if path.is_file()]
        assert len(files) > 3
        told = [Path(f"/proc/{pid}/{name}") for pid in programs(links) for name in _TOLD]
        for path in (*files, *told):
            data = path.read_bytes()
            assert not any(secret in data for secret in secrets), path


# Who gets in.


def answers(host: str, port: int, context: ssl.SSLContext | None) -> bool:
    """Whether whoever listens at `port` speaks HTTP/2 with us."""
    with socket.create_connection((host, port), timeout=20) as plain:
        try:
            with plain if context is None else context.wrap_socket(plain) as link:
                link.sendall(PREFACE)
                head = exactly(link, 9)
        except OSError:
            return False
        return len(head) == 9 and head[3] == SETTINGS


def context_of(identity: SeatIdentity | None, authority: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=authority)
    context.set_alpn_protocols(["h2"])
    if identity is not None:
        with (
            memory_file("certificate", identity.certificate.encode()) as certificate,
            memory_file("key", identity.key) as key,
        ):
            context.load_cert_chain(certificate, key)
    return context


def test_every_port_wants_a_certificate_of_this_boot(
    pair: Pair,
) -> None:
    """In plain, without a certificate, with one of another authority: refused."""
    ours = identities(engine="ray")[0]
    other = identities("another boot", engine="ray")[0]
    strangers = {
        "plain": None,
        "none": context_of(None, ours.authority),
        "another boot's": context_of(other, ours.authority),
    }
    admitted = context_of(ours, ours.authority)
    found = [listening(links) for links in pair]
    assert [sorted(each.program for each in seat) for seat in found] == [
        # And the driver.
        sorted(["gcs_server", "raylet", "raylet", "ray::Carrier", driver_of(pair[0])]),
        sorted(["raylet", "raylet", "ray::Carrier"]),
    ]
    for number, seat in enumerate(found):
        for each in seat:
            assert answers(loopback(number), each.port, admitted), f"{each}: no port of Ray's TLS"
            for who, context in strangers.items():
                said = answers(loopback(number), each.port, context)
                assert not said, f"{each} answers who is {who}"


def driver_of(links: RayLinks) -> str:
    return programs(links)[links.pid]


def test_a_client_of_another_boot_does_not_believe_this_cluster(pair: Pair) -> None:
    other = identities("another boot", engine="ray")[0]
    for each in listening(pair[0]):
        assert not answers(loopback(0), each.port, context_of(other, other.authority))


ASKING = """
import sys
from ray._raylet import GcsClient
from ray.exceptions import RayError
try:
    client = GcsClient(address=sys.argv[1], cluster_id=None)
    print(client.internal_kv_get(b"session_name", b"session"))
except RayError as error:
    print(type(error).__name__)
"""


@pytest.mark.slow
def test_a_client_of_ray_is_refused_without_certificate_or_token(pair: Pair) -> None:
    """The same program, four times: what it is given decides."""
    [gcs] = [each for each in listening(pair[0]) if each.program == "gcs_server"]
    ours = identities(engine="ray")[0]
    other = identities("another boot", engine="ray")[0]
    given = {
        "everything": (ours, TOKEN, "1"),
        "another token": (ours, bytes(32), "1"),
        "another boot's certificate": (other, TOKEN, "1"),
        "no TLS": (ours, TOKEN, "0"),
    }
    with ExitStack() as stack:
        asking = {}
        for who, (identity, token, tls) in given.items():
            numbers = {
                name: stack.enter_context(memory_descriptor(name, data))
                for name, data in (
                    ("certificate", identity.certificate.encode()),
                    ("key", identity.key),
                    ("authority", identity.authority.encode()),
                    ("token", token.hex().encode()),
                )
            }
            paths = {name: f"/proc/{os.getpid()}/fd/{number}" for name, number in numbers.items()}
            asking[who] = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", ASKING, f"{loopback(0)}:{gcs.port}"],
                    env=ray_environment(Path("/nonexistent"), **paths) | {"RAY_USE_TLS": tls},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                )
            )
        said = {who: process.communicate()[0].strip() for who, process in asking.items()}
    assert said.pop("everything") == b"b'session'"
    assert set(said.values()) <= {b"RpcError", b"AuthenticationError"}, said


def test_a_stranger_at_the_socket_of_a_node_is_given_nothing() -> None:
    before = set(MEMORY.glob("confide-ray-*"))
    with (
        socket.create_server((loopback(0), 0)) as silent,
        RayLinks(
            identities(engine="ray")[1],
            ray_seat(1, silent.getsockname()[1]),
            patience_seconds=60,
        ) as links,
    ):
        [folder] = set(MEMORY.glob("confide-ray-*")) - before
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(str(folder / LINKS_NAME))
            data, numbers, _, _ = socket.recv_fds(stranger, 1, 2)
        assert (data, numbers) == (b"", [])
        assert links.refused == 1
    assert not folder.exists()


# Who ends.


def test_a_seat_alone_gives_up_in_time_and_says_why() -> None:
    with socket.create_server((loopback(0), 0)) as probe:
        port = probe.getsockname()[1]
    with RayLinks(identities(engine="ray")[0], ray_seat(0, port), patience_seconds=5) as links:
        assert links.outer[0].recv(1) == b""
        pids = set(programs(links))
    assert gone(pids) == set()
    assert links.failures


def test_a_node_that_is_short_of_shared_memory_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    full = shutil.disk_usage(MEMORY)._replace(free=STORE_BYTES)
    monkeypatch.setattr(shutil, "disk_usage", lambda _place: full)
    with pytest.raises(Unavailable, match="needs 144 MiB of shared memory"):
        RayLinks(identities(engine="ray")[0], ray_seat(0, 9), patience_seconds=1)


def test_when_all_links_are_closed_everything_has_gone() -> None:
    """And meanwhile only those ports were open that belong to a seat which names its first."""
    with two_by_ray(ports=True) as links:
        first, second = links
        first.outer[1].sendall(b"hello")
        assert exactly(second.outer[0], 5) == b"hello"
        opened = [{each.port for each in listening(seat)} for seat in links]
        head = min(opened[0])
        assert opened[0] == set(range(head, head + 5))
        assert opened[1] < set(range(head + 6, head + 10))
        pids, folders = set(programs(first)) | set(programs(second)), list(map(folder_of, links))
        for each in links:
            each.outer[1].shutdown(socket.SHUT_WR)
        assert [each.outer[0].recv(1) for each in links] == [b"", b""]
    assert gone(pids) == set()
    assert not any(folder.exists() for folder in folders)


@pytest.mark.parametrize(
    ("seat", "program"),
    [
        (1, "ray::Carrier"),
        pytest.param(0, "ray::Carrier", marks=pytest.mark.slow),
        pytest.param(1, "raylet", marks=pytest.mark.slow),
        pytest.param(0, "raylet", marks=pytest.mark.slow),
        pytest.param(0, "gcs_server", marks=pytest.mark.slow),
        pytest.param(0, "", marks=pytest.mark.slow),
        pytest.param(1, "", marks=pytest.mark.slow),
    ],
)
def test_whoever_is_killed_all_links_end_and_nothing_is_left(seat: int, program: str) -> None:
    """An empty `program` is the process that holds the seat."""
    with two_by_ray() as links:
        for sender, receiver in (links, links[::-1]):
            sender.outer[1].sendall(b"hello")
            assert exactly(receiver.outer[0], 5) == b"hello"
        everything = set(programs(links[0])) | set(programs(links[1]))
        os.kill(of_ray(links[seat], program) if program else links[seat].pid, signal.SIGKILL)
        # Nobody sends anything: an end has to be noticed all the same.
        for each in links:
            each.outer[0].settimeout(90)
            assert each.outer[0].recv(1) == b""
    assert gone(everything) == set()
    assert any(each.failures for each in links)
