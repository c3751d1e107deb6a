"""Judging a firmware log (CCEL) of any TD, and what of it can be said in words. Pure.

Clauses: docs/protocols/eventlog.md §2 and §6. The log is hostile and unsigned: it counts because
its replay reproduces registers of a *verified* quote. Of an event only the digest is bound; a
label is shown as recomputed where its bytes hash to that digest, and withheld otherwise.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from confide.appraisal.eventlog import register_reason, replay_ccel
from confide.appraisal.steps import Refused, Step, run_steps
from confide.errors import Reason
from confide.wire.ccel import CcelEvent, parse_ccel

if TYPE_CHECKING:
    from confide.rats import Finding

__all__ = ["CCEL_STEPS", "CcelVerdict", "FirmwareEvent", "describe_event", "judge_ccel"]

_CLAUSE: Final = "docs/protocols/eventlog.md#2"
# From: TCG PC Client Platform Firmware Profile §10.4.1.
_TYPES: Final = {
    0x00000003: "EV_NO_ACTION",
    0x00000004: "EV_SEPARATOR",
    0x00000005: "EV_ACTION",
    0x00000006: "EV_EVENT_TAG",
    0x00000007: "EV_S_CRTM_CONTENTS",
    0x00000008: "EV_S_CRTM_VERSION",
    0x0000000A: "EV_PLATFORM_CONFIG_FLAGS",
    0x0000000D: "EV_IPL",
    0x80000001: "EV_EFI_VARIABLE_DRIVER_CONFIG",
    0x80000002: "EV_EFI_VARIABLE_BOOT",
    0x80000003: "EV_EFI_BOOT_SERVICES_APPLICATION",
    0x80000006: "EV_EFI_GPT_EVENT",
    0x80000007: "EV_EFI_ACTION",
    0x8000000A: "EV_EFI_PLATFORM_FIRMWARE_BLOB2",
    0x8000000B: "EV_EFI_HANDOFF_TABLES2",
    0x800000E0: "EV_EFI_VARIABLE_AUTHORITY",
}
_TAG: Final = 0x00000006
_VARIABLES: Final = frozenset({0x80000001, 0x80000002, 0x800000E0})
# From: UEFI, UEFI_VARIABLE_DATA: GUID, number of characters, bytes of data.
_VARIABLE_HEAD: Final = 32
_MAX_LABEL: Final = 96


@dataclass(frozen=True, slots=True)
class FirmwareEvent:
    """
    One event in words. `register` is the CCEL index; `kind` names its type.

    `recomputed` says that `digest` follows from the event's own bytes; only then `label` holds
    what they say (printable ASCII), else it is empty.
    """

    register: int
    kind: str
    digest: bytes
    recomputed: bool
    label: str


def describe_event(event: CcelEvent) -> FirmwareEvent:
    """Return `event` in words, with its label where the label is bound by the digest."""
    kind = _TYPES.get(event.event_type, f"type {event.event_type:#010x}")
    measured = next(
        (part for part in _measured(event) if hashlib.sha384(part).digest() == event.digest), None
    )
    if measured is None or not event.extended:
        return FirmwareEvent(event.register, kind, event.digest, recomputed=False, label="")
    return FirmwareEvent(
        event.register, kind, event.digest, recomputed=True, label=_label(event, measured)
    )


def _measured(event: CcelEvent) -> list[bytes]:
    """Return the parts of the data that firmware may have hashed, most likely first."""
    parts = [event.data]
    if event.event_type == _TAG and len(event.data) >= 8:
        # A tagged event: identifier, size, content. Confidential Containers' agent writes these.
        size = int.from_bytes(event.data[4:8], "little")
        parts.append(event.data[8 : 8 + size])
    if event.event_type in _VARIABLES and len(event.data) >= _VARIABLE_HEAD:
        name = 2 * int.from_bytes(event.data[16:24], "little")
        parts.append(event.data[_VARIABLE_HEAD + name :])
    return parts


def _label(event: CcelEvent, measured: bytes) -> str:
    if event.event_type in _VARIABLES and measured == event.data:
        chars = int.from_bytes(event.data[16:24], "little")
        text = event.data[_VARIABLE_HEAD : _VARIABLE_HEAD + 2 * chars].decode("utf-16-le", "ignore")
    else:
        text = measured.rstrip(b"\0").decode("ascii", "ignore")
    bound = text.isascii() and text.isprintable() and len(text) <= _MAX_LABEL
    return text if bound else ""


@dataclass(frozen=True, slots=True)
class CcelVerdict:
    """
    Every finding, the events, and the registers (RTMR0..3) that the log covers and reproduces.

    `covered` is empty where a step failed.
    """

    findings: tuple[Finding, ...]
    events: tuple[CcelEvent, ...]
    covered: frozenset[int]

    @property
    def accepted(self) -> bool:
        """Whether every step passed."""
        return not any(finding.failed for finding in self.findings)

    def described(self) -> tuple[FirmwareEvent, ...]:
        """Return the events in words."""
        return tuple(describe_event(event) for event in self.events)


@dataclass(slots=True)
class _State:
    raw: bytes
    quoted: tuple[bytes, bytes, bytes, bytes]
    runtime_elsewhere: bool
    events: tuple[CcelEvent, ...] = ()
    covered: frozenset[int] = frozenset()


def judge_ccel(
    raw: bytes,
    *,
    quoted: tuple[bytes, bytes, bytes, bytes],
    runtime_elsewhere: bool,
    subject: str = "firmware-log",
) -> CcelVerdict:
    """
    Judge a CCEL against RTMR0..3 of a verified quote.

    Every register has to follow from the log, RTMR3 too: records for CCEL register 4 are how the
    agent of Confidential Containers measures at run time. `runtime_elsewhere` says that another log
    (dstack) covers RTMR3; then this one may not extend it. Never raises for bad input. **Does not
    check** what the events mean: reference values decide that.
    """
    state = _State(raw, quoted, runtime_elsewhere)
    findings = run_steps(CCEL_STEPS, state, subject=subject)
    return CcelVerdict(findings, state.events, state.covered)


def _parse_step(state: _State) -> str:
    state.events = parse_ccel(state.raw)
    return f"{len(state.events)} events"


def _replay_step(state: _State) -> str:
    replayed = replay_ccel(state.events)
    last = 3 if state.runtime_elsewhere else 4
    for index in range(last):
        if replayed[index] != state.quoted[index]:
            raise Refused(register_reason(index), f"RTMR{index} does not follow from the log")
    if state.runtime_elsewhere and replayed[3] != bytes(48):
        raise Refused(Reason.RTMR3_MISMATCH, "two logs claim RTMR3")
    state.covered = frozenset(range(last))
    return f"RTMR0 to RTMR{last - 1} reproduced"


CCEL_STEPS: tuple[Step[_State], ...] = (
    Step("ccel/1", _CLAUSE, _parse_step),
    Step("ccel/2", _CLAUSE, _replay_step, needs=("ccel/1",)),
)
