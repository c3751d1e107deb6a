"""Laws of NEAR's field encryption: what is sealed opens at the other end and nowhere else."""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from near_stranger import EcdsaSession, Ed25519Session, data_lines

from confide.channel.near_answer import AnswerSealer, SealedEvents, encode_json
from confide.channel.near_request import NotProtected, open_request
from confide.channel.near_seal import FieldKey, FieldScheme, client_key, open_field, seal_field
from confide.crypto.aead import OpenError
from confide.crypto.ed25519 import Ed25519Signer
from confide.crypto.ethereum import derive_secp256k1_public_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from near_stranger import Session

SECRET = hashlib.sha256(b"the node's secret").digest()
KEYS = {scheme: FieldKey(scheme, SECRET) for scheme in FieldScheme}
SCHEMES = pytest.mark.parametrize("scheme", list(FieldScheme))
CHAT = "/v1/chat/completions"
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
words = st.text("abcdefghijklmnopqrstuvwxyz", min_size=8, max_size=12)
# No member that the protocol knows, and none of the texts above.
names = words.map("x-{}".format)


def stranger(scheme: FieldScheme) -> Session:
    if scheme is FieldScheme.ECDSA:
        return EcdsaSession(derive_secp256k1_public_key(SECRET))
    return Ed25519Session(Ed25519Signer(SECRET).public_key)


STRANGERS = {scheme: stranger(scheme) for scheme in FieldScheme}


def drawing() -> Callable[[int], bytes]:
    drawn = 0

    def draw(size: int) -> bytes:
        nonlocal drawn
        drawn += 1
        return hashlib.shake_256(drawn.to_bytes(8, "big")).digest(size)

    return draw


def their_key(scheme: FieldScheme) -> bytes:
    return client_key(scheme, STRANGERS[scheme].headers["x-client-pub-key"])


@SCHEMES
@given(text=texts)
def test_both_directions_agree_with_the_wire_description(scheme: FieldScheme, text: str) -> None:
    sealed = STRANGERS[scheme].seal(text) if text else ""
    if text:
        assert open_field(KEYS[scheme], sealed).text == text
        assert open_field(KEYS[scheme], sealed.upper()) == open_field(KEYS[scheme], sealed)
    ours = seal_field(scheme, their_key(scheme), text, drawing())
    assert (STRANGERS[scheme].open(ours) if ours else "") == text


@SCHEMES
@given(text=texts.filter(bool), data=st.data())
def test_any_changed_bit_is_refused(scheme: FieldScheme, text: str, data: st.DataObject) -> None:
    raw = bytearray.fromhex(STRANGERS[scheme].seal(text))
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    # The top bit of an X25519 key is no part of it (RFC 7748 §5).
    if scheme is FieldScheme.ED25519 and bit == 8 * 31 + 7:
        bit = 0
    raw[bit // 8] ^= 1 << (bit % 8)
    with pytest.raises(OpenError):
        open_field(KEYS[scheme], raw.hex())


@SCHEMES
@given(text=texts.filter(bool))
def test_a_field_opens_under_its_own_key_and_scheme_alone(scheme: FieldScheme, text: str) -> None:
    sealed = STRANGERS[scheme].seal(text)
    other = FieldKey(scheme, hashlib.sha256(b"another").digest())
    crossed = next(key for known, key in KEYS.items() if known is not scheme)
    for key in (other, crossed):
        with pytest.raises(OpenError):
            open_field(key, sealed)


@SCHEMES
@given(garbage=st.one_of(st.text(max_size=300), st.binary(max_size=200).map(bytes.hex)))
def test_garbage_is_refused_and_nothing_else(scheme: FieldScheme, garbage: str) -> None:
    if garbage:
        with pytest.raises(OpenError):
            open_field(KEYS[scheme], garbage)
    with pytest.raises(OpenError):
        client_key(scheme, garbage + "x")


@SCHEMES
@given(text=texts.filter(bool))
def test_no_two_fields_are_alike(scheme: FieldScheme, text: str) -> None:
    draw = drawing()
    sealed = {seal_field(scheme, their_key(scheme), text, draw) for _ in range(3)}
    assert len(sealed) == 3


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(10**6), 10**6), words),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(names, inner, max_size=3)),
    max_leaves=12,
)


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in _leaves(item)]
    if isinstance(value, list):
        return [leaf for item in value for leaf in _leaves(item)]
    return [value]


@given(answer=st.dictionaries(names, json_values, max_size=4))
def test_nothing_that_an_engine_invents_is_readable(answer: dict[str, Any]) -> None:
    scheme = FieldScheme.ED25519
    sealer = AnswerSealer(scheme, their_key(scheme), drawing())
    sealed = sealer.seal({"id": "chatcmpl-1", "object": "chat.completion", **answer})
    assert isinstance(sealed, dict)
    raw = encode_json(sealed).decode()
    leaves = _leaves(answer)
    assert not [leaf for leaf in leaves if isinstance(leaf, str) and f'"{leaf}"' in raw]
    left = _leaves({name: sealed[name] for name in answer})
    assert not [leaf for leaf in left if isinstance(leaf, int) and not isinstance(leaf, bool)]
    opened = [STRANGERS[scheme].open(leaf) for leaf in left if isinstance(leaf, str) and leaf]
    assert opened == [leaf for leaf in leaves if isinstance(leaf, str)]


@given(
    request=st.dictionaries(names, json_values, min_size=1, max_size=3), all_fields=st.booleans()
)
def test_a_member_that_nobody_knows_is_refused(
    request: dict[str, Any], *, all_fields: bool
) -> None:
    key = KEYS[FieldScheme.ED25519]
    with pytest.raises(NotProtected):
        open_request(CHAT, {"model": "m", **request}, key, all_fields=all_fields)
    message: dict[str, Any] = {"messages": [{"role": "user", "content": "", **request}]}
    with pytest.raises(NotProtected):
        open_request(CHAT, message, key, all_fields=all_fields)


EVENT = {"id": "c", "choices": [{"index": 0, "delta": {"content": "secretly"}}]}
STREAM = (
    b": hello\n\n"
    + b"".join(b"data: " + json.dumps(EVENT).encode() + b"\r\n\r\n" for _ in range(3))
    + b"data: [DONE]\n\n"
)


@given(cuts=st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_how_a_stream_is_cut_does_not_matter(cuts: list[int]) -> None:
    places = sorted({0, len(STREAM), *cuts})
    scheme = FieldScheme.ECDSA
    events = SealedEvents(AnswerSealer(scheme, their_key(scheme), drawing()))
    out = b"".join(events.feed(STREAM[a:b]) for a, b in pairwise(places))
    *lines, done = data_lines(out.replace(b":\n\n", b"", 1))
    assert done == "[DONE]"
    contents = [json.loads(line)["choices"][0]["delta"]["content"] for line in lines]
    assert [STRANGERS[scheme].open(content) for content in contents] == ["secretly"] * 3
    assert b"hello" not in out
