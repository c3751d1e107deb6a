"""`confide log` as a scripted session: keys, offline verification, checking a store."""

from __future__ import annotations

import hashlib
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import httpx2
import log_world as world
import pytest
from runs import tell

from confide.adapters.log_files import FileLog
from confide.crypto.cosign import load_signer
from confide.node.log_check import check_log
from confide.node.log_keeper import LogKeeper
from confide.tlog.leaf import LeafOpening, parse_pending
from confide.tlog.log import edge_paths
from confide.wire.checkpoint import SignedCheckpoint
from confide.wire.tiles import ENTRIES, TilePath
from confide.wire.tlog_proof import parse_tlog_proof

if TYPE_CHECKING:
    from collections.abc import Iterator
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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_what_was_acknowledged_survives_kill_9_under_load(cli: Cli, tmp_path: Path) -> None:
    cli("log", "keygen", "log.example", tmp_path / "key")
    expected: list[bytes] = []
    for turn in range(3):
        port = _free_port()
        process = _start("serve", tmp_path / "log", "--key", tmp_path / "key", "--port", port)
        _wait(f"http://127.0.0.1:{port}/checkpoint")
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


def _start(*words: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "confide", "log", *map(str, words)], stderr=subprocess.PIPE
    )


def _wait(url: str) -> None:
    for _ in range(200):
        try:
            if httpx2.get(url, trust_env=False).status_code == 200:
                return
        except httpx2.HTTPError:
            pass
        time.sleep(0.05)
    raise AssertionError("the log does not answer")


