"""Registers that a publisher signed: who may say what is expected, when the caller does not.

Clauses: docs/protocols/services.md §5, step 7. A statement counts only when a Sigstore bundle over
exactly these bytes verified, for an identity that the policy lists.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from confide.appraisal.claim_names import ClaimName
from confide.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Mapping

    from confide.appraisal.provenance import Proofs
    from confide.appraisal.service_ledger import Ledger
    from confide.appraisal.service_policy import Policy
    from confide.wire.service import Attester
    from confide.wire.tdx import TdBody10

__all__ = ["judge_references", "tdx_registers"]

_STEP: Final = "service/7"


def tdx_registers(body: TdBody10) -> dict[str, bytes]:
    """Return the registers of a quote by the names that statements use."""
    found = {"mrtd": body.mr_td}
    return found | {f"rtmr{index}": body.rtmr[index] for index in range(4)}


def judge_references(
    attester: Attester,
    measured: Mapping[str, bytes],
    proofs: Proofs,
    *,
    policy: Policy,
    ledger: Ledger,
) -> frozenset[str]:
    """
    Return the names of the registers that a listed publisher expects, as `measured` has them.

    `measured` comes from a verified quote or report. A register that differs from what the
    publisher signed contradicts `launch`.
    """
    stated = attester.references
    if stated is None:
        return frozenset()
    signers = [
        f"{proof.issuer} {proof.identity}"
        for proof in proofs.proven
        if proof.payload and proof.payload == stated.statement
    ]
    if not policy.provenance.identities.intersection(signers):
        return frozenset()
    wrong = [name for name, value in stated.registers.items() if measured.get(name) != value]
    if wrong:
        why = f"the publisher signed another {', '.join(sorted(wrong))}"
        ledger.contradicted(ClaimName.LAUNCH, _STEP, Reason.MEASUREMENT_MISMATCH, why)
        return frozenset()
    return frozenset(stated.registers)
