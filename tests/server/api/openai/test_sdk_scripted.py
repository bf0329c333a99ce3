"""The same wire facts through the real OpenAI Python SDK."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.support.scripted_service import MODEL, REPLY, ScriptedService, running

TEXT = "".join(REPLY)


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    with (
        running(ScriptedService()) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0, timeout=20) as sdk,
    ):
        yield sdk


def _ask(client: openai.OpenAI, text: str = "hi", **fields: Any) -> Any:
    return client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": text}], **fields)


def test_a_chat_answer_has_text_usage_and_logprobs(client: openai.OpenAI) -> None:
    answer = _ask(client, logprobs=True, top_logprobs=2, n=2)
    assert [choice.message.content for choice in answer.choices] == [TEXT, TEXT]
    assert answer.choices[1].logprobs.content[0].top_logprobs[1].token == "alt1"
    assert answer.usage.prompt_tokens_details.cached_tokens == 2
    assert answer.usage.completion_tokens_details.reasoning_tokens == 0


def test_a_chat_stream_gives_the_same_text_and_usage(client: openai.OpenAI) -> None:
    with _ask(client, "wait", stream=True, stream_options={"include_usage": True}) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == TEXT
    assert chunks[-1].usage == _ask(client).usage


def test_the_stream_helper_builds_the_whole_answer(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model=MODEL, messages=[{"role": "user", "content": "hi"}], n=2) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert [choice.message.content for choice in final.choices] == [TEXT, TEXT]
    assert [choice.finish_reason for choice in final.choices] == ["stop", "stop"]


def test_completions_echo_with_logprobs_whole_and_streamed(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt=["Hello", "again"], echo=True, logprobs=1)
    assert [choice.text for choice in answer.choices] == ["Hello" + TEXT, "again" + TEXT]
    logprobs = answer.choices[1].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs is not None
    assert logprobs.token_logprobs[:2] == [None, -1.5]
    with client.completions.create(model=MODEL, prompt="Hello", stream=True) as stream:
        assert "".join(chunk.choices[0].text for chunk in stream) == TEXT


def test_models_are_listed_and_retrieved(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "configi"


def test_errors_have_the_sdk_class_code_and_param(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        _ask(client, extra_body={"documents": [{"text": "x"}]})
    assert (bad.value.code, bad.value.param) == ("unsupported_field", "documents")
    with pytest.raises(openai.NotFoundError) as missing:
        client.models.retrieve("org/nope")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.InternalServerError):
        _ask(client, "fail late")


def test_an_error_in_a_stream_is_raised_with_its_message(client: openai.OpenAI) -> None:
    with _ask(client, "fail late", stream=True) as stream, pytest.raises(openai.APIError, match="The engine ended"):
        list(stream)
