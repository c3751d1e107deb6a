"""The JSON log of RTMR3, entry by entry: members, sizes, both digests."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from confide.appraisal.eventlog import replay_digests, replay_runtime
from confide.appraisal.steps import Refused
from confide.errors import FormatError, Reason
from confide.wire.ccel import EV_NO_ACTION
from confide.wire.rtmr_log import RUNTIME_EVENT_TYPE, RuntimeEvent, encode_log, parse_log

if TYPE_CHECKING:
    from pathlib import Path

EVENT = RuntimeEvent("app-id", bytes(20))


def _entry(**changed: Any) -> Any:
    (entry,) = encode_log([EVENT])
    assert isinstance(entry, dict)
    return {name: value for name, value in {**entry, **changed}.items() if value is not ...}


def test_what_is_written_is_read_back() -> None:
    (entry,) = parse_log(encode_log([EVENT]))
    assert (entry.event, entry.version, entry.register) == (EVENT, 2, 3)
    assert entry.digest == EVENT.digest(2)
    assert entry.preimage == EVENT.preimage()


def test_both_digests_are_those_of_the_vectors(vectors: Path) -> None:
    cases = json.loads((vectors / "dstack" / "event-digests-derived.json").read_text())["cases"]
    for case in cases:
        event = RuntimeEvent(case["name"], bytes.fromhex(case["payload"]))
        assert event.digest(1).hex() == case["v1_digest"]
        assert event.digest(2).hex() == case["v2_digest"]
        assert event.preimage().hex() == case["v2_preimage"]


@pytest.mark.parametrize(
    "changed",
    [
        {"imr": "3"},
        {"imr": True},
        {"imr": 3.0},
        {"imr": ...},
        {"event_type": -1},
        {"event_type": 1 << 32},
        {"digest": ...},
        {"digest": "AB" * 48},
        {"digest": "ab" * 47},
        {"digest": "ab" * 49},
        {"digest": "a"},
        {"digest": None},
        {"imr": 0, "event_type": 4, "digest": ""},
        {"event": "compose-hash\0"},
        {"event": "x" * 257},
        {"event": None},
        {"event_payload": "0"},
        {"event_payload": "zz"},
        {"event_payload": ...},
        {"version": 0},
        {"version": 3},
        {"version": "2"},
        {"preimage": 1},
        {"more": 1},
    ],
)
def test_an_entry_with_one_thing_wrong_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(FormatError) as refused:
        parse_log([_entry(**changed)])
    assert refused.value.reason is Reason.LOG_FORMAT


@pytest.mark.parametrize("register", [4, 23, -1, 0xFFFFFFFF, 2**40])
def test_a_register_that_does_not_exist_has_its_own_reason(register: int) -> None:
    with pytest.raises(FormatError) as refused:
        parse_log([_entry(imr=register)])
    assert refused.value.reason is Reason.LOG_REGISTER


def test_a_log_has_a_bounded_number_of_entries() -> None:
    assert len(parse_log([_entry()] * 16_384)) == 16_384
    with pytest.raises(FormatError):
        parse_log([_entry()] * 16_385)


def test_an_older_log_has_neither_version_nor_preimage() -> None:
    (entry,) = parse_log([_entry(version=..., preimage=..., digest="")])
    assert (entry.version, entry.preimage, entry.digest) == (1, None, b"")
    assert entry.event_type == RUNTIME_EVENT_TYPE


def test_null_is_as_if_it_were_absent() -> None:
    (entry,) = parse_log([_entry(version=None, preimage=None, digest="")])
    assert (entry.version, entry.preimage) == (1, None)


@pytest.mark.parametrize(("version", "preimage"), [(1, None), (2, b"")])
def test_an_empty_preimage_says_nothing_where_there_is_none(
    version: int, preimage: bytes | None
) -> None:
    (entry,) = parse_log([_entry(version=version, preimage="")])
    assert entry.preimage == preimage


def test_in_register_3_another_type_is_left_to_the_replay_which_refuses_it() -> None:
    (entry,) = parse_log([_entry(event_type=1, digest="")])
    with pytest.raises(Refused) as refused:
        replay_runtime([entry])
    assert refused.value.reason is Reason.RUNTIME_EVENT_TYPE


def test_an_entry_that_firmware_never_extends_is_not_replayed() -> None:
    extended, other = _entry(imr=1, event_type=4), _entry(imr=1, event_type=EV_NO_ACTION)
    both = replay_digests(parse_log([other, extended, other]))
    assert both == replay_digests(parse_log([extended]))
    assert replay_digests(parse_log([other])) == {}
