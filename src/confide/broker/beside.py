"""What travels beside a statement: a sealed value, a policy; and both together as sent. Pure.

Clauses: docs/protocols/release.md §2.3, §2.4, §2.8, §3.1; docs/protocols/broker.md §5.5. Sealing
says nothing about who sealed: the statement does, which names the sealed bytes and the version.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NoReturn

from confide.appraisal.policy_file import MAX_POLICY_CHARS, parse_policy
from confide.broker.statement_kinds import Release, Secret
from confide.crypto.aead import OpenError
from confide.crypto.hpke import Suite, setup_recipient, setup_sender
from confide.crypto.kem import load_public_key
from confide.errors import FormatError, Reason, ReleaseRefused
from confide.rats import Finding, Status
from confide.wire.dsse import Envelope, parse_envelope
from confide.wire.json import JsonLimits, JsonValue, Members, b64encode, jcs, parse_json
from confide.wire.ohttp import Aead, Kdf, Kem

if TYPE_CHECKING:
    from confide.broker.statement import VerifiedStatement
    from confide.crypto.kem import PrivateKey

__all__ = [
    "MAX_SUBMISSION_BYTES",
    "SALT_BYTES",
    "Submission",
    "open_value",
    "parse_submission",
    "policy_beside",
    "seal_value",
    "secret_version",
]

# A value of 1 MiB or a policy of 1 MiB in base64, an envelope, and room.
MAX_SUBMISSION_BYTES: Final = 4 << 20
SALT_BYTES: Final = 32
_SUITE: Final = Suite(Kem.X25519, Kdf.HKDF_SHA256, Aead.AES_256_GCM)
_INFO: Final = b"confide/secret/v1"
_VERSION: Final = b"confide/secret-version/v1\0"
_ENC_BYTES: Final = 32
_REASON: Final = Reason.RELEASE_FORMAT
_DOC: Final = "docs/protocols/release.md"


def secret_version(salt: bytes, value: bytes) -> bytes:
    """Return the version of `value`: it tells versions apart, and nothing about the value."""
    return hashlib.sha256(_VERSION + salt + value).digest()


def seal_value(
    seal_key: bytes, value: bytes, *, resource: str, version: bytes, ephemeral: bytes
) -> bytes:
    """
    Seal `value` to a broker's X25519 key.

    `ephemeral` is 32 fresh random bytes. Raises `FormatError` for a key that is none.
    """
    key = load_public_key(Kem.X25519, seal_key)
    enc, context = setup_sender(key, suite=_SUITE, info=_INFO, ephemeral=ephemeral)
    return enc + context.seal(_bound(resource, version), value)


def _bound(resource: str, version: bytes) -> bytes:
    return resource.encode() + b"\0" + version


def open_value(verified: VerifiedStatement, sealed: bytes | None, opener: PrivateKey) -> bytes:
    """
    Return the value that `verified`, a statement of kind `Secret`, puts. 2.4.

    Step owner/7: `sealed` is what the owners named, is sealed to this broker for this resource and
    version, and opens to the value of that version. Raises `ReleaseRefused`.
    """
    secret = verified.statement.body
    if not isinstance(secret, Secret):
        raise TypeError("only a statement that puts a secret has a value beside it")
    if sealed is None or hashlib.sha256(sealed).digest() != secret.sealed:
        _refuse("owner/7", "2.3", "not the sealed value that the owners named")
    try:
        context = setup_recipient(sealed[:_ENC_BYTES], opener, suite=_SUITE, info=_INFO)
        value = context.open(_bound(secret.resource, secret.version), sealed[_ENC_BYTES:])
    except OpenError:
        _refuse("owner/7", "2.4", "not sealed to this broker for this resource and version")
    if len(value) != secret.size or secret_version(secret.salt, value) != secret.version:
        _refuse("owner/7", "2.4", "the value is not of the version that the owners named")
    return value


def policy_beside(verified: VerifiedStatement, policy: bytes | None) -> bytes | None:
    """
    Return the policy that `verified`, a statement of kind `Release`, releases to. 3.1.

    Step owner/8: a policy travels exactly where the release names one, has its digest, and is one.
    Raises `ReleaseRefused`.
    """
    release = verified.statement.body
    if not isinstance(release, Release):
        raise TypeError("only a release has a policy beside it")
    if policy is None and release.policy is None:
        return None
    if policy is None or hashlib.sha256(policy).digest() != release.policy:
        _refuse("owner/8", "3.1", "not the policy that the owners named")
    if len(policy) > MAX_POLICY_CHARS:
        _refuse("owner/8", "3.1", f"a policy of more than {MAX_POLICY_CHARS} bytes")
    try:
        parse_policy(policy.decode())
    except (UnicodeDecodeError, FormatError):
        _refuse("owner/8", "3.1", "it is no policy of docs/protocols/policy.md")
    return policy


def _refuse(step: str, clause: str, detail: str) -> NoReturn:
    where = f"{_DOC}#{clause}"
    raise ReleaseRefused(
        (Finding(Status.FAIL, step, where, "beside the statement", detail, _REASON),)
    )


@dataclass(frozen=True, slots=True)
class Submission:
    """A statement and what travels beside it (2.8); nothing is verified."""

    envelope: Envelope
    value: bytes | None = field(default=None, repr=False)
    policy: bytes | None = None

    def encode(self) -> bytes:
        """Return the body to send, or to keep until all owners have signed it."""
        document: dict[str, JsonValue] = {"envelope": self.envelope.document()}
        if self.value is not None:
            document["value"] = b64encode(self.value)
        if self.policy is not None:
            document["policy"] = b64encode(self.policy)
        return jcs(document)


def parse_submission(raw: bytes) -> Submission:
    """Parse the body of 2.8. Raises `FormatError` with RELEASE_FORMAT."""
    limits = JsonLimits(max_bytes=MAX_SUBMISSION_BYTES)
    value = parse_json(raw, what="submission", reason=_REASON, limits=limits)
    members = Members(value, what="submission", reason=_REASON)
    envelope = parse_envelope(members.value("envelope"), reason=_REASON)
    beside = {name: members.base64(name) for name in ("value", "policy") if members.has(name)}
    members.end()
    return Submission(envelope, beside.get("value"), beside.get("policy"))
