"""The store behind `GET /v1/signature/{id}`: the newest of an id and of all, hidden or not."""

from __future__ import annotations

from datetime import timedelta

from nodes import NOW, SimulatedNode

from confide.node.near_keys import NearKeys, SigningAlgorithm, near_keys
from confide.node.near_signatures import SignatureStore, SignedExchange
from confide.wire.faces import FaceName


def keys() -> NearKeys:
    return near_keys(SimulatedNode("model", faces=(FaceName.NEAR,)).keys, ohttp_id=1)


def exchange(text: str | None, *, hidden: bool = False) -> SignedExchange:
    return SignedExchange(text, KEYS, hidden=hidden)


KEYS = keys()


def test_the_newest_exchange_of_an_id_is_found() -> None:
    store = SignatureStore()
    for text in ("old", "new"):
        store.add(("chat",), exchange(text), now=NOW)
    found = store.find("chat", hidden=False, now=NOW)
    assert found is not None
    assert found.text == "new"


def test_what_was_hidden_is_found_by_who_is_hidden() -> None:
    store = SignatureStore()
    store.add(("chat",), exchange("text", hidden=True), now=NOW)
    assert store.find("chat", hidden=False, now=NOW) is None
    assert store.find("chat", hidden=True, now=NOW) is not None


def test_the_oldest_go_when_there_are_too_many() -> None:
    store = SignatureStore()
    entry = exchange("text")
    for number in range(16384 + 1):
        store.add((str(number),), entry, now=NOW)
    assert store.find("0", hidden=True, now=NOW) is None
    assert store.find("1", hidden=True, now=NOW) is entry


def test_an_id_that_is_used_again_lives_on() -> None:
    store = SignatureStore()
    store.add(("a",), exchange("first"), now=NOW)
    store.add(("b",), exchange("between"), now=NOW + timedelta(seconds=600))
    store.add(("a",), exchange("again"), now=NOW + timedelta(seconds=1200))
    later = NOW + timedelta(seconds=1801)
    assert store.find("b", hidden=True, now=later) is None
    found = store.find("a", hidden=True, now=later)
    assert found is not None
    assert found.text == "again"


def test_without_a_text_there_is_no_signature() -> None:
    for algorithm in SigningAlgorithm:
        document = exchange(None).document(algorithm)
        assert document["error_code"] == "STREAM_DISCONNECTED"
        assert "signature" not in document


def test_secrets_stay_out_of_print() -> None:
    node = SimulatedNode("model", faces=(FaceName.NEAR,))
    shown = repr(node.keys) + repr(near_keys(node.keys, ohttp_id=1))
    for key in node.keys.face.values():
        assert key.secret.hex() not in shown
        assert repr(key.secret)[2:-1] not in shown
