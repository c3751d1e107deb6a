"""The unmodified `openai-agents` framework on the Responses API, over a chat-only engine."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from agents import Agent, Runner, function_tool, set_tracing_disabled
from agents.models.openai_responses import OpenAIResponsesModel
from inference_stub import SERVED, Gateway, running_gateway
from openai import AsyncOpenAI

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    set_tracing_disabled(disabled=True)
    with running_gateway() as running:
        yield running


@function_tool
def weather(city: str) -> str:
    """Return the weather of a city."""
    return f"sun over {city}"


async def _run(gateway: Gateway, *, stream: bool) -> str:
    async with AsyncOpenAI(base_url=gateway.url + "/v1", api_key="k", max_retries=0) as client:
        agent = Agent(
            name="analyst",
            instructions="Use the tool.",
            model=OpenAIResponsesModel(model=SERVED.name, openai_client=client),
            tools=[weather],
        )
        if not stream:
            return str((await Runner.run(agent, "Weather in Oslo?")).final_output)
        result = Runner.run_streamed(agent, "Weather in Oslo?")
        async for _event in result.stream_events():
            pass
        return str(result.final_output)


@pytest.mark.parametrize("stream", [False, True])
def test_tool_round_trip(gateway: Gateway, *, stream: bool) -> None:
    final = asyncio.run(_run(gateway, stream=stream))
    assert final == "The tool said sun over Oslo."
    assert [record.transformations for record in gateway.records] == [
        ("model-name", "responses-over-chat")
    ] * 2
    conversation = gateway.engine.seen[1]["messages"]
    assert [message["role"] for message in conversation] == ["system", "user", "assistant", "tool"]
    assert conversation[2]["tool_calls"][0]["id"] == conversation[3]["tool_call_id"]
