"""Frameworks, unmodified, over both client paths: every answer they work with has a receipt.

LangChain, pydantic-ai and openai-agents, of the versions in requirements/dev.txt.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pydantic_ai
import pytest
from agents import Agent, Runner, function_tool, set_tracing_disabled
from agents.models.openai_chatcompletions import OpenAIChatCompletionsModel
from agents.models.openai_responses import OpenAIResponsesModel
from langchain_openai import ChatOpenAI
from local_proxy import TOKEN, running_proxy
from nodes import roots as simulated_roots
from proven_place import MODEL, inference_policy
from pydantic import SecretStr
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

import confide
from confide.adapters.receipt_db import list_rows

if TYPE_CHECKING:
    from pathlib import Path

    import openai
    from proven_place import Place

FINAL = "The tool said sun over Oslo."


def asynchronous(place: Place, store: Path) -> openai.AsyncOpenAI:
    return confide.async_openai_client(
        place.node().url,
        policy=inference_policy(),
        roots=simulated_roots(),
        receipts=store,
        clock=place.clock,
    )


def blocking(place: Place, store: Path) -> openai.OpenAI:
    return confide.openai_client(
        place.node().url,
        policy=inference_policy(),
        roots=simulated_roots(),
        receipts=store,
        clock=place.clock,
    )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", [OpenAIChatCompletionsModel, OpenAIResponsesModel])
def test_openai_agents(place: Place, tmp_path: Path, model: Any, *, stream: bool) -> None:
    set_tracing_disabled(disabled=True)

    @function_tool
    def weather(city: str) -> str:
        """Return the weather of a city."""
        return f"sun over {city}"

    async def work() -> str:
        async with asynchronous(place, tmp_path / "r" / "receipts") as client:
            made = model(model=MODEL, openai_client=client)
            agent = Agent(name="a", instructions="Use the tool.", model=made, tools=[weather])
            if not stream:
                return str((await Runner.run(agent, "Weather in Oslo?")).final_output)
            result = Runner.run_streamed(agent, "Weather in Oslo?")
            async for _event in result.stream_events():
                pass
            return str(result.final_output)

    assert asyncio.run(work()) == FINAL
    assert len(list_rows(tmp_path / "r" / "receipts", limit=9)) == 2


def test_langchain(place: Place, tmp_path: Path) -> None:
    store = tmp_path / "r" / "receipts"

    def weather(city: str) -> str:
        """Return the weather of a city."""
        return f"sun over {city}"

    with blocking(place, store) as client:
        chat = ChatOpenAI(
            model=MODEL, client=client.chat.completions, root_client=client, api_key=SecretStr("k")
        )
        assert chat.invoke("What colour?").content == "The answer is blue."
        assert "".join(piece.text for piece in chat.stream("What colour?")) == (
            "The answer is blue."
        )
        called = chat.bind_tools([weather]).invoke("Weather in Oslo?")
        assert called.tool_calls[0]["args"] == {"city": "Oslo"}
    assert len(list_rows(store, limit=9)) == 3


def test_pydantic_ai(place: Place, tmp_path: Path) -> None:
    store = tmp_path / "r" / "receipts"

    async def work() -> str:
        async with asynchronous(place, store) as client:
            provider = OpenAIProvider(openai_client=client)
            agent = pydantic_ai.Agent(OpenAIChatModel(MODEL, provider=provider))

            @agent.tool_plain
            def weather(city: str) -> str:
                """Return the weather of a city."""
                return f"sun over {city}"

            return str((await agent.run("Weather in Oslo?")).output)

    assert asyncio.run(work()) == FINAL
    assert len(list_rows(store, limit=9)) == 2


def test_a_framework_that_cannot_change_over_the_local_endpoint(
    place: Place, tmp_path: Path
) -> None:
    store = tmp_path / "r" / "receipts"
    with running_proxy(place, [place.node().url], store) as proxy:
        chat = ChatOpenAI(model=MODEL, base_url=f"{proxy.url}/v1", api_key=SecretStr(TOKEN))
        assert chat.invoke("What colour?").content == "The answer is blue."
    assert len(list_rows(store, limit=9)) == 1


def test_a_refusal_reaches_the_framework_as_an_error_of_both_trees(
    place: Place, tmp_path: Path
) -> None:
    async def work() -> None:
        node = place.node()
        node.liar.headers = lambda headers: [h for h in headers if h[0] != b"confide-receipt"]
        async with confide.async_openai_client(
            node.url,
            policy=inference_policy(),
            roots=simulated_roots(),
            receipts=tmp_path / "r" / "receipts",
            clock=place.clock,
        ) as client:
            model = OpenAIChatCompletionsModel(model=MODEL, openai_client=client)
            await Runner.run(Agent(name="a", model=model), "What colour?")

    with pytest.raises(confide.Rejected) as refusal:
        asyncio.run(work())
    assert refusal.value.reason == "receipt-missing"
