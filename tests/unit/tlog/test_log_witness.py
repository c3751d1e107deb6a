"""What a witness cosigns, and in which order it refuses. log.md §4."""

from __future__ import annotations

from dataclasses import replace

import log_world as world
import pytest
from log_world import LOG, NOW, WITNESSES, FixedClock, LocalWitness, entry, policy, signed

from confide.crypto.merkle import hash_leaf
from confide.errors import FormatError
from confide.tlog.verify import verify_head
from confide.wire.checkpoint import Checkpoint, SignedCheckpoint
from confide.wire.note import Note, SignatureType, parse_signature_lines
from confide.wire.witness import SIZE_TYPE, AddCheckpoint


def _log(size: int) -> tuple[SignedCheckpoint, tuple[bytes, ...]]:
    """A head of the honest log, and the consistency proof from size 3."""
    keeper = world.open_log(world.MemoryDisk())
    keeper.append([entry(n) for n in range(size)])
    return keeper.head, keeper.consistency(min(3, size), keeper.head)


@pytest.fixture
def witness() -> LocalWitness:
    """A witness that cosigned size 3."""
    found = LocalWitness(WITNESSES[0], clock=FixedClock())
    head, _ = _log(3)
    assert found.service.answer(AddCheckpoint(0, (), head).encode()).status == 200
    return found


def _fork(size: int) -> SignedCheckpoint:
    leaves = [hash_leaf(b"another past"), *(hash_leaf(entry(n)) for n in range(1, size))]
    return signed(Checkpoint(world.ORIGIN, size, world.tree_root(leaves)))


def test_it_cosigns_what_only_appends(witness: LocalWitness) -> None:
    head, proof = _log(7)
    answer = witness.service.answer(AddCheckpoint(3, proof, head).encode())
    assert answer.status == 200
    lines = parse_signature_lines(answer.body)
    cosigned = SignedCheckpoint(head.note.with_signatures(lines), head.head)
    assert verify_head(cosigned, policy=policy(1, WITNESSES[0]), now=NOW).logged_by == NOW
    # The same head again: a fresh time for it.
    assert witness.service.answer(AddCheckpoint(7, (), head).encode()).status == 200


def test_refusals_come_in_the_order_of_the_protocol(witness: LocalWitness) -> None:
    head, proof = _log(7)
    stranger = world.signer("log.example/other")
    unknown = signed(replace(head.head, origin="log.example/other"), by=stranger)
    namesake = type(LOG)(world.ORIGIN, SignatureType.ED25519, b"z" * 32)
    unsigned = signed(head.head, by=namesake)
    for request, status in (
        (AddCheckpoint(8, proof, unknown), 400),
        (AddCheckpoint(3, proof, unknown), 404),
        (AddCheckpoint(2, proof, unsigned), 403),
        (AddCheckpoint(0, (), head), 409),
        (AddCheckpoint(7, (), head), 409),
        (AddCheckpoint(3, (), _fork(3)), 409),
        (AddCheckpoint(3, (), head), 422),
        (AddCheckpoint(3, proof[::-1], head), 422),
        (AddCheckpoint(3, proof, _fork(7)), 422),
    ):
        answer = witness.service.answer(request.encode())
        assert answer.status == status, request
        if status == 409:
            assert (answer.body, answer.content_type) == (b"3\n", SIZE_TYPE)
    # Nothing of all that moved it.
    last = witness.state.last(world.ORIGIN)
    assert last is not None
    assert last.head.size == 3


def test_a_rollback_is_refused(witness: LocalWitness) -> None:
    smaller, _ = _log(2)
    for old in (0, 2):
        assert witness.service.answer(AddCheckpoint(old, (), smaller).encode()).status == 409


def test_a_fork_is_kept_as_evidence(witness: LocalWitness) -> None:
    fork = _fork(3)
    witness.service.answer(AddCheckpoint(3, (), fork).encode())
    [kept] = [name for name in witness.disk.names if name.suffix == ".contradiction"]
    assert witness.disk.read(kept) == fork.encode()


def test_an_empty_log_has_one_root() -> None:
    for root, status in ((world.tree_root(()), 200), (b"r" * 32, 422)):
        fresh = LocalWitness(WITNESSES[1], clock=FixedClock())
        head = signed(Checkpoint(world.ORIGIN, 0, root))
        assert fresh.service.answer(AddCheckpoint(0, (), head).encode()).status == status


def test_a_log_line_that_fails_or_comes_twice_is_no_signature(witness: LocalWitness) -> None:
    head, proof = _log(7)
    good = head.note.signatures[0]
    bad = replace(good, blob=bytes(64))
    for lines in ((bad,), (good, bad), (good, good)):
        note = Note(head.note.text, lines)
        request = AddCheckpoint(3, proof, SignedCheckpoint(note, head.head))
        assert witness.service.answer(request.encode()).status == 403


def test_it_does_not_cosign_over_a_state_it_cannot_read(witness: LocalWitness) -> None:
    [name] = [name for name in witness.disk.names if name.suffix == ".checkpoint"]
    witness.disk.names[name].data = b"damaged"
    head, proof = _log(7)
    with pytest.raises(FormatError):
        witness.service.answer(AddCheckpoint(3, proof, head).encode())
