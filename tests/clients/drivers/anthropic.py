# /// script
# dependencies = ["anthropic", "pydantic"]
# [tool.driver]
# client = "Anthropic Python"
# apis = ["messages"]
# ///
"""Messages, with the helpers of the SDK."""

import anthropic
from drive import BASE, CAPITAL, DEGREES, FORM, KEY, MODEL, PLACE, TOO_LONG, WEATHER, feature, main, refused
from pydantic import BaseModel

client = anthropic.Anthropic(base_url=BASE, api_key=KEY, max_retries=0)
TOOL = {"name": "weather", "description": "The weather of a city.", "input_schema": PLACE}


class Weather(BaseModel):
    city: str
    degrees: int


def asked(text, **fields):
    return {"model": MODEL, "max_tokens": 2000, "messages": [{"role": "user", "content": text}]} | fields


def ask(text, using=client, **fields):
    return using.messages.create(**asked(text, **fields))


def text_of(answer):
    return "".join(block.text for block in answer.content if block.type == "text")


@feature
def plain():
    return text_of(ask(CAPITAL))


@feature
def stream():
    with client.messages.stream(**asked(CAPITAL)) as events:
        return list(events.text_stream)


@feature
def tools():
    calls, messages = [], [{"role": "user", "content": WEATHER}]
    while True:
        with client.messages.stream(**asked("", messages=messages, tools=[TOOL])) as events:
            answer = events.get_final_message()
        if answer.stop_reason != "tool_use":
            return {"calls": calls, "text": text_of(answer)}
        used = [block for block in answer.content if block.type == "tool_use"]
        calls += [[block.name, block.input] for block in used]
        results = [{"type": "tool_result", "tool_use_id": block.id, "content": DEGREES} for block in used]
        messages += [{"role": "assistant", "content": answer.content}, {"role": "user", "content": results}]


@feature
def forced():
    [block] = ask(CAPITAL, tools=[TOOL], tool_choice={"type": "tool", "name": "weather"}).content
    return [block.name, block.input]


@feature
def structured():
    return client.messages.parse(**asked(FORM, output_format=Weather)).parsed_output.model_dump()


@feature
def reasoning():
    thought, text = ask(CAPITAL, thinking={"type": "enabled", "budget_tokens": 1024}).content
    return [thought.thinking, text.text]


@feature
def usage():
    used = ask(CAPITAL).usage
    return [used.input_tokens + used.cache_read_input_tokens, used.output_tokens, used.cache_read_input_tokens]


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
