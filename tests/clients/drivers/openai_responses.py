# /// script
# dependencies = ["openai", "pydantic"]
# [tool.driver]
# client = "OpenAI Python"
# apis = ["responses"]
# ///
"""Responses, with the helpers of the SDK."""

import json

import openai
from drive import CAPITAL, DEGREES, FORM, KEY, MODEL, PLACE, TOO_LONG, V1, WEATHER, feature, main, refused
from pydantic import BaseModel

client = openai.OpenAI(base_url=V1, api_key=KEY, max_retries=0)
TOOL = {"type": "function", "name": "weather", "description": "The weather.", "parameters": PLACE, "strict": True}


class Weather(BaseModel):
    city: str
    degrees: int


def ask(text, using=client, model=MODEL, **fields):
    return using.responses.create(model=model, input=text, **fields)


def calls_of(answer):
    return [item for item in answer.output if item.type == "function_call"]


@feature
def plain():
    return ask(CAPITAL).output_text


@feature
def stream():
    return [event.delta for event in ask(CAPITAL, stream=True) if event.type == "response.output_text.delta"]


@feature
def tools():
    calls, items = [], [{"role": "user", "content": WEATHER}]
    while True:
        with client.responses.stream(model=MODEL, input=items, tools=[TOOL]) as events:
            for _ in events:
                pass
            answer = events.get_final_response()
        items += answer.output
        if not calls_of(answer):
            return {"calls": calls, "text": answer.output_text}
        for call in calls_of(answer):
            calls.append([call.name, json.loads(call.arguments)])
            items.append({"type": "function_call_output", "call_id": call.call_id, "output": DEGREES})


@feature
def forced():
    [call] = calls_of(ask(CAPITAL, tools=[TOOL], tool_choice={"type": "function", "name": "weather"}))
    return [call.name, json.loads(call.arguments)]


@feature
def structured():
    return client.responses.parse(model=MODEL, input=FORM, text_format=Weather).output_parsed.model_dump()


@feature
def reasoning():
    answer = ask(CAPITAL, reasoning={"effort": "high"})
    [thought] = [item for item in answer.output if item.type == "reasoning"]
    return ["".join(part.text for part in thought.content), answer.output_text]


@feature
def usage():
    used = ask(CAPITAL).usage
    return [used.input_tokens, used.output_tokens, used.input_tokens_details.cached_tokens]


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
