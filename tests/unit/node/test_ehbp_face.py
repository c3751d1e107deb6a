"""The EHBP face in process: what it opens, what it seals, and every way to be refused."""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from nodes import CountingEntropy, SimulatedNode

from confide.channel.carriage import CHANNEL_PATH
from confide.channel.ehbp import (
    SUITE,
    open_receipt,
    open_response_body,
    response_key,
    response_secret,
    seal_request_body,
)
from confide.channel.keys import RecipientKey
from confide.channel.replay import ReplayPolicy, ReplayWindow
from confide.crypto.kem import load_public_key
from confide.errors import LocalProtocolError, Reason, RemoteProtocolError
from confide.node.app import NodeApp
from confide.node.ehbp import ALGORITHM, SEALED_RECEIPT_FIELD, EhbpFace, replay_window
from confide.node.identity import NodeIdentity
from confide.node.sealed import SCOPE_KEY
from confide.receipts.inline import RECEIPT_HEADER, encode_inline
from confide.wire.dsse import Envelope
from confide.wire.ehbp import KEY_PROBLEM_TYPE, KEYS_PATH, MAX_FRAMES
from confide.wire.faces import FaceName, Way
from confide.wire.json import b64decode
from confide.wire.ohttp import Kem, RequestHeader, encode_key_config, parse_key_config

if TYPE_CHECKING:
    from collections.abc import Sequence

    from confide.crypto.hpke import Context
    from confide.wire.keyset import KeysetKey

CHAT = "/v1/chat/completions"
LIMIT = 1 << 20
ENVELOPE = Envelope(b'{"a":"receipt"}', (("3", b"s" * 64),))


@dataclass
class Inner:
    """The application behind: keeps what reached it, answers in two pieces."""

    bodies: list[bytes] = field(default_factory=list)
    scopes: list[Any] = field(default_factory=list)
    left: bool = False
    waits: bool = False
    pieces: tuple[bytes, ...] = (b"one", b"", b"two")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        assert message["more_body"] is False
        self.scopes.append(scope)
        self.bodies.append(message["body"])
        if self.waits:
            self.left = (await receive())["type"] == "http.disconnect"
            return
        headers = [
            (b"Content-Type", b"application/json"),
            (RECEIPT_HEADER.encode(), encode_inline(ENVELOPE).encode()),
            (b"content-length", b"6"),
            (b"retry-after", b"3"),
            (b"x-secret", b"inside"),
        ]
        await send({"type": "http.response.start", "status": 429, "headers": headers})
        for piece in self.pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


@dataclass
class Got:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    raw_headers: list[tuple[bytes, bytes]] = field(default_factory=list)

    @property
    def problem(self) -> str:
        """The type of a refusal outside the seal."""
        assert self.headers["content-type"] == "application/problem+json"
        assert "ehbp-response-nonce" not in self.headers
        document = json.loads(self.body)
        assert set(document) == {"type", "title", "status"}
        assert document["status"] == self.status
        kind: str = document["type"]
        return kind


class World:
    """A node with the face, and honest clients of it."""

    def __init__(self, *, window: ReplayWindow | None = None) -> None:
        self.simulated = SimulatedNode("model", faces=(FaceName.EHBP,))
        asyncio.run(self.simulated.boot())
        self.inner = Inner()
        self.identity = NodeIdentity(
            self.simulated.keys,
            self.simulated.attester,
            clock=self.simulated.clock,
            entropy=self.simulated.entropy,
            simulated=True,
        )
        face = EhbpFace(
            self.identity,
            self.inner,
            paths=[CHAT],
            max_bytes=LIMIT,
            window=replay_window(bytes(32)) if window is None else window,
        )
        self.app = NodeApp(self.identity, self.inner, (face,))
        self.entropy = CountingEntropy(b"client")

    @property
    def key(self) -> KeysetKey:
        [key] = [
            key for key in self.identity.current.keys.keyset.keys if key.algorithm == ALGORITHM
        ]
        return key

    def seal(self, *chunks: bytes, key: KeysetKey | None = None) -> tuple[bytes, bytes, Context]:
        header = RequestHeader(0, SUITE.kem, SUITE.kdf, SUITE.aead)
        public = load_public_key(Kem.X25519, (key or self.key).public_key)
        recipient = RecipientKey(header, public)
        return seal_request_body(recipient, chunks, ephemeral=self.entropy.token(32))

    def send(
        self,
        body: bytes | Sequence[bytes],
        *enc: bytes,
        method: str = "POST",
        path: str = CHAT,
        leaves: bool = False,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> Got:
        pieces = [body] if isinstance(body, bytes) else list(body)
        messages: list[dict[str, Any]] = [
            {"type": "http.request", "body": piece, "more_body": at + 1 < len(pieces) or leaves}
            for at, piece in enumerate(pieces)
        ]
        got = Got()

        async def receive() -> dict[str, Any]:
            return messages.pop(0) if messages else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                got.status = message["status"]
                got.raw_headers = message["headers"]
                got.headers = {n.decode().lower(): v.decode() for n, v in message["headers"]}
            else:
                got.body += message.get("body", b"")

        fields = [(b"Ehbp-Encapsulated-Key", value.hex().encode()) for value in enc]
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "client": ("192.0.2.1", 1),
            "headers": [*fields, *headers],
        }
        asyncio.run(self.app(scope, receive, send))
        return got


