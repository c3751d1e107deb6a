"""Reference manifests: authentic, the one that was asked for, in date, not revoked.

Clauses: docs/protocols/nvidia.md 11 and "Manifest documents". `verify_rim` is the expensive part
and yields a `VerifiedRim` that may be reused for ever; identity, periods and revocation are asked
of it at every use. Everything raises `Refused` or `FormatError`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from confide.appraisal.nvidia_chain import SignatureMemory, require_path, require_pinned_root
from confide.appraisal.steps import Refused
from confide.crypto.errors import BadSignature
from confide.crypto.xmldsig import BadDigest, verify_enveloped
from confide.errors import Reason
from confide.wire.rim import SWID, Rim, parse_rim

if TYPE_CHECKING:
    from datetime import datetime

    from confide.crypto.x509 import Certificate

__all__ = ["VerifiedRim", "require_identity", "require_periods", "verify_rim"]

_SEAL = object()
_ROOT_NAME = f"{{{SWID}}}SoftwareIdentity"
# From: nvidia.md §3.2: signer, its issuer, the issuer's issuer, root.
_CHAIN_LENGTH = 4


@dataclass(frozen=True, slots=True)
class VerifiedRim:
    """
    A manifest whose signature and chain were verified up to `root_sha256`.

    `sha256` is over the exact XML. `chain` is signer first. Periods and revocation are **not**
    part of this value. Only `verify_rim` can make one.
    """

    sha256: str
    root_sha256: str
    rim: Rim
    chain: tuple[Certificate, ...]
    seal: object = field(repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.seal is not _SEAL:
            raise TypeError("only verify_rim makes a VerifiedRim")


def verify_rim(xml: bytes, *, root: Certificate, memory: SignatureMemory) -> VerifiedRim:
    """
    Establish that `xml` was signed under `root`, and read it.

    Order: signature, digest, chain, content. **Does not check** which device it is for, the
    periods of its certificates, or revocation.
    """
    try:
        signed = verify_enveloped(xml, parse=memory.certificate, root_name=_ROOT_NAME)
    except BadDigest as error:
        raise Refused(Reason.RIM_DIGEST_MISMATCH, error.what) from error
    except BadSignature as error:
        raise Refused(Reason.RIM_SIGNATURE_INVALID, error.what) from error
    chain = signed.certificates
    invalid = Reason.RIM_CHAIN_INVALID
    if len(chain) != _CHAIN_LENGTH:
        raise Refused(invalid, f"{len(chain)} certificates instead of four")
    require_pinned_root(chain, root, reason=invalid)
    require_path(chain, memory, malformed=invalid, invalid=invalid)
    return VerifiedRim(
        sha256=hashlib.sha256(xml).hexdigest(),
        root_sha256=root.sha256,
        rim=parse_rim(signed.root),
        chain=chain,
        seal=_SEAL,
    )


def require_identity(rim: Rim, *, version: str, edition: str, product: str) -> None:
    """Refuse unless `rim` is the manifest of exactly this version of this product."""
    found = (rim.version.upper(), rim.edition, rim.product)
    if found != (version.upper(), edition, product):
        raise Refused(Reason.RIM_IDENTITY_MISMATCH, "the manifest describes something else")


def require_periods(verified: VerifiedRim, *, now: datetime, unsafe_expired_signer: bool) -> None:
    """
    Refuse unless all certificates of the manifest are in their period at `now`.

    With `unsafe_expired_signer` the end of the signer's own period (never its issuers') is
    left to the revocation step, which needs a good OCSP answer.
    """
    for number, certificate in enumerate(verified.chain):
        if now < certificate.not_before:
            raise Refused(Reason.RIM_NOT_YET_VALID, f"certificate {number} is not valid yet")
        if now > certificate.not_after and not (number == 0 and unsafe_expired_signer):
            raise Refused(Reason.RIM_EXPIRED, f"certificate {number} has expired")
