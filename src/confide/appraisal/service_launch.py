"""What one attester started: event logs, launch document, and whether the caller knows either.

Clauses: docs/protocols/services.md §5, steps 5 to 7. Registers come from a verified quote or
report. A log or a document that was presented and does not fit contradicts; one that was not
presented leaves a claim open.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from confide.appraisal.claim_names import ClaimName
from confide.appraisal.eventlog import (
    read_node_events,
    register_reason,
    replay_digests,
    replay_runtime,
    runtime_part,
)
from confide.appraisal.launch import mrconfigid_form1, require_init_data, require_snp_compose
from confide.appraisal.policy_rules import allows
from confide.appraisal.steps import Refused
from confide.appraisal.tdx_policy import UnsafeAny
from confide.errors import FormatError
from confide.rats import Status
from confide.reasons import Reason
from confide.wire.rtmr_log import parse_log

if TYPE_CHECKING:
    from collections.abc import Callable

    from confide.appraisal.dstack import DstackVerdict
    from confide.appraisal.service_ledger import Ledger
    from confide.appraisal.service_policy import Policy
    from confide.rats import Finding
    from confide.wire.json import JsonValue
    from confide.wire.service import Attester, LaunchDocument
    from confide.wire.tdx import TdBody10

__all__ = ["KnownLaunch", "judge_snp_launch", "judge_tdx_launch"]

_LOG: Final = "service/5"
_DOCUMENT: Final = "service/6"
_OS: Final = "service/7"
_DSTACK: Final = "dstack-compose"
_INIT_DATA: Final = "init-data"
# From: docs/protocols/near-face.md §3.6: what a node of ours was launched with.
_OWN_LAUNCH: Final = "confide-launch"
# Names of key providers, as policies have them: a measured document may hold any other text.
_PROVIDERS: Final = {
    "none": "none",
    "kms": "kms",
    "tpm": "tpm",
    "local-sgx": "local-sgx",
    "local": "local-sgx",
}
# The first event of a log of our own nodes (docs/protocols/eventlog.md §3).
_OWN_FIRST: Final = "confide-node"
# Which claim a step of docs/protocols/dstack.md §7 speaks about.
_LOG_STEPS: Final = frozenset({"dstack/1", "dstack/2", "dstack/3", "dstack/4", "dstack/5"})
_DOCUMENT_STEPS: Final = frozenset({"dstack/6", "dstack/7"})
_OS_STEPS: Final = frozenset({f"dstack/{number}" for number in range(11, 16)})


@dataclass(frozen=True, slots=True)
class KnownLaunch:
    """
    Which registers follow from something that was judged, so that no list has to name them.

    `image` covers MRTD and RTMR0 to RTMR2: recomputed from an OS image that the policy lists.
    `log` covers RTMR3: a log replays to it. `document` covers MRCONFIGID or HOST_DATA. `signed`
    names registers (`mrtd`, `rtmr0`.., `measurement`) that a listed publisher's statement names.
    `why_not` says in words why `image` is false.
    """

    image: bool = False
    log: bool = False
    document: bool = False
    signed: frozenset[str] = frozenset()
    why_not: str = ""


def judge_tdx_launch(
    attester: Attester, body: TdBody10, *, policy: Policy, ledger: Ledger
) -> KnownLaunch:
    """Record `event-log`, `workload`, `workload-expected`, `key-lifetime`; say what is known."""
    if attester.paravisor:
        why = "the quote describes the cloud's paravisor, not the guest"
        for name in (ClaimName.EVENT_LOG, ClaimName.WORKLOAD, ClaimName.LAUNCH):
            ledger.open(name, _LOG, why)
        _key_provider(None, policy, ledger)
        return KnownLaunch()
    if _is_dstack(attester):
        return _dstack(attester, body, policy, ledger)
    log = _other_logs(attester, body, ledger)
    document = _document(attester.launch, body.mr_config_id, ledger)
    _expected(attester.launch, policy, ledger)
    _key_provider(None, policy, ledger)
    return KnownLaunch(log=log, document=document)


def judge_snp_launch(
    attester: Attester, host_data: bytes, *, policy: Policy, ledger: Ledger
) -> KnownLaunch:
    """Record the same for SEV-SNP, which has no registers that software extends."""
    if attester.paravisor:
        ledger.open(ClaimName.LAUNCH, _OS, "the report describes the cloud's paravisor")
        _key_provider(None, policy, ledger)
        return KnownLaunch()
    ledger.open(ClaimName.EVENT_LOG, _LOG, "SEV-SNP has no runtime registers")
    launch = attester.launch
    provider: list[str] = []
    document = False
    if launch is not None and launch.kind in {_INIT_DATA, _DSTACK}:
        document = _holds(
            lambda: provider.extend(_require_host_data(host_data, launch, attester.vm_config)),
            launch,
            ledger,
        )
    else:
        ledger.open(ClaimName.WORKLOAD, _DOCUMENT, "no launch document that HOST_DATA binds")
    _expected(launch, policy, ledger)
    _key_provider(provider[0] if provider else None, policy, ledger)
    return KnownLaunch(document=document)


def _is_dstack(attester: Attester) -> bool:
    if attester.launch is not None and attester.launch.kind != _DSTACK:
        return False
    log = attester.runtime_log
    first = log[0] if isinstance(log, list) and log else None
    own = isinstance(first, dict) and first.get("event") == _OWN_FIRST
    return not own and (log is not None or attester.launch is not None)


# --- dstack -----------------------------------------------------------------------------------


def _dstack(attester: Attester, body: TdBody10, policy: Policy, ledger: Ledger) -> KnownLaunch:
    launch = attester.launch
    _firmware_log(attester, body, ledger)
    if attester.runtime_log is None:
        ledger.open(ClaimName.EVENT_LOG, _LOG, "no event log was presented")
        bound = launch is not None and body.mr_config_id == mrconfigid_form1(
            hashlib.sha256(launch.raw).digest()
        )
        if bound and launch is not None:
            ledger.proven(ClaimName.WORKLOAD, _DOCUMENT, "hardware", _named(launch))
        else:
            ledger.open(ClaimName.WORKLOAD, _DOCUMENT, "no log, and MRCONFIGID does not bind it")
        _expected(launch, policy, ledger)
        _key_provider(None, policy, ledger)
        return KnownLaunch(document=bound)
    # For launches of dstack alone.
    from confide.appraisal.dstack import DstackRegisters, judge_dstack  # noqa: PLC0415
    from confide.appraisal.dstack_policy import DstackPolicy  # noqa: PLC0415

    verdict = judge_dstack(
        registers=DstackRegisters.of(body),
        runtime_log=attester.runtime_log,
        launch=launch.raw if launch is not None else None,
        vm_config=attester.vm_config,
        policy=DstackPolicy(
            compose_hashes=UnsafeAny(),
            os_image_hashes=UnsafeAny(),
            key_providers=UnsafeAny(),
            storage=UnsafeAny(),
            unsafe_no_launch_document=True,
            unsafe_unset_mrconfigid=True,
        ),
        subject=f"{ledger.subject}/dstack",
    )
    ledger.add(verdict.findings)
    log = _dstack_log(verdict, ledger)
    document = _dstack_document(verdict, launch, ledger)
    _expected(launch, policy, ledger)
    events = verdict.facts.events
    if events is None:
        _key_provider(None, policy, ledger)
    else:
        _key_provider(events.key_provider.name if events.key_provider else "none", policy, ledger)
    unknown = _os_image(verdict, policy, ledger)
    return KnownLaunch(image=not unknown, log=log, document=document, why_not=unknown)


def _failed(findings: tuple[Finding, ...], steps: frozenset[str]) -> Finding | None:
    return next((item for item in findings if item.failed and item.step in steps), None)


def _dstack_log(verdict: DstackVerdict, ledger: Ledger) -> bool:
    failed = _failed(verdict.findings, _LOG_STEPS)
    if failed is not None:
        reason = failed.reason or Reason.LOG_FORMAT
        ledger.contradicted(ClaimName.EVENT_LOG, _LOG, reason, failed.detail)
        return False
    covered = ", ".join(f"RTMR{index}" for index in sorted(verdict.facts.covered))
    ledger.proven(ClaimName.EVENT_LOG, _LOG, "hardware", f"replays to {covered}")
    return True


def _dstack_document(verdict: DstackVerdict, launch: LaunchDocument | None, ledger: Ledger) -> bool:
    failed = _failed(verdict.findings, _DOCUMENT_STEPS)
    if failed is not None:
        reason = failed.reason or Reason.COMPOSE_HASH_MISMATCH
        ledger.contradicted(ClaimName.WORKLOAD, _DOCUMENT, reason, failed.detail)
        return False
    if launch is None or not verdict.facts.launch_bound:
        ledger.open(ClaimName.WORKLOAD, _DOCUMENT, "no launch document that the log binds")
        return bool(verdict.facts.mrconfigid_form)
    ledger.proven(ClaimName.WORKLOAD, _DOCUMENT, "hardware", _named(launch))
    # An unset MRCONFIGID is not covered by anything: a policy has to list it.
    return bool(verdict.facts.mrconfigid_form)


def _os_image(verdict: DstackVerdict, policy: Policy, ledger: Ledger) -> str:
    """
    Return why the registers do not follow from a listed OS image; empty where they do.

    That is no contradiction: a policy may list the registers themselves.
    """
    image = verdict.facts.os_image_hash
    failed = _failed(verdict.findings, _OS_STEPS)
    if failed is not None:
        return f"its OS image does not reproduce them ({failed.reason})"
    if image is None:
        return "no OS image that reproduces them was presented"
    if image.hex() not in policy.workload.os_images:
        return f"they follow from the OS image {image.hex()}, which is not on your list"
    ledger.proven(ClaimName.LAUNCH, _OS, "hardware", f"OS image {image.hex()}; ACPI not checked")
    return ""


def _key_provider(provider: str | None, policy: Policy, ledger: Ledger) -> None:
    """Judge the key provider that was measured; None where nothing that was measured names one."""
    if provider is None and isinstance(policy.workload.key_providers, UnsafeAny):
        return
    name = _PROVIDERS.get(provider, "another one") if provider is not None else "not shown"
    if not allows(policy.workload.key_providers, name):
        why = f"the key provider is {name}"
        ledger.contradicted(ClaimName.KEY_LIFETIME, _DOCUMENT, Reason.KEY_MISMATCH, why)
    elif name != "none":
        ledger.open(
            ClaimName.KEY_LIFETIME, _DOCUMENT, f"keys come from a provider ({name}) and outlive it"
        )


# --- other launches ---------------------------------------------------------------------------


def _firmware_log(attester: Attester, body: TdBody10, ledger: Ledger) -> frozenset[int]:
    """Return the registers that the firmware's log reproduces; none where it does not fit."""
    if attester.firmware_log is None:
        return frozenset()
    # For machines that show what their firmware measured.
    from confide.appraisal.firmware_log import judge_ccel  # noqa: PLC0415

    firmware = judge_ccel(
        attester.firmware_log,
        quoted=body.rtmr,
        runtime_elsewhere=attester.runtime_log is not None,
        subject=f"{ledger.subject}/firmware-log",
    )
    ledger.add(firmware.findings)
    failed = next((item for item in firmware.findings if item.failed), None)
    if failed is not None:
        reason = failed.reason or Reason.LOG_FORMAT
        ledger.contradicted(ClaimName.EVENT_LOG, _LOG, reason, failed.detail)
        return frozenset()
    return firmware.covered


