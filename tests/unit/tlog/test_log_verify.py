"""Heads and proofs, offline: what holds, and everything that must not. log.md §1, §5, §6, §7."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import timedelta
from typing import Any

import log_world as world
import pytest
from log_world import LOG, NOW, WITNESSES, entry, policy, signed

from confide.crypto.merkle import hash_leaf
from confide.errors import FormatError, LogRejected, Reason
from confide.rats import Status
from confide.tlog.leaf import LeafOpening
from confide.tlog.monitor import compare_heads, judge_age
from confide.tlog.verify import (
    VerifiedHead,
    VerifiedInclusion,
    verify_head,
    verify_logged,
)
from confide.wire.checkpoint import Checkpoint, SignedCheckpoint
from confide.wire.note import Note, SignatureType
from confide.wire.tlog_policy import LogPolicy
from confide.wire.tlog_proof import TlogProof, parse_tlog_proof

A, B, C = WITNESSES
DIGEST = b"\xd1" * 32
OPENING = LeafOpening(b"\xb1" * 32, DIGEST)
SECONDS = int(NOW.timestamp())


def _head(size: int, *, other: bool = False) -> Checkpoint:
    leaves = [hash_leaf(entry(n)) for n in range(size)]
    if other:
        leaves[0] = hash_leaf(b"another past")
    return Checkpoint(world.ORIGIN, size, world.tree_root(leaves))


def _proof(*cosigners: object) -> TlogProof:
    """A proof of `OPENING` at index 2 of 5, in a log that the cosigners saw."""
    disk = world.MemoryDisk()
    keeper = world.open_log(disk)
    keeper.append([entry(0), entry(1), OPENING.entry, entry(3), entry(4)])
    lines = [each.cosign(keeper.head.head, seconds=SECONDS) for each in cosigners]  # type: ignore[attr-defined]
    head = SignedCheckpoint(keeper.head.note.with_signatures(tuple(lines)), keeper.head.head)
    return replace(keeper.prove(2, head), extra=OPENING.blinding)


PROOF = _proof(A, B)


def _refused(
    proof: TlogProof, *, digest: bytes = DIGEST, by: LogPolicy | None = None
) -> LogRejected:
    with pytest.raises(LogRejected) as caught:
        verify_logged(proof, digest=digest, made=NOW, policy=by or policy(2, A, B), now=NOW)
    return caught.value


def test_a_logged_digest_is_proven_offline_from_bytes() -> None:
    found = verify_logged(
        parse_tlog_proof(PROOF.encode()),
        digest=DIGEST,
        made=NOW,
        policy=policy(2, A, B, C),
        now=NOW,
    )
    assert (found.origin, found.index, found.size) == (world.ORIGIN, 2, 5)
    assert found.witnesses == (A.key.name, B.key.name)
    assert found.time == NOW
    assert [finding.step for finding in found.findings] == [f"log/{n}" for n in range(1, 8)]
    assert {finding.status for finding in found.findings} == {Status.PASS}


def test_only_verifying_makes_the_proven_values() -> None:
    head = verify_head(PROOF.checkpoint, policy=policy(0), now=NOW)
    with pytest.raises(TypeError):
        VerifiedHead(PROOF.checkpoint, (), None, None, (), object())
    with pytest.raises(TypeError):
        VerifiedInclusion(head, 2, OPENING, (), object())


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (replace(PROOF, index=1), Reason.TLOG_INCLUSION),
        (replace(PROOF, index=5), Reason.TLOG_INCLUSION),
        (replace(PROOF, hashes=PROOF.hashes[:-1]), Reason.TLOG_INCLUSION),
        (replace(PROOF, hashes=(*PROOF.hashes, b"x" * 32)), Reason.TLOG_INCLUSION),
        (replace(PROOF, hashes=PROOF.hashes[::-1]), Reason.TLOG_INCLUSION),
        (replace(PROOF, extra=b"y" * 32), Reason.TLOG_INCLUSION),
        (replace(PROOF, extra=None), Reason.TLOG_LEAF),
        (replace(PROOF, extra=b"y" * 31), Reason.TLOG_LEAF),
    ],
)
def test_a_bad_proof_is_refused(broken: TlogProof, reason: Reason) -> None:
    assert _refused(broken).reason is reason


def test_a_proof_of_something_else_is_refused() -> None:
    assert _refused(PROOF, digest=b"\xd2" * 32).reason is Reason.TLOG_INCLUSION


def test_too_few_witnesses_are_refused_and_unknown_ones_do_not_count() -> None:
    assert _refused(PROOF, by=policy(2, A, C)).reason is Reason.TLOG_WITNESSES
    assert _refused(PROOF, by=policy(3, A, B, C)).reason is Reason.TLOG_WITNESSES
    verify_logged(PROOF, digest=DIGEST, made=NOW, policy=policy(1, B, C), now=NOW)


def test_another_key_of_the_log_is_refused() -> None:
    namesake = type(LOG)(world.ORIGIN, SignatureType.ED25519, b"z" * 32)
    forged = signed(PROOF.checkpoint.head, A, B, by=namesake)
    assert _refused(replace(PROOF, checkpoint=forged)).reason is Reason.TLOG_SIGNATURE
    other = world.signer("log.example/other")
    elsewhere = signed(replace(PROOF.checkpoint.head, origin="log.example/other"), A, B, by=other)
    assert _refused(replace(PROOF, checkpoint=elsewhere)).reason is Reason.TLOG_LOG_UNKNOWN


@pytest.mark.parametrize("signer", [LOG, A, B], ids=lambda signer: signer.key.name)
def test_a_line_of_a_known_key_that_does_not_verify_refuses_everything(signer: object) -> None:
    note = PROOF.checkpoint.note
    key = signer.key  # type: ignore[attr-defined]
    lines = tuple(
        replace(line, blob=line.blob[:-1] + bytes([line.blob[-1] ^ 1]))
        if line.key_id == key.key_id
        else line
        for line in note.signatures
    )
    broken = SignedCheckpoint(Note(note.text, lines), PROOF.checkpoint.head)
    # Even where the others would do.
    assert _refused(replace(PROOF, checkpoint=broken), by=policy(0, A, B)).reason is (
        Reason.TLOG_SIGNATURE
    )


def test_a_key_that_signed_twice_is_refused() -> None:
    note = PROOF.checkpoint.note
    again = A.cosign(PROOF.checkpoint.head, seconds=SECONDS - 9)
    twice = SignedCheckpoint(Note(note.text, (*note.signatures, again)), PROOF.checkpoint.head)
    assert _refused(replace(PROOF, checkpoint=twice)).reason is Reason.TLOG_SIGNATURE


def test_lines_of_unknown_keys_are_ignored_whatever_they_hold() -> None:
    note = PROOF.checkpoint.note
    # The name of a known key with another id, and the other way round.
    strange = (
        replace(note.signatures[0], key_id=b"\0\0\0\0"),
        replace(note.signatures[1], name="someone.else"),
    )
    more = SignedCheckpoint(Note(note.text, (*note.signatures, *strange)), PROOF.checkpoint.head)
    whole = replace(PROOF, checkpoint=more)
    verify_logged(whole, digest=DIGEST, made=NOW, policy=policy(2, A, B), now=NOW)


def test_a_cosignature_from_the_future_is_refused() -> None:
    head = PROOF.checkpoint.head
    edge = signed(head, A, B, seconds=SECONDS + 300)
    verify_head(edge, policy=policy(2, A, B), now=NOW)
    for late in (SECONDS + 301, 2**63 - 1):
        broken = replace(PROOF, checkpoint=signed(head, A, B, seconds=late))
        assert _refused(broken).reason is Reason.TLOG_TIME


def test_the_time_is_that_of_the_quorum_not_of_the_first() -> None:
    head = _head(3)
    lines = (
        LOG.sign_checkpoint(head),
        A.cosign(head, seconds=SECONDS - 30),
        B.cosign(head, seconds=SECONDS - 20),
        C.cosign(head, seconds=SECONDS - 10),
    )
    checkpoint = SignedCheckpoint(Note(head.text(), lines), head)
    for quorum, logged_by, confirmed_at in ((1, 30, 10), (2, 20, 20), (3, 10, 30)):
        found = verify_head(checkpoint, policy=policy(quorum, A, B, C), now=NOW)
        assert found.logged_by == NOW - timedelta(seconds=logged_by)
        assert found.confirmed_at == NOW - timedelta(seconds=confirmed_at)
    found = verify_head(checkpoint, policy=policy(0, A), now=NOW)
    assert found.logged_by is None
    assert found.confirmed_at is None


def test_the_empty_tree_has_one_root() -> None:
    empty = signed(_head(0))
    assert verify_head(empty, policy=policy(0), now=NOW).size == 0
    with pytest.raises(LogRejected):
        verify_head(signed(replace(_head(0), root=b"r" * 32)), policy=policy(0), now=NOW)


def test_what_claims_to_be_made_after_the_witnesses_saw_it_is_refused() -> None:
    known: Any = {"digest": DIGEST, "policy": policy(2, A, B), "now": NOW}
    edge = verify_logged(PROOF, made=NOW + timedelta(seconds=300), **known)
    assert edge.findings[-1].detail == f"logged by {NOW:%FT%TZ}"
    with pytest.raises(LogRejected) as caught:
        verify_logged(PROOF, made=NOW + timedelta(seconds=301), **known)
    (failure,) = caught.value.failures
    assert (failure.step, failure.reason) == ("log/7", Reason.TLOG_POSTDATED)
    # Who claims no time, or has no witness to compare it with, learns that nothing was compared.
    assert "no time" in verify_logged(PROOF, made=None, **known).findings[-1].detail
    nobody = {**known, "policy": policy(0)}
    late = verify_logged(PROOF, made=NOW + timedelta(days=1), **nobody)
    assert "no witness vouches" in late.findings[-1].detail


def test_a_leaf_says_nothing_and_opens_to_one_digest() -> None:
    same = LeafOpening(b"\xb2" * 32, DIGEST)
    assert OPENING.blinding.hex() not in repr(OPENING)
    entries = {same.entry, OPENING.entry, LeafOpening(OPENING.blinding, b"n" * 32).entry}
    assert len(entries) == 3
    known = b"confide/log-entry/v1\0" + OPENING.blinding + DIGEST
    assert OPENING.entry == hashlib.sha256(known).digest()
    with pytest.raises(ValueError, match="32 bytes"):
        LeafOpening(b"", DIGEST)


def _seen(size: int, *cosigners: object, other: bool = False, ago: int = 0) -> VerifiedHead:
    head = signed(_head(size, other=other), *cosigners, seconds=SECONDS - ago)  # type: ignore[arg-type]
    return verify_head(head, policy=policy(0, A, B), now=NOW)


def _consistency(old: int, new: int) -> tuple[bytes, ...]:
    keeper = world.open_log(world.MemoryDisk())
    keeper.append([entry(n) for n in range(new)])
    return keeper.consistency(old, keeper.head)


def _failed(known: VerifiedHead, seen: VerifiedHead, proof: tuple[bytes, ...] | None) -> list[str]:
    return [str(f.reason) for f in compare_heads(known, seen, proof) if f.failed]


def test_a_monitor_names_fork_rollback_and_witnesses_of_two_heads() -> None:
    assert _failed(_seen(3), _seen(7), _consistency(3, 7)) == []
    assert _failed(_seen(3), _seen(3), ()) == []
    assert _failed(_seen(7), _seen(3), _consistency(3, 7)) == ["tlog-rollback"]
    assert _failed(_seen(7), _seen(3), None) == ["tlog-rollback"]
    assert _failed(_seen(3), _seen(7, other=True), _consistency(3, 7)) == ["tlog-fork"]
    assert _failed(_seen(3), _seen(7), ()) == ["tlog-fork"]
    # A split view of two servers, and the witness that lent itself to both.
    split = (_seen(3, A, B), _seen(3, B, other=True))
    found = [f for f in compare_heads(*split, ()) if f.failed]
    assert [f.reason for f in found] == [Reason.TLOG_FORK, Reason.TLOG_WITNESS_FORK]
    assert found[1].subject == B.key.name


def test_a_monitor_tells_a_stale_head_from_one_without_a_time() -> None:
    hour = timedelta(hours=1)
    with_witness = policy(1, A)
    fresh = verify_head(signed(_head(2), A, seconds=SECONDS - 3600), policy=with_witness, now=NOW)
    old = verify_head(signed(_head(2), A, seconds=SECONDS - 3601), policy=with_witness, now=NOW)
    assert judge_age(fresh, now=NOW, max_age=hour).status is Status.PASS
    assert judge_age(old, now=NOW, max_age=hour).reason is Reason.TLOG_STALE
    assert judge_age(_seen(2), now=NOW, max_age=hour).status is Status.NOT_PROVEN


def test_heads_of_two_logs_are_not_compared() -> None:
    other = world.signer("log.example/other")
    head = replace(_head(3), origin=other.key.name)
    believed = policy(0)
    logs = (*believed.logs, replace(believed.logs[0], key=other.key))
    both = LogPolicy(logs, (), believed.quorum)
    stranger = verify_head(signed(head, by=other), policy=both, now=NOW)
    with pytest.raises(ValueError, match="two different logs"):
        compare_heads(_seen(3), stranger, ())


def test_every_one_bit_change_of_a_proof_file_is_refused() -> None:
    raw = PROOF.encode()
    believed = policy(2, A, B)
    for at in range(len(raw)):
        for bit in range(8) if at < 600 else (0,):
            changed = raw[:at] + bytes([raw[at] ^ (1 << bit)]) + raw[at + 1 :]
            with pytest.raises((FormatError, LogRejected)):
                verify_logged(
                    parse_tlog_proof(changed), digest=DIGEST, made=NOW, policy=believed, now=NOW
                )
