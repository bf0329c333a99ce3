"""The client's clock and its count: what came, what was refused, what is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from bench import prompts
from bench.sse import Client, NoAnswer
from tests.support.running import Running, serving_script
from tests.support.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("bench")
    with serving_script(folder, write_tiny_model(folder / "model"), ["--interval", "0.02"]) as running:
        yield running


@pytest.mark.parametrize("stream", [True, False])
def test_the_client_counts_the_tokens_that_came(server: Running, stream: bool) -> None:
    answer = asyncio.run(Client(server.url).ask(prompts.chat("Hello", max_tokens=5, stream=stream)))
    assert (answer.completion_tokens, answer.finish_reason, len(answer.text)) == (5, "length", 5)
    # Neither the first chunk with the role nor the last with the usage is a token.
    assert len(answer.times) == (5 if stream else 0)
    assert answer.times == sorted(answer.times)


def test_the_client_tells_an_error_from_an_answer_that_is_lost(server: Running) -> None:
    refused = asyncio.run(Client(server.url).attempt({"messages": []}))
    assert (refused.status, refused.whole, refused.lost) == (400, False, "")
    nobody = asyncio.run(Client("http://127.0.0.1:9").attempt(prompts.chat("Hello", max_tokens=1)))
    assert (nobody.status, nobody.whole) == (0, False)
    assert nobody.lost
    with pytest.raises(NoAnswer, match="Status 400"):
        asyncio.run(Client(server.url).ask({"messages": []}))


def test_a_client_that_leaves_has_no_answer(server: Running) -> None:
    assert asyncio.run(Client(server.url).leave(prompts.chat("Hello", max_tokens=1000), 0.1)) is None
    server.assert_still_serves()
