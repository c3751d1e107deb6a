"""The unmodified `openai` SDK against a gateway built from `confide.inference`."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import TYPE_CHECKING, Any

import openai
import pytest
from inference_stub import SERVED, Gateway, running_gateway
from openai.types.responses import ResponseFunctionToolCall
from pydantic import BaseModel

from confide.inference.digest import Finish

if TYPE_CHECKING:
    from collections.abc import Iterator

_MODEL = SERVED.name
_TOOL: Any = {
    "type": "function",
    "name": "weather",
    "description": "Weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}
_CHAT_TOOL: Any = {
    "type": "function",
    "function": {k: v for k, v in _TOOL.items() if k not in ("type", "strict")},
}


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with running_gateway() as running:
        yield running


@pytest.fixture
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=gateway.url + "/v1", api_key="run-token", max_retries=0) as made:
        yield made


def _user(text: str = "What colour?") -> Any:
    return [{"role": "user", "content": text}]


def test_probe_finds_what_the_engine_has(gateway: Gateway) -> None:
    routes = gateway.routes
    assert routes is not None
    assert (routes.chat, routes.completions, routes.responses, routes.models) == (
        True,
        True,
        False,
        False,
    )
    assert gateway.engine.seen == []


def test_models_are_answered_by_the_node(client: openai.OpenAI) -> None:
    listed = client.models.list().data
    assert [model.id for model in listed] == [_MODEL]
    assert client.models.retrieve(_MODEL).to_dict()["weights_digest"] == SERVED.weights_digest


def test_chat(gateway: Gateway, client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model=_MODEL, messages=_user())
    answer = raw.parse()
    assert answer.choices[0].message.content == "The answer is blue."
    assert answer.model == _MODEL
    assert "confide-mapping" not in raw.headers
    assert gateway.engine.seen[0]["model"] == SERVED.upstream_name
    (record,) = gateway.records
    assert record.response_digest == hashlib.sha256(raw.content).hexdigest()
    assert record.upstream_digest != record.response_digest
    assert record.transformations == ("model-name",)
    assert record.usage is not None
    assert (record.usage.input_tokens, record.usage.output_tokens) == (7, 5)


def test_no_credential_of_the_caller_reaches_the_engine(
    gateway: Gateway, client: openai.OpenAI
) -> None:
    client.chat.completions.create(model=_MODEL, messages=_user())
    assert "run-token" not in json.dumps(gateway.engine.seen)


def test_chat_stream(gateway: Gateway, client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model=_MODEL, messages=_user(), stream=True, stream_options={"include_usage": True}
        )
    )
    words = [c.choices[0].delta.content for c in chunks if c.choices]
    assert "".join(word or "" for word in words) == "The answer is blue."
    assert {chunk.model for chunk in chunks} == {_MODEL}
    (record,) = gateway.records
    assert record.streamed
    assert record.finish is Finish.COMPLETE
    assert record.usage is not None


def test_chat_tool_round_trip(client: openai.OpenAI) -> None:
    messages = _user()
    first = client.chat.completions.create(model=_MODEL, messages=messages, tools=[_CHAT_TOOL])
    calls = first.choices[0].message.tool_calls
    assert calls is not None
    (call,) = calls
    messages.append(first.choices[0].message.model_dump(exclude_none=True))
    messages.append({"role": "tool", "tool_call_id": call.id, "content": "rain"})
    second = client.chat.completions.create(model=_MODEL, messages=messages, tools=[_CHAT_TOOL])
    assert second.choices[0].message.content == "The tool said rain."


def test_completions(client: openai.OpenAI) -> None:
    whole = client.completions.create(model=_MODEL, prompt="Colour:")
    assert whole.choices[0].text == "The answer is blue."
    assert whole.model == _MODEL
    parts = list(client.completions.create(model=_MODEL, prompt="Colour:", stream=True))
    assert "".join(part.choices[0].text for part in parts) == "The answer is blue."


def test_responses(gateway: Gateway, client: openai.OpenAI) -> None:
    raw = client.responses.with_raw_response.create(
        model=_MODEL,
        instructions="Be brief.",
        input="What colour?",
        max_output_tokens=9,
        metadata={"run": "1"},
    )
    answer = raw.parse()
    assert answer.output_text == "The answer is blue."
    assert answer.status == "completed"
    assert answer.model == _MODEL
    assert answer.metadata == {"run": "1"}
    assert answer.usage is not None
    assert answer.usage.total_tokens == 12
    assert raw.headers["confide-mapping"] == "responses-over-chat"
    assert gateway.engine.seen == [
        {
            "model": SERVED.upstream_name,
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "What colour?"},
            ],
            "max_tokens": 9,
        }
    ]
    (record,) = gateway.records
    assert record.transformations == ("model-name", "responses-over-chat")
    assert record.response_digest == hashlib.sha256(raw.content).hexdigest()


def test_responses_stream(gateway: Gateway, client: openai.OpenAI) -> None:
    events = list(client.responses.create(model=_MODEL, input="What colour?", stream=True))
    kinds = [event.type for event in events]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * 4,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    final = events[-1]
    assert final.type == "response.completed"
    assert final.response.output_text == "The answer is blue."
    assert final.response.usage is not None
    assert final.response.usage.output_tokens == 5
    assert gateway.records[0].usage is not None


def test_responses_stream_helper(client: openai.OpenAI) -> None:
    with client.responses.stream(model=_MODEL, input="What colour?", tools=[_TOOL]) as stream:
        snapshots = [
            event.snapshot
            for event in stream
            if event.type == "response.function_call_arguments.delta"
        ]
        final = stream.get_final_response()
    assert snapshots == ['{"cit', '{"city": "Oslo"}']
    (call,) = final.output
    assert call.type == "function_call"
    assert call.arguments == '{"city": "Oslo"}'


@pytest.mark.parametrize("stream", [False, True])
def test_responses_tool_round_trip(client: openai.OpenAI, *, stream: bool) -> None:
    items: list[Any] = _user("Weather?")

    def turn() -> Any:
        if not stream:
            return client.responses.create(model=_MODEL, input=items, tools=[_TOOL])
        with client.responses.stream(model=_MODEL, input=items, tools=[_TOOL]) as events:
            events.until_done()
            return events.get_final_response()

    (call,) = turn().output
    assert isinstance(call, ResponseFunctionToolCall)
    assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Oslo"})
    items += [call.to_dict(), {"type": "function_call_output", "call_id": call.call_id}]
    items[-1]["output"] = "rain"
    items[-2].pop("parsed_arguments", None)
    assert turn().output_text == "The tool said rain."


def test_responses_structured_output(gateway: Gateway, client: openai.OpenAI) -> None:
    class Colour(BaseModel):
        colour: str

    parsed = client.responses.parse(model=_MODEL, input="Colour?", text_format=Colour)
    assert parsed.output_parsed == Colour(colour="blue")
    schema = gateway.engine.seen[0]["response_format"]["json_schema"]
    assert schema["name"] == "Colour"
    assert schema["strict"] is True


def test_async_client(gateway: Gateway) -> None:
    async def main() -> tuple[str | None, str, str]:
        url = gateway.url + "/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="k", max_retries=0) as client:
            chat = await client.chat.completions.create(model=_MODEL, messages=_user())
            whole = await client.responses.create(model=_MODEL, input="hi")
            streamed = ""
            async for event in await client.responses.create(model=_MODEL, input="hi", stream=True):
                if event.type == "response.output_text.delta":
                    streamed += event.delta
        return chat.choices[0].message.content, whole.output_text, streamed

    assert asyncio.run(main()) == (
        "The answer is blue.",
        "The answer is blue.",
        "The answer is blue.",
    )


def test_another_model_is_not_found(gateway: Gateway, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-5", messages=_user())
    assert caught.value.code == "model_not_found"
    assert gateway.engine.seen == []
    assert gateway.records[0].status == 404
    assert gateway.records[0].upstream_digest is None


def test_refused_state_names_the_member(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model=_MODEL, input="hi", previous_response_id="resp_1")
    assert caught.value.code == "unsupported_state"
    assert caught.value.param == "previous_response_id"


def test_the_engines_error_text_stays_inside(gateway: Gateway, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=_MODEL, messages=_user(), temperature=99)
    assert caught.value.code == "engine_refused"
    assert "SECRET" not in str(caught.value)
    (record,) = gateway.records
    assert record.transformations == ("model-name", "error-body")
    assert record.upstream_digest is not None


def test_an_engine_that_breaks_off_is_an_error_in_the_stream(
    gateway: Gateway, client: openai.OpenAI
) -> None:
    gateway.engine.break_off = True
    with pytest.raises(openai.APIError):
        list(client.chat.completions.create(model=_MODEL, messages=_user(), stream=True))
    events = list(client.responses.create(model=_MODEL, input="hi", stream=True))
    assert events[-1].type == "response.failed"
    assert [record.finish for record in gateway.records] == [Finish.UPSTREAM_FAILED] * 2
    assert [record.transformations[-1] for record in gateway.records] == ["error-event"] * 2
