"""`confide log` as a scripted session: keys, offline verification, checking a store."""

from __future__ import annotations

import hashlib
import signal
import threading
import time
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import httpx2
import log_world as world
import pytest
from log_processes import ServedLog, free_port, start, static_server, wait_for

from confide.adapters.log_files import FileLog
from confide.crypto.cosign import load_signer
from confide.node.log_check import check_log
from confide.node.log_keeper import LogKeeper
from confide.tlog.leaf import LeafOpening
from confide.tlog.log import edge_paths
from confide.wire.checkpoint import SignedCheckpoint
from confide.wire.tiles import ENTRIES, TilePath
from confide.wire.tlog_proof import parse_tlog_proof

if TYPE_CHECKING:
    from pathlib import Path

    from sessions import Cli

DIGEST = hashlib.sha256(b"a receipt").digest()
OPENING = LeafOpening(b"b" * 32, DIGEST)
WITNESS = world.WITNESSES[0]
POLICY = f"""log {world.LOG.key.encode()}
witness w {WITNESS.key.encode()}
quorum w
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A stopped log with 600 entries, `OPENING` the last of them."""
    store = FileLog(tmp_path / "log")
    keeper = LogKeeper.open(store, world.LOG)
    keeper.append([*(world.entry(n) for n in range(599)), OPENING.entry])
    line = WITNESS.cosign(keeper.head.head, seconds=int(datetime.now(UTC).timestamp()))
    seen = SignedCheckpoint(keeper.head.note.with_signatures((line,)), keeper.head.head)
    keeper.publish(seen)
    proof = replace(keeper.prove(599, seen), extra=OPENING.blinding)
    (tmp_path / "a.tlog-proof").write_bytes(proof.encode())
    (tmp_path / "policy").write_text(POLICY)
    store.close()
    return tmp_path


def test_a_key_is_made_once_and_its_public_half_printed(cli: Cli, tmp_path: Path) -> None:
    for kind in ("log", "witness", "witness-pq"):
        file = tmp_path / kind
        made = cli("log", "keygen", "example.com/x", file, "--for", kind, "--json")
        assert made.code == 0
        assert load_signer(file.read_text().strip()).key.encode() == made.result["key"]
        assert file.stat().st_mode & 0o777 == 0o600
        assert cli("log", "keygen", "example.com/x", file).code == 2
    assert cli("log", "keygen", "two words", tmp_path / "y").code == 2
    assert cli("log", "keygen", "example.com/x", tmp_path / "y", "--for", "all").code == 2
    assert not (tmp_path / "y").exists()


def test_a_proof_is_verified_offline_with_the_public_keys_alone(cli: Cli, log: Path) -> None:
    words = ("log", "show", log / "a.tlog-proof", "--policy", log / "policy")
    found = cli(*words, "--digest", DIGEST.hex(), "--json")
    assert found.code == 0
    assert (found.result["index"], found.result["size"]) == (599, 600)
    assert [each["name"] for each in found.result["witnesses"]] == ["witness.example/a"]
    wrong = cli(*words, "--digest", "00" * 32)
    assert wrong.code == 10
    assert "tlog-inclusion" in wrong.err
    assert cli(*words).code == 2
    assert cli(*words, "--digest", "x").code == 2
    checkpoint = log / "log" / "public" / "checkpoint"
    assert cli("log", "show", checkpoint, "--policy", log / "policy").code == 0
    (log / "bad").write_bytes(b"neither")
    assert cli("log", "show", log / "bad", "--policy", log / "policy").code == 30


def test_a_policy_that_asks_for_more_refuses(cli: Cli, log: Path) -> None:
    more = POLICY.replace("quorum w", f"witness v {world.WITNESSES[1].key.encode()}\nquorum v")
    (log / "policy").write_text(more)
    words = ("log", "show", log / "a.tlog-proof", "--policy", log / "policy")
    found = cli(*words, "--digest", DIGEST.hex())
    assert found.code == 10
    assert "tlog-witnesses" in found.err
    (log / "policy").write_text(more.replace("quorum v\n", ""))
    assert cli(*words, "--digest", DIGEST.hex()).code == 30


def test_check_reads_everything_and_names_the_corrupt_tile(cli: Cli, log: Path) -> None:
    words = ("log", "check", log / "log", "--key", world.LOG.key.encode())
    assert cli(*words).code == 0
    tile = log / "log" / "public" / "tile" / "0" / "001"
    tile.write_bytes(bytes(8192))
    found = cli(*words)
    assert found.code == 10
    assert "tile/0/001" in found.err
    assert cli("log", "check", log / "nothing", "--key", world.LOG.key.encode()).code == 2
    assert cli("log", "check", log / "log", "--key", "x").code == 2
    store = FileLog(log / "log")
    assert cli(*words).code == 2
    store.close()


