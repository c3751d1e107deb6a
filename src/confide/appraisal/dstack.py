"""Judging one dstack machine: log, launch document, launch register, image. Pure.

Performs steps dstack/1 to dstack/16 of docs/protocols/dstack.md §7 over registers of a *verified*
quote and hostile documents. Authenticity of the quote, freshness, keys and devices are judged
elsewhere. A verdict holds every finding and only facts whose steps passed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from confide.appraisal.dstack_log import DstackEvents, KeyProvider, read_dstack_events
from confide.appraisal.eventlog import (
    register_reason,
    replay_digests,
    replay_runtime,
    runtime_part,
)
from confide.appraisal.launch import judge_mrconfigid
from confide.appraisal.lite import (
    LiteInputs,
    Measurement,
    acpi_digests,
    is_stripped,
    lite_rtmr0,
    lite_rtmr1,
    lite_rtmr2,
    read_lite_inputs,
    read_measurement,
    require_image_files,
)
from confide.appraisal.steps import Refused, Step, established, run_steps
from confide.appraisal.tdx_policy import UnsafeAny
from confide.errors import FormatError, Reason
from confide.rats import Finding, Status
from confide.wire.rtmr_log import parse_log

if TYPE_CHECKING:
    from confide.appraisal.dstack_policy import DstackPolicy
    from confide.wire.json import JsonValue
    from confide.wire.rtmr_log import LogEntry
    from confide.wire.tdx import TdBody10

__all__ = [
    "DSTACK_STEPS",
    "IMAGE_STEP",
    "LITE_STEPS",
    "DstackFacts",
    "DstackRegisters",
    "DstackVerdict",
    "judge_dstack",
    "mr_aggregated",
    "mr_system",
]

_DOC: Final = "docs/protocols/dstack.md"
_LOG: Final = "docs/protocols/eventlog.md"
_NO_PROVIDER: Final = KeyProvider("none", b"")


@dataclass(frozen=True, slots=True, kw_only=True)
class DstackRegisters:
    """The registers of a verified quote that this appraisal reads; 48 bytes each."""

    mr_td: bytes
    rtmr: tuple[bytes, bytes, bytes, bytes]
    mr_config_id: bytes
    mr_owner: bytes
    mr_owner_config: bytes

    @classmethod
    def of(cls, body: TdBody10) -> DstackRegisters:
        """Return the registers of the body of a quote, which the caller has verified."""
        return cls(
            mr_td=body.mr_td,
            rtmr=body.rtmr,
            mr_config_id=body.mr_config_id,
            mr_owner=body.mr_owner,
            mr_owner_config=body.mr_owner_config,
        )


def mr_aggregated(registers: DstackRegisters) -> bytes:
    """Return SHA-256 over MRTD and RTMR0..3, and over the launch registers if any is not zero."""
    launch = registers.mr_config_id + registers.mr_owner + registers.mr_owner_config
    parts = registers.mr_td + b"".join(registers.rtmr)
    return hashlib.sha256(parts + (launch if launch.strip(b"\0") else b"")).digest()


def mr_system(registers: DstackRegisters, key_provider_info: bytes) -> bytes:
    """Return SHA-256 over MRTD, RTMR0..2 and the exact payload of the key-provider event."""
    parts = registers.mr_td + b"".join(registers.rtmr[:3])
    return hashlib.sha256(parts + key_provider_info).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class DstackFacts:
    """
    What was established; None and empty where the step that establishes it did not pass.

    `covered` are the RTMRs (0..3) that the log reproduces. `launch_bound` says that the compose
    document hashes to the measured event. `mrconfigid_form` is 0 where nobody set the register.
    `os_image_hash` is set only where the registers were recomputed from that image. `limits` says
    in words what this does not show.
    """

    covered: frozenset[int]
    events: DstackEvents | None
    launch_bound: bool
    mrconfigid_form: int | None
    os_image_hash: bytes | None
    mr_aggregated: bytes
    mr_system: bytes | None
    limits: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DstackVerdict:
    """Every finding in step order, and the facts. Accepted when no finding failed."""

    findings: tuple[Finding, ...]
    facts: DstackFacts

    @property
    def failures(self) -> tuple[Finding, ...]:
        """The findings that failed, in step order."""
        return tuple(finding for finding in self.findings if finding.failed)

    @property
    def accepted(self) -> bool:
        """Whether every step that applies passed."""
        return not self.failures


@dataclass(slots=True)
class _State:
    registers: DstackRegisters
    runtime_log: JsonValue
    launch: bytes | None
    vm_config: JsonValue
    policy: DstackPolicy
    entries: tuple[LogEntry, ...] = ()
    runtime: tuple[LogEntry, ...] = ()
    replayed: bytes | None = None
    covered: set[int] = field(default_factory=set)
    events: DstackEvents | None = None
    launch_bound: bool = False
    form: int | None = None
    inputs: LiteInputs | None = None
    measurement: Measurement | None = None
    recomputed: bool = False


def judge_dstack(
    *,
    registers: DstackRegisters,
    runtime_log: JsonValue,
    launch: bytes | None,
    vm_config: JsonValue,
    policy: DstackPolicy,
    subject: str = "dstack",
) -> DstackVerdict:
    """
    Judge what a dstack machine measured and how it was launched, under `policy`.

    `registers` come from a verified quote. `runtime_log` is the JSON array of the log, `launch` the
    exact bytes of app-compose.json, `vm_config` the machine description as JSON, all hostile. Never
    raises for bad input: every refusal is a finding. **Does not check** the quote, report data,
    images named in the compose document, nor ACPI tables. Raises `ConfigurationError` where form 2
    of MRCONFIGID needs pycryptodome and it is not installed.
    """
    state = _State(registers, runtime_log, launch, vm_config, policy)
    if _presents_image(vm_config):
        # What was not recomputed completely is no image of anybody's list.
        image = replace(IMAGE_STEP, needs=tuple(step.id for step in LITE_STEPS))
        findings = run_steps((*DSTACK_STEPS, *LITE_STEPS, image), state, subject=subject)
        passed = {finding.step for finding in findings if finding.status is Status.PASS}
        state.recomputed = passed.issuperset(image.needs)
    else:
        findings = run_steps(DSTACK_STEPS, state, subject=subject)
        findings += tuple(_not_run(step, subject) for step in LITE_STEPS)
        findings += run_steps((IMAGE_STEP,), state, subject=subject)
    return DstackVerdict(findings, _facts(state))


def _presents_image(vm_config: JsonValue) -> bool:
    # A description that is no object is malformed, and the first of these steps says so.
    if isinstance(vm_config, dict):
        return vm_config.get("tdx_measurement") is not None
    return vm_config is not None


def _not_run(step: Step[_State], subject: str) -> Finding:
    detail = "not run: no measurement file was presented"
    return Finding(Status.NOT_PROVEN, step.id, step.clause, subject, detail)


def _parse_step(state: _State) -> str:
    if state.runtime_log is None:
        raise Refused(Reason.EVIDENCE_MISSING, "no event log was presented")
    state.entries = parse_log(state.runtime_log)
    return f"{len(state.entries)} entries"


def _digests_step(state: _State) -> str:
    state.runtime = runtime_part(state.entries)
    state.replayed = replay_runtime(state.runtime)
    return f"{len(state.runtime)} runtime events, digests recomputed"


def _rtmr3_step(state: _State) -> str:
    if established(state.replayed) != state.registers.rtmr[3]:
        raise Refused(Reason.RTMR3_MISMATCH, "RTMR3 does not follow from the runtime log")
    state.covered.add(3)
    return "RTMR3 reproduced"


def _firmware_step(state: _State) -> str:
    if is_stripped(state.entries):
        return "stripped log: covers no firmware register"
    replayed = replay_digests(state.entries)
    for index in sorted(replayed):
        if replayed[index] != state.registers.rtmr[index]:
            raise Refused(register_reason(index), f"RTMR{index} does not follow from the log")
    state.covered |= replayed.keys()
    names = ", ".join(f"RTMR{index}" for index in sorted(replayed)) or "none"
    return f"covered: {names}; names and payloads of these entries are labels"


def _profile_step(state: _State) -> str:
    state.events = read_dstack_events(state.runtime)
    later = len(state.events.after_ready)
    return f"boot events complete and in order, {later} after system-ready ignored"


def _compose_step(state: _State) -> str:
    if state.launch is None:
        if not state.policy.unsafe_no_launch_document:
            raise Refused(Reason.EVIDENCE_MISSING, "no compose document was presented")
        return "no compose document: accepted unsafely"
    if hashlib.sha256(state.launch).digest() != established(state.events).compose_hash:
        raise Refused(
            Reason.COMPOSE_HASH_MISMATCH, "the document does not hash to the measured event"
        )
    state.launch_bound = True
    return f"{len(state.launch)} bytes, hashed as they are"


def _mrconfigid_step(state: _State) -> str:
    said = state.vm_config.get("mr_config") if isinstance(state.vm_config, dict) else None
    if said is not None and not isinstance(said, str):
        raise FormatError("mr_config is not text", reason=Reason.SERVICE_FORMAT, clause=f"{_DOC}#5")
    form = judge_mrconfigid(
        state.registers.mr_config_id,
        established(state.events),
        document=said.encode() if said else None,
    )
    if form == 0 and not state.policy.unsafe_unset_mrconfigid:
        raise Refused(Reason.MRCONFIGID_MISMATCH, "nobody set it")
    state.form = form
    return f"form {form}" if form else "nobody set it: accepted unsafely"


def _expected_step(state: _State) -> str:
    allowed = state.policy.compose_hashes
    if isinstance(allowed, UnsafeAny):
        return "any app: accepted unsafely"
    if established(state.events).compose_hash not in allowed:
        raise Refused(Reason.COMPOSE_HASH_MISMATCH, "the app is not on the list")
    return "the app is on the list"


def _provider_step(state: _State) -> str:
    allowed = state.policy.key_providers
    if isinstance(allowed, UnsafeAny):
        return "any key provider: accepted unsafely"
    if (established(state.events).key_provider or _NO_PROVIDER) not in allowed:
        raise Refused(Reason.KEY_MISMATCH, "the key provider is not on the list")
    return "the key provider is on the list"


def _storage_step(state: _State) -> str:
    allowed = state.policy.storage
    if isinstance(allowed, UnsafeAny):
        return "any storage: accepted unsafely"
    if established(state.events).storage_fs not in allowed:
        raise Refused(Reason.EVENT_UNKNOWN, "the storage file system is not on the list")
    return "the storage file system is on the list"


def _files_step(state: _State) -> str:
    inputs = read_lite_inputs(state.vm_config)
    if inputs is None:
        raise FormatError(
            "vm_config is not an object", reason=Reason.SERVICE_FORMAT, clause=f"{_DOC}#6"
        )
    state.inputs = inputs
    require_image_files(inputs)
    state.measurement = read_measurement(inputs.measurement)
    return "the image hash covers the measurement file"


def _mrtd_step(state: _State) -> str:
    measured = established(state.measurement)
    if state.registers.mr_td == measured.mrtd_two_pass:
        return "two-pass build"
    if state.registers.mr_td != measured.mrtd_single_pass:
        raise Refused(Reason.MRTD_MISMATCH, "MRTD is neither of the two of this firmware")
    return "single-pass build"


def _same(state: _State, index: int, computed: bytes) -> str:
    if computed != state.registers.rtmr[index]:
        raise Refused(register_reason(index), f"RTMR{index} does not follow from the image")
    return f"RTMR{index} recomputed"


def _lite_rtmr0_step(state: _State) -> str:
    computed = lite_rtmr0(
        established(state.measurement),
        memory_size=established(state.inputs).memory_size,
        acpi=acpi_digests(state.entries),
    )
    return f"{_same(state, 0, computed)}; acpi: not checked"


def _lite_rtmr1_step(state: _State) -> str:
    return _same(state, 1, lite_rtmr1(established(state.measurement)))


def _lite_rtmr2_step(state: _State) -> str:
    return _same(state, 2, lite_rtmr2(established(state.measurement)))


def _image_step(state: _State) -> str:
    allowed = state.policy.os_image_hashes
    if isinstance(allowed, UnsafeAny):
        return "any image: accepted unsafely"
    if state.inputs is None:
        raise Refused(Reason.OS_IMAGE_HASH, "the registers were not recomputed from any image")
    if state.inputs.os_image_hash not in allowed:
        raise Refused(Reason.OS_IMAGE_HASH, "the image is not on the list")
    return "the image is on the list"


# From: docs/protocols/dstack.md §7.
DSTACK_STEPS: tuple[Step[_State], ...] = (
    Step("dstack/1", f"{_LOG}#1", _parse_step),
    Step("dstack/2", f"{_LOG}#1", _digests_step, needs=("dstack/1",)),
    Step("dstack/3", f"{_LOG}#1", _rtmr3_step, needs=("dstack/2",)),
    Step("dstack/4", f"{_LOG}#1", _firmware_step, needs=("dstack/1",)),
    Step("dstack/5", f"{_LOG}#5", _profile_step, needs=("dstack/3",)),
    Step("dstack/6", f"{_DOC}#4", _compose_step, needs=("dstack/5",)),
    Step("dstack/7", f"{_DOC}#5", _mrconfigid_step, needs=("dstack/5",)),
    Step("dstack/8", f"{_DOC}#8", _expected_step, needs=("dstack/5",)),
    Step("dstack/9", f"{_DOC}#8", _provider_step, needs=("dstack/5",)),
    Step("dstack/10", f"{_DOC}#8", _storage_step, needs=("dstack/5",)),
)
LITE_STEPS: tuple[Step[_State], ...] = (
    Step("dstack/11", f"{_DOC}#6", _files_step),
    Step("dstack/12", f"{_DOC}#6", _mrtd_step, needs=("dstack/11",)),
    Step("dstack/13", f"{_DOC}#6", _lite_rtmr0_step, needs=("dstack/1", "dstack/11")),
    Step("dstack/14", f"{_DOC}#6", _lite_rtmr1_step, needs=("dstack/11",)),
    Step("dstack/15", f"{_DOC}#6", _lite_rtmr2_step, needs=("dstack/11",)),
)
IMAGE_STEP: Step[_State] = Step("dstack/16", f"{_DOC}#8", _image_step)


def _facts(state: _State) -> DstackFacts:
    events = state.events
    provider = events.key_provider if events else None
    image = state.inputs.os_image_hash if state.recomputed and state.inputs else None
    return DstackFacts(
        covered=frozenset(state.covered),
        events=events,
        launch_bound=state.launch_bound,
        mrconfigid_form=state.form,
        os_image_hash=image,
        mr_aggregated=mr_aggregated(state.registers),
        mr_system=mr_system(state.registers, provider.raw) if provider else None,
        limits=tuple(_limits(state)),
    )


def _limits(state: _State) -> list[str]:
    found: list[str] = []
    if state.recomputed:
        found.append("acpi: not checked")
    else:
        found.append("the operating system image was not recomputed from its hash")
    if state.form == 0:
        found.append("MRCONFIGID is not set: the app is bound by the event log alone")
    if state.events is not None and state.events.os_image_hash is not None:
        found.append("os-image-hash in the log is a statement of the key server")
    if state.events is not None and state.events.after_ready:
        found.append("applications appended events after the machine was ready")
    return found
