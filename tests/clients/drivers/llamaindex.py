# /// script
# dependencies = ["llama-index-llms-openai-like"]
# [tool.driver]
# client = "LlamaIndex"
# apis = ["chat"]
# ///
"""OpenAILike with `is_chat_model`, as its docs have it for local servers."""

from drive import CAPITAL, DEGREES, FORM, KEY, MODEL, TOO_LONG, V1, WEATHER, Lacks, feature, main, refused
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel


class Weather(BaseModel):
    city: str
    degrees: int


def weather(city: str) -> str:
    """The weather of a city."""
    return DEGREES


TOOL = FunctionTool.from_defaults(weather)


def model(name=MODEL, key=KEY, **fields):
    fields = {"is_chat_model": True, "is_function_calling_model": True, "max_retries": 0} | fields
    return OpenAILike(model=name, api_base=V1, api_key=key, **fields)


def user(text):
    return [ChatMessage(role="user", content=text)]


@feature
def plain():
    return model().chat(user(CAPITAL)).message.content


@feature
def stream():
    return [chunk.delta or "" for chunk in model().stream_chat(user(CAPITAL))]


@feature
def tools():
    llm, calls, messages = model(), [], user(WEATHER)
    while True:
        for chunk in llm.stream_chat_with_tools([TOOL], chat_history=messages):
            answer = chunk
        messages.append(answer.message)
        asked = llm.get_tool_calls_from_response(answer, error_on_no_tool_call=False)
        if not asked:
            return {"calls": calls, "text": answer.message.content}
        for call in asked:
            calls.append([call.tool_name, call.tool_kwargs])
            kwargs = {"tool_call_id": call.tool_id}
            messages.append(ChatMessage(role="tool", content=weather(**call.tool_kwargs), additional_kwargs=kwargs))


@feature
def forced():
    llm = model()
    answer = llm.chat_with_tools([TOOL], user_msg=CAPITAL, tool_required=True)
    [call] = llm.get_tool_calls_from_response(answer)
    return [call.tool_name, call.tool_kwargs]


@feature
def structured():
    return model().as_structured_llm(Weather).chat(user(FORM)).raw.model_dump()


@feature
def reasoning():
    raise Lacks("OpenAILike drops `reasoning_content`")


@feature
def usage():
    used = model().chat(user(CAPITAL)).raw.usage
    return [used.prompt_tokens, used.completion_tokens, used.prompt_tokens_details.cached_tokens]


@feature
def overflow():
    return refused(lambda: model().chat(user(TOO_LONG)))


@feature
def unknown_model():
    return refused(lambda: model("nobody").chat(user(CAPITAL)))


@feature
def wrong_key():
    return refused(lambda: model(key="wrong").chat(user(CAPITAL)))


main()
