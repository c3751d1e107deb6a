"""The shared event-log vectors as far as logs are replayed here; the dstack profile is not read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from confide.appraisal.eventlog import replay_ccel, replay_runtime
from confide.appraisal.steps import Refused
from confide.errors import FormatError, Reason
from confide.wire.ccel import encode_ccel, parse_ccel
from confide.wire.rtmr_log import RUNTIME_EVENT_TYPE, LogEntry, parse_log
from confide.wire.tdx import parse_quote

# What needs the dstack profile (which event may stand where, compose hash, MRCONFIGID, recomputed
# registers): a log of dstack is replayed here, not understood.
PROFILE = {
    "dstack-compose-edited": "the compose document against its event",
    "dstack-duplicate-compose": "which events are unique",
    "dstack-order-consistent": "the order of events",
    "dstack-no-ready": "which events are required",
    "dstack-unknown-boot-event": "which events are known",
    "mrconfigid-other": "MRCONFIGID against the compose hash",
    "mrconfigid-form1": "MRCONFIGID against the compose hash",
    "lite-registers": "registers recomputed from a machine description",
    "lite-memory-changed": "registers recomputed from a machine description",
    "lite-checksum-rewritten": "registers recomputed from a machine description",
    "lite-all-rewritten": "registers recomputed from a machine description",
}
CCEL = 11
RUNTIME = 13


def _root() -> Path:
    import os  # noqa: PLC0415 - collection needs the place before fixtures exist

    beside = Path(__file__).resolve().parents[2].parent / "shared" / "vectors"
    return Path(os.environ.get("CONFIDE_VECTORS", beside)) / "eventlog"


def _cases() -> list[dict[str, Any]]:
    index = _root() / "index.json"
    if not index.is_file():
        return []
    cases = json.loads(index.read_text())["cases"]
    assert isinstance(cases, list)
    return cases


def _of(kind: str) -> list[Any]:
    chosen = [case for case in _cases() if kind in case["files"] and case["id"] not in PROFILE]
    return [pytest.param(case, id=case["id"]) for case in chosen] or [
        pytest.param(None, marks=pytest.mark.skip("SHARED VECTORS ABSENT"))
    ]


def _read(case: dict[str, Any], name: str) -> bytes:
    path: Path = _root() / case["files"][name]
    return path.read_bytes()


def _quoted(case: dict[str, Any]) -> tuple[bytes, ...] | None:
    # Registers only: the signatures of these quotes are the subject of the TDX vectors.
    return parse_quote(_read(case, "quote")).body.rtmr if "quote" in case["files"] else None


def _firmware_reason(case: dict[str, Any]) -> str | None:
    """Why the firmware log is refused; None where it replays."""
    try:
        events = parse_ccel(_read(case, "ccel"))
    except FormatError as error:
        return error.reason.value
    replayed, quoted = replay_ccel(events), _quoted(case)
    if quoted is None:
        return None
    for index, (ours, theirs) in enumerate(zip(replayed, quoted, strict=True)):
        if ours != theirs:
            return f"rtmr{index}-mismatch"
    return None


@pytest.mark.parametrize("case", _of("ccel"))
def test_a_firmware_log_replays_as_the_vector_says(case: dict[str, Any]) -> None:
    reason = _firmware_reason(case)
    if case["outcome"] == "reject":
        assert reason in case["reason"]
        return
    assert reason is None
    events, expected = parse_ccel(_read(case, "ccel")), case["expected"]
    # The vectors do not count the header record.
    assert len(events) == expected["events"]
    assert [register.hex() for register in replay_ccel(events)] == expected["rtmr"]
    assert parse_ccel(encode_ccel(events)) == events


def _runtime_reason(case: dict[str, Any]) -> str | None:
    try:
        entries = parse_log(json.loads(_read(case, "event_log")))
        runtime = _runtime_part(entries)
        replayed = replay_runtime(runtime)
    except FormatError as error:
        return error.reason.value
    except Refused as error:
        return error.reason.value
    quoted = _quoted(case)
    assert quoted is not None
    return None if replayed == quoted[3] else Reason.RTMR3_MISMATCH.value


def _runtime_part(entries: tuple[LogEntry, ...]) -> tuple[LogEntry, ...]:
    """The entries of RTMR3, and whatever claims the type of a runtime event."""
    return tuple(e for e in entries if e.register == 3 or e.event_type == RUNTIME_EVENT_TYPE)


@pytest.mark.parametrize("case", _of("event_log"))
def test_a_runtime_log_replays_as_the_vector_says(case: dict[str, Any]) -> None:
    reason = _runtime_reason(case)
    if case["outcome"] == "accept":
        assert reason is None
    else:
        assert reason in case["reason"]


def test_what_is_out_of_scope_is_counted_and_printed(vectors: Path) -> None:
    assert (vectors / "eventlog").is_dir()
    ids = {case["id"] for case in _cases()}
    for _name, _why in PROFILE.items():
        pass
    assert set(PROFILE) <= ids
    replayed = {case["id"] for case in _cases() if case["id"] not in PROFILE}
    assert len([name for name in replayed if name.startswith("ccel-")]) == CCEL
    assert len([name for name in replayed if name.startswith("dstack-")]) == RUNTIME
    assert len(PROFILE) + CCEL + RUNTIME == len(ids) == 35


@pytest.mark.parametrize("name", sorted(PROFILE))
def test_the_replay_alone_does_not_refuse_what_only_the_profile_refuses(
    name: str, vectors: Path
) -> None:
    assert vectors.is_dir()
    (case,) = (case for case in _cases() if case["id"] == name)
    assert _runtime_reason(case) is None
