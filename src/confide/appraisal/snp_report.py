"""Steps that tie a report to its certificate. Clauses docs/protocols/snp.md#4 to #8.

The certificate is AMD's by the steps of `snp_chain`; the report is believed from 8.1 on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from confide.appraisal.steps import Refused, Step, established
from confide.crypto.ecdsa import verify
from confide.crypto.errors import BadSignature
from confide.errors import Reason
from confide.wire.snp import Product, SigningKeyKind, product_of_cpuid, reserved_not_zero

if TYPE_CHECKING:
    from confide.appraisal.snp_chain import SnpState
    from confide.wire.snp import SnpTcb

__all__ = ["REPORT_STEPS"]

_DOC = "docs/protocols/snp.md"
_CERTIFIED: Final = ("snp/2.1", "snp/2.2", "snp/2.3")
# From: docs/protocols/snp.md#6: last arcs of the extensions.
_BOOT_LOADER, _TEE, _SNP, _MICROCODE, _FMC = 1, 2, 3, 8, 9
_UNNAMED: Final = range(4, 8)


def _step_4_1(state: SnpState) -> str:
    if state.kind is None:
        raise Refused(Reason.SIGNING_KEY_TYPE, "the leaf is named neither SEV-VCEK nor SEV-VLEK")
    said = state.report.signing_key
    if said is None:
        raise Refused(Reason.SIGNING_KEY_TYPE, "the report names no signing key")
    if said is not state.kind:
        raise Refused(
            Reason.SIGNING_KEY_TYPE, f"the leaf is a {state.kind}, the report names a {said}"
        )
    return str(said)


def _step_5_1(state: SnpState) -> str:
    product = established(state.anchor).product
    if state.product[0] is not product:
        raise Refused(Reason.PRODUCT_MISMATCH, f"the root is of {product}, the leaf is not")
    return str(product)


def _certified(components: dict[int, int], product: Product) -> dict[str, int]:
    """Return what the leaf must say, by the name of the component."""
    arcs = {"boot_loader": _BOOT_LOADER, "tee": _TEE, "snp": _SNP, "microcode": _MICROCODE}
    if product is Product.TURIN:
        arcs["fmc"] = _FMC
    elif _FMC in components:
        raise Refused(Reason.TCB_MISMATCH, f"the leaf has an FMC version, {product} has not")
    missing = [name for name, arc in arcs.items() if arc not in components]
    if missing:
        raise Refused(Reason.TCB_MISMATCH, f"the leaf has no version of {', '.join(missing)}")
    return {name: components[arc] for name, arc in arcs.items()}


def _require_unnamed(components: dict[int, int], tcb: SnpTcb, product: Product) -> None:
    # On Turin the bytes without a name moved and their extensions with them: all are zero.
    said = bytes(components.get(arc, 0) for arc in _UNNAMED)
    expected = said if product is not Product.TURIN else bytes(len(tcb.other))
    if tcb.other != expected or (product is Product.TURIN and any(said)):
        raise Refused(Reason.TCB_MISMATCH, "a component without a name differs")


def _step_6(state: SnpState) -> str:
    product = established(state.anchor).product
    tcb = state.report.reported_tcb.components(product)
    certified = _certified(state.components, product)
    wrong = [name for name, value in certified.items() if getattr(tcb, name) != value]
    if wrong:
        raise Refused(Reason.TCB_MISMATCH, f"the leaf is for another {', '.join(wrong)}")
    _require_unnamed(state.components, tcb, product)
    return str(tcb)


def _step_7_1(state: SnpState) -> str:
    (hardware_id, operator), chip_id = state.owner, state.report.chip_id
    if state.kind is SigningKeyKind.VLEK:
        if hardware_id is not None or not operator:
            raise Refused(Reason.CHIP_ID, "a VLEK is of an operator, and of no chip")
        return "the key of an operator: says nothing about the chip"
    if hardware_id is None or operator is not None:
        raise Refused(Reason.CHIP_ID, "a VCEK is of a chip, and of no operator")
    if not any(chip_id):
        raise Refused(Reason.CHIP_ID, "the chip id is masked")
    size = 8 if established(state.anchor).product is Product.TURIN else 64
    if len(hardware_id) != size or chip_id != hardware_id.ljust(64, b"\0"):
        raise Refused(Reason.CHIP_ID, "the leaf is for another chip")
    return hardware_id.hex()


def _step_8_1(state: SnpState) -> None:
    report = state.report
    try:
        verify(state.leaf.public_key, report.signature, report.signed)
    except BadSignature as error:
        raise Refused(Reason.REPORT_SIGNATURE, error.what) from error


def _step_8_2(state: SnpState) -> None:
    found = reserved_not_zero(state.report)
    if found:
        raise Refused(
            Reason.REPORT_RESERVED, f"{len(found)} reserved byte(s), the first at {found[0]}"
        )


def _step_8_3(state: SnpState) -> str:
    product, cpuid = established(state.anchor).product, state.report.cpuid
    if cpuid is None:
        return "version 2 does not name the processor"
    family, model, stepping = cpuid
    if product_of_cpuid(family, model) is not product:
        raise Refused(
            Reason.PRODUCT_MISMATCH, f"family {family:#x} model {model:#x} is not {product}"
        )
    return f"family {family:#x} model {model:#x} stepping {stepping}"


REPORT_STEPS: Final[tuple[Step[SnpState], ...]] = (
    Step("snp/4.1", f"{_DOC}#4", _step_4_1, _CERTIFIED),
    Step("snp/5.1", f"{_DOC}#5", _step_5_1, _CERTIFIED),
    Step("snp/6", f"{_DOC}#6", _step_6, (*_CERTIFIED, "snp/5.1")),
    Step("snp/7.1", f"{_DOC}#7", _step_7_1, (*_CERTIFIED, "snp/4.1", "snp/5.1")),
    Step("snp/8.1", f"{_DOC}#8", _step_8_1, _CERTIFIED),
    Step("snp/8.2", f"{_DOC}#8", _step_8_2),
    Step("snp/8.3", f"{_DOC}#8", _step_8_3, _CERTIFIED),
)
