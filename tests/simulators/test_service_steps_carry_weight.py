"""Without any one of the steps of services.md §5, a SIMULATED hostile service is accepted.

Every bad case is refused by the whole procedure first, for the claim of that step. Then the step is
replaced by one that claims what it should have established, without looking.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from services import LATER, NOW, near_case, near_policy, policy_text

import confide
from confide.appraisal import service as procedure
from confide.appraisal import service_launch, service_tdx
from confide.appraisal.claim_names import ClaimName
from confide.appraisal.policy_file import parse_policy
from confide.appraisal.service_verdict import decide
from confide.errors import Rejected
from confide.formats.verify import read_evidence
from confide.rats import Status
from confide.simulator.tdx import SimulatedTdxPlatform
from confide.wire.service import Capture

if TYPE_CHECKING:
    from collections.abc import Callable

    from confide.appraisal.service_ledger import Ledger
    from confide.appraisal.service_policy import Policy
    from confide.trust.roots import Roots
    from confide.wire.service import Evidence

    Blind = Callable[..., Any]

CASE = cache(near_case)


@cache
def honest_policy() -> Policy:
    return near_policy(CASE())


@dataclass(frozen=True, slots=True)
class Bad:
    """What is shown, and to whom."""

    shown: Capture | Evidence
    policy: Policy
    roots: Roots

    def verify(self) -> None:
        """Verify it, with honest endorsements."""
        endorsements = CASE().endorsements
        confide.verify(self.shown, endorsements, self.policy, now=LATER, roots=self.roots)


def bad(
    edit: Callable[[dict[str, Any]], None] | None = None,
    *,
    shown: Capture | Evidence | None = None,
    policy: Policy | None = None,
    roots: Roots | None = None,
) -> Bad:
    case = CASE()
    if edit is not None:
        document = json.loads(case.capture.documents["report"])
        edit(document)
        shown = replace(case.capture, documents={"report": json.dumps(document).encode()})
    return Bad(shown or case.capture, policy or honest_policy(), roots or case.roots)


def proves(*names: ClaimName) -> Callable[[Ledger], None]:
    def claim(ledger: Ledger) -> None:
        for name in names:
            ledger.proven(name, "service/0", "nobody looked", "")

    return claim


# --- the cases ------------------------------------------------------------------------------------


def made_by_nobody() -> Bad:
    """All of it under a root that the caller does not have."""
    other = SimulatedTdxPlatform(b"somebody else", NOW)
    return bad(roots=replace(CASE().roots, tdx=other.anchor()))


def out_of_date() -> Bad:
    policy = honest_policy()
    tdx = replace(policy.tdx, tcb_status=frozenset({"SWHardeningNeeded"}))
    return bad(policy=replace(policy, tdx=tdx))


def another_key() -> Bad:
    def swap(document: dict[str, Any]) -> None:
        document["model_attestations"][0] |= {
            "signing_address": "11" * 32,
            "signing_public_key": "11" * 32,
        }

    return bad(swap)


def another_connection() -> Bad:
    return bad(shown=replace(CASE().capture, tls_spki_sha256=bytes(32)))


def a_story_about_the_firmware() -> Bad:
    def invent(document: dict[str, Any]) -> None:
        log = document["model_attestations"][0]["event_log"]
        entries = json.loads(log) if isinstance(log, str) else log
        invented = {
            "imr": 1,
            "event_type": 4,
            "digest": "22" * 48,
            "event": "",
            "event_payload": "",
        }
        document["model_attestations"][0]["event_log"] = [invented, *entries]

    return bad(invent)


def another_document() -> Bad:
    """The machine was launched with something else than what is shown, which is on the list."""
    shown: list[str] = []

    def swap(document: dict[str, Any]) -> None:
        info = document["model_attestations"][0]["info"]["tcb_info"]
        info["app_compose"] += "\n"
        shown.append(hashlib.sha256(info["app_compose"].encode()).hexdigest())

    found = bad(swap)
    policy = honest_policy()
    listed = replace(policy.workload, documents=policy.workload.documents | set(shown))  # type: ignore[operator]
    return replace(found, policy=replace(policy, workload=listed))


def another_firmware() -> Bad:
    policy = honest_policy()
    return bad(policy=replace(policy, tdx=replace(policy.tdx, mrtd=frozenset({"00" * 48}))))


def a_script_beside_the_containers() -> Bad:
    require = (*sorted(honest_policy().claims.require), "workload-complete")
    return bad(policy=parse_policy(policy_text(CASE(), require=require)))


def a_forged_device() -> Bad:
    def flip(document: dict[str, Any]) -> None:
        payload = json.loads(document["model_attestations"][0]["nvidia_payload"])
        raw = bytearray(base64.b64decode(payload["evidence_list"][0]["evidence"]))
        raw[2000] ^= 1
        payload["evidence_list"][0]["evidence"] = base64.b64encode(raw).decode()
        document["model_attestations"][0]["nvidia_payload"] = json.dumps(payload)

    return bad(flip)


def not_what_was_asked_for() -> Bad:
    policy = honest_policy()
    claims = replace(policy.claims, require=policy.claims.require | {"model-weights"})
    return bad(policy=replace(policy, claims=claims))


# --- steps that look at nothing -------------------------------------------------------------------


def take_any_root(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = service_tdx.verify_tdx

    def blind(quote: bytes, offered: Any, **rest: Any) -> Any:
        return genuine(quote, offered, **{**rest, "roots": (CASE().roots.tdx,)})

    monkeypatch.setattr(service_tdx, "verify_tdx", blind)


def take_any_level(monkeypatch: pytest.MonkeyPatch) -> None:
    claim = proves(ClaimName.TCB, ClaimName.DEBUG_OFF, ClaimName.PLATFORM)
    monkeypatch.setattr(service_tdx, "claim_tdx", lambda *_, ledger, **__: (claim(ledger), ())[1])


def take_any_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    claim = proves(ClaimName.KEYS, ClaimName.FRESHNESS)
    monkeypatch.setattr(procedure, "judge_binding", lambda *_, ledger, **__: claim(ledger))


def take_any_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    claim = proves(ClaimName.TLS)
    monkeypatch.setattr(procedure, "judge_tls", lambda *_, ledger: claim(ledger))


def take_any_log(monkeypatch: pytest.MonkeyPatch) -> None:
    claim = proves(ClaimName.EVENT_LOG)
    monkeypatch.setattr(service_launch, "_dstack_log", lambda _, ledger: claim(ledger) is None)


def take_any_document(monkeypatch: pytest.MonkeyPatch) -> None:
    claim = proves(ClaimName.WORKLOAD)
    monkeypatch.setattr(
        service_launch, "_dstack_document", lambda _, __, ledger: claim(ledger) is None
    )


def take_any_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    claim = proves(ClaimName.LAUNCH)
    monkeypatch.setattr(procedure, "_launch", lambda *arguments: claim(arguments[-1]))


def take_any_workload(monkeypatch: pytest.MonkeyPatch) -> None:
    claim = proves(ClaimName.IMAGES_PINNED, ClaimName.WORKLOAD_COMPLETE, ClaimName.OPERATOR_ACCESS)
    monkeypatch.setattr(
        procedure, "judge_workload", lambda *_, ledger, **__: (claim(ledger), ())[1]
    )


def take_any_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    claim = proves(
        ClaimName.GPU, ClaimName.GPU_FIRMWARE, ClaimName.GPU_FRESHNESS, ClaimName.GPU_TOPOLOGY
    )
    monkeypatch.setattr(procedure, "_devices", lambda work: claim(work.ledger))


def decide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procedure, "decide", lambda *a, **k: (decide(*a, **k)[0], ()))


CASES: dict[str, tuple[Callable[[], Bad], Callable[[pytest.MonkeyPatch], None], str]] = {
    "service/1": (made_by_nobody, take_any_root, "hardware"),
    "service/2": (out_of_date, take_any_level, "tcb"),
    "service/3": (another_key, take_any_keys, "keys"),
    "service/4": (another_connection, take_any_connection, "tls"),
    "service/5": (a_story_about_the_firmware, take_any_log, "event-log"),
    "service/6": (another_document, take_any_document, "workload"),
    "service/7": (another_firmware, take_any_launch, "launch"),
    "service/8": (a_script_beside_the_containers, take_any_workload, "workload-complete"),
    "service/9": (a_forged_device, take_any_devices, "gpu"),
    "service/10": (not_what_was_asked_for, decide_nothing, "model-weights"),
}


def test_every_step_of_the_table_has_a_case() -> None:
    text = Path(__file__).resolve().parents[2] / "docs" / "protocols" / "services.md"
    rows = [line for line in text.read_text().splitlines() if line.startswith("| service/")]
    assert {row.split("|")[1].strip() for row in rows} == set(CASES)


def test_the_honest_service_is_accepted() -> None:
    bad().verify()


@pytest.mark.parametrize("step", CASES)
def test_a_step_that_looks_at_nothing_lets_a_hostile_service_in(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, blind, claim = CASES[step]
    case = make()
    with pytest.raises(Rejected) as caught:
        case.verify()
    assert caught.value.result is not None
    assert caught.value.result.claim(claim).status is not Status.PASS
    blind(monkeypatch)
    case.verify()


def test_without_the_remarks_of_a_reader_a_contradiction_is_let_in() -> None:
    """service/9, second half: devices that signed the right nonce, in a payload of another one."""

    def rename(document: dict[str, Any]) -> None:
        payload = json.loads(document["model_attestations"][0]["nvidia_payload"])
        payload["nonce"] = "33" * 32
        document["model_attestations"][0]["nvidia_payload"] = json.dumps(payload)

    found = bad(rename)
    with pytest.raises(Rejected):
        found.verify()
    assert isinstance(found.shown, Capture)
    evidence = read_evidence(found.shown)[0]
    silent = tuple(replace(item, remarks=()) for item in evidence.attesters)
    replace(found, shown=replace(evidence, attesters=silent)).verify()