@pytest.fixture
def world() -> World:
    return World()


def opened(context: Context, enc: bytes, got: Got) -> bytes:
    nonce = bytes.fromhex(got.headers["ehbp-response-nonce"])
    key = response_key(response_secret(context), enc=enc, nonce=nonce)
    return open_response_body(key, got.body).data


# --- what it does ---------------------------------------------------------------------------------


def test_a_request_is_opened_and_its_answer_sealed(world: World) -> None:
    enc, body, context = world.seal(b'{"a":', b"1}")
    got = world.send(body, enc)
    assert world.inner.bodies == [b'{"a":1}']
    assert got.status == 429, "the status of the application, in clear"
    assert opened(context, enc, got) == b"onetwo"
    assert b"onetwo" not in got.body


@pytest.mark.parametrize("size", [1, 3, 4, 5, 21])
def test_how_the_body_is_cut_on_the_way_changes_nothing(world: World, size: int) -> None:
    enc, body, context = world.seal(b"first", b"second")
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    assert opened(context, enc, world.send(pieces, enc)) == b"onetwo"
    assert world.inner.bodies == [b"firstsecond"]


def test_a_long_answer_goes_in_frames_of_64_kib(world: World) -> None:
    world.inner.pieces = (b"x" * 200_000,)
    enc, body, context = world.seal(b"{}")
    got = world.send(body, enc)
    assert int.from_bytes(got.body[:4], "big") == 65536 + 16
    assert opened(context, enc, got) == b"x" * 200_000


def test_only_what_the_protocol_needs_is_told_in_clear(world: World) -> None:
    enc, body, _ = world.seal(b"{}")
    got = world.send(body, enc)
    assert set(got.headers) == {
        "content-type",
        "cache-control",
        "ehbp-response-nonce",
        "retry-after",
        SEALED_RECEIPT_FIELD,
    }
    assert got.headers["cache-control"] == "no-store"


def test_the_receipt_is_sealed_beside_the_answer(world: World) -> None:
    enc, body, context = world.seal(b"{}")
    got = world.send(body, enc)
    nonce = bytes.fromhex(got.headers["ehbp-response-nonce"])
    key = response_key(response_secret(context), enc=enc, nonce=nonce)
    sealed = b64decode(got.headers[SEALED_RECEIPT_FIELD], what="x", reason=Reason.RECEIPT_FORMAT)
    assert open_receipt(key, sealed) == ENVELOPE.encode()
    assert b"receipt" not in sealed
    with pytest.raises(RemoteProtocolError):
        open_receipt(key, sealed[:-1] + bytes([sealed[-1] ^ 1]))


def test_the_application_learns_by_which_way_and_which_key(world: World) -> None:
    enc, body, _ = world.seal(b"{}")
    world.send(body, enc, headers=[(b"authorization", b"Bearer k"), (b"content-length", b"9")])
    [scope] = world.inner.scopes
    record = scope[SCOPE_KEY]
    assert (record.way, record.key_id) == (Way.EHBP, world.key.id)
    assert record.request_sha256 == hashlib.sha256(enc + body).digest()
    assert scope["headers"] == [(b"authorization", b"Bearer k")]
    assert scope["client"] is None


def test_a_caller_who_leaves_is_told_to_the_application(world: World) -> None:
    world.inner.waits = True
    enc, body, _ = world.seal(b"{}")
    world.send(body, enc)
    assert world.inner.left


def test_answers_of_two_equal_requests_are_sealed_differently(world: World) -> None:
    first, second = world.seal(b"{}"), world.seal(b"{}")
    bodies = {world.send(body, enc).body for enc, body, _ in (first, second)}
    assert len(bodies) == 2


# --- the key --------------------------------------------------------------------------------------


