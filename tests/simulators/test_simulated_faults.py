"""Every fault that the simulator knows, against the appraisal of a whole node.

The tables of the simulator say which reason must refuse each of them.
"""

from __future__ import annotations

import pytest
from appraisals import Role, appraise, faulty, refusals

from confide.errors import EvidenceRejected, PolicyRejected, Reason
from confide.simulator.machine import (
    FAULT_NAMES,
)
from confide.simulator.nvidia_faults import EXPECTED, GpuFault
from confide.simulator.tdx_fault_table import FAULTS
from confide.simulator.tdx_faults import TdxFault

# From: docs/protocols/eventlog.md §1. What a dishonest host does to the log or to the launch.
LOG_REASONS = {
    "log-payload-edited": Reason.RTMR3_MISMATCH,
    "log-event-dropped": Reason.RTMR3_MISMATCH,
    "log-event-added": Reason.RTMR3_MISMATCH,
    "log-events-swapped": Reason.RTMR3_MISMATCH,
    "wrong-measurement": Reason.RTMR2_MISMATCH,
    "replayed-nonce": Reason.REPORT_DATA_MISMATCH,
}
# Accepted, and rightly so as far as an Expectation can say.
ACCEPTED = {
    # The root list is ten days old and valid for forty more. Intel issues it about once a year, so
    # its age alone says nothing; an Expectation has no floor for it (binding.md is silent too).
    "old-crl",
}
# The one device that is left has the mode that nobody asked for: told before the topology is.
OTHER_REASONS = {"ppcie-without-switches": Reason.MODE_MISMATCH}
GPU_NAMES = {fault.value for fault in GpuFault}
TDX_NAMES = {fault.value for fault in TdxFault}


def reason_for(name: str, role: Role) -> Reason:
    """What the tables of the simulator say must refuse `name`."""
    if name in OTHER_REASONS:
        return OTHER_REASONS[name]
    if role == "model":
        return EXPECTED[GpuFault(name)]
    return LOG_REASONS[name] if name in LOG_REASONS else FAULTS[TdxFault(name)].reason


def test_every_fault_has_a_home() -> None:
    assert set(FAULT_NAMES) == GPU_NAMES | TDX_NAMES | set(LOG_REASONS)


@pytest.mark.parametrize("name", sorted((TDX_NAMES | set(LOG_REASONS)) - ACCEPTED))
def test_every_fault_of_a_cpu_or_its_log_is_refused(name: str) -> None:
    found = refusals(faulty(name, "agent"), "agent")
    assert list(found.values()) == [reason_for(name, "agent")]
    assert set(found) <= {"5", "6"}


@pytest.mark.parametrize("name", sorted(GPU_NAMES - {"replayed-nonce"}))
def test_every_fault_of_a_gpu_is_refused(name: str) -> None:
    found = refusals(faulty(name, "model"), "model")
    assert list(found.values()) == [reason_for(name, "model")]
    assert set(found) <= {"9", "10"}


def test_a_gpu_that_answers_an_old_nonce_is_refused() -> None:
    found = refusals(faulty("replayed-nonce", "model"), "model")
    assert found == {"5": Reason.REPORT_DATA_MISMATCH, "10": Reason.NONCE_MISMATCH}


@pytest.mark.parametrize("name", sorted(ACCEPTED))
def test_what_an_expectation_cannot_ask_for_is_accepted_and_listed(name: str) -> None:
    appraise(faulty(name, "agent"), "agent")


def test_a_fault_of_policy_alone_is_told_from_a_forgery() -> None:
    with pytest.raises(PolicyRejected):
        appraise(faulty("debug-td", "agent"), "agent")
    with pytest.raises(EvidenceRejected):
        appraise(faulty("forged-quote", "agent"), "agent")
