"""Made-up dstack machines: a launch, its log, the registers that follow, an image to recompute."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import Any

from confide.appraisal.dstack import DstackRegisters, DstackVerdict, judge_dstack
from confide.appraisal.dstack_log import KeyProvider
from confide.appraisal.dstack_policy import DstackPolicy
from confide.appraisal.launch import mrconfigid_form1
from confide.appraisal.lite import lite_rtmr0, lite_rtmr1, lite_rtmr2, read_measurement
from confide.wire.json import b64encode
from confide.wire.rtmr_log import RuntimeEvent, encode_log, extend_register

COMPOSE = b'{"manifest_version":"3","name":"made up","runner":"docker-compose"}'
COMPOSE_HASH = hashlib.sha256(COMPOSE).digest()
PROVIDER = KeyProvider("kms", bytes.fromhex("0a0b"))
MEMORY = 2 << 30
ACPI = tuple(hashlib.sha384(name).digest() for name in (b"loader", b"rsdp", b"tables"))


def events(**changed: bytes | None) -> list[RuntimeEvent]:
    """The boot events of the machine; an event given as None is left out."""
    payloads: dict[str, bytes | None] = {
        "system-preparing": b"",
        "app-id": COMPOSE_HASH[:20],
        "compose-hash": COMPOSE_HASH,
        "init-script-hash": None,
        "gpu-policy-hash": hashlib.sha256(b"{}").digest(),
        "gpu-attestation": None,
        "instance-id": bytes(20),
        "boot-mr-done": b"",
        "mr-kms": None,
        "os-image-hash": bytes(32),
        "key-provider": json.dumps({"name": PROVIDER.name, "id": PROVIDER.id.hex()}).encode(),
        "storage-fs": b"zfs",
        "system-ready": b"",
    }
    payloads |= {name.replace("_", "-"): value for name, value in changed.items()}
    return [RuntimeEvent(name, raw) for name, raw in payloads.items() if raw is not None]


def replay(digests: list[bytes]) -> bytes:
    register = bytes(48)
    for digest in digests:
        register = extend_register(register, digest)
    return register


def cbor(value: Any) -> bytes:
    """The subset of CBOR that measurement files use, shortest heads."""

    def head(major: int, number: int) -> bytes:
        if number < 24:
            return bytes([major << 5 | number])
        for code, size in ((24, 1), (25, 2), (26, 4)):
            if number < 1 << 8 * size:
                return bytes([major << 5 | code]) + number.to_bytes(size, "big")
        raise ValueError(number)

    if isinstance(value, int):
        return head(0, value)
    if isinstance(value, bytes):
        return head(2, len(value)) + value
    if isinstance(value, str):
        return head(3, len(value.encode())) + value.encode()
    if isinstance(value, list):
        return head(4, len(value)) + b"".join(map(cbor, value))
    return head(5, len(value)) + b"".join(cbor(k) + cbor(v) for k, v in value.items())


def measurement(seed: bytes = b"image") -> bytes:
    def digest(what: str) -> bytes:
        return hashlib.sha384(seed + what.encode()).digest()

    return cbor(
        {
            "version": 3,
            "image": {
                "cmdline_sha384": digest("cmdline"),
                "kernel_authenticode": digest("kernel"),
                "initrd_sha384": digest("initrd"),
            },
            "tdvf": {
                "ovmf": "pre202505",
                "mrtd": {"single_pass": digest("single"), "two_pass": digest("two")},
                # Base, offset, four ranges: as a genuine file has them.
                "td_hob": bytes((0x80, 0x10, 9, 4, 0, 6, 9, 2, 11, 2, 16, 16)),
            },
        }
    )


@dataclass(frozen=True)
class Image:
    """One system image: its measurement file, and what a machine description says of it."""

    seed: bytes = b"image"
    name: bytes | None = None

    @property
    def checksum_file(self) -> bytes:
        digest = hashlib.sha256(measurement(self.seed)).hexdigest()
        return f"{digest}  measurement.tdx.cbor\n".encode()

    @property
    def hash(self) -> bytes:
        return self.name or hashlib.sha256(self.checksum_file).digest()

    def vm_config(self, memory: int = MEMORY) -> dict[str, Any]:
        return {
            "memory_size": memory,
            "os_image_hash": self.hash.hex(),
            "tdx_measurement": {
                "checksum_file": b64encode(self.checksum_file),
                "measurement": b64encode(measurement(self.seed)),
            },
        }


@dataclass(frozen=True)
class Machine:
    """Everything that `judge_dstack` takes; consistent, and accepted by its own policy."""

    registers: DstackRegisters
    log: Any
    launch: bytes | None = COMPOSE
    vm_config: Any = None
    policy: DstackPolicy = field(
        default_factory=lambda: DstackPolicy(
            compose_hashes=frozenset({COMPOSE_HASH}),
            os_image_hashes=frozenset({Image().hash}),
            key_providers=frozenset({PROVIDER}),
            storage=frozenset({"zfs"}),
        )
    )

    def judge(self) -> DstackVerdict:
        return judge_dstack(
            registers=self.registers,
            runtime_log=self.log,
            launch=self.launch,
            vm_config=self.vm_config,
            policy=self.policy,
        )

    def failures(self) -> list[tuple[str, str]]:
        return [(found.step, str(found.reason)) for found in self.judge().failures]

    def under(self, **changed: Any) -> Machine:
        return replace(self, policy=replace(self.policy, **changed))

    def quoting(self, index: int | None = None, value: bytes = bytes(48), **named: Any) -> Machine:
        """The same machine with another register in its quote."""
        if index is not None:
            rtmr = [value if i == index else old for i, old in enumerate(self.registers.rtmr)]
            named["rtmr"] = tuple(rtmr)
        return replace(self, registers=replace(self.registers, **named))


def acpi_entries() -> list[Any]:
    return [
        {"imr": 0, "event_type": 10, "digest": digest.hex(), "event": "", "event_payload": ""}
        for digest in ACPI
    ]


def machine(
    runtime: list[RuntimeEvent] | None = None, *, image: Image | None = None, memory: int = MEMORY
) -> Machine:
    """A machine with a stripped log whose registers follow from `image`."""
    made = image or Image()
    measured = read_measurement(measurement(made.seed))
    runtime = events() if runtime is None else runtime
    registers = DstackRegisters(
        mr_td=measured.mrtd_two_pass,
        rtmr=(
            lite_rtmr0(measured, memory_size=memory, acpi=(ACPI[0], ACPI[1], ACPI[2])),
            lite_rtmr1(measured),
            lite_rtmr2(measured),
            replay([event.digest() for event in runtime]),
        ),
        mr_config_id=mrconfigid_form1(COMPOSE_HASH),
        mr_owner=bytes(48),
        mr_owner_config=bytes(48),
    )
    log = [*acpi_entries(), *encode_log(runtime)]
    return Machine(registers, log, vm_config=made.vm_config(memory))