@pytest.fixture
def served(cli: Cli, tmp_path: Path) -> Iterator[tuple[Path, str, list[subprocess.Popen[bytes]]]]:
    """A log and two witnesses, as processes; one of the witnesses signs with ML-DSA-44."""
    keys = {
        name: cli("log", "keygen", f"{name}.example", tmp_path / name, "--for", kind, "--json")
        for name, kind in (("log", "log"), ("a", "witness"), ("b", "witness-pq"))
    }
    ports = {name: _free_port() for name in keys}
    lines = [f"log {keys['log'].result['key']}"]
    lines += [f"witness {n} {keys[n].result['key']} http://127.0.0.1:{ports[n]}" for n in "ab"]
    lines += ["group all all a b", "quorum all", ""]
    policy = tmp_path / "policy"
    policy.write_text("\n".join(lines))
    known = ("--log", keys["log"].result["key"])
    started = [
        _start(
            "witness", tmp_path / f"state-{n}", "--key", tmp_path / n, *known, "--port", ports[n]
        )
        for n in "ab"
    ]
    started.append(
        _start("serve", tmp_path / "served", "--key", tmp_path / "log", "--policy", policy,
               "--port", ports["log"])
    )  # fmt: skip
    url = f"http://127.0.0.1:{ports['log']}"
    try:
        _wait(f"{url}/checkpoint")
        yield tmp_path, url, started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def test_a_log_with_two_witnesses_in_processes_of_their_own(
    cli: Cli, served: tuple[Path, str, list[subprocess.Popen[bytes]]]
) -> None:
    folder, url, started = served
    answer = httpx2.post(f"{url}/add", content=OPENING.entry, trust_env=False)
    assert answer.status_code == 200
    proof = replace(parse_tlog_proof(answer.content), extra=OPENING.blinding)
    (folder / "p").write_bytes(proof.encode())
    shown = cli("log", "show", folder / "p", "--policy", folder / "policy",
                "--digest", DIGEST.hex(), "--json")  # fmt: skip
    assert [each["name"] for each in shown.result["witnesses"]] == ["a.example", "b.example"]
    follow = ("log", "monitor", url, "--policy", folder / "policy", "--state", folder / "seen")
    assert cli(*follow).code == 0
    httpx2.post(f"{url}/add", content=world.entry(1), trust_env=False)
    assert cli(*follow, "--json").result["size"] == 2
    # Killed, not stopped: what was acknowledged is there, and the next start goes on from it.
    started[2].send_signal(signal.SIGKILL)
    started[2].wait()
    key = next(line for line in (folder / "policy").read_text().split() if "+" in line)
    checked = cli("log", "check", folder / "served", "--key", key, "--json")
    assert checked.result["size"] == 2
    assert cli(*follow).code == 20
    # Another past under the same key: a fork, and the monitor keeps what it believed.
    forged = LogKeeper.open(
        FileLog(folder / "forged"), load_signer((folder / "log").read_text().strip())
    )
    forged.append([world.entry(7), world.entry(8)])
    before = (folder / "seen").read_bytes()
    (folder / "nobody").write_text(f"log {key}\nquorum none\n")
    port = _free_port()
    (folder / "forged" / "public" / "checkpoint").write_bytes(forged.head.encode())
    server = subprocess.Popen(
        [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"],
        cwd=folder / "forged" / "public",
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        _wait(f"http://127.0.0.1:{port}/checkpoint")
        found = cli("log", "monitor", f"http://127.0.0.1:{port}", "--policy", folder / "nobody",
                    "--state", folder / "seen")  # fmt: skip
    finally:
        server.kill()
        server.wait()
    assert found.code == 10
    assert "tlog-fork" in found.err
    assert (folder / "seen").read_bytes() == before
    assert (folder / "seen.contradiction").read_bytes() == forged.head.encode()


# --- receipts -------------------------------------------------------------------------------------

Served = tuple["Path", str, "list[subprocess.Popen[bytes]]"]


def _trust() -> tuple[str, str]:
    """The words with which somebody accepts the SIMULATED receipt of these tests."""
    return "--simulated-roots", f"sha256:{hashlib.sha256(tell().roots).hexdigest()}"


def test_a_receipt_becomes_final_and_whoever_has_the_public_keys_verifies_it_offline(
    cli: Cli, receipt: Path, served: Served
) -> None:
    folder, url, started = served
    policy = folder / "policy"
    added = cli("log", "add", receipt, "--log", url, "--policy", policy, "--json")
    assert added.code == 0
    assert added.result["witnesses"] == ["a.example", "b.example"]
    proof = receipt.with_name(f"{receipt.name}.tlog-proof")
    assert not receipt.with_name(f"{receipt.name}.tlog-pending").exists()
    for process in started:
        process.kill()
        process.wait()
    words = ("verify", receipt, *_trust(), "--log-proof", proof, "--log-policy", policy)
    shown = cli(*words)
    assert shown.code == 0
    assert f"log.example #{added.result['index']}, there since " in shown.out
    assert cli(*words, "--json").result["log"]["origin"] == "log.example"
    # Once more would make a second entry, and lose this proof.
    assert cli("log", "add", receipt, "--log", url, "--policy", policy).code == 2


def test_a_receipt_that_is_not_the_logged_one_is_refused(
    cli: Cli, receipt: Path, log: Path
) -> None:
    words = ("verify", receipt, *_trust(), "--log-policy", log / "policy")
    seen = cli(*words, "--log-proof", log / "a.tlog-proof")
    assert seen.code == 10
    assert "tlog-inclusion" in seen.out
    assert "ACCEPTED" not in seen.out
    assert cli(*words).code == 2
    (log / "bad").write_bytes(b"no proof")
    assert cli(*words, "--log-proof", log / "bad").code == 30


def test_without_a_proof_the_screen_says_that_the_receipt_can_be_denied(
    cli: Cli, receipt: Path
) -> None:
    seen = cli("verify", receipt, *_trust())
    assert seen.code == 0
    assert "no proof given" in seen.out
    assert cli("verify", receipt, *_trust(), "--json").result["log"] is None


def test_a_log_that_is_down_leaves_a_pending_entry_which_is_settled_later(
    cli: Cli, receipt: Path, log: Path
) -> None:
    pending = receipt.with_name(f"{receipt.name}.tlog-pending")
    words = ("log", "add", receipt, "--policy", log / "policy", "--wait", "0")
    down = cli(*words, "--log", f"http://127.0.0.1:{_free_port()}")
    assert down.code == 20
    assert "pending" in down.err
    first = parse_pending(pending.read_bytes())
    assert pending.stat().st_mode & 0o077 == 0
    # The same opening again: whoever drew a new one each time would log a new entry each time.
    assert cli(*words, "--log", f"http://127.0.0.1:{_free_port()}").code == 20
    assert parse_pending(pending.read_bytes()) == first
    pending.write_bytes(replace(first, opening=LeafOpening(b"b" * 32, b"d" * 32)).encode())
    assert cli(*words, "--log", "http://127.0.0.1:1").code == 2
