"""What a relying party keeps between appraisals, so that the same bytes are verified once. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from confide.appraisal.nvidia_chain import VerifiedSignatures

if TYPE_CHECKING:
    from confide.appraisal.nvidia import GpuSetResult
    from confide.appraisal.nvidia_rim import VerifiedRim
    from confide.appraisal.tdx_types import TdxResult, VerifiedCollateral

__all__ = ["Known"]

# An agent node and a model node, each on its own kind of platform, and a change of collateral.
_MAX_KNOWN_COLLATERAL = 4


@dataclass(frozen=True, slots=True)
class Known:
    """
    What earlier appraisals of the same caller verified, by exact bytes: it spares work, no check.

    Collateral counts while it is current and under a root of the caller, a manifest for the same
    root; a signature that was good once is good for ever. Statuses, periods, nonces and policies
    are judged every time. Start with `Known()`.
    """

    collateral: tuple[VerifiedCollateral, ...] = ()
    rims: tuple[VerifiedRim, ...] = ()
    signatures: VerifiedSignatures = field(default_factory=VerifiedSignatures)

    def after(self, tdx: TdxResult, gpus: GpuSetResult | None) -> Known:
        """Return what is known after one more appraisal, the newest first."""
        used = tdx.verified.collateral
        older = tuple(found for found in self.collateral if found.collateral != used.collateral)
        collateral = (used, *older)[:_MAX_KNOWN_COLLATERAL]
        if gpus is None:
            return replace(self, collateral=collateral)
        return Known(collateral, gpus.verified_rims, gpus.verified_signatures)
