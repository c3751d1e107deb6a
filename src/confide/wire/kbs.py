"""Messages of the KBS attestation protocol 0.4.0: bytes to values and back. Verifies nothing.

Sources: kbs-types and `kbs_attestation_protocol.md` of Confidential Containers; docs/protocols/
broker.md §2 to §4 for the profile and for what a node of ours puts into `primary_evidence`.
Everything is hostile. What the reader of docs/protocols/trustee.md reads again is kept as it came.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from confide.errors import FormatError, Reason
from confide.wire.evidence import EvidenceBundle, evidence_document, parse_evidence_file
from confide.wire.json import (
    JsonLimits,
    JsonValue,
    Members,
    b64decode,
    b64encode,
    jcs,
    parse_json,
)
from confide.wire.jwe import WrappingKey, encode_wrapping_key, parse_wrapping_key

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "HASHES",
    "KBS_ERRORS",
    "MAX_ATTESTATION_BYTES",
    "NONCE_BYTES",
    "PROTOCOL_VERSION",
    "SESSION_COOKIE",
    "TEES",
    "Attestation",
    "Hash",
    "KbsChallenge",
    "KbsError",
    "KbsRequest",
    "NodeEvidence",
    "Tee",
    "encode_attestation",
    "encode_token",
    "parse_attestation",
    "parse_challenge",
    "parse_kbs_error",
    "parse_node_evidence",
    "parse_request",
    "parse_token",
    "runtime_claim",
]

Tee = Literal["tdx", "snp"]
Hash = Literal["sha384", "sha512", "sha256"]
TEES: Final[tuple[Tee, ...]] = ("tdx", "snp")
# In the order in which one is chosen (2.1).
HASHES: Final[tuple[Hash, ...]] = ("sha384", "sha512", "sha256")
PROTOCOL_VERSION: Final = "0.4.0"
NONCE_BYTES: Final = 32
# From: broker.md 3.1.
MAX_ATTESTATION_BYTES: Final = 8 << 20
_SMALL: Final = JsonLimits(max_bytes=16 * 1024, max_depth=8)
_LARGE: Final = JsonLimits(max_bytes=MAX_ATTESTATION_BYTES, max_depth=32)
_REASON: Final = Reason.BROKER_FORMAT
_DOC: Final = "docs/protocols/broker.md"
_CLAIM: Final = b"confide/kbs-runtime/v1\0"
# From: broker.md 4.4.
SESSION_COOKIE: Final = "kbs-session-id"
KBS_ERRORS: Final = "https://github.com/confidential-containers/kbs/errors/"
_KIND: Final = re.compile(r"[A-Za-z]{1,64}\Z")


@dataclass(frozen=True, slots=True)
class KbsRequest:
    """What a guest says it is, and the hash that the broker chose of those it knows."""

    tee: Tee
    algorithm: Hash

    def encode(self) -> bytes:
        """Return the request of a guest that knows this one hash."""
        extra: JsonValue = {"supported-hash-algorithms": [self.algorithm]}
        return jcs({"version": PROTOCOL_VERSION, "tee": self.tee, "extra-params": extra})


def parse_request(raw: bytes) -> KbsRequest:
    """
    Parse the first message (2.1).

    Raises `FormatError`: PROTOCOL_VERSION for another version, TEE_TYPE for another kind of
    machine, BROKER_FORMAT for anything else.
    """
    members = Members(
        parse_json(raw, what="request", reason=_REASON, limits=_SMALL),
        what="request",
        reason=_REASON,
    )
    if members.text("version", max_chars=16) != PROTOCOL_VERSION:
        raise FormatError(
            f"request: this broker speaks version {PROTOCOL_VERSION}",
            reason=Reason.PROTOCOL_VERSION,
            clause=f"{_DOC}#2.1",
        )
    tee, extra = members.text("tee", max_chars=32), None
    if members.has("extra-params"):
        extra = members.value("extra-params")
    members.end()
    known = next((name for name in TEES if name == tee), None)
    if known is None:
        raise FormatError(
            "request: a machine that is neither tdx nor snp",
            reason=Reason.TEE_TYPE,
            clause=f"{_DOC}#2.1",
        )
    return KbsRequest(known, _choose(extra, members))


def _choose(extra: JsonValue, members: Members) -> Hash:
    if extra is None or extra == "":
        return HASHES[0]
    if not isinstance(extra, dict):
        members.refuse("extra-params is no object")
    listed = extra.get("supported-hash-algorithms", [])
    if not isinstance(listed, list):
        members.refuse("supported-hash-algorithms is no list")
    if not listed:
        return HASHES[0]
    found = next((name for name in HASHES if name in listed), None)
    if found is None:
        members.refuse("none of sha384, sha512 and sha256 is listed")
    return found


@dataclass(frozen=True, slots=True)
class KbsChallenge:
    """The broker's answer: 32 random bytes, and the hash to use."""

    nonce: bytes
    algorithm: Hash

    def encode(self) -> bytes:
        """Return the document."""
        extra: JsonValue = {"selected-hash-algorithm": self.algorithm}
        return jcs({"nonce": b64encode(self.nonce), "extra-params": extra})


