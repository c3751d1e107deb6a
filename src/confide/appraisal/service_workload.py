"""What the launch document of one attester leaves open, and who built what it starts.

Clauses: docs/protocols/services.md §5, step 8. The document is read as in workload.md; that it is
the one that was measured is another claim (`workload`), and what it says is worth no more than
that claim.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from confide.appraisal.claim_names import ClaimName
from confide.appraisal.provenance import SigstoreIdentity, appraise_provenance
from confide.errors import ConfigurationError, FormatError, Unsupported
from confide.rats import Status
from confide.reasons import Reason

if TYPE_CHECKING:
    from confide.appraisal.provenance import Proofs
    from confide.appraisal.service_ledger import Ledger
    from confide.appraisal.service_policy import Policy
    from confide.appraisal.workload_types import Workload
    from confide.wire.service import LaunchDocument

__all__ = ["judge_workload"]

_STEP: Final = "service/8"
_READ: Final = (
    ClaimName.IMAGES_PINNED,
    ClaimName.WORKLOAD_COMPLETE,
    ClaimName.OPERATOR_ACCESS,
    ClaimName.KEY_LIFETIME,
)
_SHOWN: Final = 3


def judge_workload(
    launch: LaunchDocument | None,
    provenance: Proofs,
    *,
    policy: Policy,
    ledger: Ledger,
) -> tuple[str, ...]:
    """
    Record what `launch` says about images, later starts and the operator.

    Returns what it shows that no claim says: who else in the machine can have anything quoted.
    """
    if launch is None:
        for name in (*_READ, ClaimName.IMAGE_PROVENANCE):
            ledger.open(name, _STEP, "no launch document was presented")
        return ()
    # YAML, TOML and what they mean: for evidence with a launch document alone.
    from confide.appraisal.workload import read_workload  # noqa: PLC0415

    try:
        workload = read_workload(launch)
    except (FormatError, Unsupported, ConfigurationError) as error:
        # The document may still be the measured one; what it starts is not known.
        for name in (*_READ, ClaimName.IMAGE_PROVENANCE):
            ledger.open(name, _STEP, f"the launch document was not understood: {error}")
        return ()
    for name in _READ:
        _judge(name, workload, ledger)
    if workload.about(ClaimName.GPU):
        # What a machine asks of its GPUs can lower what is shown of them, and proves nothing.
        _judge(ClaimName.GPU, workload, ledger)
    _judge_provenance(workload, provenance, policy, ledger)
    quoting = len(workload.about(ClaimName.KEYS))
    if not quoting:
        return ()
    said = "of the socket through which any report data is quoted: its holder can show other keys"
    return (f"{ledger.subject}: {quoting} mount(s) {said}",)


def _judge(name: ClaimName, workload: Workload, ledger: Ledger) -> None:
    observed = workload.about(name)
    if observed:
        more = f" (and {len(observed) - _SHOWN} more)" if len(observed) > _SHOWN else ""
        why = "; ".join(str(item) for item in observed[:_SHOWN]) + more
        if observed[0].contradicts:
            reason = (
                Reason.IMAGE_NOT_PINNED
                if name is ClaimName.IMAGES_PINNED
                else Reason.CLAIM_NOT_PROVEN
            )
            ledger.contradicted(name, _STEP, reason, why)
        else:
            ledger.open(name, _STEP, why)
    elif not workload.shows(name):
        ledger.open(name, _STEP, "this kind of launch document does not say")
    elif not ledger.holds(ClaimName.WORKLOAD):
        ledger.open(name, _STEP, "the launch document is not bound to the hardware")
    else:
        ledger.proven(name, _STEP, "launch document", _value(name, workload))


def _value(name: ClaimName, workload: Workload) -> str:
    if name is ClaimName.IMAGES_PINNED:
        return f"{len(workload.images)} image(s), each by digest"
    return "nothing in the launch document says otherwise"


def _judge_provenance(workload: Workload, proofs: Proofs, policy: Policy, ledger: Ledger) -> None:
    name, allowed = ClaimName.IMAGE_PROVENANCE, policy.provenance.identities
    if not allowed:
        ledger.open(name, _STEP, "the policy lists nobody who may build images")
        return
    found = appraise_provenance(
        workload,
        proofs.proven,
        identities=tuple(SigstoreIdentity.parse(text) for text in sorted(allowed)),
        refused=proofs.refused,
    )
    ledger.add(found.findings)
    value = found.claim.value
    if found.claim.status is Status.FAIL:
        ledger.contradicted(name, _STEP, Reason.PROVENANCE_INVALID, value)
    elif found.claim.status is Status.NOT_PROVEN:
        ledger.open(name, _STEP, f"signed by a listed builder: {value}")
    elif ledger.holds(ClaimName.IMAGES_PINNED):
        ledger.proven(name, _STEP, "Sigstore", value)
    else:
        # Nobody vouches for what has no digest, whoever signed the rest.
        ledger.open(name, _STEP, f"{value}; that these are all images of this machine is not shown")
