"""Steps 2 to 10 of docs/protocols/nvidia.md: one GPU or switch is genuine, fresh, and not revoked.

The number of each function stands in its docstring. All evidence and endorsements are hostile;
`Context` holds what the verifier chose. Nothing here looks at another device, and nothing
here says what the device runs: that is `nvidia_measurements`.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

from confide.appraisal.nvidia_chain import in_period, require_path, require_pinned_root
from confide.appraisal.nvidia_chips import CHIPS, KINDS, Chip, certified_names
from confide.appraisal.nvidia_policy import GpuMode
from confide.appraisal.steps import Refused, Step, established
from confide.crypto.ecdsa import verify
from confide.crypto.errors import BadSignature
from confide.crypto.x509 import other_names, split_pem_chain
from confide.errors import FormatError, Reason
from confide.wire.dice import (
    COMPOSITE_DEVICE_ID,
    DiceIdentity,
    parse_composite_device_id,
    parse_tcb_info,
)
from confide.wire.spdm import (
    SIGNATURE_BYTES,
    FieldId,
    Switchable,
    block_count,
    parse_report,
    read_gpu_fields,
)
from confide.wire.spdm_switch import read_switch_fields

if TYPE_CHECKING:
    from confide.appraisal.nvidia_state import DeviceState
    from confide.crypto.x509 import Certificate

__all__ = ["GENUINE_STEPS", "fwid_is_expected", "require_good_certificate"]

_DOC = "docs/protocols/nvidia.md"
_CHAIN_LENGTH = 5
# From: DMTF DSP0274 1.1 §10.6.2, id-DMTF-device-info.
_DEVICE_INFO = "1.3.6.1.4.1.412.274.1"
_UTF8_STRING = 0x0C
_PDI_BITS = 64
# From: docs/protocols/nvidia.md 7: every report of driver 550 or later has field 20.
_FWID_SINCE_DRIVER = 550


def _chip(state: DeviceState) -> Chip:
    return CHIPS[established(state.chip)]


def _verify_chain(state: DeviceState) -> str:
    """2a: five certificates, linked, up to the pinned root."""
    ders = split_pem_chain(
        state.evidence.chain_pem,
        max_certificates=_CHAIN_LENGTH,
        what="device chain",
        reason=Reason.CHAIN_MALFORMED,
    )
    if len(ders) != _CHAIN_LENGTH:
        raise Refused(Reason.CHAIN_MALFORMED, f"{len(ders)} certificates instead of five")
    context = state.context
    state.chain = tuple(
        context.certificate(der, f"device certificate {number}") for number, der in enumerate(ders)
    )
    require_pinned_root(state.chain, context.device_root, reason=Reason.CHAIN_UNTRUSTED_ROOT)
    require_path(
        state.chain,
        context.memory,
        malformed=Reason.CHAIN_MALFORMED,
        invalid=Reason.CHAIN_INVALID,
    )
    return f"leaf {state.chain[0].sha256}"


def _require_chain_period(state: DeviceState) -> str:
    """2b: all five are in their period."""
    for number, certificate in enumerate(state.chain):
        if not in_period(certificate, state.context.now):
            raise Refused(Reason.CHAIN_EXPIRED, f"certificate {number} is out of its period")
    end = min(certificate.not_after for certificate in state.chain)
    state.expiries.append(end)
    return f"until {end:%Y-%m-%d}"


def _verify_signature(state: DeviceState) -> str:
    """3: the leaf's key signed the report."""
    raw = state.evidence.report
    if len(raw) <= SIGNATURE_BYTES:
        raise Refused(Reason.REPORT_MALFORMED, f"{len(raw)} bytes are no report")
    try:
        verify(state.chain[0].public_key, raw[-SIGNATURE_BYTES:], raw[:-SIGNATURE_BYTES])
    except BadSignature as error:
        raise Refused(Reason.SIGNATURE_INVALID, error.what) from error
    return f"{len(raw)} bytes"