def parse_challenge(raw: bytes) -> KbsChallenge:
    """Parse a challenge of a broker of ours. Raises `FormatError`."""
    members = Members(
        parse_json(raw, what="challenge", reason=_REASON, limits=_SMALL),
        what="challenge",
        reason=_REASON,
    )
    nonce = members.base64("nonce")
    extra = members.members("extra-params")
    algorithm = extra.choice("selected-hash-algorithm", HASHES)
    extra.end()
    members.end()
    if len(nonce) != NONCE_BYTES:
        members.refuse(f"the nonce does not have {NONCE_BYTES} bytes")
    return KbsChallenge(nonce, algorithm)


def runtime_claim(*, nonce: bytes, tee_pubkey: JsonValue) -> bytes:
    """Return what the statement of a node claims (3.4): nonce and wrapping key, as they travel."""
    document = {"additional-evidence": "", "nonce": b64encode(nonce), "tee-pubkey": tee_pubkey}
    return hashlib.sha256(_CLAIM + jcs(document)).digest()


@dataclass(frozen=True, slots=True)
class Attestation:
    """
    One attestation body, unverified.

    `raw` is what the reader of guests reads again. `tee_pubkey` is the document that was bound,
    `key` what it says. `node` is `primary_evidence` of a node of ours, None for any other machine.
    """

    raw: bytes = field(repr=False)
    nonce: bytes
    tee_pubkey: JsonValue
    key: WrappingKey
    node: JsonValue = field(repr=False)
    additional: str = field(repr=False)
    has_init_data: bool

    @property
    def digest(self) -> bytes:
        """SHA-256 of the body: how a receipt names it."""
        return hashlib.sha256(self.raw).digest()


def parse_attestation(raw: bytes) -> Attestation:
    """Parse an attestation body (3.1, 3.2). Raises `FormatError` with BROKER_FORMAT."""
    top = Members(
        parse_json(raw, what="attestation", reason=_REASON, limits=_LARGE),
        what="attestation",
        reason=_REASON,
    )
    has_init_data = top.has("init-data") and not top.null("init-data")
    if has_init_data:
        top.value("init-data")
    runtime = top.members("runtime-data")
    text, tee_pubkey = runtime.text("nonce", max_chars=64), runtime.value("tee-pubkey")
    runtime.end()
    nonce = b64decode(text, what="attestation: nonce", reason=_REASON)
    if len(nonce) != NONCE_BYTES:
        runtime.refuse(f"a nonce of {len(nonce)} bytes")
    evidence = top.members("tee-evidence")
    primary = evidence.value("primary_evidence")
    additional = evidence.text("additional_evidence", max_chars=MAX_ATTESTATION_BYTES)
    evidence.end()
    top.end()
    node = primary["confide"] if isinstance(primary, dict) and primary.keys() == _OURS else None
    key = parse_wrapping_key(tee_pubkey)
    return Attestation(raw, nonce, tee_pubkey, key, node, additional, has_init_data)


