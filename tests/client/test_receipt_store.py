"""Receipts on disk: private, without content, written before the answer, verified again offline."""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import resource
import signal
import sqlite3
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from nodes import NOW
from nodes import roots as simulated_roots
from proven_place import MODEL, inference_policy

from confide.adapters.answer_transport import Request
from confide.adapters.receipt_db import (
    ReceiptDatabase,
    UnsafeKeepNone,
    find_rows,
    list_rows,
    load_file,
)
from confide.errors import (
    ConfigurationError,
    EvidenceRejected,
    FormatError,
    Reason,
    ReceiptNotKept,
    ReceiptRejected,
    Rejected,
    Unavailable,
)
from confide.receipts.inference_file import (
    InferenceFile,
    parse_inference_file,
    verify_inference_file,
)
from confide.trust.roots import VENDOR_ROOTS
from confide.wire.json import jcs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from proven_place import Place

    from confide.client.answer import Receipt, ReceiptKeeper

PROMPT = "the name of the patient is Ingeborg"
ANSWER = "The answer is blue."


def request(*, stream: bool = False) -> Request:
    body: Any = {
        "model": MODEL, "messages": [{"role": "user", "content": PROMPT}], "stream": stream
    }  # fmt: skip
    return Request(
        "POST", "/v1/chat/completions", (("content-type", "application/json"),), jcs(body)
    )


def ask(place: Place, keeper: ReceiptKeeper | Path, *, stream: bool = False) -> Receipt:
    """One answer of a new node, taken whole."""

    async def scenario() -> Receipt:
        session = place.session([place.node().url], keeper)
        try:
            answer = await session.send(request(stream=stream))
            await answer.aread()
            assert answer.receipt is not None
            return answer.receipt
        finally:
            await session.close()

    return asyncio.run(scenario())


def keep(store: Path, receipt: Receipt, number: int) -> None:
    """Write `receipt` under another id, as another answer would be."""

    async def work() -> None:
        database = ReceiptDatabase(store)
        try:
            await _keep(database, receipt, number)
        finally:
            await database.close()

    asyncio.run(work())


async def _keep(database: ReceiptDatabase, receipt: Receipt, number: int) -> None:
    inference = _Kept(replace(receipt.inference.statement, id=f"rcpt-{number}"))
    await database.keep(inference, receipt.file, url=receipt.url, at=NOW)  # type: ignore[arg-type]


class _Kept:
    """What the store reads of a verified inference."""

    def __init__(self, statement: Any) -> None:
        self.statement = statement


@pytest.mark.parametrize("stream", [False, True])
def test_no_word_of_a_prompt_or_an_answer_is_in_the_store(
    place: Place, store: Path, *, stream: bool
) -> None:
    ask(place, store, stream=stream)
    found = [path for path in store.parent.rglob("*") if path.is_file()]
    assert store in found
    for path in found:
        raw = path.read_bytes()
        for word in ("Ingeborg", "patient", "blue", ANSWER):
            assert word.encode() not in raw
            assert word.encode("utf-16-le") not in raw
    exported = load_file(store, list_rows(store, limit=1)[0].id).encode()
    assert b"Ingeborg" not in exported
    assert b"blue" not in exported


def test_the_store_and_what_lies_beside_it_are_private(place: Place, store: Path) -> None:
    database = ReceiptDatabase(store)
    ask_open = asyncio.new_event_loop()
    try:
        session = place.session([place.node().url], database)
        answer = ask_open.run_until_complete(session.send(request()))
        ask_open.run_until_complete(answer.aclose())
        files = list(store.parent.iterdir())
        assert {path.name for path in files} >= {store.name, store.name + "-wal"}
        assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
        assert stat.S_IMODE(store.parent.stat().st_mode) == 0o700
        ask_open.run_until_complete(session.close())
    finally:
        ask_open.close()


def test_a_store_that_others_may_read_is_refused(place: Place, store: Path) -> None:
    receipt = ask(place, store)
    store.chmod(0o640)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        keep(store, receipt, 1)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        list_rows(store, limit=1)


def test_a_link_is_not_followed(place: Place, store: Path, tmp_path: Path) -> None:
    store.parent.mkdir()
    store.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Unavailable):
        ask(place, store)
    assert not (tmp_path / "elsewhere").exists()


