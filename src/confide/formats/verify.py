"""Verify what a service presented: the public entry, over bytes, captures or evidence. Pure.

Clauses: docs/protocols/services.md §5 to §7. Reads with the right reader, joins what was passed
along with what the caller has, and appraises. Contacts nobody and reads no clock.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from confide.appraisal.service import appraise_service
from confide.formats import registry
from confide.trust.roots import VENDOR_ROOTS, Roots
from confide.wire.bundle import decode_bundle, looks_like_bundle
from confide.wire.endorsements import Endorsements
from confide.wire.evidence import NvidiaEndorsements
from confide.wire.service import Capture, Evidence

if TYPE_CHECKING:
    from datetime import datetime

    from confide.appraisal.provenance import Proofs
    from confide.appraisal.service_policy import Policy
    from confide.rats import AttestationResult, Finding

__all__ = ["as_told", "join_endorsements", "open_capture", "read_evidence", "verify"]


def open_capture(raw: bytes, *, nonce: bytes | None = None) -> tuple[Capture, Endorsements]:
    """
    Return what `raw` holds: a saved bundle with its endorsements, or one document of a service.

    `nonce` is the one that the caller drew: a document names none that was sent. Raises
    `FormatError`.
    """
    if looks_like_bundle(raw):
        return decode_bundle(raw)
    return Capture(documents={"report": raw}, nonce=nonce), Endorsements()


def read_evidence(capture: Capture) -> tuple[Evidence, Finding | None]:
    """Return the evidence in `capture`, and what its format finds about a signed answer."""
    known = (
        registry.find_format(capture.format)
        if capture.format
        else registry.recognise(next(iter(capture.documents.values())))
    )
    evidence = registry.read(capture)
    return evidence, None if known.answer is None else known.answer(capture, evidence)


def as_told(evidence: Evidence, *, nonce: bytes | None) -> Evidence:
    """
    Return `evidence` out of a file as it counts for a caller who drew `nonce` (None: drew none).

    What a bundle says about its own nonce and about the key of its connection is the word of
    whoever made it. That key is kept where it contradicts the attested ones, and proves nothing
    where it agrees with them (docs/protocols/bundle.md §3).
    """
    told = evidence.tls_spki_sha256
    attested = {
        key.value
        for attester in evidence.attesters
        for key in attester.keys
        if key.use == "tls" and key.name in attester.binding.covers
    }
    contradicts = bool(attested) and told not in attested
    return replace(evidence, nonce=nonce, tls_spki_sha256=told if contradicts else None)


def join_endorsements(own: Endorsements, other: Endorsements) -> Endorsements:
    """Return both, `own` first; of two with one name the first stands."""
    rims = {item.id: item for item in (*other.nvidia.rims, *own.nvidia.rims)}
    ocsp = {item.certificate_sha256: item for item in (*other.nvidia.ocsp, *own.nvidia.ocsp)}
    return Endorsements(
        tdx=(*own.tdx, *other.tdx),
        snp=(*own.snp, *other.snp),
        nvidia=NvidiaEndorsements(tuple(rims.values()), tuple(ocsp.values())),
        nras_keys=(*own.nras_keys, *other.nras_keys),
        sigstore=(*own.sigstore, *other.sigstore),
    )


def verify(
    evidence: Evidence | Capture | bytes,
    endorsements: Endorsements,
    policy: Policy,
    *,
    now: datetime,
    roots: Roots = VENDOR_ROOTS,
    nonce: bytes | None = None,
    provenance: Proofs | None = None,
) -> AttestationResult:
    """
    Return what `evidence` proves, where `policy` accepts it at `now`.

    `evidence` is what a reader returned, a `Capture`, a saved bundle, or one document (bytes) of
    any format in `registry.NAMES`; a bundle's own endorsements are joined to `endorsements`.
    Everything in them is hostile. `roots` are the vendors' unless the caller passes simulated
    ones. `provenance` are Sigstore proofs that `adapters.sigstore_bundles` verified.

    `nonce` (32 bytes) is the one that the caller drew and sent. For bytes it has to be given for
    anything to count as fresh: the nonce inside a bundle is the word of whoever captured it, and so
    is the key of its connection, which proves no `tls`. A `Capture` that the caller made itself
    holds its own nonce and key; a `nonce` that is given beside it, or beside evidence, stands
    instead.

    Read the claims of the result, its `parts` for each machine, and its `limits`: what no verifier
    can show.

    Raises `EvidenceRejected` or `PolicyRejected` with numbered findings and the whole `result`,
    `FormatError` for bytes that are of no known format, `Unsupported` for a kind that is not judged
    here, `ValueError` for a `now` without a time zone.
    """
    answer: Finding | None = None
    if isinstance(evidence, bytes):
        evidence, passed = open_capture(evidence, nonce=nonce)
        endorsements = join_endorsements(endorsements, passed)
        evidence, answer = read_evidence(evidence)
        evidence = as_told(evidence, nonce=nonce)
    elif isinstance(evidence, Capture):
        evidence, answer = read_evidence(evidence)
    if nonce is not None:
        evidence = replace(evidence, nonce=nonce)
    return appraise_service(
        evidence,
        endorsements,
        policy=policy,
        roots=roots,
        now=now,
        provenance=provenance,
        answer=answer,
        subject=evidence.format,
    )