def test_the_key_is_told_as_published_clients_read_it(world: World) -> None:
    got = world.send(b"", method="GET", path=KEYS_PATH)
    assert (got.status, got.headers["content-type"]) == (200, "application/ohttp-keys")
    config = parse_key_config(got.body)
    assert (config.key_id, config.public_key) == (world.key.id, world.key.public_key)
    assert config.algorithms == ((1, 2),)
    assert encode_key_config(config) == got.body, "one bare configuration, no length before it"
    assert world.send(b"", path=KEYS_PATH).status == 405


def test_the_key_is_of_its_own_purpose(world: World) -> None:
    keyset = world.identity.current.keys.keyset
    assert (world.key.purpose, world.key.face) == ("face", FaceName.EHBP)
    assert world.key.public_key not in {k.public_key for k in keyset.keys if k is not world.key}


def test_the_channels_key_opens_nothing_here(world: World) -> None:
    [channel] = [k for k in world.identity.current.keys.keyset.keys if k.algorithm == "X25519"]
    enc, body, _ = world.seal(b"{}", key=channel)
    got = world.send(body, enc)
    assert (got.status, got.problem) == (422, KEY_PROBLEM_TYPE)
    assert world.inner.bodies == []


def test_both_keys_open_during_an_overlap_and_one_after_it(world: World) -> None:
    old = world.key
    world.identity.rotate()
    assert world.key != old
    for key in (old, world.key):
        enc, body, _ = world.seal(b"{}", key=key)
        assert world.send(body, enc).status == 429
        assert world.inner.scopes[-1][SCOPE_KEY].key_id == key.id
    world.simulated.clock.time += timedelta(hours=2, seconds=1)
    enc, body, _ = world.seal(b"{}", key=old)
    assert world.send(body, enc).problem == KEY_PROBLEM_TYPE


def test_a_key_past_its_keyset_opens_nothing_even_if_nobody_asked_since(world: World) -> None:
    enc, body, _ = world.seal(b"{}")
    assert world.send(body, enc).status == 429
    # A day later the window has forgotten; the very request that rotates must not be a replay.
    world.simulated.clock.time += timedelta(days=1, minutes=1)
    assert world.send(body, enc).problem == KEY_PROBLEM_TYPE
    assert len(world.inner.bodies) == 1


# --- refused --------------------------------------------------------------------------------------


def test_a_request_is_taken_once(world: World) -> None:
    enc, body, _ = world.seal(b"{}")
    assert world.send(body, enc).status == 429
    for again in (body, body + bytes(4)):
        got = world.send(again, enc)
        assert (got.status, got.problem) == (409, "urn:confide:problem:replayed")
    world.simulated.clock.time += timedelta(hours=11)
    assert world.send(body, enc).status == 409, "for as long as its key lives"
    assert len(world.inner.bodies) == 1


def test_a_full_window_refuses_and_forgets_nothing() -> None:
    world = World(window=ReplayWindow(ReplayPolicy(86400, 1), secret=bytes(32)))
    first, second = world.seal(b"{}"), world.seal(b"{}")
    assert world.send(first[1], first[0]).status == 429
    got = world.send(second[1], second[0])
    assert (got.status, got.problem) == (503, "urn:confide:problem:node-busy")
    assert world.send(first[1], first[0]).status == 409


def test_the_replay_of_an_old_key_is_not_one_of_the_new(world: World) -> None:
    enc, body, _ = world.seal(b"{}")
    world.send(body, enc)
    world.identity.rotate()
    assert world.send(body, enc).status == 409


@pytest.mark.parametrize(
    "values",
    [
        (b"",),
        (b"zz" * 32,),
        (b"AB" * 32,),
        (b"ab" * 31,),
        (b"ab" * 33,),
        (b" " + b"ab" * 32,),
        (b"ab" * 32, b"ab" * 32),
    ],
    ids=["empty", "no hex", "upper case", "short", "long", "space", "twice"],
)
def test_a_key_field_that_is_not_one_key_is_refused(
    world: World, values: tuple[bytes, ...]
) -> None:
    _, body, _ = world.seal(b"{}")
    fields = [(b"ehbp-encapsulated-key", value) for value in values]
    got = world.send(body, headers=fields)
    assert (got.status, got.problem) == (400, "urn:confide:problem:channel")
    assert world.inner.bodies == []


def test_an_encapsulation_without_a_secret_is_refused(world: World) -> None:
    # A point of small order: the shared secret would be known to everybody (channel.md 1.5).
    _, body, _ = world.seal(b"{}")
    assert world.send(body, bytes(32)).problem == KEY_PROBLEM_TYPE


