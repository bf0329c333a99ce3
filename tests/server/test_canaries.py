"""Many requests at once, through every protocol: what one of them says is in no answer to another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anthropic
import openai
import pytest

from tests.support.running import serving_script
from tests.support.tool_model import write_tool_model

REQUESTS = 500
Ask = Callable[[str, bool, bool], str]


@pytest.fixture(scope="module")
def protocols(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Ask]]:
    """Each asks for its word, by a call or in words, streamed or whole; returned is the answer as JSON."""
    folder = tmp_path_factory.mktemp("canaries")
    with (
        serving_script(folder, write_tool_model(folder / "model"), ["--speaks"]) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0, timeout=120) as of_openai,
        anthropic.Anthropic(base_url=server.url, api_key="any", max_retries=0, timeout=120) as of_anthropic,
    ):

        def chat(word: str, call: bool, stream: bool) -> str:
            tool = {"type": "function", "function": _tool(word, "parameters")}
            asked: dict[str, Any] = {"model": "tiny", "messages": _user(word), "tools": [tool] if call else []}
            if not stream:
                return of_openai.chat.completions.create(**asked).model_dump_json()
            with of_openai.chat.completions.stream(**asked) as events:
                return [*events] and events.get_final_completion().model_dump_json()

        def completions(word: str, call: bool, stream: bool) -> str:
            answer = of_openai.completions.create(model="tiny", prompt=f"Say {word}.", max_tokens=60, stream=stream)
            return "".join(chunk.choices[0].text for chunk in answer) if stream else answer.choices[0].text

        def responses(word: str, call: bool, stream: bool) -> str:
            tool = {"type": "function"} | _tool(word, "parameters")
            asked: dict[str, Any] = {"model": "tiny", "input": f"Say {word}.", "tools": [tool] if call else []}
            if not stream:
                return of_openai.responses.create(**asked).model_dump_json()
            with of_openai.responses.stream(**asked) as events:
                return [*events] and events.get_final_response().model_dump_json()

        def messages(word: str, call: bool, stream: bool) -> str:
            tool = _tool(word, "input_schema")
            asked: dict[str, Any] = {"model": "tiny", "max_tokens": 400, "messages": _user(word)}
            asked |= {"tools": [tool]} if call else {}
            if not stream:
                return of_anthropic.messages.create(**asked).model_dump_json()
            with of_anthropic.messages.stream(**asked) as events:
                return events.get_final_message().model_dump_json()

        yield [chat, completions, responses, messages]


def _user(word: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"Say {word}."}]


def _tool(word: str, parameters: str) -> dict[str, Any]:
    return {"name": f"say-{word}", parameters: {"type": "object", "properties": {"word": {"const": word}}}}


def _foreign(protocols: list[Ask], number: int) -> str:
    """The answer to request `number` without its own word."""
    word = f"canary-{number:03d}-{number * 7919 % 1000:03d}"
    ask = protocols[number % len(protocols)]
    answer = ask(word, bool(number // 4 % 2), bool(number // 8 % 2))
    assert word in answer, answer
    return answer.replace(word, "")


def test_500_interleaved_requests_through_all_protocols_hold_no_foreign_canary(protocols: list[Ask]) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda number: _foreign(protocols, number), range(REQUESTS)))
    assert len(answers) == REQUESTS
    assert not [answer for answer in answers if "canary" in answer]
