"""Stage `eventlog`: every combination of files is held against something, every reason is named."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest
from conformance.stages.eventlog import judge
from conformance.verdict import Unclear

from confide.appraisal.launch import mrconfigid_form1, mrconfigid_form3
from confide.wire.rtmr_log import RuntimeEvent, encode_log, extend_register

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from conformance.verdict import Verdict

COMPOSE = b'{"name":"made up"}'
DIGEST = hashlib.sha256(COMPOSE).digest()
ZERO = bytes(48).hex()
BOOT = (
    RuntimeEvent("system-preparing", b""),
    RuntimeEvent("app-id", DIGEST[:20]),
    RuntimeEvent("compose-hash", DIGEST),
    RuntimeEvent("instance-id", b""),
    RuntimeEvent("boot-mr-done", b""),
    RuntimeEvent("key-provider", b'{"name":"kms","id":"0a"}'),
    RuntimeEvent("system-ready", b""),
)


def _registers(events: Sequence[RuntimeEvent], **more: str) -> dict[str, Any]:
    register = bytes(48)
    for event in events:
        register = extend_register(register, event.digest())
    return {"rtmr": [ZERO, ZERO, ZERO, register.hex()], **more}


def _judge(folder: Path, check: str = "", **files: Any) -> Verdict:
    named: dict[str, Any] = {}
    for name, value in files.items():
        raw = value if isinstance(value, bytes) else json.dumps(value).encode()
        (folder / name).write_bytes(raw)
        named[name] = name
    return judge({"id": "x", "check": check, "files": named}, folder)


def test_the_honest_log_is_accepted_with_registers_or_without(tmp_path: Path) -> None:
    log = encode_log(BOOT)
    with_registers = _judge(
        tmp_path, event_log=log, app_compose=COMPOSE, registers=_registers(BOOT)
    )
    for verdict in (with_registers, _judge(tmp_path, event_log=log, app_compose=COMPOSE)):
        assert verdict.outcome == "accept", verdict.detail
        assert verdict.claims["compose_hash"] == DIGEST.hex()
        assert verdict.claims["rtmr"] == _registers(BOOT)["rtmr"]


def test_registers_may_be_bytes_or_stand_in_the_index(tmp_path: Path) -> None:
    log, stated = encode_log(BOOT), _registers(BOOT)
    raw = b"".join(map(bytes.fromhex, stated["rtmr"]))
    assert _judge(tmp_path, event_log=log, registers=raw).outcome == "accept"
    case = {"id": "x", "files": {"event_log": "event_log", "registers": stated}}
    assert judge(case, tmp_path).outcome == "accept"


def test_a_log_may_be_json_in_a_string_as_the_guest_answers(tmp_path: Path) -> None:
    text = json.dumps(encode_log(BOOT))
    assert _judge(tmp_path, event_log=text, registers=_registers(BOOT)).outcome == "accept"
    assert _judge(tmp_path, event_log=json.dumps(text)).reason == "log-format"


def test_without_a_register_the_rules_of_logs_still_hold(tmp_path: Path) -> None:
    assert _judge(tmp_path, event_log=encode_log(BOOT[:-1])).reason == "event-missing"
    twice = encode_log((*BOOT[:3], *BOOT[2:]))
    assert _judge(tmp_path, event_log=twice).reason == "event-duplicate"
    other = _judge(tmp_path, event_log=encode_log(BOOT), app_compose=COMPOSE + b"\n")
    assert other.reason == "compose-hash-mismatch"


def test_every_broken_rule_is_named_the_first_one_first(tmp_path: Path) -> None:
    swapped = (BOOT[0], BOOT[2], BOOT[1], *BOOT[3:-1])
    verdict = _judge(tmp_path, event_log=encode_log(swapped), registers=_registers(BOOT))
    assert verdict.reason == "rtmr3-mismatch"
    assert set(verdict.reasons) == {"rtmr3-mismatch", "event-missing", "event-order"}
    entries: list[Any] = encode_log((*BOOT, RuntimeEvent("app-id", bytes(20))))
    entries[2]["event_payload"] = bytes(32).hex()
    entries[4]["event_type"] = 1
    verdict = _judge(tmp_path, event_log=entries, registers=_registers(BOOT))
    assert verdict.reason == "digest-mismatch"
    assert {"digest-mismatch", "runtime-event-type", "event-duplicate"} <= set(verdict.reasons)


def test_a_launch_document_alone_is_held_against_the_launch_register(tmp_path: Path) -> None:
    def judged(register: bytes, launch: bytes = COMPOSE, **files: Any) -> Verdict:
        stated = _registers((), mrconfigid=register.hex())
        return _judge(tmp_path, registers=stated, app_compose=launch, **files)

    form1 = mrconfigid_form1(DIGEST)
    assert judged(form1).claims["mrconfigid_form"] == 1
    document = {"compose_hash": DIGEST.hex(), "key_provider": "none", "version": 3}
    text = json.dumps(document, separators=(",", ":"))
    form3 = mrconfigid_form3(text.encode())
    assert judged(form3, vm_config={"mr_config": text}).outcome == "accept"
    for verdict in (
        judged(bytes(48)),
        judged(form1, COMPOSE + b" "),
        judged(form1[:-1] + b"\1"),
        judged(form3),
        judged(form3, COMPOSE + b" ", vm_config={"mr_config": text}),
        judged(form3, vm_config={"mr_config": text.replace("none", "kms")}),
    ):
        assert verdict.reason == "mrconfigid-mismatch"


@pytest.mark.parametrize("check", ["mrconfigid", "mrconfigid-unset"])
def test_a_case_about_the_launch_register_asks_for_one_that_is_set(
    tmp_path: Path, check: str
) -> None:
    verdict = _judge(tmp_path, check, event_log=encode_log(BOOT), registers=_registers(BOOT))
    assert verdict.reason == "mrconfigid-mismatch"


@pytest.mark.parametrize("files", [{}, {"registers": _registers(BOOT)}, {"vm_config": {}}])
def test_nothing_to_hold_against_anything_is_never_accepted(
    tmp_path: Path, files: dict[str, Any]
) -> None:
    with pytest.raises(Unclear):
        _judge(tmp_path, **files)