def _other_logs(attester: Attester, body: TdBody10, ledger: Ledger) -> bool:
    if attester.firmware_log is None and attester.runtime_log is None:
        ledger.open(ClaimName.EVENT_LOG, _LOG, "no event log was presented")
        return False
    covered = set(_firmware_log(attester, body, ledger))
    if attester.firmware_log is not None and not covered:
        return False
    if attester.runtime_log is not None:
        try:
            entries = parse_log(attester.runtime_log)
            told = replay_digests(entries)
            own = runtime_part(entries)
            replayed = replay_runtime(own)
            read_node_events(own)
        except (Refused, FormatError) as error:
            why = error.detail if isinstance(error, Refused) else error.what
            ledger.contradicted(ClaimName.EVENT_LOG, _LOG, error.reason, why)
            return False
        for index, value in {**told, 3: replayed}.items():
            if value != body.rtmr[index]:
                why = f"RTMR{index} does not follow from the log"
                ledger.contradicted(ClaimName.EVENT_LOG, _LOG, register_reason(index), why)
                return False
            covered.add(index)
    names = ", ".join(f"RTMR{index}" for index in sorted(covered))
    ledger.proven(ClaimName.EVENT_LOG, _LOG, "hardware", f"replays to {names}")
    return 3 in covered


def _document(launch: LaunchDocument | None, mr_config_id: bytes, ledger: Ledger) -> bool:
    if launch is not None and launch.kind == _OWN_LAUNCH:
        return _holds(lambda: _require_form1(mr_config_id, launch), launch, ledger)
    if launch is None or launch.kind != _INIT_DATA:
        ledger.open(ClaimName.WORKLOAD, _DOCUMENT, "no launch document that a register binds")
        return False
    return _holds(lambda: _require_init_data(mr_config_id, launch), launch, ledger)


