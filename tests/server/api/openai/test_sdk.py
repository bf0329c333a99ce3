"""The OpenAI Python SDK against the real server with a real (tiny) model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.support.running import Running, serving
from tests.support.tiny_model import write_tiny_model

HELLO = [{"role": "user", "content": "Tell me a story"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("sdk") / "model")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Running]:
    with serving(tmp_path_factory.mktemp("sdk-server"), model) as running:
        yield running


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="anything", max_retries=0) as sdk:
        yield sdk


def test_a_chat_and_its_stream_say_the_same(client: openai.OpenAI) -> None:
    asked = {"model": "tiny", "messages": HELLO, "max_tokens": 20, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content != ""
    usage = chunks[-1].usage
    assert usage.total_tokens == whole.usage.total_tokens
    assert usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1, "all was read but the last token"
    assert whole.usage.completion_tokens == 20
    assert whole.choices[0].finish_reason == chunks[-2].choices[0].finish_reason == "length"


def test_a_seed_gives_the_same_text_twice_and_another_seed_another(client: openai.OpenAI) -> None:
    texts = [
        client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=20, seed=seed)
        .choices[0]
        .message.content
        for seed in (5, 5, 6)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_n_choices_differ_and_the_first_is_that_of_n_1(client: openai.OpenAI) -> None:
    def asked(n: int) -> list[str | None]:
        answer = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=20, seed=5, n=n)
        return [choice.message.content for choice in answer.choices]

    two = asked(2)
    assert two[0] != two[1]
    assert two[0] == asked(1)[0]


def test_a_stop_string_ends_the_answer_before_it(client: openai.OpenAI) -> None:
    asked = {"model": "tiny", "messages": HELLO, "max_tokens": 40, "temperature": 0}
    free = client.chat.completions.create(**asked).choices[0].message.content
    stop = free[10:13]
    stopped = client.chat.completions.create(**asked, stop=[stop, "never"])
    assert stopped.choices[0].message.content == free[: free.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"


def test_logprobs_agree_in_both_modes(client: openai.OpenAI) -> None:
    asked = {
        "model": "tiny", "messages": HELLO, "max_tokens": 5, "temperature": 0, "logprobs": True, "top_logprobs": 2,
    }  # fmt: skip
    whole = client.chat.completions.create(**asked).choices[0].logprobs.content
    streamed = [
        token
        for chunk in client.chat.completions.create(**asked, stream=True)
        for token in (chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else [])
    ]
    assert [t.token for t in streamed] == [t.token for t in whole]
    assert len(whole) == 5
    for token in whole:
        assert token.top_logprobs[0].token == token.token
        assert token.logprob == pytest.approx(token.top_logprobs[0].logprob)
        assert bytes(token.bytes).decode() == token.token


def test_completions_with_echo_score_the_prompt(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt="The capital of", max_tokens=1, echo=True, logprobs=1)
    choice = answer.choices[0]
    assert choice.text.startswith("The capital of")
    assert "".join(choice.logprobs.tokens) == choice.text
    assert choice.logprobs.token_logprobs[0] is None
    assert all(value < 0 for value in choice.logprobs.token_logprobs[1:])


def test_models_are_listed_and_found_by_id_and_alias(client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()] == ["tiny"]
    assert client.models.retrieve("gpt-4o").id == "tiny"


def test_each_error_has_its_type(client: openai.OpenAI, server: Running) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="nope", messages=HELLO)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="tiny", messages=HELLO, temperature=9)
    assert bad.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "a b " * 3000}])
    assert long.value.code == "context_length_exceeded"
    server.assert_still_serves()


def test_a_wrong_key_is_an_authentication_error(tmp_path: Path, model: Path) -> None:
    with serving(tmp_path, model, server={"api_key": "secret"}) as guarded:
        wrong = openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="wrong", max_retries=0)
        with wrong, pytest.raises(openai.AuthenticationError):
            wrong.models.list()
        with openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="secret", max_retries=0) as right:
            assert right.models.list().data


def test_overload_is_a_503_that_says_when_to_come_back(tmp_path: Path, model: Path) -> None:
    with (
        serving(tmp_path, model, engine={"max_concurrent": 1, "queue_limit": 0}) as small,
        openai.OpenAI(base_url=f"{small.url}/v1", api_key="x", max_retries=0) as sdk,
        sdk.chat.completions.create(model="tiny", messages=HELLO, stream=True, max_tokens=-1) as running,
    ):
        next(running)
        with pytest.raises(openai.InternalServerError) as full:
            sdk.chat.completions.create(model="tiny", messages=HELLO)
        assert full.value.status_code == 503
        assert int(full.value.response.headers["retry-after"]) > 0
        # What can never fit is the request's own fault: a 503 would be sent again and again.
        with pytest.raises(openai.BadRequestError) as never:
            sdk.chat.completions.create(model="tiny", messages=HELLO, n=2)
        assert never.value.param == "n"