def test_a_forged_encapsulation_is_refused_with_its_top_bit_too(world: World) -> None:
    # X25519 ignores that bit; HPKE hashes it, so the same request under another name does not open.
    enc, body, _ = world.seal(b"{}")
    assert world.send(body, enc).status == 429
    assert world.send(body, enc[:31] + bytes([enc[31] ^ 0x80])).problem == KEY_PROBLEM_TYPE
    assert len(world.inner.bodies) == 1


@pytest.mark.parametrize("cut", [1, 3, 4, 5, 20, 22, 24, 25, -1])
def test_a_body_cut_inside_a_frame_is_refused(world: World, cut: int) -> None:
    enc, body, _ = world.seal(b"{", b"}")
    got = world.send(body[:cut], enc)
    assert (got.status, got.problem) == (400, "urn:confide:problem:channel")
    assert world.inner.bodies == []


def test_a_body_cut_between_frames_reaches_the_application_as_a_prefix(world: World) -> None:
    # ehbp-face.md 3.4: what the endpoints read says itself where it ends.
    enc, body, _ = world.seal(b'{"model":', b'"m"}')
    world.send(body[: 4 + 9 + 16], enc)
    assert world.inner.bodies == [b'{"model":']


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (lambda b: b[:-1] + bytes([b[-1] ^ 1]), 400),
        (lambda b: b[22:] + b[:22], 422),
        (lambda b: b[:22] + b[:22] + b[22:], 400),
        (lambda b: b + b"\0\0\0\x0fshort of a tag.", 400),
        (lambda b: b + b"\xff\xff\xff\xff", 413),
        (lambda b: b[:0], 400),
        (lambda b: b[:0] + bytes(8), 400),
        (lambda b: bytes(4) * MAX_FRAMES + b, 413),
        (lambda b: b + bytes(LIMIT), 413),
    ],
    ids=[
        "flipped", "reordered", "repeated", "a frame below a tag", "a frame of 4 GiB", "nothing",
        "empty frames alone", "too many frames", "too long",
    ],
)  # fmt: skip
def test_a_body_that_is_not_what_was_sealed_is_refused(
    world: World, change: Any, status: int
) -> None:
    enc, body, _ = world.seal(b"ab", b"cde")
    got = world.send(change(body), enc)
    assert got.status == status
    assert got.problem
    assert world.inner.bodies == []


def test_frames_of_another_request_are_refused(world: World) -> None:
    enc, body, _ = world.seal(b"first", b"second")
    _, other, _ = world.seal(b"first", b"seconD")
    assert world.send(body[:25] + other[25:], enc).status == 400


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD", "OPTIONS"])
def test_another_method_is_refused(world: World, method: str) -> None:
    enc, body, _ = world.seal(b"{}")
    assert world.send(body, enc, method=method).status == 404
    assert world.inner.bodies == []


@pytest.mark.parametrize(
    "path", ["/confide/v1/closing", "/v1/models", "/v1/chat/completions/", "/"]
)
def test_another_path_is_refused(world: World, path: str) -> None:
    enc, body, _ = world.seal(b"{}")
    assert world.send(body, enc, path=path).status == 404
    assert world.inner.bodies == []


@pytest.mark.parametrize("path", [CHAT, "/v1/models"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_nothing_in_clear_is_served(world: World, method: str, path: str) -> None:
    got = world.send(b'{"model":"m"}', method=method, path=path)
    assert got.status == 404
    assert world.inner.bodies == []


def test_the_channel_stays_the_channel(world: World) -> None:
    enc, body, _ = world.seal(b"{}")
    assert world.send(body, enc, path=CHANNEL_PATH).status == 415


def test_a_caller_who_leaves_before_the_end_has_asked_nothing(world: World) -> None:
    enc, body, _ = world.seal(b"{}")
    got = world.send(body, enc, leaves=True)
    assert (got.status, world.inner.bodies) == (0, [])


def test_without_the_face_there_is_no_key(world: World) -> None:
    world.app = NodeApp(world.identity, world.inner)
    enc, body, _ = world.seal(b"{}")
    assert world.send(b"", method="GET", path=KEYS_PATH).status == 404
    assert world.send(body, enc).status == 404


def test_an_application_that_breaks_the_order_is_a_fault_of_ours(world: World) -> None:
    async def broken(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.body", "body": b"before the start"})

    face = EhbpFace(
        world.identity, broken, paths=[CHAT], max_bytes=LIMIT, window=replay_window(bytes(32))
    )
    world.app = NodeApp(world.identity, broken, (face,))
    enc, body, _ = world.seal(b"{}")
    with pytest.raises(LocalProtocolError):
        world.send(body, enc)
