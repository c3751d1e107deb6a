"""A booted model node with any faces in memory, put together as the node's process does it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from near_face_place import FINGERPRINT, MODEL, NearPlace
from nodes import CountingEntropy

from confide.channel.ehbp import SUITE, seal_request_body
from confide.channel.keys import RecipientKey
from confide.crypto.kem import load_public_key
from confide.node.app import NodeApp
from confide.node.open_faces import FaceParts, behind_channel, open_faces
from confide.wire.ohttp import Kem, RequestHeader

if TYPE_CHECKING:
    from confide.wire.faces import FaceName

CHAT = "/v1/chat/completions"
ASKED = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}).encode()


class Faced(NearPlace):
    """A node with `faces`, put together as the node's process does it, with a TLS port."""

    def __init__(self, *faces: FaceName, engine_inside: bool = False) -> None:
        super().__init__(faces=faces)
        parts = FaceParts(
            identity=self.identity,
            machine=self.machine(),
            inner=self.node,
            model=MODEL,
            engine_inside=engine_inside,
            fingerprint=FINGERPRINT,
        )
        self.faces = open_faces(faces, parts)
        self.app = NodeApp(self.identity, behind_channel(self.faces, self.node), self.faces)

    def ehbp(self) -> tuple[bytes, dict[str, str]]:
        """A sealed body of `ASKED` and the header that goes with it."""
        [key] = [k for k in self.identity.current.keys.keyset.keys if k.algorithm == "ehbp-X25519"]
        header = RequestHeader(0, SUITE.kem, SUITE.kdf, SUITE.aead)
        recipient = RecipientKey(header, load_public_key(Kem.X25519, key.public_key))
        ephemeral = CountingEntropy(b"client").token(32)
        enc, body, _ = seal_request_body(recipient, (ASKED,), ephemeral=ephemeral)
        return body, {"ehbp-encapsulated-key": enc.hex()}

    def way(self) -> Any:
        """By which way the last call came."""
        return self.receipts()[-1]["record"].get("way")
