"""The roots a relying party brings: vendor roots, or simulated ones from a roots file.

Clause: docs/protocols/evidence.md §3. `VENDOR_ROOTS` are Intel's, NVIDIA's and AMD's. A roots file
describes a SIMULATED platform and nothing else: whatever it holds is marked simulated, so no file
can pass for the vendors. Its member `amd` (product to base64 DER) is optional; without it no
SEV-SNP report is accepted under these roots. Evidence never selects roots; an Expectation names the
ones it means and appraisal refuses any others.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from confide.errors import Reason
from confide.trust.amd import AMD_ROOTS, NO_AMD_ROOTS, AmdAnchor, AmdRoots
from confide.trust.anchors import TdxAnchor, TdxNames
from confide.trust.intel import INTEL_TDX_ANCHOR
from confide.trust.nvidia import NVIDIA_ROOTS, NvidiaRoots
from confide.wire.json import Members, b64encode, jcs, parse_json
from confide.wire.snp_names import Product

__all__ = [
    "SIMULATED_TDX_NAMES",
    "VENDOR_ROOTS",
    "Roots",
    "encode_roots_file",
    "make_simulated_roots",
    "parse_roots_file",
]

_TYPE = "confide/simulated-roots/v1"
_REASON = Reason.ROOT_MISMATCH

# From: tdx.md §A.3, simulated names: the four Intel names with Simulated in their place.
SIMULATED_TDX_NAMES = TdxNames(
    root="Simulated SGX Root CA",
    pck_authorities=("Simulated SGX PCK Platform CA", "Simulated SGX PCK Processor CA"),
    pck_leaf="Simulated SGX PCK Certificate",
    tcb_signer="Simulated SGX TCB Signing",
)


@dataclass(frozen=True, slots=True)
class Roots:
    """
    One set of roots under one name.

    `name` is what `Expectation.hardware.roots` says: `vendor` or `simulated:<sha256 of the file>`.
    """

    name: str
    tdx: TdxAnchor
    nvidia: NvidiaRoots
    amd: AmdRoots = NO_AMD_ROOTS

    @property
    def simulated(self) -> bool:
        """Whether anything below these roots is a simulation."""
        return self.tdx.simulated or self.nvidia.simulated or self.amd.simulated

    @property
    def sha256(self) -> tuple[str, ...]:
        """
        SHA-256 (hex) of the roots behind a node: TDX, NVIDIA devices, NVIDIA manifests.

        Those of AMD are in `amd.sha256`: a node of this software has no SEV-SNP evidence.
        """
        return (self.tdx.sha256, *self.nvidia.sha256)


VENDOR_ROOTS = Roots("vendor", INTEL_TDX_ANCHOR, NVIDIA_ROOTS, AMD_ROOTS)


def encode_roots_file(roots: Roots) -> bytes:
    """Return the roots file of simulated `roots`; `ValueError` for vendor roots."""
    amd = {str(anchor.product): b64encode(anchor.der) for anchor in roots.amd.anchors}
    if not (roots.tdx.simulated and roots.nvidia.simulated and (roots.amd.simulated or not amd)):
        raise ValueError("only simulated roots stand in a roots file")
    return jcs(
        {
            "type": _TYPE,
            "tdx": b64encode(roots.tdx.der),
            "nvidia_device": b64encode(roots.nvidia.device),
            "nvidia_rim": b64encode(roots.nvidia.rim),
            **({"amd": amd} if amd else {}),
        }
    )


def _amd_roots(top: Members) -> AmdRoots:
    if not top.has("amd"):
        return NO_AMD_ROOTS
    members = top.members("amd")
    anchors = tuple(
        AmdAnchor(product, members.base64(product)) for product in Product if members.has(product)
    )
    members.end()
    if not anchors:
        members.refuse("no root")
    return AmdRoots(anchors, simulated=True)


def parse_roots_file(raw: bytes) -> Roots:
    """
    Parse a roots file. Its digest becomes the name, `simulated` is always true.

    Raises `FormatError` with ROOT_MISMATCH. The caller decides to trust it by passing it on.
    """
    value = parse_json(raw, what="roots file", reason=_REASON)
    top = Members(value, what="roots file", reason=_REASON)
    top.choice("type", (_TYPE,))
    tdx, device, rim = (top.base64(name) for name in ("tdx", "nvidia_device", "nvidia_rim"))
    amd = _amd_roots(top)
    top.end()
    nvidia = NvidiaRoots(
        device=device,
        rim=rim,
        simulated=True,
    )
    name = f"simulated:{hashlib.sha256(raw).hexdigest()}"
    return Roots(name, TdxAnchor(tdx, SIMULATED_TDX_NAMES, simulated=True), nvidia, amd)


def make_simulated_roots(
    tdx: TdxAnchor, nvidia: NvidiaRoots, amd: AmdRoots = NO_AMD_ROOTS
) -> Roots:
    """Return the roots of a simulated platform, named by the roots file they make."""
    return parse_roots_file(encode_roots_file(Roots("", tdx, nvidia, amd)))
