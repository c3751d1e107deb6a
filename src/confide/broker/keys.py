"""The broker's own two keys: one signs receipts, to the other owners seal values. Pure.

Clause: docs/protocols/broker.md §1.2. Drawn once, when a store is begun; kept in it, sealed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from confide.crypto.ed25519 import Ed25519Signer
from confide.crypto.kem import PrivateKey, load_private_key
from confide.errors import Reason
from confide.wire.json import Members, jcs, parse_json
from confide.wire.ohttp import Kem

__all__ = ["IDENTITY", "BrokerKeys", "parse_broker_keys"]

# Kind and name of the record that holds them.
IDENTITY: Final = ("identity", "broker")
_TYPE: Final = "confide/broker-keys/v1"


@dataclass(frozen=True, slots=True)
class BrokerKeys:
    """Both private keys, 32 bytes each: an Ed25519 seed and an X25519 scalar. Not printable."""

    sign: bytes = field(repr=False)
    seal: bytes = field(repr=False)

    @property
    def signer(self) -> Ed25519Signer:
        """What signs receipts."""
        return Ed25519Signer(self.sign)

    @property
    def key(self) -> bytes:
        """The Ed25519 public key by which Expectations and statements name this broker."""
        return self.signer.public_key

    @property
    def opener(self) -> PrivateKey:
        """What opens values that owners sealed."""
        return load_private_key(Kem.X25519, self.seal)

    def encode(self) -> bytes:
        """Return the record. Secret."""
        return jcs({"type": _TYPE, "sign": self.sign.hex(), "seal": self.seal.hex()})


def parse_broker_keys(raw: bytes) -> BrokerKeys:
    """Parse what `BrokerKeys.encode` returned. Raises `FormatError` with VAULT_FORMAT."""
    value = parse_json(raw, what="broker keys", reason=Reason.VAULT_FORMAT)
    members = Members(value, what="broker keys", reason=Reason.VAULT_FORMAT)
    members.choice("type", (_TYPE,))
    keys = BrokerKeys(members.hexes("sign", 32), members.hexes("seal", 32))
    members.end()
    return keys
