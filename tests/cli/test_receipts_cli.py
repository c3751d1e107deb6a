"""`confide receipts`, in process, on a store that a client filled."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from nodes import roots as simulated_roots
from proven_place import MODEL, inference_policy, running_place

from confide.adapters.answer_transport import Request
from confide.trust.roots import encode_roots_file
from confide.wire.json import jcs

if TYPE_CHECKING:
    from pathlib import Path

    from sessions import Cli

_BODY = jcs({"model": MODEL, "messages": [{"role": "user", "content": "hello"}]})
_HEADERS = (("content-type", "application/json"),)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A store with two receipts, and the id of the newer one."""
    store = tmp_path_factory.mktemp("data") / "receipts.sqlite3"
    store.parent.chmod(0o700)

    async def fill() -> str:
        session = place.session([place.node().url], store)
        try:
            for _ in range(2):
                answer = await session.send(
                    Request("POST", "/v1/chat/completions", _HEADERS, _BODY)
                )
            assert answer.receipt is not None
            return answer.receipt.id
        finally:
            await session.close()

    with running_place() as place:
        return store, asyncio.run(fill())


@pytest.fixture
def roots_file(tmp_path: Path) -> Path:
    path = tmp_path / "roots.json"
    path.write_bytes(encode_roots_file(simulated_roots()))
    return path


def test_an_empty_home_has_no_receipts(cli: Cli) -> None:
    assert cli("receipts", "list", "--json").result["receipts"] == []
    seen = cli("receipts", "show", "rcpt-1")
    assert (seen.code, seen.out) == (2, "")
    assert "no receipts are kept" in seen.err


def test_list_and_show(cli: Cli, kept: tuple[Path, str]) -> None:
    store, newest = kept
    rows = cli("receipts", "list", "--store", store, "--json").result["receipts"]
    assert len(rows) == 2
    assert rows[0]["id"] == newest
    assert cli("receipts", "list", "--store", store).out.count(MODEL) == 2
    shown = cli("receipts", "show", newest[:14], "--store", store, "--json").result
    assert (shown["id"], shown["expectation_name"]) == (newest, "tests")
    assert shown["expectation"] == inference_policy().digest.hex()
    assert newest in cli("receipts", "show", newest, "--store", store).out


def test_what_begins_like_several_is_asked_again(cli: Cli, kept: tuple[Path, str]) -> None:
    assert "several receipts" in cli("receipts", "show", "rcpt-", "--store", kept[0]).err
    assert "no receipt begins" in cli("receipts", "show", "other", "--store", kept[0]).err


def test_simulated_receipts_need_their_roots(
    cli: Cli, kept: tuple[Path, str], roots_file: Path
) -> None:
    store, newest = kept
    refused = cli("receipts", "verify", newest, "--store", store, "--json")
    assert refused.code == 10
    assert refused.events[0]["accepted"] is False
    # What to do is said once, however many are refused for the same reason.
    told = cli("receipts", "verify", "--all", "--store", store)
    assert (told.code, told.out.count("to do"), told.out.count("✗ rcpt-")) == (10, 1, 2)
    assert "--simulated-roots" in told.out
    seen = cli("receipts", "verify", newest, "--store", store, "--simulated-roots", roots_file)
    assert seen.code == 0
    assert "SIMULATED" in seen.out
    every = cli(
        "receipts", "verify", "--all", "--store", store, "--simulated-roots", roots_file, "--json"
    )
    assert (every.code, every.result["verified"]) == (0, 2)


def test_an_exported_receipt_is_verified_without_a_store(
    cli: Cli, kept: tuple[Path, str], roots_file: Path, tmp_path: Path
) -> None:
    store, newest = kept
    file, wanted = tmp_path / "one.json", tmp_path / "inference.json"
    assert cli("receipts", "export", newest, "-o", file, "--store", store).code == 0
    wanted.write_bytes(inference_policy().canonical())
    words = ("receipts", "verify", file, "--simulated-roots", roots_file)
    # Whoever tries the verb for everything is told the one for this.
    elsewhere = cli("verify", file, "--simulated-roots", roots_file)
    assert elsewhere.code == 2
    assert "confide receipts verify" in elsewhere.err
    assert cli(*words, "--expectation", wanted).code == 0
    document = json.loads(file.read_text())
    document["exchange"]["response"] = "00" * 32
    file.write_bytes(jcs(document))
    seen = cli(*words)
    assert seen.code == 10
    assert "inference/4" in seen.out
    file.write_bytes(b"{}")
    assert cli(*words).code == 30


def test_a_damaged_receipt_does_not_keep_the_others_from_being_verified(
    cli: Cli, kept: tuple[Path, str], roots_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    folder.mkdir(mode=0o700)
    store = folder / "receipts.sqlite3"
    with closing(sqlite3.connect(kept[0])) as whole, closing(sqlite3.connect(store)) as copy:
        whole.backup(copy)
        copy.execute("UPDATE receipts SET envelope = X'7B7D' WHERE id = ?", (kept[1],))
        copy.commit()
    store.chmod(0o600)
    words = ("receipts", "verify", "--all", "--store", store, "--simulated-roots", roots_file)
    seen = cli(*words)
    assert seen.code == 30
    assert f"✗ {kept[1]}" in seen.out
    assert seen.out.count("✓ rcpt-") == 1


def test_one_receipt_or_all_of_them(cli: Cli, kept: tuple[Path, str]) -> None:
    assert cli("receipts", "verify", "--store", kept[0]).code == 2
    assert cli("receipts", "verify", kept[1], "--all", "--store", kept[0]).code == 2
    seen = cli("receipts", "verify", kept[1], "--at", "yesterday", "--store", kept[0])
    assert seen.code == 2
