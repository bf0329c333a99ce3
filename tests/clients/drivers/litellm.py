# /// script
# dependencies = ["litellm", "mcp"]
# [tool.driver]
# client = "LiteLLM"
# apis = ["chat", "messages"]
# ///
"""`completion` with the providers `openai` and `anthropic`."""

import json

import litellm
from drive import (
    API,
    BASE,
    CAPITAL,
    DEGREES,
    FORM,
    KEY,
    MODEL,
    PLACE,
    SCHEMA,
    TOO_LONG,
    V1,
    WEATHER,
    feature,
    main,
    refused,
)

TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "The weather of a city.", "parameters": PLACE},
}
SHAPE = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA, "strict": True}}


def ask(text, model=MODEL, key=KEY, **fields):
    provider, base = ("anthropic", BASE) if API == "messages" else ("openai", V1)
    fields = {"messages": [{"role": "user", "content": text}], "num_retries": 0, "max_retries": 0} | fields
    return litellm.completion(model=f"{provider}/{model}", api_base=base, api_key=key, **fields)


@feature
def plain():
    return ask(CAPITAL).choices[0].message.content


@feature
def stream():
    return [chunk.choices[0].delta.content or "" for chunk in ask(CAPITAL, stream=True)]


@feature
def tools():
    calls, messages = [], [{"role": "user", "content": WEATHER}]
    while True:
        chunks = list(ask("", messages=messages, tools=[TOOL], stream=True))
        message = litellm.stream_chunk_builder(chunks, messages=messages).choices[0].message
        messages.append(message.model_dump())
        if not message.tool_calls:
            return {"calls": calls, "text": message.content}
        for call in message.tool_calls:
            calls.append([call.function.name, json.loads(call.function.arguments)])
            messages.append({"role": "tool", "tool_call_id": call.id, "content": DEGREES})


@feature
def forced():
    choice = {"type": "function", "function": {"name": "weather"}}
    [call] = ask(CAPITAL, tools=[TOOL], tool_choice=choice).choices[0].message.tool_calls
    return [call.function.name, json.loads(call.function.arguments)]


@feature
def structured():
    return json.loads(ask(FORM, response_format=SHAPE).choices[0].message.content)


@feature
def reasoning():
    # What the name of a model allows is in a table of LiteLLM's, where local ones are not.
    thinks = {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 2000}
    thinks = thinks if API == "messages" else {"reasoning_effort": "high"}
    message = ask(CAPITAL, allowed_openai_params=list(thinks), **thinks).choices[0].message
    return [message.reasoning_content, message.content]


@feature
def usage():
    used = ask(CAPITAL).usage
    return [used.prompt_tokens, used.completion_tokens, used.prompt_tokens_details.cached_tokens]


@feature
def overflow():
    return refused(lambda: ask(TOO_LONG))


@feature
def unknown_model():
    return refused(lambda: ask(CAPITAL, model="nobody"))


@feature
def wrong_key():
    return refused(lambda: ask(CAPITAL, key="wrong"))


main()
