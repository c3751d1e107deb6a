"""The keys of the NEAR face, of one keyset: they sign, open fields and open Oblivious HTTP.

Clauses: docs/protocols/near-face.md §2. One secret of each algorithm; the address that evidence
commits to and the key that callers encrypt to are computed from the same secret, so they belong
together (N18).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from confide.channel.keys import GatewayKey
from confide.channel.near_request import FieldWindow
from confide.channel.near_seal import FieldKey, FieldScheme
from confide.crypto.ed25519 import Ed25519Signer
from confide.crypto.ethereum import (
    address_of,
    derive_secp256k1_public_key,
    sign_personal_message,
)
from confide.crypto.kem import load_private_key
from confide.wire.ohttp import Aead, Kdf, Kem, KeyConfig, encode_key_config

if TYPE_CHECKING:
    from confide.node.identity import NodeIdentity
    from confide.node.keys import NodeKeys

__all__ = ["NearKeyring", "NearKeys", "SigningAlgorithm", "near_keys"]

_ED25519: Final = "near-Ed25519"
_SECP256K1: Final = "near-secp256k1"
_X25519: Final = "near-X25519"
# From: near-face.md §7: what NEAR's key configuration offers, in its order.
_OHTTP_SUITES: Final = (
    (Kdf.HKDF_SHA256, Aead.AES_128_GCM),
    (Kdf.HKDF_SHA256, Aead.CHACHA20_POLY1305),
)


class SigningAlgorithm(StrEnum):
    """The values of `signing_algo`."""

    ECDSA = "ecdsa"
    ED25519 = "ed25519"


@dataclass(frozen=True, slots=True)
class NearKeys:
    """
    The face's keys that belong to `keys`. `ids` are those of the keyset, by algorithm.

    `ohttp` is the key of Oblivious HTTP with its published configuration, `window` what was sealed
    to these keys and opened.
    """

    keys: NodeKeys
    ids: dict[SigningAlgorithm, int]
    ohttp_id: int
    ohttp: GatewayKey
    window: FieldWindow = field(repr=False)
    _signer: Ed25519Signer = field(repr=False)
    _seed: bytes = field(repr=False)
    _scalar: bytes = field(repr=False)
    _point: bytes

    def public_key(self, algorithm: SigningAlgorithm) -> bytes:
        """Return X ‖ Y for ecdsa, 32 bytes for ed25519."""
        return self._point if algorithm is SigningAlgorithm.ECDSA else self._signer.public_key

    def address_bytes(self, algorithm: SigningAlgorithm) -> bytes:
        """Return what report data commits to: 20 or 32 bytes."""
        public = self.public_key(algorithm)
        return address_of(public) if algorithm is SigningAlgorithm.ECDSA else public

    def address(self, algorithm: SigningAlgorithm) -> str:
        """Return `signing_address` as it is written."""
        prefix = "0x" if algorithm is SigningAlgorithm.ECDSA else ""
        return prefix + self.address_bytes(algorithm).hex()

    def sign(self, algorithm: SigningAlgorithm, text: bytes) -> str:
        """Return the signature over `text` as it is written (near-face.md §4)."""
        if algorithm is SigningAlgorithm.ECDSA:
            return "0x" + sign_personal_message(self._scalar, text).hex()
        return self._signer.sign(text).hex()

    def field_key(self, scheme: FieldScheme) -> FieldKey:
        """Return the secret that opens fields sealed in `scheme`."""
        return FieldKey(scheme, self._seed if scheme is FieldScheme.ED25519 else self._scalar)

    @property
    def key_config(self) -> bytes:
        """The one key configuration, 45 bytes, without a length in front."""
        return encode_key_config(self.ohttp.config)

    def sign_key_config(self) -> bytes:
        """Return the Ed25519 signature over the bytes of the key configuration."""
        return self._signer.sign(self.key_config)


def near_keys(keys: NodeKeys, *, ohttp_id: int) -> NearKeys:
    """Return the face's keys of `keys`; `ohttp_id` is the key id inside the key configuration."""
    seed, scalar, raw = (keys.face[name] for name in (_ED25519, _SECP256K1, _X25519))
    private = load_private_key(Kem.X25519, raw.secret)
    config = KeyConfig(ohttp_id, Kem.X25519, private.public_key.raw, _OHTTP_SUITES)
    return NearKeys(
        keys=keys,
        ids={SigningAlgorithm.ED25519: seed.id, SigningAlgorithm.ECDSA: scalar.id},
        ohttp_id=raw.id,
        ohttp=GatewayKey(config, private),
        window=FieldWindow(),
        _signer=Ed25519Signer(seed.secret),
        _seed=seed.secret,
        _scalar=scalar.secret,
        _point=derive_secp256k1_public_key(scalar.secret),
    )


class NearKeyring:
    """
    The face's keys of the current keyset, and of the one before during the overlap.

    Key ids of Oblivious HTTP alternate between 1 and 2, so that a request names the right one.
    """

    def __init__(self, identity: NodeIdentity) -> None:
        self._identity = identity
        self._known: tuple[NearKeys, ...] = ()

    def known(self) -> tuple[NearKeys, ...]:
        """Return the current keys first."""
        wanted = [identity.keys for identity in self._identity.known()]
        if [known.keys for known in self._known] != wanted:
            # The oldest first: the newer takes the other number.
            found: list[NearKeys] = []
            for keys in reversed(wanted):
                same = next((known for known in self._known if known.keys is keys), None)
                before = found[-1].ohttp.config.key_id if found else 2
                found.append(same or near_keys(keys, ohttp_id=3 - before))
            self._known = tuple(reversed(found))
        return self._known

    @property
    def current(self) -> NearKeys:
        """The keys to publish."""
        return self.known()[0]
