"""Endorsements from files: bundles, collateral, AMD certificates, manifests, Sigstore bundles.

Says what a file is and where its labels are; verifies nothing. A file that is none of these is an
error and never passed over.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from confide.cli.places import read_bounded
from confide.cli.screen import printable
from confide.crypto.pem import split_pem_chain
from confide.errors import ConfigurationError, FormatError, Reason
from confide.formats.verify import join_endorsements
from confide.wire.bundle import decode_bundle, looks_like_bundle
from confide.wire.collateral import parse_collateral
from confide.wire.endorsements import Endorsements, SigstoreBundle, SnpEndorsement
from confide.wire.evidence import NvidiaEndorsements, RimDocument
from confide.wire.json import JsonLimits, Members, b64decode, parse_json

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["read_endorsements"]

# From: sigstore/protobuf-specs, sigstore_bundle.proto: the media type names the version.
_SIGSTORE = b'"application/vnd.dev.sigstore.bundle'
_REASON = Reason.PROVENANCE_INVALID
_LIMITS = JsonLimits(max_bytes=4 << 20, max_depth=32)
_MAX_SUBJECTS = 64
_PEM, _PEM_END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"
# From: AMD 57230 §2: leaf, intermediate, root.
_AMD_CHAIN = 3
# How NVIDIA's service names manifests, and whoever saves them does.
_RIM_NAME = re.compile(r"NV_(?:GPU|SWITCH)_[A-Z]{4,6}_[0-9A-Za-z_.]{1,64}")


def read_endorsements(paths: tuple[Path, ...]) -> Endorsements:
    """
    Return what vendors and publishers say in the files at `paths`, the first one first.

    Raises `ConfigurationError` for what cannot be read, `FormatError` naming the file.
    """
    found = Endorsements()
    for path in paths:
        raw = read_bounded(path, "endorsements")
        try:
            offered = _of_file(path, raw)
        except FormatError as error:
            what = (
                f"endorsements {printable(path.name, max_chars=80)}: neither a bundle nor TDX "
                f"collateral, AMD certificates, a manifest or a Sigstore bundle: {error.what}"
            )
            raise FormatError(
                what, reason=error.reason, clause=error.clause, offset=error.offset
            ) from error
        found = join_endorsements(found, offered)
    return found


def _of_file(path: Path, raw: bytes) -> Endorsements:
    if looks_like_bundle(raw):
        return decode_bundle(raw)[1]
    if raw.lstrip().startswith(_PEM):
        return Endorsements(snp=(_amd_certificates(raw),))
    if raw.lstrip()[:1] == b"<":
        return Endorsements(nvidia=NvidiaEndorsements((_manifest(path, raw),), ()))
    if _SIGSTORE in raw:
        digests = _artifacts(raw)
        return Endorsements(
            sigstore=tuple(SigstoreBundle(sha256=digest, bundle=raw) for digest in digests)
        )
    # Read here as well: evidence without TDX would never look into it.
    parse_collateral(raw)
    return Endorsements(tdx=(raw,))


def _amd_certificates(raw: bytes) -> SnpEndorsement:
    """Return the certificates for one report: VCEK or VLEK, ASK or ASVK, ARK, in this order."""
    ders = split_pem_chain(
        raw, max_certificates=_AMD_CHAIN, what="AMD certificates", reason=Reason.CHAIN
    )
    if len(ders) != _AMD_CHAIN:
        raise FormatError(
            f"AMD certificates: {len(ders)} of the three (VCEK or VLEK, ASK, ARK) in one file",
            reason=Reason.CHAIN,
            clause="docs/protocols/snp.md#2",
        )
    _, _, chain = raw.partition(_PEM_END)
    return SnpEndorsement(leaf_der=ders[0], chain_pem=chain)


def _manifest(path: Path, raw: bytes) -> RimDocument:
    name = path.name.removesuffix(".xml")
    if not _RIM_NAME.fullmatch(name):
        raise ConfigurationError(
            f"endorsements {printable(path.name, max_chars=80)}: call a manifest as NVIDIA does, "
            "like NV_GPU_DRIVER_GH100_550.90.07.xml: evidence names it by that"
        )
    return RimDocument(name, raw)


def _artifacts(raw: bytes) -> list[bytes]:
    """Return the digests that a Sigstore bundle says it is about: labels, verified later."""
    value = parse_json(raw, what="Sigstore bundle", reason=_REASON, limits=_LIMITS)
    top = Members(value, what="Sigstore bundle", reason=_REASON)
    if top.has("messageSignature"):
        digest = top.members("messageSignature").members("messageDigest")
        return [_bytes(digest, "digest")]
    payload = _bytes(top.members("dsseEnvelope"), "payload")
    statement = parse_json(payload, what="Sigstore statement", reason=_REASON, limits=_LIMITS)
    subjects = Members(statement, what="Sigstore statement", reason=_REASON).items(
        "subject", max_items=_MAX_SUBJECTS
    )
    return [
        Members(item, what="Sigstore subject", reason=_REASON).members("digest").hexes("sha256", 32)
        for item in subjects
    ]


def _bytes(members: Members, name: str) -> bytes:
    text = members.text(name, max_chars=_LIMITS.max_bytes)
    return b64decode(text, what="Sigstore bundle", reason=_REASON)
