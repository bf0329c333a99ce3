# /// script
# dependencies = ["instructor", "anthropic"]
# [tool.driver]
# client = "instructor"
# apis = ["chat", "responses", "messages"]
# ///
"""Its modes: a forced tool, a JSON schema, and models that come in pieces."""

import anthropic
import instructor
import openai
from drive import API, BASE, CAPITAL, FORM, KEY, MODEL, TOO_LONG, V1, Lacks, feature, main, refused
from pydantic import BaseModel


class Weather(BaseModel):
    city: str
    degrees: int


MODES = {
    "chat": instructor.Mode.TOOLS,
    "responses": instructor.Mode.RESPONSES_TOOLS,
    "messages": instructor.Mode.ANTHROPIC_TOOLS,
}


def client(key=KEY, mode=MODES[API]):
    if API == "messages":
        return instructor.from_anthropic(anthropic.Anthropic(base_url=BASE, api_key=key, max_retries=0), mode=mode)
    return instructor.from_openai(openai.OpenAI(base_url=V1, api_key=key, max_retries=0), mode=mode)


def asked(text, model=MODEL):
    limit = {"max_tokens": 2000} if API == "messages" else {}
    messages = [{"role": "user", "content": text}]
    return {"model": model, "messages": messages, "response_model": Weather, "max_retries": 0, **limit}


def ask(text, using=None, model=MODEL):
    return (using or client()).create(**asked(text, model)).model_dump()


@feature
def stream():
    if API == "responses":
        raise Lacks("its partial models are for chat completions")
    return [*client().create_partial(**asked(FORM))][-1].model_dump()


@feature
def forced():
    weather = ask(CAPITAL)
    return ["weather", {"city": weather["city"]}]


@feature
def structured():
    if API == "chat":
        return ask(FORM, client(mode=instructor.Mode.JSON_SCHEMA))
    return ask(FORM)


@feature
def usage():
    _, answer = client().create_with_completion(**asked(FORM))
    used = answer.usage
    if API == "chat":
        return [used.prompt_tokens, used.completion_tokens, used.prompt_tokens_details.cached_tokens]
    if API == "responses":
        return [used.input_tokens, used.output_tokens, used.input_tokens_details.cached_tokens]
    return [used.input_tokens + used.cache_read_input_tokens, used.output_tokens, used.cache_read_input_tokens]


@feature
def overflow():
    return refused(lambda: ask(TOO_LONG))


@feature
def unknown_model():
    return refused(lambda: ask(FORM, model="nobody"))


@feature
def wrong_key():
    return refused(lambda: ask(FORM, client("wrong")))


main()
