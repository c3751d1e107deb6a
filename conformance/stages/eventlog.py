"""Stage `eventlog`: logs against the registers of a quote, through the judges of `appraisal`.

Format: vectors/eventlog/README.md. A case names some of `ccel`, `event_log`, `quote`, `registers`,
`app_compose`, `vm_config`. Signatures of quotes are the subject of stage `tdx`: only registers are
read. Without a quote or registers a log is held against what its own replay gives, and compared
with `expected`; a launch document without a log is held against MRCONFIGID alone. What a case does
not restrict is accepted here. `reasons` name every rule that was broken, also those that an
appraisal does not come to (the names in a log whose replay failed).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from confide.appraisal.dstack import DstackRegisters, judge_dstack, mr_system
from confide.appraisal.dstack_log import profile_faults
from confide.appraisal.dstack_policy import DstackPolicy
from confide.appraisal.eventlog import (
    register_reason,
    replay_ccel,
    replay_digests,
    replay_runtime,
    runtime_part,
)
from confide.appraisal.firmware_log import judge_ccel
from confide.appraisal.launch import (
    MRCONFIG_UNSET,
    mrconfigid_form1,
    mrconfigid_form3,
    parse_mr_config_v3,
)
from confide.appraisal.lite import is_stripped
from confide.appraisal.steps import Refused
from confide.appraisal.tdx_policy import UnsafeAny
from confide.errors import FormatError, Reason
from confide.wire.ccel import parse_ccel
from confide.wire.json import parse_json
from confide.wire.rtmr_log import parse_log
from confide.wire.tdx import parse_quote
from conformance.verdict import Unclear, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from confide.appraisal.dstack import DstackVerdict
    from confide.rats import Finding
    from confide.wire.json import JsonValue
    from confide.wire.rtmr_log import LogEntry

__all__ = ["judge", "policy_of", "refusal"]

_FILES: Final = frozenset({"ccel", "event_log", "quote", "registers", "app_compose", "vm_config"})
_ANY: Final = UnsafeAny()
_ZERO: Final = bytes(48)
_UNSET: Final = DstackRegisters(
    mr_td=_ZERO,
    rtmr=(_ZERO, _ZERO, _ZERO, _ZERO),
    mr_config_id=_ZERO,
    mr_owner=_ZERO,
    mr_owner_config=_ZERO,
)


@dataclass(frozen=True, slots=True)
class _Case:
    case: dict[str, Any]
    folder: Path

    def has(self, name: str) -> bool:
        return self.case["files"].get(name) is not None

    def read(self, name: str) -> bytes:
        found = self.case["files"][name]
        if isinstance(found, str):
            path: Path = self.folder / found
            return path.read_bytes()
        # A value in the index itself.
        return json.dumps(found).encode()

    def document(self, name: str) -> JsonValue:
        value = parse_json(self.read(name), what=name, reason=Reason.LOG_FORMAT)
        if isinstance(value, str):
            # As the guest's answer holds it: JSON in a string.
            value = parse_json(value.encode(), what=name, reason=Reason.LOG_FORMAT)
        return value


def judge(case: dict[str, Any], folder: Path) -> Verdict:
    """Judge one case of an index in `folder`."""
    if unknown := set(case["files"]) - _FILES:
        raise Unclear(f"files: {', '.join(sorted(unknown))}")
    found = _Case(case, folder)
    try:
        registers = _registers(found)
        if found.has("ccel") or found.has("event_log"):
            return _logged(found, registers)
        if registers is not None and found.has("app_compose"):
            return _launched(found, registers)
    except FormatError as error:
        return Verdict("reject", error.reason, (error.reason,), error.what)
    except Refused as refused:
        return Verdict("reject", refused.reason, (refused.reason,), refused.detail)
    raise Unclear("neither a log nor a launch document with a register")


def _registers(case: _Case) -> DstackRegisters | None:
    if case.has("quote"):
        return DstackRegisters.of(parse_quote(case.read("quote")).body)
    if not case.has("registers"):
        return None
    raw = case.read("registers")
    if len(raw) == 4 * 48:
        return replace(_UNSET, rtmr=(raw[:48], raw[48:96], raw[96:144], raw[144:]))
    stated = json.loads(raw)
    if isinstance(stated, list):
        stated = {"rtmr": stated}
    values = {name.replace("_", "").lower(): value for name, value in stated.items()}
    listed = values.get("rtmr") or values.get("rtmrs")
    listed = listed or [values.get(f"rtmr{index}", _ZERO.hex()) for index in range(4)]
    if isinstance(listed, dict):
        listed = [listed.get(str(index), _ZERO.hex()) for index in range(4)]
    rtmr = [bytes.fromhex(value) for value in listed]
    one = {name: bytes.fromhex(value) for name, value in values.items() if isinstance(value, str)}
    return DstackRegisters(
        mr_td=one.get("mrtd", _ZERO),
        rtmr=(rtmr[0], rtmr[1], rtmr[2], rtmr[3]),
        mr_config_id=one.get("mrconfigid", _ZERO),
        mr_owner=one.get("mrowner", _ZERO),
        mr_owner_config=one.get("mrownerconfig", _ZERO),
    )


def policy_of(case: dict[str, Any]) -> DstackPolicy:
    """Return the policy of a case: what it does not restrict is accepted."""
    wanted = {**case.get("_index", {}).get("default_policy", {}), **(case.get("policy") or {})}
    known = {"compose_hashes", "os_image_hashes", "require_mrconfigid", "storage"}
    if unknown := wanted.keys() - known:
        raise Unclear(f"policy: {', '.join(sorted(unknown))}")

    def hashes(name: str) -> frozenset[bytes] | UnsafeAny:
        return frozenset(map(bytes.fromhex, wanted[name])) if name in wanted else _ANY

    return DstackPolicy(
        compose_hashes=hashes("compose_hashes"),
        os_image_hashes=hashes("os_image_hashes"),
        key_providers=_ANY,
        storage=frozenset(wanted["storage"]) if "storage" in wanted else _ANY,
        unsafe_no_launch_document="app_compose" not in case["files"],
        # A case about the register itself asks for one that somebody set.
        unsafe_unset_mrconfigid=not wanted.get(
            "require_mrconfigid", str(case.get("check", "")).startswith("mrconfigid")
        ),
    )


def refusal(findings: tuple[Finding, ...]) -> Verdict | None:
    """Return the rejection that `findings` give, None where none failed."""
    failed = [finding for finding in findings if finding.failed]
    if not failed:
        return None
    reasons = tuple(str(finding.reason) for finding in failed)
    return Verdict("reject", reasons[0], reasons, f"{failed[0].step}: {failed[0].detail}")


def _logged(case: _Case, quoted: DstackRegisters | None) -> Verdict:
    facts: dict[str, Any] = {}
    firmware = parse_ccel(case.read("ccel")) if case.has("ccel") else ()
    entries = parse_log(case.document("event_log")) if case.has("event_log") else ()
    registers = quoted or _own(replay_ccel(firmware), entries)
    broken = tuple(_broken(case, registers, entries))
    if case.has("ccel"):
        log = judge_ccel(
            case.read("ccel"), quoted=registers.rtmr, runtime_elsewhere=case.has("event_log")
        )
        if (refused := refusal(log.findings)) is not None:
            return _with(refused, broken)
        facts |= {"events": len(log.events), "registers": _used(case)}
    if case.has("event_log"):
        verdict = judge_dstack(
            registers=registers,
            runtime_log=case.document("event_log"),
            launch=case.read("app_compose") if case.has("app_compose") else None,
            vm_config=case.document("vm_config") if case.has("vm_config") else None,
            policy=policy_of(case.case),
        )
        if (refused := refusal(verdict.findings)) is not None:
            return _with(refused, broken)
        facts |= _facts(case, registers, verdict)
    elif case.has("app_compose"):
        launched = _launched(case, registers)
        if launched.outcome != "accept":
            return launched
        facts |= launched.claims
    return _accepted(case, {"rtmr": [value.hex() for value in registers.rtmr], **facts})


def _own(
    firmware: tuple[bytes, bytes, bytes, bytes], entries: tuple[LogEntry, ...]
) -> DstackRegisters:
    """Return what the logs themselves say the registers are, where nobody quoted them."""
    first, second, third, last = firmware
    said = {0: first, 1: second, 2: third, **replay_digests(entries)}
    if entries:
        last = replay_runtime(runtime_part(entries))
    return replace(_UNSET, rtmr=(said[0], said[1], said[2], last))


def _broken(
    case: _Case, registers: DstackRegisters, entries: tuple[LogEntry, ...]
) -> Iterator[Reason]:
    """Yield the reason of every rule of logs that is broken, each looked at alone."""
    if case.has("ccel"):
        yield from _unlike(registers, dict(enumerate(replay_ccel(parse_ccel(case.read("ccel"))))))
    if not case.has("event_log"):
        return
    for entry in runtime_part(entries):
        try:
            replay_runtime((entry,))
        except Refused as refused:
            yield refused.reason
    if not is_stripped(entries):
        yield from _unlike(registers, replay_digests(entries))
    runtime = [entry for entry in entries if entry.register == 3]
    for fault in profile_faults([entry.event.name for entry in runtime]):
        yield fault.reason


def _unlike(registers: DstackRegisters, replayed: dict[int, bytes]) -> Iterator[Reason]:
    for index, value in sorted(replayed.items()):
        if value != registers.rtmr[index]:
            yield register_reason(index)


def _with(refused: Verdict, broken: tuple[Reason, ...]) -> Verdict:
    reasons = dict.fromkeys((*refused.reasons, *map(str, broken)))
    return replace(refused, reasons=tuple(reasons))


def _launched(case: _Case, registers: DstackRegisters) -> Verdict:
    """Hold the launch document against MRCONFIGID, which binds it without a log."""
    register, launch = registers.mr_config_id, case.read("app_compose")
    digest = hashlib.sha256(launch).digest()
    config = case.document("vm_config") if case.has("vm_config") else None
    said = config.get("mr_config") if isinstance(config, dict) else None
    bound = register == mrconfigid_form1(digest)
    if register[:1] == b"\x03" and isinstance(said, str):
        bound = (
            register == mrconfigid_form3(said.encode())
            and parse_mr_config_v3(said.encode()).compose_hash == digest
        )
    if not bound:
        unset = register == MRCONFIG_UNSET
        why = "nobody set it" if unset else "it names another app"
        raise Refused(Reason.MRCONFIGID_MISMATCH, why)
    facts = {"compose_hash": digest.hex(), "mrconfigid_form": register[0]}
    return _accepted(case, {**facts, "rtmr": [value.hex() for value in registers.rtmr]})


def _facts(case: _Case, registers: DstackRegisters, verdict: DstackVerdict) -> dict[str, Any]:
    facts = verdict.facts
    found: dict[str, Any] = {
        "mrtd": registers.mr_td.hex(),
        "mrconfigid_form": facts.mrconfigid_form,
        "mrconfigid": registers.mr_config_id.hex(),
        "mr_aggregated": facts.mr_aggregated.hex(),
    }
    if not case.has("ccel"):
        found["events"] = len(parse_log(case.document("event_log")))
    if facts.events is not None:
        found |= {
            "compose_hash": facts.events.compose_hash.hex(),
            "app_id": facts.events.app_id.hex(),
            "instance_id": facts.events.instance_id.hex(),
            "storage_fs": facts.events.storage_fs,
            "init_script_hashes": [value.hex() for value in facts.events.init_script_hashes],
            "events_after_system_ready": list(facts.events.after_ready),
        }
        if (provider := facts.events.key_provider) is not None:
            found["mr_system"] = mr_system(registers, provider.raw).hex()
            found["key_provider"] = provider.name
    if facts.os_image_hash is not None:
        found["os_image_hash"] = facts.os_image_hash.hex()
        # Three registers were recomputed; the fourth is the log's alone.
        found["rtmr"] = [value.hex() for value in registers.rtmr[: _listed(case, 4)]]
    return found


def _listed(case: _Case, default: int) -> int:
    stated = (case.case.get("expected") or {}).get("rtmr")
    return len(stated) if isinstance(stated, list) else default


def _used(case: _Case) -> list[int]:
    events = parse_ccel(case.read("ccel"))
    return sorted({event.register for event in events if event.extended})


def _accepted(case: _Case, facts: dict[str, Any]) -> Verdict:
    differences: list[str] = []
    for name, value in (case.case.get("expected") or {}).items():
        if name not in facts:
            differences.append(f"{name} was not read")
        elif facts[name] != value:
            differences.append(f"{name} is {facts[name]}, not {value}")
    return Verdict("accept", differences=tuple(differences), claims=facts)
