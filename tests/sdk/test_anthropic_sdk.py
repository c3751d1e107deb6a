"""The unmodified `anthropic` SDK over the local endpoint; skipped, and said so, where it is not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from local_proxy import TOKEN, running_proxy
from proven_place import MODEL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proven_place import Place

anthropic: Any = pytest.importorskip("anthropic", reason="ANTHROPIC SDK NOT TESTED: not installed")
ASK: Any = {
    "model": MODEL,
    "max_tokens": 64,
    "messages": [{"role": "user", "content": "What colour?"}],
}
TOOL: Any = {
    "name": "weather",
    "description": "Weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}


@pytest.fixture
def client(place: Place) -> Iterator[Any]:
    with (
        running_proxy(place, [place.node().url]) as proxy,
        anthropic.Anthropic(base_url=proxy.url, api_key=TOKEN, max_retries=0) as made,
    ):
        yield made


def test_a_message(client: Any) -> None:
    message = client.messages.create(**ASK, system="Be brief.")
    assert message.content[0].text == "The answer is blue."
    assert (message.stop_reason, message.usage.output_tokens) == ("end_turn", 5)
    assert message._request_id.startswith("rcpt-")


def test_a_stream(client: Any) -> None:
    with client.messages.stream(**ASK) as stream:
        assert "".join(stream.text_stream) == "The answer is blue."
        assert stream.get_final_message().usage.input_tokens == 7


@pytest.mark.parametrize("streamed", [False, True])
def test_tools_there_and_back(client: Any, *, streamed: bool) -> None:
    def ask(messages: Any) -> Any:
        words = {**ASK, "messages": messages, "tools": [TOOL]}
        if not streamed:
            return client.messages.create(**words)
        with client.messages.stream(**words) as stream:
            return stream.get_final_message()

    first = ask(ASK["messages"])
    assert first.stop_reason == "tool_use"
    [call] = first.content
    assert (call.name, call.input) == ("weather", {"city": "Oslo"})
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "sun over Oslo"}
    second = ask(
        [
            *ASK["messages"],
            {"role": "assistant", "content": first.content},
            {"role": "user", "content": [result]},
        ]
    )
    assert second.content[0].text == "The tool said sun over Oslo."


def test_tokens_and_images(client: Any, place: Place) -> None:
    assert client.messages.count_tokens(model=MODEL, messages=ASK["messages"]).input_tokens == 7
    source = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
    parts = [{"type": "text", "text": "this?"}, {"type": "image", "source": source}]
    client.messages.create(**{**ASK, "messages": [{"role": "user", "content": parts}]})
    url = place.engine.seen[-1]["messages"][0]["content"][1]["image_url"]["url"]
    assert url == "data:image/png;base64,iVBORw0KGgo="


def test_errors_are_the_sdks_own(client: Any, place: Place) -> None:
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(**{**ASK, "model": "another"})
    with pytest.raises(anthropic.AuthenticationError):
        client.with_options(api_key="other").messages.create(**ASK)
    place.nodes[0].liar.headers = lambda headers: [h for h in headers if b"receipt" not in h[0]]
    with pytest.raises(anthropic.InternalServerError) as error:
        client.messages.create(**ASK)
    assert error.value.status_code == 502
