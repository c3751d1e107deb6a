"""Stage `broker`, kinds `state`, `lease` and `record`: sealed state, and the records of a store.

docs/protocols/state.md §3 and §4, broker.md 7.1. Bytes are hex.
`state`: `files.state`, `key`, `resource`, `counter`, `digest`, `max_bytes` (of the archive).
`lease`: `steps`, each with `at` (Unix seconds), `lease` and `do`: `open` {`session`,
`wall_seconds`; `lease` is the id that a new one gets}, `save` {`counter`, `digest`, `bytes`},
`close`. The case is accepted when every step is.
`record`: `files.sealed`, `master`, `record_kind`, `name`, `revision`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from confide.agents.state_files import unpack_state
from confide.agents.state_seal import open_state
from confide.broker.lease import begin_save, close_lease, commit_save, is_repeated, open_lease
from confide.broker.record import Record
from confide.broker.state_wire import SaveHead
from confide.broker.vault import Vault
from conformance.stages.broker_inputs import sha256
from conformance.verdict import Unclear

if TYPE_CHECKING:
    from confide.broker.lease import StateRecord
    from conformance.stages.broker_inputs import Inputs

__all__ = ["judge_lease", "judge_record", "judge_state"]


def judge_state(given: Inputs) -> dict[str, Any]:
    """Return the archive that is sealed, and what is in it. Raises `Rejected` or `FormatError`."""
    case = given.case
    archive = open_state(
        given.octets("key"),
        given.files["state"],
        resource=case["resource"],
        counter=case["counter"],
        digest=given.octets("digest"),
    )
    if archive is None:
        return {"archive": None, "paths": []}
    entries = unpack_state(archive, max_bytes=case["max_bytes"])
    return {"archive": sha256(archive), "paths": [entry.path for entry in entries]}


def judge_lease(given: Inputs) -> dict[str, Any]:
    """Return the state after the last step. Raises `Rejected` at the first that is refused."""
    record: StateRecord | None = None
    for step in given.case["steps"]:
        record = _step(record, step)
    if record is None:
        raise Unclear("no step")
    return {"counter": record.counter, "digest": record.digest.hex()}


def _step(record: StateRecord | None, step: dict[str, Any]) -> StateRecord:
    now, lease = datetime.fromtimestamp(step["at"], UTC), bytes.fromhex(step["lease"])
    if step["do"] == "open":
        return open_lease(
            record,
            session=bytes.fromhex(step["session"]),
            wall_seconds=step["wall_seconds"],
            now=now,
            key=bytes(32),
            lease_id=lease,
            secret=bytes(32),
        ).record
    if record is None:
        raise Unclear("the first step opens")
    if step["do"] == "close":
        return close_lease(record, lease_id=lease, now=now)
    if step["do"] != "save":
        raise Unclear(f"no such step: {step['do']}")
    head = SaveHead(lease, step["counter"], bytes.fromhex(step["digest"]))
    if is_repeated(record, head):
        return record
    staged = begin_save(record, head, blob_id=lease, now=now)
    return commit_save(staged, head, size=step["bytes"], now=now)


def judge_record(given: Inputs) -> dict[str, Any]:
    """Return what a record of a store holds. Raises `FormatError`."""
    case, vault = given.case, Vault(given.octets("master"))
    row = vault.row(case["record_kind"], case["name"])
    record = Record(case["record_kind"], row, case["revision"], given.files["sealed"])
    return {"row": row, "plaintext": sha256(vault.open(record))}