def _require_form1(register: bytes, launch: LaunchDocument) -> None:
    if register != mrconfigid_form1(hashlib.sha256(launch.raw).digest()):
        raise Refused(Reason.MRCONFIGID_MISMATCH, "MRCONFIGID holds another document's digest")


def _require_init_data(register: bytes, launch: LaunchDocument) -> None:
    # TOML, for launches of Confidential Containers alone.
    from confide.wire.init_data import parse_init_data  # noqa: PLC0415

    require_init_data(register, launch.raw, parse_init_data(launch.raw).algorithm)


def _require_host_data(
    host_data: bytes, launch: LaunchDocument, vm_config: JsonValue
) -> tuple[str, ...]:
    """Return the key provider that HOST_DATA commits to, where it does."""
    if launch.kind == _INIT_DATA:
        _require_init_data(host_data, launch)
        return ()
    return (require_snp_compose(host_data, launch.raw, vm_config).key_provider,)


def _holds(check: Callable[[], object], launch: LaunchDocument, ledger: Ledger) -> bool:
    try:
        check()
    except (Refused, FormatError) as error:
        why = error.detail if isinstance(error, Refused) else error.what
        ledger.contradicted(ClaimName.WORKLOAD, _DOCUMENT, error.reason, why)
        return False
    ledger.proven(ClaimName.WORKLOAD, _DOCUMENT, "hardware", _named(launch))
    return True


def _named(launch: LaunchDocument) -> str:
    return f"{launch.kind}, SHA-256 {hashlib.sha256(launch.raw).hexdigest()}"


def _expected(launch: LaunchDocument | None, policy: Policy, ledger: Ledger) -> None:
    name, allowed = ClaimName.WORKLOAD_EXPECTED, policy.workload.documents
    if launch is None:
        ledger.open(name, _DOCUMENT, "no launch document was presented")
    elif isinstance(allowed, UnsafeAny):
        ledger.open(name, _DOCUMENT, "the policy lists no launch documents")
    elif hashlib.sha256(launch.raw).hexdigest() not in allowed:
        why = f"{_named(launch)} is not on the list"
        ledger.contradicted(name, _DOCUMENT, Reason.COMPOSE_HASH_MISMATCH, why)
    elif ledger.status(ClaimName.WORKLOAD) is not Status.PASS:
        ledger.open(name, _DOCUMENT, "on the list, and not bound to the hardware")
    else:
        ledger.proven(name, _DOCUMENT, "your policy", _named(launch))
