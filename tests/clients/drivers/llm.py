# /// script
# dependencies = ["llm"]
# [tool.driver]
# client = "llm"
# apis = ["chat"]
# ///
"""Simon Willison's `llm`, as a library, with a model as `extra-openai-models.yaml` declares it."""

import json

from drive import CAPITAL, DEGREES, FORM, KEY, MODEL, SCHEMA, TOO_LONG, V1, WEATHER, Lacks, feature, main, refused
from llm.default_plugins.openai_models import Chat


def model(name=MODEL, key=KEY):
    made = Chat(name, model_name=name, api_base=V1, supports_tools=True, supports_schema=True)
    made.key = key
    return made


def weather(city: str) -> str:
    """The weather of a city."""
    return DEGREES


@feature
def plain():
    return model().prompt(CAPITAL, stream=False).text()


@feature
def stream():
    return list(model().prompt(CAPITAL, stream=True))


@feature
def tools():
    calls = []
    chain = model().chain(
        WEATHER, tools=[weather], before_call=lambda _, call: calls.append([call.name, call.arguments])
    )
    return {"calls": calls, "text": chain.text()}


@feature
def forced():
    raise Lacks("it has no tool choice")


@feature
def structured():
    return json.loads(model().prompt(FORM, schema=SCHEMA, stream=False).text())


@feature
def reasoning():
    raise Lacks("it drops `reasoning_content`")


@feature
def usage():
    response = model().prompt(CAPITAL, stream=False)
    response.text()
    used = response.usage()
    return [used.input, used.output, (used.details or {}).get("prompt_tokens_details", {}).get("cached_tokens")]


@feature
def overflow():
    return refused(lambda: model().prompt(TOO_LONG, stream=False).text())


@feature
def unknown_model():
    return refused(lambda: model("nobody").prompt(CAPITAL, stream=False).text())


@feature
def wrong_key():
    return refused(lambda: model(key="wrong").prompt(CAPITAL, stream=False).text())


main()
