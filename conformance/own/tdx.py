"""Candidates of stage `tdx`: an honest simulated platform, and one fault at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from confide.simulator.tdx import QuoteKind, SimulatedLaunch, SimulatedTdxPlatform, TdxFault
from confide.simulator.tdx_fault_table import FAULTS
from conformance.own.candidate import NOW, REPORT_DATA, SEED, Candidate

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["candidates", "document"]

_LAUNCH = SimulatedLaunch(mr_td=b"\1" * 48, rtmr=(b"\2" * 48, b"\3" * 48, b"\4" * 48, b"\5" * 48))
_HONEST = SimulatedTdxPlatform(SEED, NOW)


def document() -> dict[str, Any]:
    """Return the top of the index: the strictest policy that the honest platform meets."""
    policy = _HONEST.policy(_LAUNCH)
    return {
        "default_policy": {
            "accept_status": ["UpToDate"],
            "mrtd": _LAUNCH.mr_td.hex(),
            "rtmr": [value.hex() for value in _LAUNCH.rtmr],
            "mrseam": _HONEST.mr_seam.hex(),
            "mrconfigid": _LAUNCH.mr_config_id.hex(),
            "mrowner": _LAUNCH.mr_owner.hex(),
            "mrownerconfig": _LAUNCH.mr_owner_config.hex(),
            "platforms": [_HONEST.ppid.hex()],
            "dynamic_platform": "rejected",
            "cached_keys": "rejected",
            "smt": "rejected",
            "trailing_bytes": "zero-only",
            "min_tcb_evaluation_data_number": policy.min_evaluation,
            "min_root_crl_this_update": int(policy.min_root_crl_issued.timestamp()),
            "min_pck_crl_this_update": int(policy.min_pck_crl_issued.timestamp()),
            "max_collateral_age": int(policy.max_collateral_age.total_seconds()),
            "expected_report_data": REPORT_DATA.hex(),
        }
    }


def _candidate(slug: str, platform: SimulatedTdxPlatform, quote: bytes, **rest: Any) -> Candidate:
    policy = rest.pop("policy", {})
    return Candidate(
        slug,
        {
            "quote": "quote.bin",
            "collateral": "collateral.json",
            "root": "root.der",
            "anchor": "simulated",
            "now": int(NOW.timestamp()),
            "policy": policy,
        },
        {
            "quote.bin": quote,
            "collateral.json": platform.collateral(),
            "root.der": _HONEST.anchor().der,
        },
        **rest,
    )


def candidates() -> Iterator[Candidate]:
    """Yield the honest shapes, the faults, and the refusals that only a policy makes."""
    for kind in QuoteKind:
        quote = _HONEST.quote(_LAUNCH, report_data=REPORT_DATA, kind=kind)
        yield _candidate(f"honest-{kind.name.lower().replace('_', '-')}", _HONEST, quote)
    for fault in TdxFault:
        platform = SimulatedTdxPlatform(SEED, NOW, fault)
        quote = platform.quote(_LAUNCH, report_data=REPORT_DATA)
        yield _candidate(fault.value, platform, quote, reason=FAULTS[fault].reason)
    honest = _HONEST.quote(_LAUNCH, report_data=REPORT_DATA)
    simulated = {"allow_simulated": False}
    yield _candidate(
        "simulated-refused", _HONEST, honest, reason="simulated-not-allowed", policy=simulated
    )
    blocked = {"blocked_platforms": [_HONEST.ppid.hex()]}
    yield _candidate(
        "platform-blocked", _HONEST, honest, reason="platform-not-allowed", policy=blocked
    )
    padded = {"trailing_bytes": "none"}
    yield _candidate(
        "padding-refused", _HONEST, honest + bytes(70), reason="trailing-bytes", policy=padded
    )
