"""One sealed exchange: chunked Oblivious HTTP (draft-ietf-ohai-chunked-ohttp-08), sans-IO.

One class serves both ends. A client seals the request and opens the response, a node the other
way round. Each direction is a small machine::

    sealing   IDLE --seal(final=False)--> OPEN --seal(final=True)--> DONE
    opening   IDLE --header / nonce-----> OPEN --receive_end-------> DONE
    either    --refusal--> FAILED, for both directions, for good

Bytes come in any cuts and give frozen events. `raw` input is hostile; only `RemoteProtocolError`
leaves `receive` and `receive_end`. Replay, padding and the meaning of the plaintext are elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from confide.channel.events import (
    RESPONSE_LABEL,
    ChunkOpened,
    Direction,
    ExchangeEvent,
    ExchangeLimits,
    FinalOpened,
    RequestOpened,
    Side,
    State,
    Transcript,
    request_info,
)
from confide.channel.keys import (
    KeyRing,
    RecipientKey,
    ResponseKey,
    key_failure,
    response_nonce_bytes,
)
from confide.crypto.aead import OpenError
from confide.crypto.hpke import Context, Suite, setup_recipient, setup_sender
from confide.errors import FormatError, LocalProtocolError, Reason, RemoteProtocolError
from confide.wire.ohttp import (
    HEADER_BYTES,
    MAX_CHUNK_BYTES,
    Chunk,
    ChunkDecoder,
    RequestHeader,
    encode_chunk,
    parse_request_header,
)
from confide.wire.varint import ByteQueue

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Exchange"]

_FINAL_AAD = b"final"
# From: channel.md 6.2.
_CHANNEL_ID_LABEL = b"confide/channel-id/v1"


class Exchange:
    """
    One request and its response. Make one with `Exchange.client` or `Exchange.node`.

    `seal` returns bytes to send; `receive` takes bytes that came and returns events; call
    `receive_end` when the content of the HTTP message ended. Wrong order is
    `LocalProtocolError`; anything the peer does wrong is `RemoteProtocolError`, after which the
    exchange is dead in both directions.
    """

    __slots__ = (
        "_channel_id",
        "_context",
        "_decoder",
        "_enc",
        "_header",
        "_in",
        "_out",
        "_prefix",
        "_queue",
        "_response",
        "_response_nonce",
        "_ring",
        "_side",
        "_suite",
    )

    def __init__(self, side: Side, limits: ExchangeLimits) -> None:
        self._side = side
        self._in = Direction(limits)
        self._out = Direction(limits)
        self._queue = ByteQueue()
        self._decoder = ChunkDecoder()
        self._prefix = b""
        self._enc = b""
        self._header: RequestHeader | None = None
        self._suite: Suite | None = None
        self._context: Context | None = None
        self._response: ResponseKey | None = None
        self._response_nonce = b""
        self._ring: KeyRing | None = None
        self._channel_id: bytes | None = None

    @classmethod
    def client(
        cls, recipient: RecipientKey, *, ephemeral: bytes, limits: ExchangeLimits | None = None
    ) -> Exchange:
        """
        Start an exchange to `recipient`; `ephemeral` is 32 fresh random bytes.

        **Does not check** that `recipient` was attested. Raises `FormatError` when its key gives
        no secret.
        """
        self = cls(Side.CLIENT, limits or ExchangeLimits())
        self._header, self._suite = recipient.header, recipient.suite
        try:
            self._enc, self._context = setup_sender(
                recipient.public_key,
                suite=recipient.suite,
                info=request_info(recipient.header),
                ephemeral=ephemeral,
            )
        except OpenError as error:
            raise FormatError(
                "key configuration: a key without secrets",
                reason=Reason.CHANNEL_FORMAT,
                clause="channel.md 1.5",
            ) from error
        self._prefix = recipient.header.encode() + self._enc
        self._channel_id = self._context.export(_CHANNEL_ID_LABEL, 32)
        return self

    @classmethod
    def node(
        cls, ring: KeyRing, *, response_nonce: bytes, limits: ExchangeLimits | None = None
    ) -> Exchange:
        """Await a request under one of `ring`; `response_nonce` is 32 fresh random bytes."""
        self = cls(Side.NODE, limits or ExchangeLimits())
        self._ring = ring
        self._response_nonce = response_nonce
        return self

    @property
    def sending(self) -> State:
        """State of the direction this side seals."""
        return self._out.state

    @property
    def receiving(self) -> State:
        """State of the direction this side opens."""
        return self._in.state

    @property
    def channel_id(self) -> bytes:
        """32 bytes both ends share, naming the exchange; `LocalProtocolError` before the header."""
        if self._channel_id is None:
            raise LocalProtocolError("the exchange has no channel id before the request header")
        return self._channel_id

    @property
    def key_id(self) -> int:
        """The key the request names; `LocalProtocolError` before its header."""
        if self._header is None:
            raise LocalProtocolError("the exchange has no key before the request header")
        return self._header.key_id

    @property
    def request_sha256(self) -> bytes:
        """Digest of the whole sealed request; `LocalProtocolError` while it is incomplete."""
        return self._digest(self._out if self._side is Side.CLIENT else self._in)

    @property
    def response_sha256(self) -> bytes:
        """Digest of the whole sealed response; `LocalProtocolError` while it is incomplete."""
        return self._digest(self._in if self._side is Side.CLIENT else self._out)

    @property
    def transcript(self) -> Transcript:
        """Both digests, once both messages are complete."""
        return Transcript(self.request_sha256, self.response_sha256)

    def _digest(self, direction: Direction) -> bytes:
        if direction.state is not State.DONE:
            raise LocalProtocolError("the transcript of an incomplete message does not exist")
        return direction.digest()

    # --- sealing --------------------------------------------------------------------------------

    def seal(self, plaintext: bytes, *, final: bool) -> bytes:
        """
        Return the sealed bytes of `plaintext`, preceded by the message header the first time.

        At most 16384 bytes make one chunk; more are cut. An empty non-final `plaintext` is
        `LocalProtocolError`: it would be a decryption error at the peer.
        """
        if self._out.state is State.DONE or self._out.state is State.FAILED:
            raise LocalProtocolError("nothing can be sealed after the final chunk or a refusal")
        if not plaintext and not final:
            raise LocalProtocolError("a chunk that is not final holds at least one byte")
        parts: list[bytes] = []
        if self._out.state is State.IDLE:
            parts.append(self._start_sealing())
            self._out.state = State.OPEN
        seal = self._sealer()
        start, length = 0, len(plaintext)
        while True:
            last = length - start <= MAX_CHUNK_BYTES
            if not self._out.chunk():
                self._fail()
                raise LocalProtocolError("the message has more chunks than the limit")
            cut = plaintext if last and not start else plaintext[start : start + MAX_CHUNK_BYTES]
            sealed = seal(_FINAL_AAD if last and final else b"", cut)
            parts.append(encode_chunk(sealed, final=last and final))
            if last:
                break
            start += MAX_CHUNK_BYTES
        wire = b"".join(parts)
        if not self._out.add(wire):
            self._fail()
            raise LocalProtocolError("the message is longer than the limit")
        if final:
            self._out.state = State.DONE
        return wire

    def _start_sealing(self) -> bytes:
        if self._side is Side.CLIENT:
            return self._prefix
        if self._context is None or self._suite is None:
            raise LocalProtocolError("a response cannot precede its request header")
        size = response_nonce_bytes(self._suite.aead)
        if len(self._response_nonce) < size:
            raise LocalProtocolError("the response nonce is too short for the suite")
        self._response_nonce = self._response_nonce[:size]
        self._response = self._response_key(self._response_nonce)
        return self._response_nonce

    def _sealer(self) -> Callable[[bytes, bytes], bytes]:
        key = self._context if self._side is Side.CLIENT else self._response
        if key is None:  # pragma: no cover - set before a direction opens
            raise LocalProtocolError("the exchange has no key")
        return key.seal

    def _response_key(self, nonce: bytes) -> ResponseKey:
        if self._context is None or self._suite is None:  # pragma: no cover - same
            raise LocalProtocolError("the exchange has no key")
        secret = self._context.export(RESPONSE_LABEL, response_nonce_bytes(self._suite.aead))
        return ResponseKey(self._suite.aead, secret=secret, enc=self._enc, nonce=nonce)

    # --- opening --------------------------------------------------------------------------------

    def receive(self, data: bytes) -> tuple[ExchangeEvent, ...]:
        """Take bytes of the peer's message; return what they completed. `RemoteProtocolError`."""
        self._receivable()
        if not data:
            return ()
        if not self._in.add(data):
            raise self._refused("the message is longer than the limit", Reason.LIMIT_EXCEEDED, 413)
        events: list[ExchangeEvent] = []
        if self._in.state is State.IDLE:
            self._queue.append(data)
            if not self._start_opening(events):
                return ()
            data = self._queue.take(len(self._queue))
        try:
            chunks = self._decoder.feed(data)
        except FormatError as error:
            raise self._refused("the chunk framing is broken", Reason.CHANNEL_FORMAT) from error
        events.extend(ChunkOpened(self._open(chunk)) for chunk in chunks)
        return tuple(events)

    def receive_end(self) -> tuple[ExchangeEvent, ...]:
        """
        The peer's message has no more bytes: return `FinalOpened`, once.

        Raises `RemoteProtocolError` when it ended before its final chunk: what was opened so far
        is not the message.
        """
        self._receivable()
        if self._in.state is State.IDLE:
            raise self._refused("the message ends in its header", Reason.CHANNEL_TRUNCATED)
        try:
            chunk = self._decoder.end()
        except FormatError as error:
            raise self._refused("the final chunk is cut", Reason.CHANNEL_TRUNCATED) from error
        if chunk is None:
            raise self._refused("the message ends without a final chunk", Reason.CHANNEL_TRUNCATED)
        data = self._open(chunk)
        self._in.state = State.DONE
        return (FinalOpened(data),)

    def _receivable(self) -> None:
        if self._in.state is State.DONE or self._in.state is State.FAILED:
            raise LocalProtocolError("nothing can be received after the end or a refusal")
        if self._side is Side.CLIENT and self._out.state is State.IDLE:
            raise LocalProtocolError("a response cannot precede its request")

    def _start_opening(self, events: list[ExchangeEvent]) -> bool:
        if self._side is Side.CLIENT:
            if self._suite is None:  # pragma: no cover - a client has a suite from the start
                raise LocalProtocolError("the exchange has no suite")
            size = response_nonce_bytes(self._suite.aead)
            if len(self._queue) < size:
                return False
            self._response = self._response_key(self._queue.take(size))
        elif not self._open_header(events):
            return False
        self._in.state = State.OPEN
        return True

    def _open_header(self, events: list[ExchangeEvent]) -> bool:
        if self._ring is None:  # pragma: no cover - a node has a ring from the start
            raise LocalProtocolError("the exchange has no keys")
        if len(self._queue) < HEADER_BYTES:
            return False
        try:
            header = parse_request_header(self._queue.peek(HEADER_BYTES))
            key = self._ring.select(header)
        except FormatError as error:
            self._fail()
            raise key_failure("the request uses algorithms unknown here") from error
        except RemoteProtocolError:
            self._fail()
            raise
        if len(self._queue) < HEADER_BYTES + header.kem.enc_bytes:
            return False
        self._queue.take(HEADER_BYTES)
        self._enc = self._queue.take(header.kem.enc_bytes)
        self._header = header
        self._suite = Suite(header.kem, header.kdf, header.aead)
        try:
            self._context = setup_recipient(
                self._enc, key.private_key, suite=self._suite, info=request_info(header)
            )
        except OpenError as error:
            raise self._refused("the encapsulation is not valid", Reason.CHANNEL_OPEN) from error
        self._channel_id = self._context.export(_CHANNEL_ID_LABEL, 32)
        events.append(RequestOpened(header, self._channel_id))
        return True

    def _open(self, chunk: Chunk) -> bytes:
        key = self._context if self._side is Side.NODE else self._response
        if key is None:  # pragma: no cover - set before a direction opens
            raise LocalProtocolError("the exchange has no key")
        first = self._in.chunks == 0
        if not self._in.chunk():
            raise self._refused("more chunks than the limit", Reason.LIMIT_EXCEEDED, 413)
        try:
            data = key.open(_FINAL_AAD if chunk.final else b"", chunk.sealed)
        except OpenError as error:
            if first and self._side is Side.NODE:
                # The first chunk cannot tell a forged message from one to another key.
                self._fail()
                raise key_failure("the request does not open under the key it names") from error
            raise self._refused("a chunk does not open", Reason.CHANNEL_OPEN) from error
        if not data and not chunk.final:
            raise self._refused("an empty chunk that is not final", Reason.CHANNEL_OPEN)
        return data

    def _fail(self) -> None:
        self._in.state = self._out.state = State.FAILED

    def _refused(self, message: str, reason: Reason, status: int = 400) -> RemoteProtocolError:
        self._fail()
        return RemoteProtocolError(message, reason=reason, status_hint=status)
