"""A tool loop of three steps through Messages and through Responses, on real weights that a grammar holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import jsonschema
import openai
import pytest

from tests.support.running import Running
from tests.support.tool_serving import MODELS, SCHEMAS, serving_tools

STEPS = ("search", "weather", "search")
QUESTION = "What is the weather in Paris?"
RESULT = "Result {step}: 18 degrees"


@pytest.fixture(scope="module", params=MODELS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving_tools(request.param, tmp_path_factory.mktemp(f"dialects-{request.param}")) as running:
        yield running


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_loop_through_messages_ends_in_text(server: Running, stream: bool) -> None:
    tools: list[Any] = [{"name": name, "input_schema": schema, "strict": True} for name, schema in SCHEMAS.items()]
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    with anthropic.Anthropic(base_url=server.url, api_key="any", max_retries=0, timeout=300) as client:

        def ask(max_tokens: int, **choice: Any) -> anthropic.types.Message:
            asked: dict[str, Any] = {"model": "tiny", "max_tokens": max_tokens, "messages": messages, "tools": tools}
            if not stream:
                return client.messages.create(**asked, tool_choice=choice)
            with client.messages.stream(**asked, tool_choice=choice) as events:
                return events.get_final_message()

        for step, name in enumerate(STEPS):
            answer = ask(800, type="tool", name=name, disable_parallel_tool_use=True)
            assert answer.stop_reason == "tool_use"
            [call] = [block for block in answer.content if block.type == "tool_use"]
            assert call.name == name
            jsonschema.validate(call.input, SCHEMAS[name])
            result = {"type": "tool_result", "tool_use_id": call.id, "content": RESULT.format(step=step)}
            messages += [{"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
        last = ask(24, type="none")
    assert {block.type for block in last.content} == {"text"}
    assert last.usage.cache_read_input_tokens


@pytest.mark.parametrize("stored", [False, True], ids=["sent back", "stored"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_loop_through_responses_ends_in_text(server: Running, stream: bool, stored: bool) -> None:
    """What was said is sent back each time, or the server keeps it."""
    tools: list[Any] = [
        {"type": "function", "name": name, "parameters": schema, "strict": True} for name, schema in SCHEMAS.items()
    ]
    items: list[Any] = [{"role": "user", "content": QUESTION}]
    before: str | None = None
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0, timeout=300) as client:

        def ask(max_tokens: int, choice: Any) -> Any:
            asked: dict[str, Any] = {"model": "tiny", "input": items, "tools": tools, "tool_choice": choice}
            asked |= {"max_output_tokens": max_tokens, "store": stored, "parallel_tool_calls": False}
            asked |= {"previous_response_id": before} if before else {}
            # The helper knows no answer that is cut.
            if not stream or choice == "none":
                return client.responses.create(**asked)
            with client.responses.stream(**asked) as events:
                for _ in events:
                    pass
                return events.get_final_response()

        for step, name in enumerate(STEPS):
            answer = ask(800, {"type": "function", "name": name})
            assert answer.status == "completed"
            [call] = [item for item in answer.output if item.type == "function_call"]
            assert call.name == name
            jsonschema.validate(json.loads(call.arguments), SCHEMAS[name])
            result = {"type": "function_call_output", "call_id": call.call_id, "output": RESULT.format(step=step)}
            items, before = ([result], answer.id) if stored else ([*items, *answer.output, result], None)
        last = ask(24, "none")
    assert last.output_text
    assert {item.type for item in last.output} == {"message"}
    assert last.usage.input_tokens_details.cached_tokens
