"""Endorsements: what vendors say about hardware and software, as a relying party holds it.

Clauses: docs/protocols/services.md §2. Hostile bytes like any other, whoever fetched or passed
them along; each piece is verified under the caller's roots before it counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from confide.wire.evidence import NvidiaEndorsements

__all__ = ["Endorsements", "SigstoreBundle", "SnpEndorsement"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpEndorsement:
    """The certificates for one SNP report: leaf (DER), ASK or ASVK then ARK (PEM), AMD's CRL."""

    leaf_der: bytes
    chain_pem: bytes
    crl_der: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SigstoreBundle:
    """A Sigstore bundle (JSON) offered for the artifact with this SHA-256."""

    sha256: bytes
    bundle: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Endorsements:
    """
    Everything a relying party has about the evidence in hand; labels only say where to look.

    `tdx` are collateral containers (JSON, as in tdx.md §1), one per platform family. `nras_keys`
    are JSON Web Key Sets of NVIDIA's remote service, as fetched.
    """

    tdx: tuple[bytes, ...] = ()
    snp: tuple[SnpEndorsement, ...] = ()
    nvidia: NvidiaEndorsements = field(default_factory=lambda: NvidiaEndorsements((), ()))
    nras_keys: tuple[bytes, ...] = ()
    sigstore: tuple[SigstoreBundle, ...] = ()
