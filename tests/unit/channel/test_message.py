"""Stamps, padding, cells and the order of events between HTTP messages and an exchange."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from confide.channel.exchange import Exchange
from confide.channel.keys import key_ring, recipient_key
from confide.channel.message import (
    ClientMessages,
    MessageLimits,
    NodeMessages,
    Stamp,
    parse_stamp,
)
from confide.channel.padding import (
    CellDecoder,
    PaddingPolicy,
    encode_cells,
    parse_cell_bytes,
)
from confide.channel.replay import ReplayPolicy, ReplayWindow
from confide.crypto.kem import load_private_key
from confide.errors import FormatError, LocalProtocolError, Reason, RemoteProtocolError
from confide.wire.bhttp import (
    Content,
    End,
    Fields,
    RequestHead,
    ResponseHead,
    encode_known_request,
    encode_known_response,
)
from confide.wire.ohttp import Kem

NOW = datetime(2026, 1, 1, tzinfo=UTC)
RING = key_ring(((1, load_private_key(Kem.X_WING, bytes(range(32)))),))
RECIPIENT = recipient_key(RING.configs[0])
STAMP = Stamp(bytes(range(32)), NOW)


def client(cell_bytes: int | None = None) -> ClientMessages:
    return ClientMessages(
        RECIPIENT,
        ephemeral=bytes(range(32)),
        stamp=STAMP,
        padding=PaddingPolicy(),
        limits=MessageLimits(),
        cell_bytes=cell_bytes,
    )


def node() -> NodeMessages:
    return NodeMessages(
        RING,
        response_nonce=bytes(range(32)),
        window=ReplayWindow(ReplayPolicy(), secret=bytes(32)),
        padding=PaddingPolicy(),
        limits=MessageLimits(),
    )


def pair(cell_bytes: int | None = None) -> tuple[ClientMessages, NodeMessages]:
    c, n = client(cell_bytes), node()
    n.receive(c.seal_whole("POST", "/", (), b"x"), now=NOW)
    n.receive_end(now=NOW)
    return c, n


def deliver(receiver: NodeMessages, wire: bytes) -> None:
    receiver.receive(wire, now=NOW)
    receiver.receive_end(now=NOW)


def raw_request(head: RequestHead) -> bytes:
    """A request sealed without the help of `ClientMessages`."""
    return Exchange.client(RECIPIENT, ephemeral=bytes(range(32))).seal(
        encode_known_request(head, b""), final=True
    )


def refused(head: RequestHead) -> RemoteProtocolError:
    n = node()
    with pytest.raises(RemoteProtocolError) as caught:
        deliver(n, raw_request(head))
    return caught.value


def head(fields: Fields | None = None, *, authority: str = "confide.invalid") -> RequestHead:
    return RequestHead("GET", "https", authority, "/", STAMP.fields() if fields is None else fields)


def test_the_head_is_returned_without_our_fields_and_the_end_only_when_it_is_proven() -> None:
    c, n = client(), node()
    wire = c.seal_head("POST", "/p", ((b"a", b"b"),)) + c.seal_content(b"one")
    events = n.receive(wire, now=NOW)
    assert events == (
        RequestHead("POST", "https", "confide.invalid", "/p", ((b"a", b"b"),)),
        Content(b"one"),
    )
    assert n.stamp == STAMP
    assert n.receive(c.seal_end(), now=NOW) == ()
    assert n.receive_end(now=NOW) == (End(()),)


def test_a_replay_is_refused_before_its_head_is_returned() -> None:
    window = ReplayWindow(ReplayPolicy(), secret=bytes(32))
    wire = client().seal_whole("POST", "/", (), b"")
    for expected in (None, Reason.REPLAYED):
        n = NodeMessages(
            RING,
            response_nonce=bytes(32),
            window=window,
            padding=PaddingPolicy(),
            limits=MessageLimits(),
        )
        if expected is None:
            deliver(n, wire)
            continue
        with pytest.raises(RemoteProtocolError) as caught:
            deliver(n, wire)
        assert caught.value.reason is expected


def test_any_other_authority_or_scheme_is_refused() -> None:
    assert refused(head(authority="api.example.com")).reason is Reason.CHANNEL_FORMAT
    plain = RequestHead("GET", "http", "confide.invalid", "/", STAMP.fields())
    assert refused(plain).reason is Reason.CHANNEL_FORMAT


@pytest.mark.parametrize(
    "fields",
    [
        (),
        STAMP.fields()[:1],
        STAMP.fields()[1:],
        STAMP.fields() * 2,
        ((b"confide-nonce", b"AB" * 32), STAMP.fields()[1]),
        ((b"confide-nonce", b"ab" * 31), STAMP.fields()[1]),
        (STAMP.fields()[0], (b"confide-time", b"-5")),
        (STAMP.fields()[0], (b"confide-time", b"0x10")),
        (STAMP.fields()[0], (b"confide-time", b"999999999999")),
        (*STAMP.fields(), (b"confide-cells", b"63")),
        (*STAMP.fields(), (b"confide-cells", b"99999")),
        (*STAMP.fields(), (b"confide-cells", b"128"), (b"confide-cells", b"128")),
    ],
)
def test_a_request_without_a_proper_stamp_is_refused(fields: Fields) -> None:
    assert refused(head(fields)).reason is Reason.CHANNEL_FORMAT


def test_stamps() -> None:
    assert parse_stamp(STAMP.fields()) == STAMP
    with pytest.raises(ValueError, match="stamp"):
        Stamp(b"short", NOW)
    with pytest.raises(ValueError, match="stamp"):
        Stamp(bytes(32), NOW.replace(tzinfo=None))


def test_our_fields_are_not_the_callers_to_set() -> None:
    with pytest.raises(LocalProtocolError):
        client().seal_whole("GET", "/", ((b"confide-nonce", b"x"),), b"")


@pytest.mark.parametrize(("asked", "answered"), [(128, None), (None, 128), (128, 256)])
def test_cells_must_be_those_that_were_asked_for(asked: int | None, answered: int | None) -> None:
    c = client(asked)
    n = Exchange.node(RING, response_nonce=bytes(32))
    n.receive(c.seal_whole("GET", "/", (), b""))
    n.receive_end()
    fields = () if answered is None else ((b"confide-cells", str(answered).encode()),)
    wire = n.seal(encode_known_response(ResponseHead(200, fields), b""), final=True)
    with pytest.raises(RemoteProtocolError):
        c.receive(wire), c.receive_end()


def test_cells_carry_everything_and_hide_its_length() -> None:
    c, n = pair(64)
    n.hold_head(ResponseHead(200, ((b"content-length", b"7"),)))
    sizes = []
    events = list(c.receive(n.seal_content(b"head and first")))
    for data in (b"a", b"b" * 62, b"c" * 200):
        wire = n.seal_content(data)
        sizes.append(len(wire))
        events += c.receive(wire)
    more, end = (c.receive(n.seal_end(b"z")), c.receive_end())
    events += [*more, *end[0]]
    assert sizes == [sizes[0], sizes[0], 4 * sizes[0]]
    assert events[0] == ResponseHead(200, ())
    content = b"".join(event.data for event in events if isinstance(event, Content))
    assert content == b"head and firsta" + b"b" * 62 + b"c" * 200 + b"z"
    assert end[1] == End(())


def test_a_cell_that_lies_is_refused() -> None:
    for cell in (b"\0\x01a" + b"\x01" * 61, b"\xff\xff" + bytes(62)):
        with pytest.raises(FormatError):
            CellDecoder(64).feed(cell)
    cut = CellDecoder(64)
    cut.feed(bytes(63))
    with pytest.raises(FormatError):
        cut.end()
    assert encode_cells(b"", 64) == ()
    with pytest.raises(FormatError):
        parse_cell_bytes(b"")


def test_informational_responses_are_passed_over() -> None:
    c, n = pair()
    n.hold_head(ResponseHead(200, ()))
    n._writer._held = b"\x03\x40\x67\0" + n._writer._held[1:]
    assert c.receive(n.seal_content(b"x")) == (ResponseHead(200, ()), Content(b"x"))


def test_malformed_content_under_a_good_seal_is_the_peers_fault() -> None:
    c = client()
    n = Exchange.node(RING, response_nonce=bytes(32))
    n.receive(c.seal_whole("GET", "/", (), b""))
    n.receive_end()
    with pytest.raises(RemoteProtocolError) as caught:
        c.receive(n.seal(b"\x09", final=False))
    assert caught.value.reason is Reason.CHANNEL_FORMAT


@pytest.mark.parametrize(
    ("length", "bucket"), [(0, 1024), (1024, 1024), (1025, 1088), (16384, 16384), (16385, 17408)]
)
def test_buckets(length: int, bucket: int) -> None:
    assert PaddingPolicy().bucket(length) == bucket


def test_padding_costs_at_most_an_eighth_above_the_floor() -> None:
    policy = PaddingPolicy()
    for length in range(1024, 200000, 61):
        bucket = policy.bucket(length)
        assert length <= bucket <= length * 1.125
        assert policy.bucket(bucket) == bucket
    assert PaddingPolicy(1).bucket(1) == 1
    with pytest.raises(ValueError, match="floor"):
        PaddingPolicy(0)
