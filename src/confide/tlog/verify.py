"""Verifying heads and inclusion proofs, offline. log.md §5. Pure.

The proof file is hostile; the verifier brings the policy and the time. Performs the steps log/1 to
log/7 of 5.2.

What the caller still must do: know what the digest it expects is a digest of, and decide whether
the time and the witnesses in the result are good enough for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from confide.appraisal.steps import Refused, Step, established, run_steps
from confide.crypto.cosign import verify_note_signature
from confide.crypto.errors import BadProof, BadSignature
from confide.crypto.merkle import EMPTY_ROOT, hash_leaf, verify_inclusion
from confide.errors import LogRejected, Reason
from confide.tlog.leaf import BLINDING_BYTES, LeafOpening

if TYPE_CHECKING:
    from collections.abc import Sequence

    from confide.rats import Finding
    from confide.wire.checkpoint import SignedCheckpoint
    from confide.wire.note import VerifierKey
    from confide.wire.tlog_policy import LogPolicy
    from confide.wire.tlog_proof import TlogProof

__all__ = [
    "HEAD_STEPS",
    "INCLUSION_STEPS",
    "Cosigned",
    "VerifiedHead",
    "VerifiedInclusion",
    "verify_head",
    "verify_logged",
]

_DOC: Final = "docs/protocols/log.md#5.2"
_SEAL: Final = object()
# From: log.md 5.2; RFC 4120 §8.2 allows clocks the same skew.
_SKEW: Final = timedelta(seconds=300)


@dataclass(frozen=True, slots=True)
class Cosigned:
    """One witness of the policy, by the name of its key, and when it saw the head."""

    witness: str
    at: datetime


@dataclass(frozen=True, slots=True)
class VerifiedHead:
    """
    A checkpoint that a log of the policy signed and a quorum of its witnesses saw.

    `logged_by` and `confirmed_at` as in 5.3, None where the policy asks for no witness. Only
    `verify_head` and `verify_logged` can make one. Says nothing about what the entries are.
    """

    checkpoint: SignedCheckpoint
    cosigned: tuple[Cosigned, ...]
    logged_by: datetime | None
    confirmed_at: datetime | None
    findings: tuple[Finding, ...]
    seal: object = field(repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.seal is not _SEAL:
            raise TypeError("only verify_head makes a VerifiedHead")

    @property
    def origin(self) -> str:
        """Which log."""
        return self.checkpoint.head.origin

    @property
    def size(self) -> int:
        """How many entries the log had."""
        return self.checkpoint.head.size

    @property
    def root(self) -> bytes:
        """The root of its tree."""
        return self.checkpoint.head.root


@dataclass(frozen=True, slots=True)
class VerifiedInclusion:
    """
    An entry that stands in a witnessed log, opened to the digest that was expected.

    Only `verify_logged` can make one.
    """

    head: VerifiedHead
    index: int
    opening: LeafOpening
    findings: tuple[Finding, ...]
    seal: object = field(repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.seal is not _SEAL:
            raise TypeError("only verify_logged makes a VerifiedInclusion")

    @property
    def origin(self) -> str:
        """Which log."""
        return self.head.origin

    @property
    def size(self) -> int:
        """How many entries the log had at the head of the proof."""
        return self.head.size

    @property
    def time(self) -> datetime | None:
        """The entry existed then at the latest, on the word of a quorum; None without one."""
        return self.head.logged_by

    @property
    def witnesses(self) -> tuple[str, ...]:
        """The names of the keys that cosigned."""
        return tuple(each.witness for each in self.head.cosigned)


@dataclass(slots=True)
class _State:
    checkpoint: SignedCheckpoint
    policy: LogPolicy
    now: datetime
    proof: TlogProof | None = None
    digest: bytes = b""
    made: datetime | None = None
    log: VerifierKey | None = None
    # (name in the policy, name of the key, POSIX time) of each witness whose line verified.
    seen: list[tuple[str, str, int]] = field(default_factory=list)
    opening: LeafOpening | None = None


def _log_signed(state: _State) -> str:
    origin = state.checkpoint.head.origin
    logs = [log.key for log in state.policy.logs if log.key.name == origin]
    if not logs:
        raise Refused(Reason.TLOG_LOG_UNKNOWN, "its origin is that of no log in the policy")
    for key in logs:
        if _is_there(state, key):
            _verify_line(state, key)
            state.log = key
    if state.log is None:
        raise Refused(Reason.TLOG_SIGNATURE, "no log of the policy signed it")
    head = state.checkpoint.head
    if head.size == 0 and head.root != EMPTY_ROOT:
        raise Refused(Reason.TLOG_SIGNATURE, "the root of an empty tree is another one")
    return f"size {head.size}"


def _is_there(state: _State, key: VerifierKey) -> bool:
    return any(
        (each.name, each.key_id) == (key.name, key.key_id)
        for each in state.checkpoint.note.signatures
    )


def _verify_line(state: _State, key: VerifierKey) -> int | None:
    """Verify the one line of `key`; Refused where it is there twice or does not verify."""
    mine = [
        each
        for each in state.checkpoint.note.signatures
        if (each.name, each.key_id) == (key.name, key.key_id)
    ]
    if len(mine) != 1:
        raise Refused(Reason.TLOG_SIGNATURE, "one key signed twice")
    try:
        return verify_note_signature(key, mine[0], state.checkpoint)
    except BadSignature as error:
        raise Refused(Reason.TLOG_SIGNATURE, error.what) from error


def _known_lines_hold(state: _State) -> str:
    for log in state.policy.logs:
        if _is_there(state, log.key):
            _verify_line(state, log.key)
    for witness in state.policy.witnesses:
        if _is_there(state, witness.key):
            seconds = _verify_line(state, witness.key)
            state.seen.append((witness.name, witness.key.name, established(seconds)))
    return f"{len(state.seen)} cosignature(s)"


def _not_in_the_future(state: _State) -> str:
    limit = int((state.now + _SKEW).timestamp())
    for _, _, seconds in state.seen:
        if seconds > limit:
            raise Refused(Reason.TLOG_TIME, "a cosignature is of a time that is still to come")
    return ""


def _quorum_reached(state: _State) -> str:
    if not state.policy.quorum.reached(frozenset(name for name, _, _ in state.seen)):
        known = len(state.policy.witnesses)
        raise Refused(Reason.TLOG_WITNESSES, f"{len(state.seen)} of {known} witnesses cosigned")
    return ", ".join(name for _, name, _ in state.seen)


def _opened(state: _State) -> None:
    proof = established(state.proof)
    if proof.extra is None or len(proof.extra) != BLINDING_BYTES:
        raise Refused(Reason.TLOG_LEAF, "no blinding beside the proof")
    state.opening = LeafOpening(proof.extra, state.digest)


def _included(state: _State) -> str:
    proof, head = established(state.proof), state.checkpoint.head
    leaf = hash_leaf(established(state.opening).entry)
    try:
        verify_inclusion(leaf, proof.index, head.size, proof.hashes, root=head.root)
    except BadProof as error:
        raise Refused(Reason.TLOG_INCLUSION, error.what) from error
    return f"index {proof.index}"


def _not_made_later(state: _State) -> str:
    if state.made is None:
        return "no time is claimed for it"
    logged_by = _reached(state.policy, _by_time(state))
    if logged_by is None:
        return "no witness vouches for a time: nothing to compare with"
    if state.made > logged_by + _SKEW:
        raise Refused(Reason.TLOG_POSTDATED, "it claims to be made after the witnesses saw it")
    return f"logged by {logged_by:%FT%TZ}"


HEAD_STEPS: tuple[Step[_State], ...] = (
    Step("log/1", f"{_DOC}(1)", _log_signed),
    Step("log/2", f"{_DOC}(2)", _known_lines_hold),
    Step("log/3", f"{_DOC}(3)", _not_in_the_future, ("log/2",)),
    Step("log/4", f"{_DOC}(4)", _quorum_reached, ("log/2",)),
)
INCLUSION_STEPS: tuple[Step[_State], ...] = (
    *HEAD_STEPS,
    Step("log/5", f"{_DOC}(5)", _opened),
    Step("log/6", f"{_DOC}(6)", _included, ("log/5",)),
    Step("log/7", f"{_DOC}(7)", _not_made_later, ("log/3",)),
)


def verify_head(checkpoint: SignedCheckpoint, *, policy: LogPolicy, now: datetime) -> VerifiedHead:
    """
    Establish that a log of `policy` signed `checkpoint` and a quorum of its witnesses saw it.

    Steps log/1 to log/4. **Does not check** that it extends any other head: see
    `monitor.compare_heads`. Raises `LogRejected`.
    """
    state = _State(checkpoint, policy, now)
    findings = run_steps(HEAD_STEPS, state, subject="checkpoint")
    if any(finding.failed for finding in findings):
        raise LogRejected(findings)
    return _head(state, findings)


def verify_logged(
    proof: TlogProof, *, digest: bytes, made: datetime | None, policy: LogPolicy, now: datetime
) -> VerifiedInclusion:
    """
    Establish that `digest` (32 bytes) is logged.

    Steps log/1 to log/7: `proof` leads from its blinded entry to a head that a log of `policy`
    signed and a quorum of its witnesses saw, no later than when it claims to be `made` (None where
    it claims nothing). Raises `LogRejected` with one finding a step.
    **Does not check** what the digest is of.
    """
    if len(digest) != 32:
        raise ValueError("a digest has 32 bytes")
    state = _State(proof.checkpoint, policy, now, proof, digest, made)
    findings = run_steps(INCLUSION_STEPS, state, subject="log proof")
    if any(finding.failed for finding in findings):
        raise LogRejected(findings)
    opening = established(state.opening)
    return VerifiedInclusion(_head(state, findings), proof.index, opening, findings, _SEAL)


def _head(state: _State, findings: tuple[Finding, ...]) -> VerifiedHead:
    by_time = _by_time(state)
    return VerifiedHead(
        state.checkpoint,
        tuple(Cosigned(name, _moment(seconds)) for _, name, seconds in by_time),
        _reached(state.policy, by_time),
        _reached(state.policy, by_time[::-1]),
        findings,
        _SEAL,
    )


def _by_time(state: _State) -> list[tuple[str, str, int]]:
    return sorted(state.seen, key=lambda each: each[2])


def _reached(policy: LogPolicy, seen: Sequence[tuple[str, str, int]]) -> datetime | None:
    """Return the time of the cosignature with which, in this order, the quorum is reached."""
    names: set[str] = set()
    for name, _, seconds in seen:
        names.add(name)
        if policy.quorum.threshold and policy.quorum.reached(frozenset(names)):
            return _moment(seconds)
    return None


def _moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
