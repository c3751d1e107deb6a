"""What a broker says about itself to whoever knows its key. Pure.

Clause: docs/protocols/broker.md §1.3. Verified under a key that the caller already holds, it says
what that broker said at some time: an old one can be shown again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from confide.broker.names import parse_repository
from confide.crypto.ed25519 import verify_ed25519
from confide.crypto.errors import BadSignature
from confide.errors import Reason, RemoteProtocolError
from confide.wire.json import JsonLimits, JsonValue, Members, jcs, parse_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from confide.crypto.ed25519 import Ed25519Signer

__all__ = ["MAX_INFO_BYTES", "BrokerInfo", "sign_broker_info", "verify_broker_info"]

MAX_INFO_BYTES: Final = 1 << 20
_TYPE: Final = "confide/broker/v1"
_DOMAIN: Final = b"confide/broker-info/v1\0"
_REASON: Final = Reason.BROKER_FORMAT


@dataclass(frozen=True, slots=True)
class BrokerInfo:
    """
    The broker's keys, and the digest of the set of owners that decides for each repository.

    `key` is Ed25519, `seal` X25519.
    """

    key: bytes
    seal: bytes
    repositories: Mapping[str, bytes]
    simulated: bool

    def encode(self) -> bytes:
        """Return the body."""
        repositories: dict[str, JsonValue] = {
            name: digest.hex() for name, digest in self.repositories.items()
        }
        return jcs(
            {
                "type": _TYPE,
                "key": self.key.hex(),
                "seal": self.seal.hex(),
                "repositories": repositories,
                "simulated": self.simulated,
            }
        )


def sign_broker_info(body: bytes, signer: Ed25519Signer) -> bytes:
    """Return the signature over `body`."""
    return signer.sign(_DOMAIN + body)


def verify_broker_info(body: bytes, signature: bytes, *, key: bytes) -> BrokerInfo:
    """
    Establish that the broker whose key is `key` said `body`, and return what it says.

    Raises `RemoteProtocolError` for another broker, `FormatError` with BROKER_FORMAT.
    """
    try:
        verify_ed25519(key, signature, _DOMAIN + body)
    except BadSignature as error:
        raise RemoteProtocolError(
            "what the broker says about itself is not signed with the key that you know it by",
            reason=Reason.BROKER_FORMAT,
        ) from error
    limits = JsonLimits(max_bytes=MAX_INFO_BYTES)
    value = parse_json(body, what="broker info", reason=_REASON, limits=limits)
    members = Members(value, what="broker info", reason=_REASON)
    members.choice("type", (_TYPE,))
    own, seal = members.hexes("key", 32), members.hexes("seal", 32)
    listed = members.value("repositories")
    simulated = members.boolean("simulated")
    members.end()
    if own != key:
        members.refuse("it names another key")
    return BrokerInfo(own, seal, _repositories(listed), simulated)


def _repositories(value: JsonValue) -> dict[str, bytes]:
    members = Members(value, what="broker info: repositories", reason=_REASON)
    names = sorted(value) if isinstance(value, dict) else []
    return {parse_repository(name, reason=_REASON): members.hexes(name, 32) for name in names}
