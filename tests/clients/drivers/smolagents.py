# /// script
# dependencies = ["smolagents", "smolagents[openai]"]
# [tool.driver]
# client = "smolagents"
# apis = ["chat"]
# ///
"""OpenAIModel by itself, and a ToolCallingAgent on it."""

import json

from drive import CAPITAL, DEGREES, FORM, KEY, MODEL, SCHEMA, TOO_LONG, V1, WEATHER, Lacks, feature, main, refused
from smolagents import ChatMessage, MessageRole, OpenAIModel, ToolCallingAgent, tool

SHAPE = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA, "strict": True}}


def model(name=MODEL, key=KEY, **fields):
    # It has retries of its own.
    return OpenAIModel(name, api_base=V1, api_key=key, client_kwargs={"max_retries": 0}, retry=False, **fields)


def user(text):
    return [ChatMessage(role=MessageRole.USER, content=[{"type": "text", "text": text}])]


@tool
def weather(city: str) -> str:
    """The weather of a city.

    Args:
        city: Its name.
    """
    return DEGREES


@feature
def plain():
    return model().generate(user(CAPITAL)).content


@feature
def stream():
    return [delta.content or "" for delta in model().generate_stream(user(CAPITAL))]


@feature
def tools():
    agent = ToolCallingAgent(tools=[weather], model=model(), stream_outputs=True, max_steps=4, verbosity_level=0)
    text = agent.run(WEATHER)
    asked = [call for step in agent.memory.steps for call in getattr(step, "tool_calls", None) or []]
    return {"calls": [[call.name, call.arguments] for call in asked if call.name == "weather"], "text": text}


@feature
def forced():
    [call] = model().generate(user(CAPITAL), tools_to_call_from=[weather]).tool_calls
    arguments = call.function.arguments
    return [call.function.name, json.loads(arguments) if isinstance(arguments, str) else arguments]


@feature
def structured():
    return json.loads(model().generate(user(FORM), response_format=SHAPE).content)


@feature
def reasoning():
    raise Lacks("it drops `reasoning_content`")


@feature
def usage():
    used = model().generate(user(CAPITAL)).token_usage
    return [used.input_tokens, used.output_tokens, None]


@feature
def overflow():
    return refused(lambda: model().generate(user(TOO_LONG)))


@feature
def unknown_model():
    return refused(lambda: model("nobody").generate(user(CAPITAL)))


@feature
def wrong_key():
    return refused(lambda: model(key="wrong").generate(user(CAPITAL)))


main()
