"""Fields of chat completions and of other servers at Responses and Messages: they work, or are refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from server.api.anthropic.table import MESSAGES as MESSAGES_TABLE
from server.api.fields import Fields
from server.api.openai.responses.table import RESPONSES as RESPONSES_TABLE
from server.chat.conversation import GenerationRequest
from server.chat.shapes import AnyJson, GrammarText, JsonSchema, OneOf, Regex, Shape
from tests.support.field_names import CHAT_FIELDS
from tests.support.scripted_events import ScriptedEvents
from tests.support.scripted_service import Reply, Running, running

RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
BOTH = (RESPONSES, MESSAGES)
BODIES: dict[str, dict[str, Any]] = {
    RESPONSES: {"input": "hi"},
    MESSAGES: {"messages": [{"role": "user", "content": "hi"}]},
}
TABLES: dict[str, Fields] = {RESPONSES: RESPONSES_TABLE, MESSAGES: MESSAGES_TABLE}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(ScriptedEvents()) as up:
        yield up


def send(server: Running, path: str, fields: dict[str, Any]) -> Reply:
    return server.send("POST", path, BODIES[path] | fields)


def asked(server: Running, path: str, fields: dict[str, Any]) -> GenerationRequest:
    reply = send(server, path, fields)
    assert reply.status == 200, reply.body
    assert "x-configi-ignored" not in reply.headers
    return server.service.requests[-1]


@pytest.mark.parametrize("path", BOTH)
@pytest.mark.parametrize("whose", CHAT_FIELDS)
def test_every_name_in_use_has_one_place(path: str, whose: str) -> None:
    fields = TABLES[path]
    places = (fields.works, fields.accepted, fields.refused, fields.aliases, fields.inside)
    counts = {name: sum(name in place for place in places) for name in CHAT_FIELDS[whose]}
    assert {name: count for name, count in counts.items() if count != 1} == {}


@pytest.mark.parametrize("path", BOTH)
@pytest.mark.parametrize(
    ("given", "option", "value"),
    [
        ({"min_p": 0.25}, "min_p", 0.25),
        ({"seed": 7}, "seed", 7),
        ({"repeat_penalty": 1.5}, "repetition_penalty", 1.5),
        ({"options": {"presence_penalty": 1}}, "presence_penalty", 1),
        ({"ignore_eos": True}, "ignore_eos", True),
        ({"min_tokens": 3}, "min_tokens", 3),
        ({"logit_bias": {"5": 2}}, "logit_bias", {5: 2}),
        ({"bad_words": "no"}, "bad_words", ("no",)),
        ({"xtc_probability": 0.5}, "xtc_probability", 0.5),
        ({"stop": "END"}, "stop", ("END",)),
    ],
)
def test_how_tokens_are_drawn_is_said_alike_everywhere(
    server: Running, path: str, given: dict[str, Any], option: str, value: Any
) -> None:
    assert getattr(asked(server, path, given).options, option) == value


@pytest.mark.parametrize("path", BOTH)
@pytest.mark.parametrize(
    ("given", "shape"),
    [
        ({"structured_outputs": {"choice": ["yes", "no"]}}, OneOf(("yes", "no"), "structured_outputs.choice")),
        ({"guided_regex": "a+"}, Regex("a+", "guided_regex")),
        ({"json_schema": SCHEMA}, JsonSchema(SCHEMA, True, "json_schema")),
        ({"grammar": 'root ::= "a"'}, GrammarText('root ::= "a"', "gbnf", "grammar")),
        ({"format": "json"}, AnyJson()),
    ],
)
def test_so_is_the_form_of_an_answer(server: Running, path: str, given: dict[str, Any], shape: Shape) -> None:
    assert asked(server, path, given).options.shape == shape


OWN_FORM: dict[str, dict[str, Any]] = {
    RESPONSES: {"text": {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}}},
    MESSAGES: {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
}


@pytest.mark.parametrize("path", BOTH)
def test_two_forms_are_refused_where_one_is_the_dialects_own(server: Running, path: str) -> None:
    reply = send(server, path, {**OWN_FORM[path], "regex": "a+"})
    assert reply.status == 400 and "regex" in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "fields", "words"),
    [
        *[(path, {name: 5}, f"{name} is not supported: use ") for path in BOTH for name in
          ("n_predict", "max_new_tokens", "max_completion_tokens", "thinking_budget")],
        *[(path, {"chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs") for path in BOTH],
        *[(path, {"mirostat": 2}, "mirostat") for path in BOTH],
        *[(path, {"truncate_prompt_tokens": 9}, "truncate_prompt_tokens") for path in BOTH],
        *[(path, {"n": 2}, "n is not supported") for path in BOTH],
        *[(path, {"options": {"num_predict": 5}}, "options.num_predict") for path in BOTH],
        *[(path, {"seed": 2**63}, "9223372036854775807, not 9223372036854775808") for path in BOTH],
        (RESPONSES, {"reasoning_effort": "low"}, "use reasoning"),
        (RESPONSES, {"response_format": {"type": "json_object"}}, "use text.format"),
        (RESPONSES, {"logprobs": True}, "message.output_text.logprobs"),
        (MESSAGES, {"reasoning_effort": "low"}, "output_config.effort"),
        (MESSAGES, {"response_format": {"type": "json_object"}}, "use output_config.format"),
        (MESSAGES, {"parallel_tool_calls": False}, "disable_parallel_tool_use"),
        (MESSAGES, {"stop_sequences": [""]}, "stop_sequences holds an empty string"),
        (MESSAGES, {"stop": [""]}, "stop holds an empty string"),
    ],
)  # fmt: skip
def test_what_a_dialect_says_otherwise_is_refused_with_its_own_word(
    server: Running, path: str, fields: dict[str, Any], words: str
) -> None:
    reply = send(server, path, fields)
    assert reply.status == 400
    assert words in reply.json()["error"]["message"]


@pytest.mark.parametrize("path", BOTH)
def test_what_asks_for_nothing_is_taken(server: Running, path: str) -> None:
    harmless = {
        "n": 1, "logprobs": False, "parallel_tool_calls": True, "response_format": {"type": "text"}, "mirostat": 0,
        "chat_template_kwargs": {}, "user": "me", "num_ctx": 4096, "cache_prompt": True, "skip_special_tokens": True,
        "logit_bias": {}, "guided_choice": [], "verbosity": "low", "reasoning_format": "auto",
    }  # fmt: skip
    asked(server, path, harmless)
