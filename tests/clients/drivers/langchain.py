# /// script
# dependencies = ["langchain-openai", "langchain-anthropic"]
# [tool.driver]
# client = "LangChain Python"
# apis = ["chat", "responses", "messages"]
# ///
"""ChatOpenAI on both of its protocols, and ChatAnthropic."""

from drive import (
    API,
    BASE,
    CAPITAL,
    DEGREES,
    FORM,
    KEY,
    MODEL,
    SCHEMA,
    TOO_LONG,
    V1,
    WEATHER,
    Lacks,
    feature,
    main,
    refused,
)
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI


def model(name=MODEL, key=KEY, **fields):
    if API == "messages":
        return ChatAnthropic(base_url=BASE, api_key=key, model=name, max_retries=0, **fields)
    responses = API == "responses"
    return ChatOpenAI(base_url=V1, api_key=key, model=name, max_retries=0, use_responses_api=responses, **fields)


@tool
def weather(city: str) -> str:
    """The weather of a city."""
    return DEGREES


@feature
def plain():
    return model().invoke(CAPITAL).text


@feature
def stream():
    return [chunk.text for chunk in model().stream(CAPITAL)]


@feature
def tools():
    calls, messages = [], [HumanMessage(WEATHER)]
    while True:
        whole = None
        for chunk in model().bind_tools([weather]).stream(messages):
            whole = chunk if whole is None else whole + chunk
        messages.append(whole)
        if not whole.tool_calls:
            return {"calls": calls, "text": whole.text}
        for call in whole.tool_calls:
            calls.append([call["name"], call["args"]])
            messages.append(ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"]))


@feature
def forced():
    [call] = model().bind_tools([weather], tool_choice="weather").invoke(CAPITAL).tool_calls
    return [call["name"], call["args"]]


@feature
def structured():
    return model().with_structured_output(SCHEMA | {"title": "Weather"}, method="json_schema").invoke(FORM)


@feature
def reasoning():
    if API == "chat":
        raise Lacks("ChatOpenAI drops `reasoning_content`")
    thinks = {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 2000}
    answer = model(**(thinks if API == "messages" else {"reasoning": {"effort": "high", "summary": "auto"}})).invoke(
        CAPITAL
    )
    thoughts = [block["reasoning"] for block in answer.content_blocks if block["type"] == "reasoning"]
    return ["".join(thoughts), answer.text]


@feature
def usage():
    used = model().invoke(CAPITAL).usage_metadata
    return [used["input_tokens"], used["output_tokens"], used["input_token_details"]["cache_read"]]


@feature
def overflow():
    return refused(lambda: model().invoke(TOO_LONG))


@feature
def unknown_model():
    return refused(lambda: model("nobody").invoke(CAPITAL))


@feature
def wrong_key():
    return refused(lambda: model(key="wrong").invoke(CAPITAL))


main()
