"""Outputs for somebody else than the caller: sealed to a recipient's key by the node. Pure.

Clause: docs/protocols/agent-run.md §4.3. HPKE base mode, X25519, HKDF-SHA256, AES-256-GCM; info
"confide/output/v1" ‖ run id; AAD the path; `enc ‖ ciphertext`. The sealed file says nothing about
who sealed it: the receipt does, which names the plaintext's digest.
"""

from __future__ import annotations

from dataclasses import dataclass

from confide.crypto.aead import OpenError
from confide.crypto.hpke import Suite, setup_recipient, setup_sender
from confide.crypto.kem import load_private_key, load_public_key
from confide.errors import EvidenceRejected, Reason
from confide.rats import Finding, Status
from confide.wire.ohttp import Aead, Kdf, Kem

__all__ = ["Recipient", "open_output", "parse_recipients", "seal_output"]

_SUITE = Suite(Kem.X25519, Kdf.HKDF_SHA256, Aead.AES_256_GCM)
_INFO = b"confide/output/v1"
_ENC_BYTES = 32
_PREFIX = "x25519:"


@dataclass(frozen=True, slots=True)
class Recipient:
    """Somebody who may read the outputs, by X25519 public key."""

    public_key: bytes


def parse_recipients(names: tuple[str, ...]) -> tuple[bool, tuple[Recipient, ...]]:
    """Return whether the caller is among `names` of an Expectation, and the others."""
    others = tuple(
        Recipient(bytes.fromhex(name.removeprefix(_PREFIX)))
        for name in names
        if name.startswith(_PREFIX)
    )
    return "caller" in names, others


def seal_output(
    recipient: Recipient, data: bytes, *, run: bytes, path: str, ephemeral: bytes
) -> bytes:
    """Seal one output file. `ephemeral` is 32 fresh random bytes, `run` the secret run id."""
    key = load_public_key(Kem.X25519, recipient.public_key)
    enc, context = setup_sender(key, suite=_SUITE, info=_INFO + run, ephemeral=ephemeral)
    return enc + context.seal(path.encode(), data)


def open_output(private_key: bytes, sealed: bytes, *, run: bytes, path: str) -> bytes:
    """
    Open one output file with the recipient's private key (32 bytes).

    Raises `EvidenceRejected` (OUTPUT_MISMATCH) when it is not sealed to this key for this run and
    path. **Does not check** the receipt: compare the digest with it.
    """
    key = load_private_key(Kem.X25519, private_key)
    try:
        context = setup_recipient(sealed[:_ENC_BYTES], key, suite=_SUITE, info=_INFO + run)
        return context.open(path.encode(), sealed[_ENC_BYTES:])
    except OpenError as error:
        finding = Finding(
            Status.FAIL,
            "output/1",
            "docs/protocols/agent-run.md#4",
            "sealed output",
            "not sealed to this key for this run and path",
            Reason.OUTPUT_MISMATCH,
        )
        raise EvidenceRejected((finding,)) from error
