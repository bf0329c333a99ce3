"""Tools, forms and reasoning from the OpenAI SDK to real weights and back: a random tiny model, and the embedded one.

Neither was trained to call tools, and the template of the second knows none. What a grammar holds is well formed all
the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import openai
import pytest
from openai.types.chat.chat_completion import Choice

from tests.support.tool_serving import CITIES, MODELS, SCHEMAS, WEATHER, serving_tools

TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "description": f"A {name}.", "parameters": schema, "strict": True}}
    for name, schema in SCHEMAS.items()
]
NAMED = {"type": "function", "function": {"name": "search"}}
ALLOWED = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}
# With the names that may be called; None may call none.
CHOICES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "required": ("required", ("weather", "search")),
    "named": (NAMED, ("search",)),
    "allowed": (ALLOWED, ("search",)),
    "none": ("none", ()),
    "auto": ("auto", ("weather", "search")),
}
QUESTION = [{"role": "user", "content": "What is the weather in Paris?"}]


@pytest.fixture(scope="module", params=MODELS)
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    with (
        serving_tools(request.param, tmp_path_factory.mktemp(f"tools-{request.param}")) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0, timeout=300) as sdk,
    ):
        yield sdk


def _ask(client: openai.OpenAI, stream: bool, **fields: Any) -> Any:
    """The choice of an answer, whole or put together by the SDK's helper; the helper refuses an answer that was cut.

    The random model likes space between values as much as anything.
    """
    asked: dict[str, Any] = {"model": "tiny", "messages": QUESTION, "max_tokens": 800, "seed": 7} | fields
    if not stream:
        return client.chat.completions.create(**asked).choices[0]
    with client.chat.completions.stream(**asked) as events:
        for _ in events:
            pass
        return events.get_final_completion().choices[0]


def _stream(client: openai.OpenAI, **fields: Any) -> Any:
    """The choice of a plain stream, which may be cut."""
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    calls: list[dict[str, Any]] = []
    reason = None
    for chunk in client.chat.completions.create(model="tiny", messages=QUESTION, stream=True, **fields):
        delta, reason = chunk.choices[0].delta, chunk.choices[0].finish_reason
        message["content"] += delta.content or ""
        for piece in delta.tool_calls or []:
            if piece.index == len(calls):
                calls.append(piece.model_dump())
            else:
                calls[piece.index]["function"]["arguments"] += piece.function.arguments
    choice = {"index": 0, "finish_reason": reason, "message": message | ({"tool_calls": calls} if calls else {})}
    return Choice.model_validate(choice)


def _check_calls(choice: Any, allowed: tuple[str, ...]) -> None:
    """Calls are of tools that may be called, with arguments that their schemas allow, each with an id of its own."""
    calls = choice.message.tool_calls or []
    if choice.finish_reason == "length":
        # A call that was cut is no call of anything yet.
        calls = calls[:-1]
    else:
        assert (choice.finish_reason == "tool_calls") == bool(calls)
    assert len({call.id for call in calls}) == len(calls)
    for call in calls:
        assert call.function.name in allowed
        jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])


@pytest.mark.parametrize("how", ["whole", "helper", "stream"])
@pytest.mark.parametrize("choice", ["required", "named", "allowed"])
def test_a_call_that_must_be_is_made(client: openai.OpenAI, choice: str, how: str) -> None:
    given, allowed = CHOICES[choice]
    fields = {"tools": TOOLS, "tool_choice": given, "parallel_tool_calls": False}
    answer = _stream(client, **fields) if how == "stream" else _ask(client, how == "helper", **fields)
    assert answer.finish_reason == "tool_calls"
    assert len(answer.message.tool_calls) == 1
    _check_calls(answer, allowed)


@pytest.mark.parametrize("how", ["whole", "stream"])
@pytest.mark.parametrize("choice", ["none", "auto"])
def test_a_call_that_may_be_is_well_formed_and_none_that_may_not_is_made(
    client: openai.OpenAI, choice: str, how: str
) -> None:
    given, allowed = CHOICES[choice]
    fields = {"tools": TOOLS, "tool_choice": given, "max_tokens": 48}
    answer = _stream(client, **fields) if how == "stream" else _ask(client, False, **fields)
    _check_calls(answer, allowed)
    assert answer.message.content or answer.message.tool_calls
    if choice == "none":
        assert not answer.message.tool_calls


def test_a_stream_and_a_whole_answer_make_the_same_call(client: openai.OpenAI) -> None:
    fields = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}
    whole, streamed = (_ask(client, stream, **fields) for stream in (False, True))
    assert [(c.function.name, c.function.arguments) for c in whole.message.tool_calls] == [
        (c.function.name, c.function.arguments) for c in streamed.message.tool_calls
    ]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_loop_of_three_steps_ends_in_text(client: openai.OpenAI, stream: bool) -> None:
    messages: list[Any] = list(QUESTION)
    ids = []
    for step, name in enumerate(("search", "weather", "search")):
        choice = {"type": "function", "function": {"name": name}}
        answer = _ask(client, stream, messages=messages, tools=TOOLS, tool_choice=choice)
        _check_calls(answer, (name,))
        [call] = answer.message.tool_calls
        ids.append(call.id)
        messages += [answer.message.model_dump(exclude_none=True), {
            "role": "tool", "tool_call_id": call.id, "content": f"Result {step}: 18 degrees",
        }]  # fmt: skip
    assert len(set(ids)) == 3
    last = _ask(client, False, messages=messages, tools=TOOLS, tool_choice="none", max_tokens=24)
    assert last.message.content
    assert not last.message.tool_calls


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_output_of_a_form_has_it(client: openai.OpenAI, stream: bool) -> None:
    shape = {"type": "json_schema", "json_schema": {"name": "weather", "schema": WEATHER, "strict": True}}
    answer = _ask(client, stream, response_format=shape)
    assert answer.finish_reason == "stop"
    jsonschema.validate(json.loads(answer.message.content), WEATHER)


FORMS: dict[str, tuple[dict[str, Any], str]] = {
    "choice": ({"structured_outputs": {"choice": CITIES}}, "^(Paris|Rome|Oslo)$"),
    "regex": ({"structured_outputs": {"regex": "[a-z]{3}-[0-9]{2}"}}, "^[a-z]{3}-[0-9]{2}$"),
    "gbnf": ({"grammar": 'root ::= "yes" | "no"'}, "^(yes|no)$"),
    "json_schema": ({"json_schema": {"enum": [1, 2]}}, "^[12]$"),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_other_servers_hold_too(client: openai.OpenAI, form: str) -> None:
    fields, pattern = FORMS[form]
    answer = _ask(client, False, extra_body=fields)
    assert answer.finish_reason == "stop"
    jsonschema.validate(answer.message.content, {"type": "string", "pattern": pattern})


# The template of the other knows no thoughts.
@pytest.mark.parametrize("client", ["tiny"], indirect=True)
def test_a_thought_is_kept_out_of_the_content_and_ends_at_its_budget(client: openai.OpenAI) -> None:
    fields = {"enable_thinking": True, "thinking_token_budget": 12}
    answer = client.chat.completions.create(
        model="tiny", messages=QUESTION, max_tokens=60, seed=7, extra_body=fields
    )  # fmt: skip
    message = answer.choices[0].message
    assert message.reasoning_content == message.reasoning != ""
    assert "think>" not in (message.content or "") + message.reasoning_content
    details = answer.usage.completion_tokens_details
    assert 0 < details.reasoning_tokens <= 12 + 8, "the words that close it count"
    assert message.content


def _canary(client: openai.OpenAI, number: int) -> str:
    """A request in which a word of its own is all that may be said; what was said without it."""
    word = f"canary-{number:03d}-{number * 7919 % 1000:03d}"
    schema = {"type": "object", "properties": {"word": {"const": word}}, "required": ["word"],
              "additionalProperties": False}  # fmt: skip
    stream = bool(number % 2)
    if number % 3:
        tool = {"type": "function", "function": {"name": f"say-{word}", "parameters": schema, "strict": True}}
        [call] = _ask(
            client, stream, tools=[tool], tool_choice="required", parallel_tool_calls=False
        ).message.tool_calls
        assert call.function.name == f"say-{word}"
        said = call.function.arguments
    else:
        shape = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema, "strict": True}}
        said = _ask(client, stream, response_format=shape).message.content
    assert json.loads(said) == {"word": word}
    return said.replace(word, "")


@pytest.mark.parametrize("client", ["tiny"], indirect=True)
def test_interleaved_requests_say_no_foreign_canary(client: openai.OpenAI) -> None:
    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(lambda number: _canary(client, number), range(48)))
    assert not [text for text in said if "canary" in text]