def _parse_report(state: DeviceState) -> str:
    """4: the report has exactly the form that is specified."""
    kind = state.evidence.kind
    blocks = KINDS[kind].profile.blocks
    if block_count(state.evidence.report) in {facts.profile.blocks for facts in KINDS.values()} - {
        blocks
    }:
        raise Refused(Reason.ARCH_MISMATCH, f"the report of another device than a {kind}")
    state.report = parse_report(state.evidence.report, KINDS[kind].profile)
    if kind == "switch":
        state.switch = read_switch_fields(state.report)
    else:
        state.gpu = read_gpu_fields(state.report)
        if state.gpu.fwid is None and fwid_is_expected(state.gpu.driver_version):
            raise Refused(Reason.REPORT_MALFORMED, "field 20 is absent on a driver that reports it")
    return f"{len(state.report.opaque)} opaque entries"


def fwid_is_expected(driver_version: str) -> bool:
    """Whether every genuine report of `driver_version` carries its firmware id."""
    major = driver_version.partition(".")[0]
    return not major.isdigit() or int(major) >= _FWID_SINCE_DRIVER


def _require_nonce(state: DeviceState) -> str:
    """5: the report answers this challenge."""
    if not hmac.compare_digest(state.report.nonce, state.context.expected_nonce):
        raise Refused(Reason.NONCE_MISMATCH, "the report answers another nonce")
    return ""


def _require_chip(state: DeviceState) -> str:
    """6: certificates and report name one known chip of the kind that was presented."""
    kind = state.evidence.kind
    names = certified_names(state.chain, kind)
    if names is None:
        raise Refused(Reason.ARCH_MISMATCH, f"a certificate name does not name a known {kind}")
    names = (*names, _alternative_name_chip(state))
    found = [name for name, chip in CHIPS.items() if chip.certified == names[0]]
    if not found:
        raise Refused(Reason.ARCH_MISMATCH, "the chip is not known")
    state.chip = found[0]
    chip_info = state.gpu.chip_info if state.gpu is not None else None
    if len(set(names)) != 1 or chip_info not in {None, state.chip}:
        raise Refused(Reason.ARCH_MISMATCH, "certificates and report name different chips")
    if CHIPS[state.chip].kind != kind or state.chain[3].subject != CHIPS[state.chip].identity:
        raise Refused(Reason.ARCH_MISMATCH, "the certificates are not those of this chip")
    return state.chip


def _alternative_name_chip(state: DeviceState) -> str:
    found = other_names(state.chain[0], _DEVICE_INFO)
    if len(found) != 1 or len(found[0]) < 2 or found[0][0] != _UTF8_STRING:
        raise Refused(Reason.ARCH_MISMATCH, "the leaf has no device name")
    parts = found[0][2:].decode("latin-1").split(":")
    if len(parts) != 3 or parts[0] != "NVIDIA" or found[0][1] != len(found[0]) - 2:
        raise Refused(Reason.ARCH_MISMATCH, "the leaf has no device name of the known form")
    return parts[1]


def _require_fwid(state: DeviceState) -> str:
    """7: the firmware id in the leaf is the one in the report."""
    identity = _dice_identity(state)
    if identity.key is not None and identity.key != state.chain[1].public_key.point:
        raise Refused(Reason.FWID_MISMATCH, "the DICE extension names another BROM key")
    # Compared wherever it is, also where no genuine report has it so far.
    reported = state.report.get(FieldId.FWID)
    if reported is None:
        return "not comparable: the report has no firmware id"
    if not hmac.compare_digest(identity.fwid, reported):
        raise Refused(Reason.FWID_MISMATCH, "leaf and report name different firmware")
    return identity.fwid.hex()


def _dice_identity(state: DeviceState) -> DiceIdentity:
    oid = _chip(state).dice_oid
    value = state.chain[0].extension(oid)
    if value is None:
        raise Refused(Reason.FWID_MISSING, "the leaf has no DICE extension of its chip")
    return parse_composite_device_id(value) if oid == COMPOSITE_DEVICE_ID else parse_tcb_info(value)


