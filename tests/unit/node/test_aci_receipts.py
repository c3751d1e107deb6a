"""Receipts of ACI: which answer they name, how a broken call is told, how long they are kept."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

import pytest
from faced_place import ASKED, CHAT, Faced
from near_face_place import FINGERPRINT, Answered, event, streamed, whole

from confide.node.aci import AciFace
from confide.node.aci_receipts import RECEIPTS_PATH, AciReceipts
from confide.node.faces import TLS_KEY
from confide.wire.faces import FaceName

STREAMED = json.dumps({**json.loads(ASKED), "stream": True}).encode()
MIB = 1 << 20


@pytest.fixture
def place() -> Faced:
    return Faced(FaceName.ACI)


def receipt(place: Faced, receipt_id: str) -> Any:
    answer = place.call("GET", RECEIPTS_PATH + receipt_id, tls=True)
    assert answer.status_code == 200, answer.text
    return answer.json()


def asked(place: Faced, body: bytes = ASKED) -> Any:
    """The receipt of one call."""
    answer = place.call("POST", CHAT, body=body, tls=True)
    return receipt(place, answer.headers["x-receipt-id"])


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (whole(), "chatcmpl-0123"),
        (whole(id="x" * 256), "x" * 256),
        (whole(id="x" * 257), None),
        (whole(id=7), None),
        (whole(id=None), None),
        (whole(more="m" * MIB), None),
        (Answered([b"[1]"]), None),
        (Answered([b'{"id":']), None),
    ],
    ids=["an id", "long", "too long", "a number", "null", "above a MiB", "a list", "broken"],
)
def test_the_id_of_a_whole_answer(place: Faced, answer: Answered, found: str | None) -> None:
    place.upstream.answer = answer
    assert asked(place)["chat_id"] == found


@pytest.mark.parametrize(
    ("events", "found"),
    [
        ((event(content="a"), b"data: [DONE]\n\n"), "chatcmpl-0123"),
        ((b": a comment\n\n", event(content="a")), "chatcmpl-0123"),
        ((event(content="a")[:20], event(content="a")[20:]), "chatcmpl-0123"),
        ((b"data: [DONE]\n\n", event(content="a")), None),
        ((b"data: {}\n\n", event(content="a")), None),
        ((b": " + b"c" * MIB + b"\n\n", event(content="a")), None),
        ((b"data: ",), None),
    ],
    ids=["first event", "after a comment", "in pieces", "the end", "none", "a long line", "cut"],
)
def test_the_id_of_a_stream_is_that_of_its_first_event(
    place: Faced, events: tuple[bytes, ...], found: str | None
) -> None:
    place.upstream.answer = streamed(*events)
    assert asked(place, STREAMED)["chat_id"] == found


def test_an_engine_that_breaks_off_is_receipted_with_what_was_returned(place: Faced) -> None:
    place.upstream.answer = streamed(event(content="a"), breaks=True)
    answer = place.call("POST", CHAT, body=STREAMED, tls=True)
    told = receipt(place, answer.headers["x-receipt-id"])
    *_, returned, own = told["event_log"]
    digest = hashlib.sha256(answer.content).hexdigest()
    assert returned == {"type": "response.returned", "body_hash": f"sha256:{digest}"}
    assert own["finish"] == "upstream-failed"


def test_an_engine_that_is_not_there_was_still_asked(place: Faced) -> None:
    place.upstream.answer = Answered([], status=500)
    told = asked(place)
    assert "request.forwarded" in {event["type"] for event in told["event_log"]}


def test_a_caller_who_leaves_leaves_a_receipt(place: Faced) -> None:
    place.upstream.answer = streamed(event(content="a"), hangs=True)
    headers: dict[str, str] = {}

    async def main() -> None:
        left = asyncio.Event()
        pending = [{"type": "http.request", "body": STREAMED, "more_body": False}]

        async def receive() -> Any:
            if pending:
                return pending.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers.update({n.decode(): v.decode() for n, v in message["headers"]})
            elif message.get("body"):
                left.set()

        scope = {
            "type": "http",
            "method": "POST",
            "path": CHAT,
            "raw_path": CHAT.encode(),
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
            TLS_KEY: b"f" * 32,
        }
        await place.app(scope, receive, send)

    asyncio.run(main())
    told = receipt(place, headers["x-receipt-id"])
    assert told["event_log"][-1]["finish"] == "client-cancelled"
    assert told["chat_id"] == "chatcmpl-0123"


def test_the_oldest_receipts_go_first(place: Faced) -> None:
    [face] = place.faces
    assert isinstance(face, AciFace)
    face.inside = AciReceipts(
        place.identity, place.node, serving="direct", fingerprint=FINGERPRINT, max_kept=2
    )
    names = [
        place.call("POST", CHAT, body=ASKED, tls=True).headers["x-receipt-id"] for _ in range(3)
    ]
    gone, *kept = [place.call("GET", RECEIPTS_PATH + name, tls=True).status_code for name in names]
    assert (gone, kept) == (404, [200, 200])


def test_no_two_receipts_have_one_id(place: Faced) -> None:
    first, second = asked(place), asked(place)
    assert first["receipt_id"] != second["receipt_id"]
    assert len(first["receipt_id"]) == len("aci-") + 32
