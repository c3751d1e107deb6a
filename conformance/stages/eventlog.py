"""Stage `eventlog`: logs against the registers of a quote, through the judges of `appraisal`.

Format: vectors/eventlog/README.md. A case names some of `ccel`, `event_log`, `quote`, `registers`,
`app_compose`, `vm_config`. Signatures of quotes are the subject of stage `tdx`: only registers are
read. Without a quote or registers a log is parsed and replayed, and compared with `expected`.
What a case does not restrict is accepted here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from confide.appraisal.dstack import DstackRegisters, judge_dstack
from confide.appraisal.dstack_policy import DstackPolicy
from confide.appraisal.eventlog import replay_ccel, replay_digests, replay_runtime, runtime_part
from confide.appraisal.firmware_log import judge_ccel
from confide.appraisal.steps import Refused
from confide.appraisal.tdx_policy import UnsafeAny
from confide.errors import FormatError, Reason
from confide.wire.ccel import parse_ccel
from confide.wire.json import parse_json
from confide.wire.rtmr_log import parse_log
from confide.wire.tdx import parse_quote
from conformance.verdict import Unclear, Verdict

if TYPE_CHECKING:
    from pathlib import Path

    from confide.appraisal.dstack import DstackVerdict
    from confide.rats import Finding
    from confide.wire.json import JsonValue

__all__ = ["judge", "policy_of", "refusal"]

_FILES: Final = frozenset({"ccel", "event_log", "quote", "registers", "app_compose", "vm_config"})
_ANY: Final = UnsafeAny()
_ZERO: Final = bytes(48)


@dataclass(frozen=True, slots=True)
class _Case:
    case: dict[str, Any]
    folder: Path

    def has(self, name: str) -> bool:
        return name in self.case["files"]

    def read(self, name: str) -> bytes:
        path: Path = self.folder / self.case["files"][name]
        return path.read_bytes()

    def document(self, name: str) -> JsonValue:
        return parse_json(self.read(name), what=name, reason=Reason.LOG_FORMAT)


def judge(case: dict[str, Any], folder: Path) -> Verdict:
    """Judge one case of an index in `folder`."""
    if unknown := set(case["files"]) - _FILES:
        raise Unclear(f"files: {', '.join(sorted(unknown))}")
    found = _Case(case, folder)
    try:
        registers = _registers(found)
        if registers is None:
            return _unquoted(found)
        return _quoted(found, registers)
    except FormatError as error:
        return Verdict("reject", error.reason, (error.reason,), error.what)
    except Refused as refused:
        return Verdict("reject", refused.reason, (refused.reason,), refused.detail)


def _registers(case: _Case) -> DstackRegisters | None:
    if case.has("quote"):
        return DstackRegisters.of(parse_quote(case.read("quote")).body)
    if not case.has("registers"):
        return None
    stated = json.loads(case.read("registers"))
    if isinstance(stated, list):
        stated = {"rtmr": stated}
    values = {name.replace("_", "").lower(): value for name, value in stated.items()}
    listed = values.get("rtmr") or [values.get(f"rtmr{index}", _ZERO.hex()) for index in range(4)]
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
            "require_mrconfigid", case.get("check") == "mrconfigid"
        ),
    )


def refusal(findings: tuple[Finding, ...]) -> Verdict | None:
    """Return the rejection that `findings` give, None where none failed."""
    failed = [finding for finding in findings if finding.failed]
    if not failed:
        return None
    reasons = tuple(str(finding.reason) for finding in failed)
    return Verdict("reject", reasons[0], reasons, f"{failed[0].step}: {failed[0].detail}")


def _quoted(case: _Case, registers: DstackRegisters) -> Verdict:
    facts: dict[str, Any] = {"rtmr": [value.hex() for value in registers.rtmr]}
    if case.has("ccel"):
        log = judge_ccel(
            case.read("ccel"), quoted=registers.rtmr, runtime_elsewhere=case.has("event_log")
        )
        if (refused := refusal(log.findings)) is not None:
            return refused
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
            return refused
        facts |= _facts(case, registers, verdict)
    return _accepted(case, facts)


def _facts(case: _Case, registers: DstackRegisters, verdict: DstackVerdict) -> dict[str, Any]:
    facts = verdict.facts
    found: dict[str, Any] = {
        "mrtd": registers.mr_td.hex(),
        "mrconfigid_form": facts.mrconfigid_form,
        "mr_aggregated": facts.mr_aggregated.hex(),
    }
    if not case.has("ccel"):
        found["events"] = len(parse_log(case.document("event_log")))
    if facts.events is not None:
        found |= {
            "compose_hash": facts.events.compose_hash.hex(),
            "app_id": facts.events.app_id.hex(),
            "instance_id": facts.events.instance_id.hex(),
            "events_after_system_ready": list(facts.events.after_ready),
        }
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


def _unquoted(case: _Case) -> Verdict:
    facts: dict[str, Any] = {}
    if case.has("ccel"):
        events = parse_ccel(case.read("ccel"))
        facts = {
            "events": len(events),
            "registers": _used(case),
            "rtmr": [value.hex() for value in replay_ccel(events)],
        }
    if case.has("event_log"):
        entries = parse_log(case.document("event_log"))
        digests = {**replay_digests(entries), 3: replay_runtime(runtime_part(entries))}
        facts |= {
            "events": len(entries),
            "rtmr": [digests.get(index, _ZERO).hex() for index in range(4)],
        }
    return _accepted(case, facts)


def _accepted(case: _Case, facts: dict[str, Any]) -> Verdict:
    differences: list[str] = []
    for name, value in (case.case.get("expected") or {}).items():
        if name not in facts:
            differences.append(f"{name} was not read")
        elif facts[name] != value:
            differences.append(f"{name} is {facts[name]}, not {value}")
    return Verdict("accept", differences=tuple(differences), claims=facts)
