# /// script
# dependencies = ["openai-agents"]
# [tool.driver]
# client = "OpenAI Agents SDK"
# apis = ["chat", "responses"]
# ///
"""Agents on Responses, which is its default, and on chat completions."""

import json

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from drive import API, CAPITAL, DEGREES, FORM, KEY, MODEL, TOO_LONG, V1, WEATHER, feature, main, refused
from openai import AsyncOpenAI
from openai.types.shared import Reasoning
from pydantic import BaseModel

set_tracing_disabled(True)


class Weather(BaseModel):
    city: str
    degrees: int


@function_tool
def weather(city: str) -> str:
    """The weather of a city."""
    return DEGREES


def agent(name=MODEL, key=KEY, **fields):
    kind = OpenAIChatCompletionsModel if API == "chat" else OpenAIResponsesModel
    client = AsyncOpenAI(base_url=V1, api_key=key, max_retries=0)
    return Agent(name="Assistant", model=kind(model=name, openai_client=client), **fields)


def calls_of(result):
    items = [item.raw_item for item in result.new_items if item.type == "tool_call_item"]
    return [[item.name, json.loads(item.arguments)] for item in items]


@feature
async def plain():
    return (await Runner.run(agent(), CAPITAL)).final_output


@feature
async def stream():
    events = Runner.run_streamed(agent(), CAPITAL).stream_events()
    raw = [event.data async for event in events if event.type == "raw_response_event"]
    return [event.delta for event in raw if event.type == "response.output_text.delta"]


@feature
async def tools():
    result = Runner.run_streamed(agent(tools=[weather]), WEATHER)
    async for _ in result.stream_events():
        pass
    return {"calls": calls_of(result), "text": result.final_output}


@feature
async def forced():
    settings = ModelSettings(tool_choice="weather")
    forcing = agent(tools=[weather], model_settings=settings, tool_use_behavior="stop_on_first_tool")
    return calls_of(await Runner.run(forcing, CAPITAL))[0]


@feature
async def structured():
    return (await Runner.run(agent(output_type=Weather), FORM)).final_output.model_dump()


@feature
async def reasoning():
    thinking = agent(model_settings=ModelSettings(reasoning=Reasoning(effort="high")))
    result = await Runner.run(thinking, CAPITAL)
    [thought] = [item.raw_item for item in result.new_items if item.type == "reasoning_item"]
    return ["".join(part.text for part in thought.content or thought.summary), result.final_output]


@feature
async def usage():
    used = (await Runner.run(agent(), CAPITAL)).context_wrapper.usage
    return [used.input_tokens, used.output_tokens, used.input_tokens_details.cached_tokens]


@feature
def overflow():
    return refused(lambda: Runner.run(agent(), TOO_LONG))


@feature
def unknown_model():
    return refused(lambda: Runner.run(agent("nobody"), CAPITAL))


@feature
def wrong_key():
    return refused(lambda: Runner.run(agent(key="wrong"), CAPITAL))


main()
