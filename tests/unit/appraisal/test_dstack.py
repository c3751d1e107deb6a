"""One dstack machine: the profile of its log, its policy, its image, and what is said of it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest
from dstack_logs import (
    ACPI,
    COMPOSE_HASH,
    MEMORY,
    PROVIDER,
    Image,
    Machine,
    acpi_entries,
    events,
    machine,
    measurement,
)

from confide.appraisal.dstack import mr_aggregated, mr_system
from confide.appraisal.dstack_log import KeyProvider, read_dstack_events
from confide.appraisal.dstack_policy import DstackPolicy
from confide.appraisal.lite import (
    acpi_digests,
    read_lite_inputs,
    read_measurement,
    require_image_files,
    td_hob,
)
from confide.appraisal.steps import Refused
from confide.appraisal.tdx_policy import UnsafeAny
from confide.errors import FormatError, Reason
from confide.rats import Status
from confide.wire.json import b64encode
from confide.wire.rtmr_log import RuntimeEvent, encode_log, parse_log

ANY = UnsafeAny()
SCRIPT = RuntimeEvent("init-script-hash", bytes(32))


def _moved(name: str, *, to: int) -> list[RuntimeEvent]:
    boot = events()
    (event,) = (event for event in boot if event.name == name)
    rest = [other for other in boot if other is not event]
    return [*rest[:to], event, *rest[to:]]


def test_a_boot_of_the_newest_guest_is_read_whole() -> None:
    attested = b'{"evidence_sha256":"' + b"ab" * 32 + b'"}'
    boot = events(gpu_attestation=attested, mr_kms=b"\x01\x02")
    boot[3:3] = [SCRIPT, replace(SCRIPT, payload=b"\x01" * 32)]
    found = read_dstack_events(parse_log(encode_log([*boot, RuntimeEvent("note", b"x")])))
    assert found.init_script_hashes == (bytes(32), b"\x01" * 32)
    assert found.gpu_evidence_sha256 == b"\xab" * 32
    assert found.mr_kms == b"\x01\x02"
    assert found.key_provider == PROVIDER
    assert found.storage_fs == "zfs"
    assert found.after_ready == ("note",)


def test_a_boot_of_the_oldest_guest_is_read_whole() -> None:
    absent = (
        *("system_preparing", "gpu_policy_hash", "instance_id", "boot_mr_done"),
        *("os_image_hash", "key_provider", "storage_fs"),
    )
    found = read_dstack_events(parse_log(encode_log(events(**dict.fromkeys(absent)))))
    assert (found.compose_hash, found.key_provider, found.storage_fs) == (COMPOSE_HASH, None, "")
    assert found.gpu_evidence_sha256 is None


@pytest.mark.parametrize(
    ("boot", "reason"),
    [
        (events(app_id=None), Reason.EVENT_MISSING),
        (events(compose_hash=None), Reason.EVENT_MISSING),
        (events(system_ready=None), Reason.EVENT_MISSING),
        ([], Reason.EVENT_MISSING),
        ([*events()[:3], *events()[2:]], Reason.EVENT_DUPLICATE),
        ([*events(), events()[2]], Reason.EVENT_DUPLICATE),
        ([*events(), events()[-1]], Reason.EVENT_DUPLICATE),
        ([RuntimeEvent("app-note", b""), *events()], Reason.EVENT_UNKNOWN),
        ([*events()[:2], RuntimeEvent("App-Id", bytes(20)), *events()[2:]], Reason.EVENT_UNKNOWN),
        (_moved("app-id", to=2), Reason.EVENT_ORDER),
        (_moved("system-preparing", to=3), Reason.EVENT_ORDER),
        (_moved("storage-fs", to=len(events()) - 1), Reason.EVENT_ORDER),
        ([*events(), SCRIPT], Reason.EVENT_ORDER),
        ([SCRIPT, *events()], Reason.EVENT_ORDER),
    ],
)
def test_a_log_that_replays_but_breaks_the_profile_is_refused(
    boot: list[RuntimeEvent], reason: Reason
) -> None:
    assert machine(boot).failures() == [("dstack/5", reason.value)]


@pytest.mark.parametrize(
    "changed",
    [
        {"system_preparing": b"x"},
        {"app_id": COMPOSE_HASH[:19]},
        {"compose_hash": COMPOSE_HASH + b"x"},
        {"gpu_policy_hash": b""},
        {"instance_id": bytes(32)},
        {"boot_mr_done": b"x"},
        {"os_image_hash": bytes(48)},
        {"system_ready": b"x"},
        {"key_provider": b"kms"},
        {"key_provider": b'{"name":"kms","id":"0A"}'},
        {"key_provider": b'{"name":"kms","id":"0a","more":1}'},
        {"key_provider": b'{"name":"kms"}'},
        {"storage_fs": b"\xff"},
        {"storage_fs": b"zfs\n"},
        {"storage_fs": b"z" * 65},
    ],
)
def test_a_payload_that_is_not_what_its_name_says_is_refused(changed: dict[str, bytes]) -> None:
    assert machine(events(**changed)).failures() == [("dstack/5", "log-format")]


def test_a_gpu_attestation_that_is_not_json_is_only_read_when_somebody_asks() -> None:
    found = read_dstack_events(parse_log(encode_log(events(gpu_attestation=b"\xff"))))
    with pytest.raises(FormatError):
        _ = found.gpu_evidence_sha256


@pytest.mark.parametrize("log", [None, {}, "[]", [1], [{"imr": 3}], [[]]])
def test_a_log_that_is_none_is_refused_and_nothing_raises(log: Any) -> None:
    (first, *_) = replace(machine(), log=log).failures()
    assert first == ("dstack/1", "evidence-missing" if log is None else "log-format")


def test_the_firmware_part_of_a_full_log_has_to_follow_too() -> None:
    good = machine()
    entry = {"imr": 1, "event_type": 4, "digest": "ab" * 48, "event": "", "event_payload": ""}
    bad = replace(good, log=[*good.log, entry])
    assert bad.failures() == [("dstack/4", "rtmr0-mismatch")]
    covered = replace(good, log=[entry, *good.log[3:]], vm_config=None).under(os_image_hashes=ANY)
    assert covered.failures() == [("dstack/4", "rtmr1-mismatch")]


def test_what_was_switched_off_is_said() -> None:
    lax = DstackPolicy(
        compose_hashes=ANY,
        os_image_hashes=ANY,
        key_providers=ANY,
        storage=ANY,
        unsafe_no_launch_document=True,
        unsafe_unset_mrconfigid=True,
    )
    bare = replace(machine(), launch=None, vm_config=None, policy=lax)
    verdict = bare.quoting(mr_config_id=bytes(48)).judge()
    assert verdict.accepted
    assert verdict.facts.mrconfigid_form == 0
    assert not verdict.facts.launch_bound
    assert verdict.facts.os_image_hash is None
    assert len(verdict.facts.limits) == 3
    assert len(lax.relaxations) == 6
    assert machine().policy.relaxations == ()
    skipped = [item.step for item in verdict.findings if item.status is Status.NOT_PROVEN]
    assert skipped == [f"dstack/{number}" for number in range(11, 16)]


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        (replace(machine(), launch=None), ("dstack/6", "evidence-missing")),
        (machine().quoting(mr_config_id=bytes(48)), ("dstack/7", "mrconfigid-mismatch")),
        (replace(machine(), vm_config=None), ("dstack/16", "os-image-hash")),
        (machine().under(compose_hashes=frozenset()), ("dstack/8", "compose-hash-mismatch")),
        (machine().under(os_image_hashes=frozenset()), ("dstack/16", "os-image-hash")),
        (machine().under(key_providers=frozenset()), ("dstack/9", "key-mismatch")),
        (machine().under(storage=frozenset()), ("dstack/10", "event-unknown")),
        (
            machine(events(key_provider=None)).under(key_providers=frozenset({PROVIDER})),
            ("dstack/9", "key-mismatch"),
        ),
    ],
)
def test_absent_is_refused_and_an_empty_list_accepts_nothing(
    bad: Machine, expected: tuple[str, str]
) -> None:
    assert bad.failures() == [expected]


def test_no_key_provider_is_accepted_where_the_list_says_none() -> None:
    none = frozenset({KeyProvider("none", b"")})
    assert machine(events(key_provider=None)).under(key_providers=none).judge().accepted


def test_a_policy_says_all_its_fields() -> None:
    document = machine().policy.document()
    assert document["key_providers"] == ["kms:0a0b"]
    assert document["compose_hashes"] == [COMPOSE_HASH.hex()]
    assert machine().under(storage=ANY).policy.document()["storage"] == "unsafe-any"


def test_derived_values_count_the_launch_registers_only_where_one_is_set() -> None:
    registers = machine().registers
    parts = registers.mr_td + b"".join(registers.rtmr)
    launch = registers.mr_config_id + registers.mr_owner + registers.mr_owner_config
    assert mr_aggregated(registers) == hashlib.sha256(parts + launch).digest()
    unset = replace(registers, mr_config_id=bytes(48))
    assert mr_aggregated(unset) == hashlib.sha256(parts).digest()
    system = hashlib.sha256(parts[: 4 * 48] + b"info").digest()
    assert mr_system(registers, b"info") == system


@pytest.mark.parametrize("memory", [2 << 30, 0xB0000000, 3 << 30, 64 << 30])
def test_every_memory_size_has_its_own_register(memory: int) -> None:
    assert machine(memory=memory).judge().accepted
    other = replace(machine(memory=memory), vm_config=Image().vm_config(memory + 4096))
    assert other.failures() == [("dstack/13", "rtmr0-mismatch")]


def test_the_hand_off_block_above_the_split_goes_on_at_four_gib() -> None:
    hob = read_measurement(measurement()).hob
    low, high = td_hob(hob, 2 << 30), td_hob(hob, 4 << 30)
    assert len(high) == len(low) + 48
    start, length = high[-16:-8], high[-8:]
    assert int.from_bytes(start, "little") == 4 << 30
    assert int.from_bytes(length, "little") == (4 << 30) - (2 << 30)
    assert int.from_bytes(low[48:56], "little") == (2048 + 9) * 4096 + len(low) + 8


def test_ranges_that_do_not_fit_the_memory_are_no_machine() -> None:
    for hob, memory in (((0, 0, 0), 0), ((0, 0, 1, 0, 2), 4096), ((0, 0, 2, 0, 2, 1, 1), 1 << 20)):
        with pytest.raises(Refused) as refused:
            td_hob(hob, memory)
        assert refused.value.reason is Reason.RTMR0_MISMATCH


def test_acpi_digests_are_found_by_name_or_by_place() -> None:
    entries = acpi_entries()
    assert acpi_digests(parse_log(entries)) == ACPI
    named: list[Any] = [
        {**entry, "event": name, "event_payload": b"ACPI DATA".hex()}
        for entry, name in zip(entries, ("acpi-loader", "acpi-rsdp", "acpi-tables"), strict=True)
    ]
    assert acpi_digests(parse_log(named[::-1])) == ACPI
    for wrong in (entries[:2], entries * 2, [*named, named[0]], [named[0], *entries[1:]]):
        with pytest.raises(Refused):
            acpi_digests(parse_log(wrong))


def _files(**changed: Any) -> dict[str, Any]:
    config = Image().vm_config()
    files = {**config["tdx_measurement"], **changed.pop("files", {})}
    return {**config, "tdx_measurement": files, **changed}


@pytest.mark.parametrize(
    "checksum",
    [
        b"",
        Image().checksum_file * 2,
        Image().checksum_file.replace(b"measurement", b"other"),
        Image().checksum_file.replace(b"  ", b" "),
        Image(b"other").checksum_file,
        Image().checksum_file.upper(),
    ],
)
def test_a_checksum_file_has_to_name_the_measurement_once(checksum: bytes) -> None:
    name = hashlib.sha256(checksum).hexdigest()
    config = _files(files={"checksum_file": b64encode(checksum)}, os_image_hash=name)
    inputs = read_lite_inputs(config)
    assert inputs is not None
    with pytest.raises(Refused) as refused:
        require_image_files(inputs)
    assert refused.value.reason is Reason.OS_IMAGE_HASH


@pytest.mark.parametrize(
    "config",
    [
        _files(memory_size=-1),
        _files(memory_size="2147483648"),
        _files(memory_size=True),
        _files(memory_size=1 << 53),
        _files(os_image_hash="00"),
        _files(files={"measurement": "?"}),
        _files(files={"more": 1}),
        _files(tdx_measurement=[]),
        [],
        "text",
    ],
)
def test_a_malformed_description_is_a_finding(config: Any) -> None:
    (first, *_) = replace(machine(), vm_config=config).failures()
    assert first == ("dstack/11", "service-format")


@pytest.mark.parametrize("size", [0, 1, (2 << 30) + 1, 1 << 32, 1 << 52])
def test_another_memory_size_is_another_register(size: int) -> None:
    (first, *_) = replace(machine(), vm_config=_files(memory_size=size)).failures()
    assert first == ("dstack/13", "rtmr0-mismatch")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"gversion\x03", b"gversion\x02"),
        (b"eimage", b"eimagf"),
        (b"single_pass", b"single_pasS"),
        (b"X0", b"X/"),
        (b"dovmf", b"dovmg"),
        (b"L\x80\x10", b"L\x80\x80"),
        (b"L\x80\x10\x09\x04", b"L\x80\x10\x09\x05"),
        (b"L\x80\x10\x09", b"L\x80\x00\x09"),
    ],
)
def test_a_measurement_file_with_one_thing_wrong_is_malformed(old: bytes, new: bytes) -> None:
    raw = measurement()
    assert old in raw
    with pytest.raises(FormatError):
        read_measurement(raw.replace(old, new, 1))


def test_the_description_is_not_read_where_it_has_no_files() -> None:
    configs: tuple[Any, ...] = (None, {}, {"memory_size": MEMORY}, {"tdx_measurement": None})
    for config in configs:
        assert read_lite_inputs(config) is None


def _rewritten(raw: bytes) -> Machine:
    """The machine, said to run an image whose measurement file is `raw`, all hashes made to fit."""
    checksum = f"{hashlib.sha256(raw).hexdigest()}  measurement.tdx.cbor\n".encode()
    files = {"checksum_file": b64encode(checksum), "measurement": b64encode(raw)}
    name = hashlib.sha256(checksum).hexdigest()
    return replace(machine(), vm_config=_files(files=files, os_image_hash=name))


def test_no_changed_measurement_file_is_the_image_on_the_list() -> None:
    raw = measurement()
    assert _rewritten(raw).judge().accepted
    for index in range(len(raw)):
        changed = raw[:index] + bytes([raw[index] ^ 1 << index % 8]) + raw[index + 1 :]
        assert not _rewritten(changed).judge().accepted, f"byte {index}"


def test_no_changed_byte_of_a_boot_event_keeps_the_register() -> None:
    good = machine()
    for index, entry in enumerate(good.log):
        for name in ("event_payload", "digest", "preimage"):
            text = entry.get(name, "")
            for at in range(0, len(text), 8):
                digit = f"{int(text[at], 16) ^ 1:x}"
                edited = {**entry, name: text[:at] + digit + text[at + 1 :]}
                log = [*good.log[:index], edited, *good.log[index + 1 :]]
                assert not replace(good, log=log).judge().accepted, (index, name, at)
