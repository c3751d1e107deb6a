"""Verify what a confidential AI service presents, offline: `verify_service.py [BUNDLE [POLICY]]`.

BUNDLE is what `confide capture` wrote; POLICY a policy file, without it the profile for looking.
Without arguments a SIMULATED service is verified, so that there is something to see.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import confide
from confide.simulator.near import SimulatedNear, encode_report
from confide.wire.bundle import encode_bundle
from confide.wire.service import Capture


def main(arguments: list[str]) -> int:
    """Print what is proven and what is not; return 0 where the policy accepts it, else 10."""
    now = datetime.now(UTC).replace(microsecond=0)  # noqa: TID251 - the program that has the clock
    policy, roots, nonce = confide.AUDIT, confide.VENDOR_ROOTS, None
    if len(arguments) > 1:
        policy = confide.parse_policy(Path(arguments[1]).read_text(encoding="utf-8"))
    if arguments:
        # Pass the nonce too, where you drew it: what a bundle says about its own proves nothing.
        raw = Path(arguments[0]).read_bytes()
    else:
        service, nonce = SimulatedNear(b"example", now, nodes=1, gpus=1), bytes(range(32))
        report = encode_report(service.gateway_report(nonce))
        capture = Capture(documents={"report": report}, format="near", nonce=nonce, at=now)
        raw = encode_bundle(capture, service.endorsements(now))
        policy, roots = replace(policy, unsafe_simulated=True), service.roots()
    accepted = True
    try:
        result = confide.verify(
            raw, confide.Endorsements(), policy, now=now, roots=roots, nonce=nonce
        )
    except confide.Rejected as error:
        if error.result is None:
            raise
        result, accepted = error.result, False
        for finding in error.failures[:3]:
            print(f"refused: {finding}")
    print("ACCEPTED" if accepted else "REJECTED", "(SIMULATED)" if result.simulated else "")
    for claim in result.claims:
        print(f"{claim.status:11} {claim.name:19} {claim.value}")
    for limit in result.limits:
        print(f"no check shows: {limit}")
    return 0 if accepted else 10


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
