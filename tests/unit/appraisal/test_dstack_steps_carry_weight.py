"""Without any one of the steps of docs/protocols/dstack.md §7 a bad machine passes.

Every bad machine is refused by the whole procedure first, by that step alone. Steps that establish
what later steps stand on are replaced by one that establishes it without looking.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from dstack_logs import ACPI, COMPOSE, Image, Machine, events, machine, measurement, replay
from mutants import without

from confide.appraisal import dstack, firmware_log
from confide.appraisal.dstack_log import KeyProvider, read_dstack_events
from confide.appraisal.eventlog import runtime_part
from confide.appraisal.launch import mrconfigid_form1
from confide.appraisal.lite import read_lite_inputs, read_measurement
from confide.appraisal.tdx_policy import UnsafeAny
from confide.rats import Status
from confide.wire.ccel import CcelEvent, encode_ccel
from confide.wire.rtmr_log import RuntimeEvent, encode_log, parse_log

if TYPE_CHECKING:
    from collections.abc import Callable

ANY = UnsafeAny()


def _register_of_nobody() -> Machine:
    good = machine()
    extra = {**good.log[0], "imr": 4}
    return replace(good, log=[*good.log, extra])


def _blind_parse(state: Any) -> None:
    state.entries = parse_log([entry for entry in state.runtime_log if entry["imr"] < 4])


def _payload_edited() -> Machine:
    # The instance is another one; the digest is still the one that was extended.
    good = machine()
    forged = RuntimeEvent("instance-id", b"\x11" * 20)
    (entry,) = (entry for entry in good.log if entry["event"] == forged.name)
    (edited,) = encode_log([forged])
    assert isinstance(edited, dict)
    kept = {**edited, "digest": entry["digest"]}
    log = [kept if old is entry else old for old in good.log]
    return replace(good, log=log)


def _blind_digests(state: Any) -> None:
    state.runtime = runtime_part(state.entries)
    state.replayed = replay([entry.digest for entry in state.runtime])


def _event_not_extended() -> Machine:
    good = machine()
    return replace(good, log=[*good.log, *encode_log([RuntimeEvent("app-note", b"x")])])


def _firmware_digest_edited() -> Machine:
    # A whole log of registers 1 and 2 beside the ACPI digests, with one digest changed.
    good = machine().under(os_image_hashes=ANY)
    first = {"imr": 1, "event_type": 4, "digest": "ab" * 48, "event": "", "event_payload": ""}
    return replace(good, log=[first, *good.log[3:]], vm_config=None)


def _unknown_boot_event() -> Machine:
    boot = events()
    return machine([*boot[:4], RuntimeEvent("backdoor", b""), *boot[4:]])


def _blind_profile(state: Any) -> None:
    known = {event.name for event in events()}
    state.events = read_dstack_events([e for e in state.runtime if e.event.name in known])


def _other_launch() -> Machine:
    return replace(machine(), launch=COMPOSE + b"\n")


def _other_mrconfigid() -> Machine:
    return machine().quoting(mr_config_id=mrconfigid_form1(bytes(32)))


def _evil_image_under_a_good_name() -> Machine:
    # The registers are those of another image, which says that it is the one on the list.
    return machine(image=Image(b"evil", Image().hash))


def _blind_files(state: Any) -> None:
    state.inputs = read_lite_inputs(state.vm_config)
    state.measurement = read_measurement(state.inputs.measurement)


def _register(index: int) -> Callable[[], Machine]:
    return lambda: machine().under(os_image_hashes=ANY).quoting(index, b"\x07" * 48)


BAD: dict[str, tuple[Callable[[], Machine], Callable[[Any], Any] | None]] = {
    "dstack/1": (_register_of_nobody, _blind_parse),
    "dstack/2": (_payload_edited, _blind_digests),
    "dstack/3": (_event_not_extended, None),
    "dstack/4": (_firmware_digest_edited, None),
    "dstack/5": (_unknown_boot_event, _blind_profile),
    "dstack/6": (_other_launch, None),
    "dstack/7": (_other_mrconfigid, None),
    "dstack/8": (lambda: machine().under(compose_hashes=frozenset({bytes(32)})), None),
    "dstack/9": (
        lambda: machine().under(key_providers=frozenset({KeyProvider("kms", b"other")})),
        None,
    ),
    "dstack/10": (lambda: machine().under(storage=frozenset({"ext4"})), None),
    "dstack/11": (_evil_image_under_a_good_name, _blind_files),
    "dstack/12": (
        lambda: machine().under(os_image_hashes=ANY).quoting(mr_td=b"\x07" * 48),
        None,
    ),
    "dstack/13": (_register(0), None),
    "dstack/14": (_register(1), None),
    "dstack/15": (_register(2), None),
    "dstack/16": (lambda: machine().under(os_image_hashes=frozenset({bytes(32)})), None),
}


def test_the_machine_that_all_cases_start_from_is_accepted() -> None:
    verdict = machine().judge()
    assert verdict.accepted
    assert all(finding.status is Status.PASS for finding in verdict.findings)
    assert verdict.facts.os_image_hash == Image().hash
    assert verdict.facts.covered == {3}


def test_every_step_has_a_case() -> None:
    steps = (*dstack.DSTACK_STEPS, *dstack.LITE_STEPS, dstack.IMAGE_STEP)
    assert [step.id for step in steps] == list(BAD)


@pytest.mark.parametrize("step", BAD)
def test_without_the_step_a_bad_machine_passes(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, blind = BAD[step]
    bad = make()
    assert [name for name, _ in bad.failures()] == [step], "another step refuses it too"

    monkeypatch.setattr(dstack, "DSTACK_STEPS", without(dstack.DSTACK_STEPS, step, blind))
    monkeypatch.setattr(dstack, "LITE_STEPS", without(dstack.LITE_STEPS, step, blind))
    if step == dstack.IMAGE_STEP.id:
        monkeypatch.setattr(dstack, "IMAGE_STEP", replace(dstack.IMAGE_STEP, run=lambda _: None))
    assert bad.judge().accepted


CCEL = (CcelEvent(1, 4, ACPI[0], b""), CcelEvent(4, 6, ACPI[1], b""))
CCEL_REGISTERS = (replay([ACPI[0]]), bytes(48), bytes(48), replay([ACPI[1]]))


def test_a_runtime_record_of_a_confidential_container_counts_towards_rtmr3() -> None:
    verdict = firmware_log.judge_ccel(
        encode_ccel(CCEL), quoted=CCEL_REGISTERS, runtime_elsewhere=False
    )
    assert verdict.accepted
    assert verdict.covered == {0, 1, 2, 3}


def test_two_logs_cannot_both_claim_rtmr3() -> None:
    verdict = firmware_log.judge_ccel(
        encode_ccel(CCEL), quoted=CCEL_REGISTERS, runtime_elsewhere=True
    )
    assert [str(finding.reason) for finding in verdict.findings if finding.failed] == [
        "rtmr3-mismatch"
    ]
    assert verdict.covered == frozenset()


@pytest.mark.parametrize("step", ["ccel/1", "ccel/2"])
def test_without_the_step_a_bad_firmware_log_passes(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = encode_ccel(CCEL)
    raw, blind = {
        # A record of a register that does not exist, after those that replay.
        "ccel/1": (raw + (5).to_bytes(4, "little") + raw[73:], _blind_ccel),
        "ccel/2": (encode_ccel(CCEL[:1]), None),
    }[step]
    judged = firmware_log.judge_ccel(raw, quoted=CCEL_REGISTERS, runtime_elsewhere=False)
    assert [finding.step for finding in judged.findings if finding.failed] == [step]
    monkeypatch.setattr(firmware_log, "CCEL_STEPS", without(firmware_log.CCEL_STEPS, step, blind))
    assert firmware_log.judge_ccel(raw, quoted=CCEL_REGISTERS, runtime_elsewhere=False).accepted


def _blind_ccel(state: Any) -> None:
    state.events = CCEL


def test_the_measurement_of_the_made_up_image_is_one_that_the_reader_takes() -> None:
    assert read_measurement(measurement()).hob[:3] == (2048, 9, 4)