def test_a_newer_store_is_refused(place: Place, store: Path) -> None:
    receipt = ask(place, store)
    with contextlib.closing(sqlite3.connect(store)) as connection:
        connection.execute("PRAGMA user_version = 2")
    with pytest.raises(ConfigurationError, match="version 2"):
        keep(store, receipt, 1)
    with pytest.raises(ConfigurationError, match="version 2"):
        list_rows(store, limit=1)


def test_an_id_is_kept_once(place: Place, store: Path) -> None:
    receipt = ask(place, store)
    keep(store, receipt, 1)
    with pytest.raises(Unavailable, match="another receipt"):
        keep(store, receipt, 1)


# --- a store that cannot be written ---------------------------------------------------------------


def test_while_the_store_is_locked_no_answer_is_handed_over(place: Place, store: Path) -> None:
    ask(place, store)
    with contextlib.closing(sqlite3.connect(store, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable, match="SQLITE_BUSY"):
            ask(place, ReceiptDatabase(store, busy_seconds=0.05))
        with pytest.raises(Unavailable, match="SQLITE_BUSY"):
            ask(place, ReceiptDatabase(store, busy_seconds=0.05), stream=True)
        other.execute("ROLLBACK")
    ask(place, store)
    assert len(list_rows(store, limit=9)) == 2


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """No file grows any more, as on a disk without space."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, former)


def test_a_store_in_use_refuses_while_it_cannot_write_and_goes_on_when_it_can(
    place: Place, store: Path
) -> None:
    """After the first receipt of a proof no thread is in between: the refusals are the same."""
    receipt = ask(place, store)

    async def main() -> None:
        database = ReceiptDatabase(store, busy_seconds=0.05)
        # More than are left in the log of the database before it is moved.
        for number in range(600):
            await _keep(database, receipt, number)
        with contextlib.closing(sqlite3.connect(store, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(Unavailable, match="SQLITE_BUSY"):
                await _keep(database, receipt, 1000)
            other.execute("ROLLBACK")
        with full_disk(), pytest.raises(Unavailable, match="receipt store"):
            await _keep(database, receipt, 1001)
        with pytest.raises(Unavailable, match="another receipt"):
            await _keep(database, receipt, 1)
        await _keep(database, receipt, 1002)
        await database.close()

    asyncio.run(main())
    kept = {row.id for row in list_rows(store, limit=1000)}
    assert kept == {receipt.id, *(f"rcpt-{number}" for number in (*range(600), 1002))}


@pytest.mark.parametrize("stream", [False, True])
def test_on_a_full_disk_no_answer_is_handed_over(
    place: Place, store: Path, *, stream: bool
) -> None:
    ask(place, store)
    with full_disk(), pytest.raises(ReceiptNotKept, match="receipt store"):
        ask(place, store, stream=stream)
    assert len(list_rows(store, limit=9)) == 1
    ask(place, store)
    assert len(list_rows(store, limit=9)) == 2


def test_keeping_none_is_said_out_loud(place: Place, store: Path) -> None:
    assert ask(place, UnsafeKeepNone()).id.startswith("rcpt-")
    assert list_rows(store, limit=1) == ()


# --- several writers ------------------------------------------------------------------------------


def _write_many(store: Path, receipt: Receipt, first: int) -> None:
    for number in range(first, first + 10):
        keep(store, receipt, number)


def test_threads_and_processes_write_one_store(place: Place, store: Path) -> None:
    receipt = ask(place, store)
    spawn = multiprocessing.get_context("spawn")
    processes = [
        spawn.Process(target=_write_many, args=(store, receipt, 1000 * number))
        for number in range(1, 3)
    ]
    for process in processes:
        process.start()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: _write_many(store, receipt, 100 * n), range(1, 5)))
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(list_rows(store, limit=1000)) == 61


# --- read again, verified again -------------------------------------------------------------------


@pytest.fixture
def file(place: Place, store: Path) -> InferenceFile:
    receipt = ask(place, store)
    [row] = find_rows(store, receipt.id[:12])
    assert (row.id, row.model, row.status, row.output_tokens) == (receipt.id, MODEL, 200, 5)
    assert row.roots.startswith("simulated:")
    found = load_file(store, row.id)
    assert found == receipt.file
    return found


def test_an_exported_receipt_verifies_offline(file: InferenceFile) -> None:
    read = parse_inference_file(file.encode())
    assert read == file
    verified = verify_inference_file(
        read, roots=simulated_roots(), now=read.proven_at, expectation=inference_policy()
    )
    assert verified.simulated
    assert verified.inference.statement.model.name == MODEL
    assert [finding.step for finding in verified.inference.findings] == [
        f"inference/{number}" for number in range(1, 7)
    ]


def test_it_is_not_believed_under_other_roots_or_for_another_expectation(
    file: InferenceFile,
) -> None:
    with pytest.raises(EvidenceRejected):
        verify_inference_file(file, roots=VENDOR_ROOTS, now=file.proven_at, expectation=None)
    other = replace(inference_policy(), name="another")
    with pytest.raises(ReceiptRejected) as refusal:
        verify_inference_file(file, roots=simulated_roots(), now=file.proven_at, expectation=other)
    assert refusal.value.reason is Reason.EXPECTATION_MISMATCH


@pytest.mark.parametrize("name", ["request", "response", "sealed_request", "status", "path"])
def test_every_fact_of_the_exchange_is_held_against_the_receipt(
    file: InferenceFile, name: str
) -> None:
    document = json.loads(file.encode())
    odd = {"status": 201, "path": "/v1/completions"}
    document["exchange"][name] = odd.get(name, "00" * 32)
    with pytest.raises(ReceiptRejected) as refusal:
        verify_inference_file(
            parse_inference_file(jcs(document)),
            roots=simulated_roots(), now=file.proven_at, expectation=None,
        )  # fmt: skip
    assert refusal.value.reason is Reason.CLAIM_MISMATCH


def test_the_nonce_of_the_proof_is_not_free(file: InferenceFile) -> None:
    with pytest.raises(Rejected) as refusal:
        verify_inference_file(
            replace(file, nonce=bytes(32)),
            roots=simulated_roots(), now=file.proven_at, expectation=None,
        )  # fmt: skip
    assert refusal.value.reason is Reason.NONCE_MISMATCH


def test_another_signature_is_refused(file: InferenceFile) -> None:
    ((keyid, signature),) = file.envelope.signatures
    changed = bytes([signature[0] ^ 1]) + signature[1:]
    envelope = replace(file.envelope, signatures=((keyid, changed),))
    with pytest.raises(ReceiptRejected) as refusal:
        verify_inference_file(
            replace(file, envelope=envelope),
            roots=simulated_roots(), now=file.proven_at, expectation=None,
        )  # fmt: skip
    assert refusal.value.reason is Reason.RECEIPT_SIGNATURE


@pytest.mark.parametrize("member", ["envelope", "exchange", "nonce", "evidence", "roots"])
def test_a_file_without_a_part_is_malformed(file: InferenceFile, member: str) -> None:
    document = json.loads(file.encode())
    del document[member]
    with pytest.raises(FormatError):
        parse_inference_file(jcs(document))


def test_what_was_changed_in_the_store_is_found_out(
    place: Place, store: Path, file: InferenceFile
) -> None:
    del place
    [row] = list_rows(store, limit=9)
    with contextlib.closing(sqlite3.connect(store, isolation_level=None)) as connection:
        exchange = json.loads(connection.execute("SELECT exchange FROM receipts").fetchone()[0])
        exchange["response"] = "00" * 32
        connection.execute("UPDATE receipts SET exchange = ?", (jcs(exchange),))
    with pytest.raises(ReceiptRejected):
        verify_inference_file(
            load_file(store, row.id),
            roots=simulated_roots(), now=file.proven_at + timedelta(minutes=1), expectation=None,
        )  # fmt: skip


def test_a_receipt_is_not_shown_under_the_id_of_another(place: Place, store: Path) -> None:
    one, other = ask(place, store).id, ask(place, store).id
    with contextlib.closing(sqlite3.connect(store, isolation_level=None)) as connection:
        connection.execute(
            "UPDATE receipts SET (envelope, exchange, proof) ="
            " (SELECT envelope, exchange, proof FROM receipts WHERE id = ?) WHERE id = ?",
            (other, one),
        )
    assert load_file(store, other).roots
    with pytest.raises(FormatError, match="another id"):
        load_file(store, one)