def _require_pdi(state: DeviceState) -> str:
    """8a: the BROM certificate carries the identifier of this kind of device."""
    state.ueid = str(state.chain[0].serial)
    serial = state.chain[1].serial
    state.pdi = (serial % (1 << _PDI_BITS)).to_bytes(_PDI_BITS // 8, "big")
    kind = state.evidence.kind
    if serial >> _PDI_BITS != KINDS[kind].brom_prefix:
        raise Refused(Reason.PDI_MISMATCH, f"the BROM serial number is not that of a {kind}")
    return state.pdi.hex()


def _require_reported_pdi(state: DeviceState) -> str:
    """8b: a switch reports the identifier that its BROM certificate carries."""
    if state.switch is None:
        return "a GPU does not report its own"
    if not hmac.compare_digest(state.switch.pdi, established(state.pdi)):
        raise Refused(Reason.PDI_MISMATCH, "report and BROM certificate name different devices")
    return ""


def _require_not_revoked(state: DeviceState) -> str:
    """9: certificates 1 to 3 are good."""
    for number in (1, 2, 3):
        require_good_certificate(state, state.chain, number, tolerate_hold=False)
    return "3 answers"


def require_good_certificate(
    state: DeviceState,
    chain: tuple[Certificate, ...],
    number: int,
    *,
    tolerate_hold: bool,
) -> None:
    """Refuse unless `chain[number]` has a good answer; note when that answer ends."""
    try:
        end = state.context.good_until(
            chain[number], chain[number + 1], tolerate_hold=tolerate_hold
        )
    except Refused as refusal:
        raise Refused(refusal.reason, f"certificate {number}: {refusal.detail}") from refusal
    except FormatError as error:
        raise Refused(error.reason, f"certificate {number}: {error.what}") from error
    state.expiries.append(end)


def _read_mode(state: DeviceState) -> str:
    """10: the mode, from signed fields that agree with each other."""
    chip = _chip(state)
    if state.gpu is None:
        return "a switch has no mode of its own"
    fields = state.gpu
    bridged = fields.protected_pcie is Switchable.ON
    state.mode = told = GpuMode.PPCIE if bridged else GpuMode.SPT
    flagged = None if fields.feature_flag is None else GpuMode[fields.feature_flag.name]
    # From: nvidia.md §1.3: field 36 has a meaning in version 1 only. Where it stands without one,
    # it may not say anything else than field 21 either.
    if fields.opaque_version != 1:
        if flagged not in {None, told}:
            raise Refused(Reason.MODE_MISMATCH, "fields 34 and 36 do not agree")
    elif flagged is None:
        raise Refused(Reason.MODE_MISMATCH, "field 36 is absent from this version")
    else:
        state.mode = flagged
        if fields.protected_pcie is not None and bridged != (flagged is GpuMode.PPCIE):
            raise Refused(Reason.MODE_MISMATCH, "fields 21 and 36 do not agree")
    possible = {GpuMode.SPT: True, GpuMode.MPT: chip.mpt, GpuMode.PPCIE: chip.ppcie}
    if not possible[state.mode]:
        raise Refused(Reason.MODE_MISMATCH, f"{state.chip} has no mode {state.mode}")
    return state.mode


GENUINE_STEPS: tuple[Step[DeviceState], ...] = (
    Step("nvidia/2a", f"{_DOC}#2", _verify_chain),
    Step("nvidia/2b", f"{_DOC}#2", _require_chain_period, needs=("nvidia/2a",)),
    Step("nvidia/3", f"{_DOC}#3", _verify_signature, needs=("nvidia/2a",)),
    Step("nvidia/4", f"{_DOC}#4", _parse_report, needs=("nvidia/3",)),
    Step("nvidia/5", f"{_DOC}#5", _require_nonce, needs=("nvidia/4",)),
    Step("nvidia/6", f"{_DOC}#6", _require_chip, needs=("nvidia/4",)),
    Step("nvidia/7", f"{_DOC}#7", _require_fwid, needs=("nvidia/6",)),
    Step("nvidia/8a", f"{_DOC}#8", _require_pdi, needs=("nvidia/2a",)),
    Step("nvidia/8b", f"{_DOC}#8", _require_reported_pdi, needs=("nvidia/4", "nvidia/8a")),
    Step("nvidia/9", f"{_DOC}#9", _require_not_revoked, needs=("nvidia/2a",)),
    Step("nvidia/10", f"{_DOC}#10", _read_mode, needs=("nvidia/6",)),
)