@pytest.mark.slow
def test_what_was_acknowledged_survives_kill_9_under_load(cli: Cli, tmp_path: Path) -> None:
    cli("log", "keygen", "log.example", tmp_path / "key")
    expected: list[bytes] = []
    for turn in range(3):
        port = free_port()
        process = start("serve", tmp_path / "log", "--key", tmp_path / "key", "--port", port)
        wait_for(f"http://127.0.0.1:{port}/checkpoint")
        acknowledged: dict[int, list[bytes]] = {}

        def send(
            lane: int,
            turn: int = turn,
            port: int = port,
            kept: dict[int, list[bytes]] = acknowledged,
        ) -> None:
            with httpx2.Client(trust_env=False) as client, suppress(httpx2.HTTPError):
                for number in range(10_000):
                    start = 10**6 * (8 * turn + lane) + 9 * number
                    sent = [world.entry(n) for n in range(start, start + 9)]
                    answer = client.post(
                        f"http://127.0.0.1:{port}/add-entries", content=b"".join(sent)
                    )
                    if answer.status_code == 200:
                        first = int(answer.text.split()[1])
                        kept[first] = sent

        lanes = [threading.Thread(target=send, args=(lane,)) for lane in range(8)]
        for lane in lanes:
            lane.start()
        while len(acknowledged) < 200 * (turn + 1):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        for lane in lanes:
            lane.join()
        store = FileLog(tmp_path / "log")
        signer = load_signer((tmp_path / "key").read_text().strip())
        head = LogKeeper.open(store, signer).head.head
        assert list(check_log(store, head)) == []
        full = [TilePath(ENTRIES, n) for n in range(head.size // 256)]
        bundles = b"".join(store.read(str(path)) or b"" for path in full)
        edge = [p for p in edge_paths(head.size) if p.level == ENTRIES]
        bundles += b"".join(store.read(str(path)) or b"" for path in edge)
        stored = [bundles[at + 2 : at + 34] for at in range(0, len(bundles), 34)]
        assert len(stored) == head.size
        assert stored[: len(expected)] == expected
        for first, sent in acknowledged.items():
            assert stored[first : first + 9] == sent
        expected = stored
        store.close()


def test_a_log_with_two_witnesses_in_processes_of_their_own(
    cli: Cli, served: ServedLog, tmp_path: Path
) -> None:
    url, policy = served.url, served.policy
    answer = httpx2.post(f"{url}/add", content=OPENING.entry, trust_env=False, timeout=60)
    assert answer.status_code == 200
    proof = replace(parse_tlog_proof(answer.content), extra=OPENING.blinding)
    (tmp_path / "p").write_bytes(proof.encode())
    shown = cli("log", "show", tmp_path / "p", "--policy", policy,
                "--digest", DIGEST.hex(), "--json")  # fmt: skip
    assert [each["name"] for each in shown.result["witnesses"]] == ["a.example", "b.example"]
    follow = ("log", "monitor", url, "--policy", policy, "--state", tmp_path / "seen")
    assert cli(*follow).code == 0
    httpx2.post(f"{url}/add", content=world.entry(1), trust_env=False, timeout=60)
    assert cli(*follow, "--json").result["size"] == 2
    # Killed, not stopped: what was acknowledged is there, and the next start goes on from it.
    served.kill("log")
    key = served.keys["log"]
    assert cli("log", "check", served.store, "--key", key, "--json").result["size"] == 2
    assert cli(*follow).code == 20
    served.start("log")
    assert cli(*follow, "--json").result["size"] == 2


def test_two_servers_of_one_log_that_show_two_pasts_are_found(
    cli: Cli, served: ServedLog, tmp_path: Path
) -> None:
    for number in (1, 2):
        httpx2.post(f"{served.url}/add", content=world.entry(number), trust_env=False, timeout=60)
    key = (tmp_path / "log").read_text().strip()
    forged = LogKeeper.open(FileLog(tmp_path / "forged"), load_signer(key))
    forged.append([world.entry(7), world.entry(8)])
    public = tmp_path / "forged" / "public"
    (public / "checkpoint").write_bytes(forged.head.encode())
    (tmp_path / "nobody").write_text(f"log {served.keys['log']}\nquorum none\n")
    with static_server(public) as other:
        words = ("--policy", tmp_path / "nobody", "--state", tmp_path / "seen")
        found = cli("log", "monitor", served.url, other, *words)
    assert found.code == 10
    assert "tlog-fork" in found.err
    # What was believed stays, and what contradicts it is kept: both are signed by the log.
    assert b"2\n" in (tmp_path / "seen").read_bytes()
    assert (tmp_path / "seen.contradiction").read_bytes() == forged.head.encode()