_OURS: Final = frozenset({"confide"})


@dataclass(frozen=True, slots=True)
class NodeEvidence:
    """
    What a node of ours presents (3.4), unverified.

    `expectation` are the canonical bytes; `run` (32 bytes) is None on a model node.
    """

    role: Literal["agent", "model"]
    expectation: bytes = field(repr=False)
    run: bytes | None = field(repr=False)
    evidence: EvidenceBundle = field(repr=False)

    def document(self) -> dict[str, JsonValue]:
        """Return `primary_evidence`."""
        return {
            "confide": {
                "role": self.role,
                "expectation": b64encode(self.expectation),
                "run": None if self.run is None else self.run.hex(),
                "evidence": evidence_document(self.evidence),
            }
        }


def parse_node_evidence(value: JsonValue) -> NodeEvidence:
    """
    Parse the member `confide` of `primary_evidence`. Raises `FormatError`.

    An agent node names a run, a model node none.
    """
    members = Members(value, what="node evidence", reason=_REASON)
    role: Literal["agent", "model"] = members.choice("role", ("agent", "model"))
    expectation = members.base64("expectation")
    run = None if members.null("run") else members.hexes("run", 32)
    evidence = parse_evidence_file(members.value("evidence"))
    members.end()
    if (role == "agent") != (run is not None):
        members.refuse("a run belongs to an agent node, and to it alone")
    return NodeEvidence(role, expectation, run, evidence)


def encode_attestation(node: NodeEvidence, *, nonce: bytes, key: WrappingKey) -> bytes:
    """Return the attestation body of a node of ours."""
    return jcs(
        {
            "runtime-data": {"nonce": b64encode(nonce), "tee-pubkey": encode_wrapping_key(key)},
            "tee-evidence": {"primary_evidence": node.document(), "additional_evidence": ""},
        }
    )


def encode_token(token: str) -> bytes:
    """Return the answer to an attestation that was accepted."""
    return jcs({"token": token})


def parse_token(raw: bytes) -> str:
    """Return the token out of that answer. Raises `FormatError`."""
    members = Members(
        parse_json(raw, what="token", reason=_REASON, limits=_SMALL), what="token", reason=_REASON
    )
    token = members.text("token", max_chars=8192)
    members.end()
    return token


@dataclass(frozen=True, slots=True)
class KbsError:
    """A refusal (4.4). `kind` is a word of ours, `reason` the closed identifier, "" for none."""

    kind: str
    detail: str
    reason: str = ""

    def encode(self) -> bytes:
        """Return the document."""
        found: dict[str, JsonValue] = {"type": KBS_ERRORS + self.kind, "detail": self.detail}
        if self.reason:
            found["reason"] = self.reason
        return jcs(found)


_REASONS: Final[Mapping[str, Reason]] = {reason.value: reason for reason in Reason}


def parse_kbs_error(raw: bytes) -> Reason | None:
    """
    Return the reason of a refusal; None where it names none that is known here.

    Raises `FormatError` for what is no refusal. `detail` is the peer's text and is not returned.
    """
    value = parse_json(raw, what="refusal", reason=_REASON, limits=_SMALL)
    members = Members(value, what="refusal", reason=_REASON)
    kind = members.text("type", max_chars=256)
    members.text("detail")
    reason = members.text("reason", max_chars=64) if members.has("reason") else ""
    members.end()
    if not kind.startswith(KBS_ERRORS) or not _KIND.match(kind.removeprefix(KBS_ERRORS)):
        members.refuse("no kind of a refusal")
    return _REASONS.get(reason)
