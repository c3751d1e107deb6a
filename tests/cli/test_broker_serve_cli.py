"""`confide broker serve` in a process of its own, from an owner's words to a node's secret."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import httpx2
import pytest
from nodes import KERNEL, SEED, SOFTWARE, fitting_expectation, roots

from confide.adapters.clock import SystemClock
from confide.adapters.endorsement_http import SystemSleeper
from confide.adapters.entropy import SystemEntropy
from confide.adapters.kbs_http import KbsHttp, kbs_client
from confide.appraisal.eventlog import run_commitment
from confide.cli.broker_unlock import StoreOptions, open_sealed_store
from confide.errors import Reason, ReleaseRefused, Unavailable
from confide.expectation.broker import BrokerSpec
from confide.node.attester import Attester
from confide.node.broker_audit import PENDING, RELEASED, parse_kept
from confide.node.broker_link import Asker, BrokerLink, BrokerPlace
from confide.node.keys import make_node_keys
from confide.node.measure import measure_node, measure_ready
from confide.simulator.machine import SimulatedCollateral, SimulatedGuest, make_platform
from confide.trust.roots import encode_roots_file
from confide.wire.release_receipt import parse_release_receipt
from confide.wire.rtmr_log import RuntimeEvent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sessions import Cli

    from confide.broker.released import ReleasedSecret
    from confide.expectation import Expectation

RUN = b"\x07" * 32
VALUE = b"a value that nobody else may see"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Stack:
    """A log without witnesses and a broker, as processes; one owner."""

    def __init__(self, cli: Cli, folder: Path) -> None:
        self.cli, self.folder = cli, folder
        self.started: dict[str, subprocess.Popen[bytes]] = {}
        self.log, self.port = _free_port(), _free_port()
        made = cli("log", "keygen", "log.example", folder / "log.key", "--json")
        (folder / "policy").write_text(f"log {made.result['key']}\nquorum none\n")
        (folder / "roots").write_bytes(encode_roots_file(roots()))
        owner = cli("secret", "keygen", folder / "owner", "--json").result["owner"]
        (folder / "owners").write_text(f'[acme]\nowners = ["{owner}"]\nthreshold = 1\n')
        begun = cli("broker", "init", *self.store, "--json")
        self.key = begun.result["key"]
        (folder / "value").write_bytes(VALUE)

    @property
    def store(self) -> tuple[object, ...]:
        return ("--store", self.folder / "store", "--master", self.folder / "master")

    def start(self, name: str, *words: object) -> None:
        self.started[name] = subprocess.Popen(
            [sys.executable, "-m", "confide", *map(str, words)],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def start_log(self) -> None:
        words = (self.folder / "served", "--key", self.folder / "log.key", "--port", self.log)
        self.start("log", "log", "serve", *words)
        _wait(f"http://127.0.0.1:{self.log}/checkpoint")

    def serve_words(self) -> tuple[object, ...]:
        return (
            *("broker", "serve", *self.store, "--port", self.port),
            *("--owners", self.folder / "owners", "--simulated-roots", self.folder / "roots"),
            *("--log", f"http://127.0.0.1:{self.log}", "--log-policy", self.folder / "policy"),
        )

    def start_broker(self) -> None:
        self.start("broker", *self.serve_words())
        _wait(f"http://127.0.0.1:{self.port}/confide/v1/broker")

    def stop(self, name: str, number: signal.Signals = signal.SIGTERM) -> int:
        process = self.started.pop(name)
        process.send_signal(number)
        process.communicate()
        return process.returncode

    def owner(self, *words: object) -> dict[str, object]:
        place = ("--broker", f"http://127.0.0.1:{self.port}", "--broker-key", self.key)
        seen = self.cli("secret", *words, *place, "--key", self.folder / "owner", "--json")
        assert seen.code == 0, seen.err
        return seen.result

    @property
    def wanted(self) -> Expectation:
        """What asks this broker for two secrets."""
        asked = BrokerSpec(self.key, "acme", ("key", "other"), state=False)
        return replace(fitting_expectation(roots()), broker=asked)

    async def secret(self, name: str = "key") -> ReleasedSecret:
        async with kbs_client() as client:
            link = BrokerLink(
                KbsHttp(client, f"http://127.0.0.1:{self.port}"),
                BrokerPlace(bytes.fromhex(self.key), "acme"),
                Asker("agent", self.wanted, RUN, await _attester(self.wanted)),
                entropy=SystemEntropy(),
                sleeper=SystemSleeper(),
            )
            return await link.secret(name)


async def _attester(wanted: Expectation) -> Attester:
    """An agent node of now, which measured the Expectation of its run."""
    now = SystemClock().now()
    platform = make_platform(SEED, now, ())
    guest = SimulatedGuest(platform, role="agent", software=SOFTWARE, kernel=KERNEL)
    keys = make_node_keys(
        role="agent", software=SOFTWARE, now=now, lifetime=timedelta(days=1),
        entropy=SystemEntropy(),
    )  # fmt: skip
    await measure_node(guest, role="agent", software=SOFTWARE)
    await measure_ready(guest)
    payload = run_commitment("confide-expectation", run=RUN, digest=wanted.digest)
    await guest.extend(RuntimeEvent("confide-expectation", payload))
    return Attester(keys.keyset, guest, SimulatedCollateral(platform), None)


def _wait(url: str) -> None:
    for _ in range(1200):
        try:
            if httpx2.get(url, trust_env=False).status_code == 200:
                return
        except httpx2.HTTPError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"no answer of {url}")


@pytest.fixture
def stack(cli: Cli, tmp_path: Path) -> Iterator[Stack]:
    """Nothing of it runs yet."""
    found = Stack(cli, tmp_path)
    try:
        yield found
    finally:
        for process in found.started.values():
            process.kill()
            process.communicate()


@pytest.mark.slow
def test_from_an_owners_word_to_a_nodes_secret_and_through_a_crash(stack: Stack) -> None:
    stack.start_log()
    stack.start_broker()
    stack.owner("put", "acme/secret/key", "--from", stack.folder / "value")
    with pytest.raises(ReleaseRefused) as refused:
        asyncio.run(stack.secret())
    assert refused.value.reason is Reason.RELEASE_MISSING
    digest = stack.wanted.digest.hex()
    released = stack.owner("release", "acme/secret/key", "--expectation", digest)
    found = asyncio.run(stack.secret())
    assert found.value == VALUE
    assert parse_release_receipt(found.receipt.payload).release is not None
    # Without the log nothing goes out; what was refused meanwhile waits, through a crash too.
    stack.stop("log", signal.SIGKILL)
    with pytest.raises(Unavailable):
        asyncio.run(stack.secret())
    with pytest.raises(ReleaseRefused):
        asyncio.run(stack.secret("other"))
    stack.stop("broker", signal.SIGKILL)
    stack.start_log()
    stack.start_broker()
    assert asyncio.run(stack.secret()).value == VALUE
    stack.owner("revoke", released["statement"])
    with pytest.raises(ReleaseRefused) as refused:
        asyncio.run(stack.secret())
    assert refused.value.reason is Reason.RELEASE_REVOKED
    _until_logged(stack)
    assert stack.stop("broker") == 0
    _nothing_in_clear(stack)


def _until_logged(stack: Stack) -> None:
    """Wait until no decision waits for the log; the store is read beside the broker."""
    options = StoreOptions(str(stack.folder / "store"), stack.folder / "master")
    for _ in range(1200):
        sealed, _, opened = open_sealed_store(options)
        waiting = len(sealed.entries(PENDING))
        released = [parse_kept(entry.value) for entry in sealed.entries(RELEASED)]
        opened.close()
        if not waiting:
            assert len(released) == 2
            assert all(kept.proof for kept in released)
            return
        time.sleep(0.05)
    raise AssertionError("decisions still wait for the log")


def _nothing_in_clear(stack: Stack) -> None:
    (stack.folder / "value").unlink()
    for path in stack.folder.rglob("*"):
        if path.is_file():
            assert VALUE not in path.read_bytes(), path


@pytest.mark.parametrize(
    ("without", "says"),
    [
        ("--owners", "owners file"),
        ("--log-policy", "log policy"),
        ("--simulated-roots", "roots file"),
        ("--master", "locked with a key file"),
    ],
)
def test_it_does_not_start_without_what_it_stands_on(stack: Stack, without: str, says: str) -> None:
    words = list(stack.serve_words())
    at = words.index(without)
    if without == "--master":
        del words[at : at + 2]
    else:
        words[at + 1] = stack.folder / "absent"
    seen = stack.cli(*words)
    assert seen.code == 2
    assert says in seen.err


def test_options_that_do_nothing_are_refused(stack: Stack) -> None:
    words = stack.serve_words()
    seen = stack.cli(*words, "--pccs", "https://pccs.example")
    assert (seen.code, "--pccs" in seen.err) == (2, True)
    genuine = [word for word in words if word not in ("--simulated-roots", stack.folder / "roots")]
    seen = stack.cli(*genuine, "--endorsements", stack.folder / "roots")
    assert (seen.code, "--endorsements" in seen.err) == (2, True)


def test_owners_that_the_store_does_not_know_are_refused(stack: Stack) -> None:
    stack.start_broker()
    assert stack.stop("broker") == 0
    other = stack.cli("secret", "keygen", stack.folder / "second", "--json").result["owner"]
    (stack.folder / "owners").write_text(f'[acme]\nowners = ["{other}"]\nthreshold = 1\n')
    stack.start("broker", *stack.serve_words())
    process = stack.started.pop("broker")
    _, err = process.communicate()
    assert process.returncode == 10
    assert b"owners-mismatch" in err
