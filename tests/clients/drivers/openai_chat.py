# /// script
# dependencies = ["openai", "pydantic"]
# [tool.driver]
# client = "OpenAI Python"
# apis = ["chat"]
# ///
"""Chat completions, with the helpers of the SDK."""

import json

import openai
from drive import CAPITAL, DEGREES, FORM, KEY, MODEL, PLACE, TOO_LONG, V1, WEATHER, feature, main, refused
from pydantic import BaseModel

client = openai.OpenAI(base_url=V1, api_key=KEY, max_retries=0)
FUNCTION = {"name": "weather", "description": "The weather of a city.", "parameters": PLACE, "strict": True}
TOOL = {"type": "function", "function": FUNCTION}


class Weather(BaseModel):
    city: str
    degrees: int


def ask(text, using=client, model=MODEL, **fields):
    return using.chat.completions.create(model=model, messages=[{"role": "user", "content": text}], **fields)


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
        with client.chat.completions.stream(model=MODEL, messages=messages, tools=[TOOL]) as events:
            for _ in events:
                pass
            message = events.get_final_completion().choices[0].message
        messages.append(message)
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
    messages = [{"role": "user", "content": FORM}]
    answer = client.chat.completions.parse(model=MODEL, messages=messages, response_format=Weather)
    return answer.choices[0].message.parsed.model_dump()


@feature
def reasoning():
    message = ask(CAPITAL, reasoning_effort="high").choices[0].message
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
    return refused(lambda: ask(CAPITAL, client.with_options(api_key="wrong")))


main()
