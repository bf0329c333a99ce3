# /// script
# dependencies = ["llama-index-llms-openai-like"]
# [tool.driver]
# client = "LlamaIndex"
# apis = ["completions"]
# ///
"""OpenAILike as it is by default: it writes prompts itself and sends them to /v1/completions."""

from drive import CAPITAL, KEY, MODEL, TOO_LONG, V1, feature, main, refused
from llama_index.llms.openai_like import OpenAILike


def model(name=MODEL, key=KEY):
    return OpenAILike(model=name, api_base=V1, api_key=key, max_retries=0)


@feature
def plain():
    return model().complete(CAPITAL).text


@feature
def stream():
    return [chunk.delta or "" for chunk in model().stream_complete(CAPITAL)]


@feature
def overflow():
    return refused(lambda: model().complete(TOO_LONG))


@feature
def unknown_model():
    return refused(lambda: model("nobody").complete(CAPITAL))


@feature
def wrong_key():
    return refused(lambda: model(key="wrong").complete(CAPITAL))


main()
