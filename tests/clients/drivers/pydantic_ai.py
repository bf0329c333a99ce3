# /// script
# dependencies = ["pydantic-ai-slim", "pydantic-ai-slim[openai,anthropic]"]
# [tool.driver]
# client = "Pydantic AI"
# apis = ["chat", "responses", "messages"]
# ///
"""Agents on its models for chat completions, Responses and Messages."""

from anthropic import AsyncAnthropic
from drive import API, BASE, CAPITAL, DEGREES, FORM, KEY, MODEL, TOO_LONG, V1, WEATHER, Lacks, feature, main, refused
from openai import AsyncOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.messages import ModelResponse, ThinkingPart, ToolCallPart
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider


class Weather(BaseModel):
    city: str
    degrees: int


class Place(BaseModel):
    city: str


def model(name=MODEL, key=KEY):
    if API == "messages":
        client = AsyncAnthropic(base_url=BASE, api_key=key, max_retries=0)
        return AnthropicModel(name, provider=AnthropicProvider(anthropic_client=client))
    provider = OpenAIProvider(openai_client=AsyncOpenAI(base_url=V1, api_key=key, max_retries=0))
    return (OpenAIChatModel if API == "chat" else OpenAIResponsesModel)(name, provider=provider)


def weather(city: str) -> str:
    """The weather of a city."""
    return DEGREES


def parts(result, kind):
    responses = [message for message in result.all_messages() if isinstance(message, ModelResponse)]
    return [part for message in responses for part in message.parts if isinstance(part, kind)]


@feature
async def plain():
    return (await Agent(model()).run(CAPITAL)).output


@feature
async def stream():
    async with Agent(model()).run_stream(CAPITAL) as result:
        return [piece async for piece in result.stream_text(delta=True, debounce_by=None)]


@feature
async def tools():
    async with Agent(model(), tools=[weather]).run_stream(WEATHER) as result:
        text = await result.get_output()
    calls = [[part.tool_name, part.args_as_dict()] for part in parts(result, ToolCallPart)]
    return {"calls": calls, "text": text}


@feature
async def forced():
    result = await Agent(model(), output_type=ToolOutput(Place, name="weather")).run(CAPITAL)
    [call] = parts(result, ToolCallPart)
    return [call.tool_name, call.args_as_dict()]


@feature
async def structured():
    if API == "messages":
        raise Lacks("its table of models allows native output for Anthropic's own ones only")
    return (await Agent(model(), output_type=NativeOutput(Weather)).run(FORM)).output.model_dump()


@feature
async def reasoning():
    settings = {
        "chat": {"openai_reasoning_effort": "high"},
        "responses": {"openai_reasoning_effort": "high", "openai_reasoning_summary": "auto"},
        "messages": {"anthropic_thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 2000},
    }
    result = await Agent(model(), model_settings=settings[API]).run(CAPITAL)
    return ["".join(part.content for part in parts(result, ThinkingPart)), result.output]


@feature
async def usage():
    used = (await Agent(model()).run(CAPITAL)).usage
    return [used.input_tokens, used.output_tokens, used.cache_read_tokens]


@feature
def overflow():
    return refused(lambda: Agent(model()).run(TOO_LONG))


@feature
def unknown_model():
    return refused(lambda: Agent(model("nobody")).run(CAPITAL))


@feature
def wrong_key():
    return refused(lambda: Agent(model(key="wrong")).run(CAPITAL))


main()
