"""Steps 11 to 13 of docs/protocols/nvidia.md: what one genuine GPU or switch runs.

The number of each function stands in its docstring. `compare` is the arithmetic of step 12 alone;
it proves nothing about where the golden values came from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from confide.appraisal.nvidia_chips import CHIPS, KINDS
from confide.appraisal.nvidia_device import require_good_certificate
from confide.appraisal.nvidia_rim import VerifiedRim, require_identity, require_periods
from confide.appraisal.nvidia_state import Comparison, DeviceState
from confide.appraisal.steps import Refused, Step, established
from confide.errors import Reason
from confide.wire.rim import GoldenMeasurement, Rim, rim_driver_id, rim_switch_id, rim_vbios_id
from confide.wire.spdm import Switchable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from confide.appraisal.nvidia_policy import VersionRule

__all__ = ["MEASUREMENT_STEPS", "POLICY_STEP_IDS", "compare"]

_DOC = "docs/protocols/nvidia.md"
# From: docs/protocols/nvidia.md 12b: covered only while the video decoder is enabled.
_NVDEC_INDEX = 35
_Source = Literal["driver", "firmware"]


def _open_driver_rim(state: DeviceState) -> str:
    """11a: the driver manifest is authentic and the one for this driver."""
    if state.gpu is None:
        return "a switch has no driver of its own"
    version = state.gpu.driver_version
    rim_id = rim_driver_id(established(state.chip), version)
    state.driver_rim = state.context.rim(rim_id)
    _require_this(state.driver_rim, version, state)
    return rim_id


def _open_firmware_rim(state: DeviceState) -> str:
    """11b: the VBIOS or BIOS manifest is authentic and the one for this board and version."""
    if state.gpu is not None:
        fields, version = state.gpu, state.gpu.vbios_version
        rim_id = rim_vbios_id(fields.project, fields.project_sku, fields.chip_sku, version)
    else:
        version = established(state.switch).bios_version
        rim_id = rim_switch_id(version)
    state.firmware_rim = state.context.rim(rim_id)
    _require_this(state.firmware_rim, version, state)
    return rim_id


def _require_this(verified: VerifiedRim, version: str, state: DeviceState) -> None:
    edition = KINDS[state.evidence.kind].edition
    require_identity(
        verified.rim, version=version, edition=edition, product=established(state.chip)
    )


def _require_rim_periods(state: DeviceState) -> str:
    """11c: the certificates of both manifests are in their periods."""
    context = state.context
    expired_signer = context.policy.unsafe_tolerate_expired_rim_signer
    ends = []
    for verified in state.manifests:
        require_periods(verified, now=context.now, unsafe_expired_signer=expired_signer)
        ends += [c.not_after for c in verified.chain if c.not_after >= context.now]
    state.expiries.append(min(ends))
    return f"until {min(ends):%Y-%m-%d}"


def _require_rims_not_revoked(state: DeviceState) -> str:
    """11d: the certificates of both manifests are good."""
    policy, now = state.context.policy, state.context.now
    for verified in state.manifests:
        for number in (0, 1, 2):
            # An expired signer is tolerated for a good answer only, never for one on hold.
            expired = now > verified.chain[number].not_after
            require_good_certificate(
                state,
                verified.chain,
                number,
                tolerate_hold=policy.unsafe_tolerate_rim_hold and not expired,
            )
    return f"{3 * len(state.manifests)} answers"


def _require_no_conflict(state: DeviceState) -> str:
    """12a: no index twice, and no manifest without weight."""
    driver = state.driver_rim.rim.active if state.driver_rim is not None else ()
    firmware = established(state.firmware_rim).rim.active
    least = CHIPS[established(state.chip)].least_active
    if len(driver) < least[0] or len(firmware) < least[1]:
        raise Refused(
            Reason.RIM_MALFORMED, f"{len(driver)} and {len(firmware)} active entries, too few"
        )
    both = sorted({g.index for g in driver} & {g.index for g in firmware})
    if both:
        raise Refused(Reason.RIM_INDEX_CONFLICT, f"indexes {both} are active in both manifests")
    return f"{len(driver)} + {len(firmware)} active"


def compare(
    blocks: Sequence[bytes], *, decoder_off: bool, driver: Rim | None, firmware: Rim | None
) -> Comparison:
    """
    Compare the `blocks` of a report with the active entries of the manifests given.

    Index i is block i + 1; an index beyond the last block is a mismatch. `decoder_off` leaves out
    the one index that is not measured then. **Proves nothing by itself**: an empty comparison has
    no mismatch.
    """
    golden: list[tuple[GoldenMeasurement, _Source]] = []
    golden += [(entry, "driver") for entry in (driver.active if driver else ())]
    golden += [(entry, "firmware") for entry in (firmware.active if firmware else ())]
    skip = {_NVDEC_INDEX} if decoder_off else set()
    compared, mismatches = 0, []
    for entry, source in golden:
        if entry.index in skip:
            continue
        compared += 1
        runtime = blocks[entry.index] if entry.index < len(blocks) else b""
        # Golden values are published and reports are shown to anyone: nothing here is secret.
        if runtime not in entry.values:
            mismatches.append((entry.index, source))
    covered = {entry.index for entry, _ in golden}
    return Comparison(
        compared=compared,
        skipped=tuple(sorted(skip & covered)),
        mismatches=tuple(sorted(mismatches)),
        uncovered=tuple(
            index
            for index, value in enumerate(blocks)
            if index not in covered and value.count(0) != len(value)
        ),
    )


def _require_match(state: DeviceState) -> str:
    """12b: everything that is covered has a golden value, and something is covered."""
    found = state.comparison = compare(
        state.report.blocks,
        decoder_off=state.gpu is not None and state.gpu.nvdec0 is Switchable.OFF,
        driver=state.driver_rim.rim if state.driver_rim is not None else None,
        firmware=established(state.firmware_rim).rim,
    )
    if found.mismatches:
        listed = ", ".join(f"{index} ({source})" for index, source in found.mismatches)
        raise Refused(Reason.MEASUREMENT_MISMATCH, f"indexes {listed}")
    if not found.compared:
        raise Refused(Reason.MEASUREMENT_MISMATCH, "nothing was compared")
    return f"{found.compared} compared, {len(found.skipped)} skipped"


def _require_covered(state: DeviceState) -> str:
    """12c: nothing is measured that no manifest covers."""
    extra = sorted(set(state.comparison.uncovered) - set(state.context.policy.uncovered_allowed))
    if extra:
        raise Refused(Reason.MEASUREMENT_UNCOVERED, f"indexes {extra} are in no manifest")
    return f"{len(state.comparison.uncovered)} uncovered"


def _require_allowed_chip(state: DeviceState) -> str:
    """13a: the chip is one asked for."""
    if state.chip not in state.context.policy.chips:
        raise Refused(Reason.ARCH_MISMATCH, f"the policy does not accept {state.chip}")
    return str(state.chip)


def _require_mode(state: DeviceState) -> str:
    """13b: the mode is the one asked for."""
    if state.gpu is None:
        return "a switch has no mode of its own"
    if state.mode is not state.context.policy.mode:
        raise Refused(Reason.MODE_MISMATCH, f"the GPU is in mode {state.mode}")
    return str(state.mode)


def _require_versions(state: DeviceState) -> str:
    """13c: driver and VBIOS, or the BIOS of a switch, are versions that the policy accepts."""
    policy = state.context.policy
    rules: tuple[tuple[str, VersionRule | None, str], ...]
    if state.gpu is not None:
        rules = (
            ("driver", policy.driver, state.gpu.driver_version),
            ("VBIOS", policy.vbios, state.gpu.vbios_version),
        )
    else:
        rules = (("BIOS", policy.switch_bios, established(state.switch).bios_version),)
    for what, rule, version in rules:
        if rule is None or not rule.accepts(version):
            raise Refused(Reason.VERSION_NOT_ALLOWED, f"{what} {version}")
    return ", ".join(f"{what} {version}" for what, _, version in rules)


def _require_fwid_present(state: DeviceState) -> str:
    """13d: the firmware id of a GPU could be compared."""
    if state.gpu is None:
        return "no switch reports one"
    if state.gpu.fwid is None and not state.context.policy.unsafe_allow_missing_fwid:
        raise Refused(Reason.FWID_MISSING, "the report has no firmware id")
    return "" if state.gpu.fwid else "absent, tolerated by the policy"


MEASUREMENT_STEPS: tuple[Step[DeviceState], ...] = (
    Step("nvidia/11a", f"{_DOC}#11", _open_driver_rim, needs=("nvidia/6",)),
    Step("nvidia/11b", f"{_DOC}#11", _open_firmware_rim, needs=("nvidia/6",)),
    Step("nvidia/11c", f"{_DOC}#11", _require_rim_periods, needs=("nvidia/11a", "nvidia/11b")),
    Step("nvidia/11d", f"{_DOC}#11", _require_rims_not_revoked, needs=("nvidia/11a", "nvidia/11b")),
    Step("nvidia/12a", f"{_DOC}#12", _require_no_conflict, needs=("nvidia/11a", "nvidia/11b")),
    Step("nvidia/12b", f"{_DOC}#12", _require_match, needs=("nvidia/12a",)),
    Step("nvidia/12c", f"{_DOC}#12", _require_covered, needs=("nvidia/12b",)),
    Step("nvidia/13a", f"{_DOC}#13", _require_allowed_chip, needs=("nvidia/6",)),
    Step("nvidia/13b", f"{_DOC}#13", _require_mode, needs=("nvidia/10",)),
    Step("nvidia/13c", f"{_DOC}#13", _require_versions, needs=("nvidia/4",)),
    Step("nvidia/13d", f"{_DOC}#13", _require_fwid_present, needs=("nvidia/7",)),
)

# A device that fails only these is authentic and not wanted: PolicyRejected.
POLICY_STEP_IDS = frozenset(
    {"nvidia/12c", "nvidia/13a", "nvidia/13b", "nvidia/13c", "nvidia/13d", "nvidia/16"}
)
