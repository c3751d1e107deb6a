"""Sigstore bundles, verified offline with the `sigstore` library: the only importer of it.

Clauses: docs/protocols/provenance.md. The bundle is hostile bytes. Trust comes from a trusted root
of the caller, or from the one that the library carries; nothing is fetched or refreshed, and no
cache of the user is read. Every failure is `EvidenceRejected` with `provenance-invalid`.

`sigstore` is part of the extra `services` and imported when it is needed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from struct import error as StructError  # noqa: N812 - the library unpacks with it
from typing import TYPE_CHECKING, Final, NoReturn

from confide.appraisal.provenance import DOC, SigstoreIdentity, SigstoreProof
from confide.crypto.library_errors import LIBRARY_ERRORS
from confide.errors import ConfigurationError, EvidenceRejected, FormatError, Reason
from confide.rats import Finding, Status
from confide.wire.der import DerReader
from confide.wire.json import JsonLimits, Members, jcs, parse_json

if TYPE_CHECKING:
    from sigstore.models import Bundle, TrustedRoot

__all__ = ["SigstoreVerifier", "embedded_root", "verify_artifact"]

_LIMITS: Final = JsonLimits(max_bytes=4 * 1024 * 1024, max_depth=32)
_IN_TOTO: Final = "application/vnd.in-toto+json"
_STATEMENTS: Final = ("https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1")
_MAX_SUBJECTS: Final = 1024
# From: sigstore/fulcio docs/oid-info.md: issuer (DER, then the raw form of old certificates).
_ISSUER: Final = "1.3.6.1.4.1.57264.1.8"
_ISSUER_RAW: Final = "1.3.6.1.4.1.57264.1.1"
_ALT_NAMES: Final = "2.5.29.17"
# From: RFC 5280 §4.2.1.6: rfc822Name and uniformResourceIdentifier; X.680: UTF8String.
_NAME_TAGS: Final = (0x81, 0x86)
_UTF8_STRING: Final = 0x0C
_CONFIG: Final = "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json"
_SIGNING: Final = "application/vnd.dev.sigstore.signingconfig.v0.2+json"
_EMBEDDED: Final = ("_store", "https%3A%2F%2Ftuf-repo-cdn.sigstore.dev", "trusted_root.json")
# What comes out of the library besides its own errors when bytes are hostile.
_BROKEN: Final[tuple[type[Exception], ...]] = (
    *LIBRARY_ERRORS,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    StructError,
    TypeError,
    ValueError,
)


def embedded_root() -> bytes:
    """Return the trusted root of the public instance, as old as the installed library."""
    try:
        return resources.files("sigstore").joinpath(*_EMBEDDED).read_bytes()
    except (ModuleNotFoundError, OSError) as error:
        raise _missing() from error


def _missing() -> ConfigurationError:
    return ConfigurationError("Sigstore bundles need sigstore: pip install 'confide[services]'")


def verify_artifact(
    bundle: bytes,
    *,
    sha256: bytes,
    policy: tuple[SigstoreIdentity, ...],
    trusted_root: bytes | None,
) -> SigstoreProof:
    """
    Establish that one of `policy` signed the artifact whose SHA-256 is `sha256`.

    Performs clauses 1 to 4 of docs/protocols/provenance.md, offline. `trusted_root` is a Sigstore
    trusted root (JSON) that the caller trusts, None for `embedded_root`.

    **Does not check** the predicate of an attestation.

    Raises `EvidenceRejected` with PROVENANCE_INVALID; `ConfigurationError` where `sigstore` is not
    installed or `trusted_root` is none; `ValueError` for an empty policy or a digest that is not
    32 bytes.
    """
    return SigstoreVerifier(trusted_root).verify(bundle, sha256=sha256, policy=policy)


@dataclass(frozen=True, slots=True)
class _Signer:
    issuer: str
    identities: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Verified:
    issuer: str
    identity: str
    kind: str | None
    payload: bytes
    integrated_time: datetime | None
    log_index: int


class SigstoreVerifier:
    """Bundles under one trusted root, which is read once."""

    __slots__ = ("_public_good", "_root", "_root_sha256")

    def __init__(self, trusted_root: bytes | None) -> None:
        """Read `trusted_root`, None for `embedded_root`. Raises `ConfigurationError`."""
        raw = embedded_root() if trusted_root is None else trusted_root
        self._root = _load_root(raw)
        self._root_sha256 = hashlib.sha256(raw).hexdigest()
        self._public_good = trusted_root is None

    def verify(
        self, bundle: bytes, *, sha256: bytes, policy: tuple[SigstoreIdentity, ...]
    ) -> SigstoreProof:
        """Verify one bundle; see `verify_artifact`."""
        if len(sha256) != hashlib.sha256().digest_size or not policy:
            raise ValueError("a digest has 32 bytes, and a policy names a signer")
        subject = f"artifact {sha256.hex()[:12]}"
        try:
            parse_json(bundle, what="bundle", reason=Reason.PROVENANCE_INVALID, limits=_LIMITS)
        except FormatError as error:
            _refuse(1, subject, error.what, error)
        verified = self._library(bundle, sha256, policy, subject)
        predicate_type = ""
        if verified.kind is not None:
            try:
                predicate_type = _predicate_type(verified.kind, verified.payload, sha256)
            except FormatError as error:
                _refuse(4, subject, error.what, error)
        return SigstoreProof(
            sha256=sha256,
            issuer=verified.issuer,
            identity=verified.identity,
            predicate_type=predicate_type,
            payload=verified.payload,
            integrated_time=verified.integrated_time,
            log_index=verified.log_index,
            root_sha256=self._root_sha256,
            public_good=self._public_good,
        )

    def _library(
        self, bundle: bytes, sha256: bytes, policy: tuple[SigstoreIdentity, ...], subject: str
    ) -> _Verified:
        """2 and 3, and 4 for message signatures: what the library verifies."""
        from sigstore.errors import Error  # noqa: PLC0415 - an extra, needed here alone
        from sigstore.hashes import Hashed  # noqa: PLC0415
        from sigstore.models import Bundle  # noqa: PLC0415
        from sigstore.verify import Verifier  # noqa: PLC0415
        from sigstore.verify.policy import (  # noqa: PLC0415
            AllOf,
            AnyOf,
            Identity,
            OIDCIssuer,
            OIDCIssuerV2,
        )

        broken: tuple[type[Exception], ...] = (Error, FormatError, *_BROKEN)
        try:
            read = Bundle.from_json(bundle)
            signer = _signer(read)
            names = [
                name
                for name in signer.identities
                if any(each.accepts(signer.issuer, name) for each in policy)
            ]
            if not names:
                _refuse(3, subject, "signed by somebody who is not accepted", None)
            # The library compares issuer and name once more, with code of its own.
            issuer = AnyOf([OIDCIssuer(signer.issuer), OIDCIssuerV2(signer.issuer)])
            same = AllOf([issuer, AnyOf([Identity(identity=name) for name in names])])
            verifier = Verifier(trusted_root=self._root)
            if read._dsse_envelope is not None:  # noqa: SLF001 - no public way to tell
                kind, payload = verifier.verify_dsse(read, same)
                return _verified(read, signer.issuer, names[0], kind, payload)
            digest = Hashed.model_validate({"algorithm": "SHA2_256", "digest": sha256})
            verifier.verify_artifact(digest, read, same)
            return _verified(read, signer.issuer, names[0], None, b"")
        except broken as error:
            _refuse(2, subject, "the bundle does not verify", error)


def _verified(
    bundle: Bundle, issuer: str, identity: str, kind: str | None, payload: bytes
) -> _Verified:
    entry = bundle.log_entry._inner  # noqa: SLF001 - the library has no public way to its fields
    seconds = entry.integrated_time
    # Without the promise of the log nobody signed this time.
    signed = seconds is not None and entry.inclusion_promise is not None
    moment = datetime.fromtimestamp(seconds, UTC) if signed and seconds is not None else None
    return _Verified(issuer, identity, kind, payload, moment, int(entry.log_index))


def _load_root(raw: bytes) -> TrustedRoot:
    try:
        from sigstore.errors import Error  # noqa: PLC0415 - an extra, needed here alone
        from sigstore.models import ClientTrustConfig  # noqa: PLC0415
    except ImportError as error:
        raise _missing() from error
    broken: tuple[type[Exception], ...] = (Error, FormatError, *_BROKEN)
    try:
        root = parse_json(raw, what="trusted root", reason=Reason.POLICY_FORMAT, limits=_LIMITS)
        # The public way to a trusted root in memory is a client configuration around it.
        config = {
            "mediaType": _CONFIG,
            "trustedRoot": root,
            "signingConfig": {"mediaType": _SIGNING},
        }
        return ClientTrustConfig.from_json(jcs(config).decode()).trusted_root
    except broken as error:
        raise ConfigurationError("the trusted root is not one of Sigstore") from error


def _refuse(number: int, subject: str, detail: str, cause: Exception | None) -> NoReturn:
    finding = Finding(
        Status.FAIL,
        f"provenance/{number}",
        f"{DOC}#{number}",
        subject,
        detail,
        Reason.PROVENANCE_INVALID,
    )
    raise EvidenceRejected((finding,)) from cause


def _signer(bundle: Bundle) -> _Signer:
    """Return who the certificate names; it is verified afterwards, by the library."""
    issuer, identities = "", tuple[str, ...]()
    for found in bundle.signing_certificate.extensions:
        oid, der = found.oid.dotted_string, found.value.public_bytes()
        if oid == _ISSUER:
            issuer = _reader(der).read(_UTF8_STRING).decode("utf-8")
        elif oid == _ISSUER_RAW and not issuer:
            issuer = der.decode("utf-8")
        elif oid == _ALT_NAMES:
            names = _reader(der).sequence()
            found_names = []
            while names.remaining:
                tag = names.peek()[0]
                value = names.read(tag)
                if tag in _NAME_TAGS:
                    found_names.append(value.decode("ascii"))
            identities = tuple(found_names)
    return _Signer(issuer, identities)


def _reader(der: bytes) -> DerReader:
    return DerReader(der, what="certificate", reason=Reason.PROVENANCE_INVALID)


def _predicate_type(kind: str, payload: bytes, sha256: bytes) -> str:
    """4: one subject of the statement is the artifact."""
    reason = Reason.PROVENANCE_INVALID
    if kind != _IN_TOTO:
        raise FormatError("the envelope holds no statement", reason=reason, clause=f"{DOC}#4")
    value = parse_json(payload, what="statement", reason=reason, limits=_LIMITS)
    statement = Members(value, what="statement", reason=reason)
    statement.choice("_type", _STATEMENTS)
    for item in statement.items("subject", max_items=_MAX_SUBJECTS):
        digests = item.get("digest") if isinstance(item, dict) else None
        if isinstance(digests, dict) and digests.get("sha256") == sha256.hex():
            return statement.text("predicateType", max_chars=512)
    return statement.refuse("it is about other artifacts")
