"""A SIMULATED Sigstore: certificate authority, certificate log, transparency log, trusted root.

Bundles have the bytes of genuine ones (v0.3, log entries `hashedrekord` and `dsse` 0.0.1) and are
verified by the same library; they are accepted only under `SimulatedSigstore.trusted_root()`.
Everything derives from `seed` and `now`: equal arguments, equal bytes. `SigstoreFault` names what
can be made wrong; every fault must be refused.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from confide.crypto.ecdsa import Curve, SigningKey, derive_signing_key
from confide.crypto.issuing import (
    CertificateTemplate,
    RawExtension,
    encode_pem,
    issue_certificate,
)
from confide.errors import Reason
from confide.wire.der import (
    OCTET_STRING,
    SEQUENCE,
    DerReader,
    encode_integer,
    encode_oid,
    encode_tlv,
)
from confide.wire.json import b64encode, jcs

if TYPE_CHECKING:
    from confide.crypto.x509 import Certificate

__all__ = ["SIMULATED_IDENTITY", "SIMULATED_ISSUER", "SigstoreFault", "SimulatedSigstore"]

SIMULATED_ISSUER: Final = "https://issuer.simulated.invalid"
SIMULATED_IDENTITY: Final = (
    "https://github.com/simulated/app/.github/workflows/build.yml@refs/tags/v1"
)
_ORGANIZATION: Final = "SIMULATED Sigstore"
_REKOR: Final = "rekor.simulated.invalid"
# From: RFC 6962 §3.3: the list of timestamps in a certificate.
_SCT_OID: Final = "1.3.6.1.4.1.11129.2.4.2"
_CODE_SIGNING: Final = "1.3.6.1.5.5.7.3.3"
_KEY_DETAILS: Final = "PKIX_ECDSA_P256_SHA_256"


class SigstoreFault(StrEnum):
    """One thing wrong with a bundle."""

    FOREIGN_CA = "foreign-ca"
    NO_SCT = "no-sct"
    FORGED_SCT = "forged-sct"
    EXPIRED_CERTIFICATE = "expired-certificate"
    NOT_FOR_CODE = "not-for-code"
    FORGED_SIGNATURE = "forged-signature"
    FORGED_CHECKPOINT = "forged-checkpoint"
    FORGED_PROMISE = "forged-promise"
    NOT_INCLUDED = "not-included"
    ENTRY_OF_ANOTHER = "entry-of-another"
    OTHER_ISSUER = "other-issuer"
    OTHER_IDENTITY = "other-identity"
    OTHER_SUBJECT = "other-subject"
    OTHER_PAYLOAD_TYPE = "other-payload-type"
    OTHER_STATEMENT_TYPE = "other-statement-type"
    TWO_SIGNATURES = "two-signatures"
    NO_SUBJECT = "no-subject"


class SimulatedSigstore:
    """One instance: its trusted root, and bundles for digests."""

    __slots__ = ("_ca", "_ca_key", "_ct", "_fault", "_now", "_rekor", "_root", "_seed")

    def __init__(self, seed: bytes, now: datetime, fault: SigstoreFault | None = None) -> None:
        self._seed = seed
        self._now = now.astimezone(UTC).replace(microsecond=0)
        self._fault = fault
        foreign = fault is SigstoreFault.FOREIGN_CA
        label = "foreign " if foreign else ""
        root_key = derive_signing_key(Curve.P384, seed, f"{label}sigstore root")
        self._root = issue_certificate(
            self._authority("SIMULATED TEST ONLY sigstore root", 1),
            root_key.public,
            issuer=None,
            issuer_key=root_key,
        )
        self._ca_key = derive_signing_key(Curve.P384, seed, f"{label}sigstore intermediate")
        self._ca = issue_certificate(
            self._authority("SIMULATED sigstore intermediate", 0),
            self._ca_key.public,
            issuer=self._root,
            issuer_key=root_key,
        )
        self._ct = derive_signing_key(Curve.P256, seed, "sigstore ct log")
        self._rekor = derive_signing_key(Curve.P256, seed, "sigstore rekor")

    def _authority(self, name: str, path_length: int) -> CertificateTemplate:
        return CertificateTemplate(
            common_name=name,
            organization=_ORGANIZATION,
            not_before=self._now - timedelta(days=365),
            not_after=self._now + timedelta(days=3650),
            is_ca=True,
            path_length=path_length,
        )

    def trusted_root(self) -> bytes:
        """Return the trusted root (JSON). Passing it to a verifier accepts simulated bundles."""
        start = (self._now - timedelta(days=365)).strftime("%Y-%m-%dT%H:%M:%SZ")

        def log(key: SigningKey, url: str) -> dict[str, Any]:
            return {
                "baseUrl": url,
                "hashAlgorithm": "SHA2_256",
                "publicKey": {
                    "rawBytes": b64encode(key.public.spki()),
                    "keyDetails": _KEY_DETAILS,
                    "validFor": {"start": start},
                },
                "logId": {"keyId": b64encode(_key_id(key))},
            }

        chain = [{"rawBytes": b64encode(each.der)} for each in (self._ca, self._root)]
        return jcs(
            {
                "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
                "tlogs": [log(self._rekor, f"https://{_REKOR}")],
                "certificateAuthorities": [
                    {
                        "subject": {"organization": _ORGANIZATION, "commonName": "SIMULATED"},
                        "uri": "https://fulcio.simulated.invalid",
                        "certChain": {"certificates": chain},
                        "validFor": {"start": start},
                    }
                ],
                "ctlogs": [log(self._ct, "https://ct.simulated.invalid")],
                "timestampAuthorities": [],
            }
        )

    def sign_artifact(self, artifact: bytes) -> bytes:
        """Return a bundle with a message signature over `artifact`."""
        key, leaf = self._signer()
        digest = hashlib.sha256(artifact).digest()
        signature = _der(self._sign(SigstoreFault.FORGED_SIGNATURE, key, artifact))
        logged = b"another" if self._fault is SigstoreFault.ENTRY_OF_ANOTHER else artifact
        entry = {
            "apiVersion": "0.0.1",
            "kind": "hashedrekord",
            "spec": {
                "data": {
                    "hash": {"algorithm": "sha256", "value": hashlib.sha256(logged).hexdigest()}
                },
                "signature": {
                    "content": b64encode(signature),
                    "publicKey": {"content": _pem64(leaf)},
                },
            },
        }
        content = {
            "messageSignature": {
                "messageDigest": {"algorithm": "SHA2_256", "digest": b64encode(digest)},
                "signature": b64encode(signature),
            }
        }
        return self._bundle(leaf, entry, content)

    def attest(self, sha256: bytes, *, predicate_type: str, predicate: dict[str, Any]) -> bytes:
        """Return a bundle with an in-toto Statement about the artifact with this SHA-256."""
        key, leaf = self._signer()
        other = self._fault is SigstoreFault.OTHER_SUBJECT
        subject = [{"name": "app", "digest": {"sha256": (bytes(32) if other else sha256).hex()}}]
        kind = "application/vnd.in-toto+json"
        if self._fault is SigstoreFault.OTHER_PAYLOAD_TYPE:
            kind = "application/octet-stream"
        version = "v9" if self._fault is SigstoreFault.OTHER_STATEMENT_TYPE else "v1"
        payload = jcs(
            {
                "_type": f"https://in-toto.io/Statement/{version}",
                "subject": [] if self._fault is SigstoreFault.NO_SUBJECT else subject,
                "predicateType": predicate_type,
                "predicate": predicate,
            }
        )
        pae = b"DSSEv1 %d %b %d %b" % (len(kind), kind.encode(), len(payload), payload)
        signature = b64encode(_der(self._sign(SigstoreFault.FORGED_SIGNATURE, key, pae)))
        signatures = [{"sig": signature}]
        if self._fault is SigstoreFault.TWO_SIGNATURES:
            signatures *= 2
        logged = b"another" if self._fault is SigstoreFault.ENTRY_OF_ANOTHER else payload
        digests = {
            "envelopeHash": {"algorithm": "sha256", "value": hashlib.sha256(pae).hexdigest()},
            "payloadHash": {"algorithm": "sha256", "value": hashlib.sha256(logged).hexdigest()},
        }
        entry = {
            "apiVersion": "0.0.1",
            "kind": "dsse",
            "spec": {
                **digests,
                "signatures": [{"signature": signature, "verifier": _pem64(leaf)}],
            },
        }
        envelope = {
            "payload": b64encode(payload),
            "payloadType": kind,
            "signatures": signatures,
        }
        return self._bundle(leaf, entry, {"dsseEnvelope": envelope})

    def _sign(self, fault: SigstoreFault, key: SigningKey, message: bytes) -> bytes:
        if self._fault is fault:
            key = derive_signing_key(key.public.curve, self._seed, f"forger of {fault}")
        return key.sign(message)

    def _signer(self) -> tuple[SigningKey, Certificate]:
        """Return a key of ten minutes, and its certificate with the log's timestamp in it."""
        key = derive_signing_key(Curve.P256, self._seed, "sigstore signer")
        issuer, identity = SIMULATED_ISSUER, SIMULATED_IDENTITY
        if self._fault is SigstoreFault.OTHER_ISSUER:
            issuer += ".example"
        elif self._fault is SigstoreFault.OTHER_IDENTITY:
            identity = identity.replace("refs/tags/v1", "refs/heads/other")
        usage = "1.3.6.1.5.5.7.3.1" if self._fault is SigstoreFault.NOT_FOR_CODE else _CODE_SIGNING
        extensions = (
            RawExtension("2.5.29.37", encode_tlv(SEQUENCE, encode_oid(usage))),
            RawExtension("2.5.29.17", encode_tlv(SEQUENCE, encode_tlv(0x86, identity.encode()))),
            RawExtension("1.3.6.1.4.1.57264.1.1", issuer.encode()),
            RawExtension("1.3.6.1.4.1.57264.1.8", encode_tlv(0x0C, issuer.encode())),
        )
        begin = self._now
        if self._fault is SigstoreFault.EXPIRED_CERTIFICATE:
            begin -= timedelta(hours=1)
        before = self._leaf(key, begin, extensions)
        if self._fault is SigstoreFault.NO_SCT:
            return key, before
        timestamps = RawExtension(_SCT_OID, encode_tlv(OCTET_STRING, self._sct(before)))
        return key, self._leaf(key, begin, (*extensions, timestamps))

    def _leaf(
        self, key: SigningKey, begin: datetime, extensions: tuple[RawExtension, ...]
    ) -> Certificate:
        return issue_certificate(
            CertificateTemplate(
                common_name="SIMULATED signer",
                organization=_ORGANIZATION,
                not_before=begin,
                not_after=begin + timedelta(minutes=10),
                extensions=extensions,
            ),
            key.public,
            issuer=self._ca,
            issuer_key=self._ca_key,
        )

    def _sct(self, certificate: Certificate) -> bytes:
        """Return the list with one timestamp over `certificate` (RFC 6962 §3.2, §3.3)."""
        reader = DerReader(certificate.der, what="leaf", reason=Reason.CHAIN_MALFORMED).sequence()
        body = encode_tlv(SEQUENCE, reader.read(SEQUENCE))
        moment = int(self._now.timestamp() * 1000).to_bytes(8, "big")
        issuer = hashlib.sha256(self._ca.public_key.spki()).digest()
        # version, signature type; time; entry type; issuer key, length, certificate; extensions.
        signed = b"\0\0" + moment + b"\0\1" + issuer + len(body).to_bytes(3, "big") + body + b"\0\0"
        signature = _der(self._sign(SigstoreFault.FORGED_SCT, self._ct, signed))
        # From: RFC 5246 §7.4.1.4.1: SHA-256 is 4, ECDSA is 3.
        tail = b"\4\3" + len(signature).to_bytes(2, "big") + signature
        timestamp = b"\0" + _key_id(self._ct) + moment + b"\0\0" + tail
        item = len(timestamp).to_bytes(2, "big") + timestamp
        return len(item).to_bytes(2, "big") + item

    def _bundle(self, leaf: Certificate, entry: dict[str, Any], content: dict[str, Any]) -> bytes:
        body = jcs(entry)
        moment, identifier = int(self._now.timestamp()) + 60, _key_id(self._rekor)
        promise = {
            "body": b64encode(body),
            "integratedTime": moment,
            "logID": identifier.hex(),
            "logIndex": 1,
        }
        neighbour = hashlib.sha256(b"\0SIMULATED neighbour").digest()
        leaf_hash = hashlib.sha256(b"\0" + body).digest()
        root = hashlib.sha256(b"\1" + neighbour + leaf_hash).digest()
        if self._fault is SigstoreFault.NOT_INCLUDED:
            neighbour = bytes(32)
        note = f"{_REKOR} - 1\n2\n{b64encode(root)}\n"
        signature = _der(self._sign(SigstoreFault.FORGED_CHECKPOINT, self._rekor, note.encode()))
        checkpoint = f"{note}\n\u2014 {_REKOR} {b64encode(identifier[:4] + signature)}\n"
        set_ = _der(self._sign(SigstoreFault.FORGED_PROMISE, self._rekor, jcs(promise)))
        log_entry = {
            "logIndex": "1",
            "logId": {"keyId": b64encode(identifier)},
            "kindVersion": {"kind": entry["kind"], "version": entry["apiVersion"]},
            "integratedTime": str(moment),
            "inclusionPromise": {"signedEntryTimestamp": b64encode(set_)},
            "inclusionProof": {
                "logIndex": "1",
                "rootHash": b64encode(root),
                "treeSize": "2",
                "hashes": [b64encode(neighbour)],
                "checkpoint": {"envelope": checkpoint},
            },
            "canonicalizedBody": b64encode(body),
        }
        return jcs(
            {
                "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
                "verificationMaterial": {
                    "certificate": {"rawBytes": b64encode(leaf.der)},
                    "tlogEntries": [log_entry],
                },
                **content,
            }
        )


def _key_id(key: SigningKey) -> bytes:
    return hashlib.sha256(key.public.spki()).digest()


def _pem64(certificate: Certificate) -> str:
    return b64encode(encode_pem(certificate).encode())


def _der(signature: bytes) -> bytes:
    """Return r and s (raw) as the DER that Sigstore uses (RFC 3279 §2.2.3)."""
    half = len(signature) // 2
    numbers = (int.from_bytes(part, "big") for part in (signature[:half], signature[half:]))
    return encode_tlv(SEQUENCE, *(encode_integer(number) for number in numbers))
