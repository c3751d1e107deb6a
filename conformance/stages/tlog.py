"""Stage `tlog`: proofs, heads and tiles of a transparency log, to a verdict. docs/protocols/log.md.

Members, beside those of every case: `files.policy` (tlog-policy), `now`. By `kind`:
`inclusion`: `files.proof` (tlog-proof), `digest` (hex), which it has to be a proof of, and maybe
`made`, the time at which what has this digest claims to be made.
`heads`: `files.known` and `files.seen` (checkpoints), `proof` (consistency hashes from the smaller
to the larger, hex) and `max_age` in seconds.
`tiles`: `files.checkpoint` and `tiles`, which gives for each path the file that holds the tile; all
that a proof of the entry at `index` needs.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from confide.errors import FormatError, Rejected
from confide.tlog.monitor import compare_heads, judge_age
from confide.tlog.prove import prove_inclusion, verify_tiles
from confide.tlog.verify import verify_head, verify_logged
from confide.wire.checkpoint import parse_checkpoint
from confide.wire.tiles import parse_tile_path
from confide.wire.tlog_policy import parse_log_policy
from confide.wire.tlog_proof import parse_tlog_proof
from conformance.verdict import Unclear, Verdict

if TYPE_CHECKING:
    from pathlib import Path

    from confide.rats import Finding
    from confide.wire.tlog_policy import LogPolicy

__all__ = ["judge"]


def judge(case: dict[str, Any], folder: Path) -> Verdict:
    """Judge one case whose files are relative to `folder`."""
    now = datetime.fromisoformat(case["now"])
    files = {role: (folder / name).read_bytes() for role, name in case["files"].items()}
    try:
        policy = parse_log_policy(files["policy"])
        match case.get("kind"):
            case "inclusion":
                findings = _inclusion(case, files, policy, now)
            case "heads":
                findings = _heads(case, files, policy, now)
            case "tiles":
                findings = _tiles(case, files, folder, policy, now)
            case kind:
                raise Unclear(f"no such kind: {kind}")
    except Rejected as refusal:
        findings = refusal.findings
    except FormatError as error:
        return Verdict("malformed", error.reason, (error.reason,), error.what)
    failed = [finding for finding in findings if finding.failed]
    if failed:
        reasons = tuple(str(finding.reason) for finding in failed)
        return Verdict("reject", reasons[0], reasons, str(failed[0]))
    return Verdict("accept")


def _inclusion(
    case: dict[str, Any], files: dict[str, bytes], policy: LogPolicy, now: datetime
) -> tuple[Finding, ...]:
    proof = parse_tlog_proof(files["proof"])
    made = datetime.fromisoformat(case["made"]) if "made" in case else None
    return verify_logged(
        proof, digest=bytes.fromhex(case["digest"]), made=made, policy=policy, now=now
    ).findings


def _heads(
    case: dict[str, Any], files: dict[str, bytes], policy: LogPolicy, now: datetime
) -> tuple[Finding, ...]:
    known, seen = (
        verify_head(parse_checkpoint(files[role]), policy=policy, now=now)
        for role in ("known", "seen")
    )
    proof = tuple(bytes.fromhex(each) for each in case["proof"])
    age = judge_age(seen, now=now, max_age=timedelta(seconds=case["max_age"]))
    return (*compare_heads(known, seen, proof), age)


def _tiles(
    case: dict[str, Any], files: dict[str, bytes], folder: Path, policy: LogPolicy, now: datetime
) -> tuple[Finding, ...]:
    head = verify_head(parse_checkpoint(files["checkpoint"]), policy=policy, now=now)
    raw = {
        parse_tile_path(path): (folder / name).read_bytes() for path, name in case["tiles"].items()
    }
    trees = verify_tiles(head.checkpoint.head, raw, known={})
    prove_inclusion(case["index"], head.size, trees)
    return head.findings
