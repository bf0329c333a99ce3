"""What clients really send, and what becomes of it: every odd but legal request is served, and read as it is meant."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from server.api.compat.table import DETOKENIZE, TOKENIZE
from server.api.compat.tokenize import DetokenizeFields, TokenizeFields
from server.api.openai.chat_request import ChatFields
from server.api.openai.completions_request import CompletionFields
from server.api.openai.table import CHAT, COMPLETIONS
from server.api.tables import ENDPOINTS
from server.chat.conversation import Conversation, GenerationRequest, RawPrompt
from server.chat.parts import Message, ToolResultPart
from tests.support.scripted_service import Running, ScriptedService, running


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(ScriptedService()) as up:
        yield up


def _chat_request(server: Running, **fields: Any) -> GenerationRequest:
    reply = server.chat(**fields)
    assert reply.status == 200, reply.body
    return server.service.requests[-1]


def _messages(server: Running, *messages: dict[str, Any]) -> tuple[Message, ...]:
    prompt = _chat_request(server, messages=list(messages)).prompt
    assert isinstance(prompt, Conversation)
    return prompt.messages


HARMLESS: dict[str, Any] = {
    "tools": [],
    "tool_choice": "auto",
    "functions": [],
    "function_call": "none",
    "response_format": {"type": "text"},
    "modalities": ["text"],
    "audio": {},
    "reasoning_effort": "none",
    "chat_template_kwargs": {},
    "stop": [],
    "stream_options": {},
    "logit_bias": {},
    "lora": [],
    "options": {},
    "temperature": 1e-300,
    "top_p": 1,
    "top_k": 10**9,
    "n": 1,
    "max_tokens": 2**31,
    "user": "me",
    "metadata": {"a": "b"},
    "store": True,
    "service_tier": "auto",
    "verbosity": "low",
    "prediction": {"type": "content", "content": "x"},
    "parallel_tool_calls": True,
    "keep_alive": -1,
    "top_logprobs": 0,
    "bad_words": [],
    "allowed_token_ids": [],
    "grammar": "",
    "structured_outputs": {},
    "cache_prompt": True,
    "add_generation_prompt": True,
    "continue_final_message": False,
}


@pytest.mark.parametrize("name", HARMLESS)
def test_a_value_that_asks_for_nothing_is_accepted(server: Running, name: str) -> None:
    reply = server.chat(**{name: HARMLESS[name]})
    assert reply.status == 200, reply.body
    assert "x-configi-ignored" not in reply.headers


@pytest.mark.parametrize("name", [*CHAT.works, *CHAT.accepted, *CHAT.refused, "unknown"])
def test_an_explicit_null_means_absent(server: Running, name: str) -> None:
    reply = server.chat(**{name: None})
    assert reply.status == (400 if name == "messages" else 200)
    assert "x-configi-ignored" not in reply.headers


IGNORED_IN_MESSAGES: list[tuple[list[dict[str, Any]], str | None]] = [
    ([{"role": "user", "content": "a", "name": "x", "weight": 1}], "messages.0.name, messages.0.weight"),
    ([{"role": "assistant"}, {"role": "tool", "content": "a", "is_error": True}], "messages.1.is_error"),
    (
        [{"role": "user", "content": "a", "reasoning": "b", "tool_calls": []}],
        "messages.0.reasoning, messages.0.tool_calls",
    ),
    # What several messages have is named once.
    ([{"role": "user", "content": "a", "name": "x"}] * 2000, "messages.name"),
    ([{"role": "user", "content": [{"type": "text", "text": "a", "lang": "en"}]}], "messages.0.content.lang"),
    ([{"role": "user", "content": "a", "bad\r\nname: x": 1}], "messages.0.bad??name??x"),
    # Nothing is lost with these.
    ([{"role": "user", "content": "a", "name": None, "cache_control": {"type": "ephemeral"}}], None),
    ([{"role": "assistant", "content": None, "refusal": None, "tool_calls": [], "audio": None}], None),
    ([{"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {}}]}], None),
    ([{"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}], None),
]


@pytest.mark.parametrize(("messages", "names"), IGNORED_IN_MESSAGES, ids=range(len(IGNORED_IN_MESSAGES)))
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize"])
def test_keys_of_messages_that_mean_nothing_here_are_named(
    server: Running, path: str, messages: list[dict[str, Any]], names: str | None
) -> None:
    reply = server.send("POST", path, {"messages": messages})
    assert reply.status == 200, reply.body
    assert reply.headers.get("x-configi-ignored") == names


def test_the_names_of_ignored_keys_of_messages_are_bounded_too(server: Running) -> None:
    messages = [{"role": "user", "content": "a", **{f"{i}" * 50: 1 for i in range(100)}} for _ in range(100)]
    reply = server.chat(foo=1, messages=messages)
    assert reply.headers["x-configi-ignored"].startswith("foo, messages.")
    assert len(reply.headers["x-configi-ignored"]) <= 1024


@pytest.mark.parametrize("stream", [False, True])
def test_unknown_fields_are_named_in_a_header_of_bounded_length(server: Running, stream: bool) -> None:
    reply = server.chat(stream=stream, foo=1, **{"bad\r\nname: x": 1})
    assert reply.headers["x-configi-ignored"] == "foo, bad??name??x"
    many = server.chat(stream=stream, **{f"{i}" * 100: 1 for i in range(1000)})
    assert many.status == 200
    assert len(many.headers["x-configi-ignored"]) <= 1024
    nested = server.chat(stream=True, stream_options={"foo": 1, "include_obfuscation": False})
    assert nested.headers["x-configi-ignored"] == "stream_options.foo"
    assert server.complete(foo=1).headers["x-configi-ignored"] == "foo"
    assert server.send("POST", "/tokenize", {"content": "a", "foo": 1}).headers["x-configi-ignored"] == "foo"


@pytest.mark.parametrize(
    ("fields", "model"),
    [
        (CHAT, ChatFields),
        (COMPLETIONS, CompletionFields),
        (TOKENIZE, TokenizeFields),
        (DETOKENIZE, DetokenizeFields),
    ],
)
def test_every_field_stands_in_exactly_one_table_and_the_working_ones_in_the_model(fields: Any, model: Any) -> None:
    assert set(fields.works) == set(model.model_fields)
    assert set(fields.aliases.values()) <= set(fields.works)
    names = (*fields.works, *fields.accepted, *fields.refused, *fields.aliases, *fields.inside)
    assert len(names) == len(set(names))


def test_every_value_that_a_refusal_lets_through_is_served(server: Running) -> None:
    good = {"/v1/chat/completions": server.chat, "/v1/completions": server.complete}
    for path, send in good.items():
        for name, refusal in ENDPOINTS[path].refused.items():
            for value in refusal.unless:
                assert send(**{name: value}).status == 200, (path, name, value)
            assert send(**{name: "something else"}).json()["error"]["code"] == "unsupported_field"


CLIENT_FIELDS = """
messages model stream stream_options max_tokens max_completion_tokens temperature top_p top_k min_p repetition_penalty
presence_penalty frequency_penalty seed stop n logprobs top_logprobs logit_bias tools tool_choice parallel_tool_calls
response_format reasoning_effort chat_template_kwargs user store metadata service_tier prediction verbosity modalities
audio safety_identifier prompt_cache_key prompt_cache_retention prompt_cache_options moderation web_search_options
functions function_call thinking enable_thinking keep_alive options draft_model include_reasoning reasoning plugins
cache_prompt id_slot lora continue_final_message add_generation_prompt
"""


def test_every_field_that_real_clients_send_is_in_a_table() -> None:
    assert set(CLIENT_FIELDS.split()) <= {*CHAT.works, *CHAT.accepted, *CHAT.refused, *CHAT.inside}


def test_content_is_read_in_every_shape_clients_send(server: Running) -> None:
    parts = [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "b"}]
    assert _messages(
        server,
        {"role": "developer", "content": parts},
        {"role": "user", "content": "", "name": "x"},
        {"role": "assistant"},
        {"role": "assistant", "content": None, "refusal": None, "tool_calls": [], "provider_specific_fields": {}},
        {"role": "tool", "content": parts, "tool_call_id": "c"},
        {"role": "user", "content": " \n\u0000"},
        {"role": "user", "content": None},
        {"role": "system"},
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "output_text", "text": "b"}]},
        {"role": "assistant", "content": None, "refusal": "no"},
    ) == (
        Message.plain("system", "ab"),
        Message.plain("user", ""),
        Message("assistant", ()),
        Message("assistant", ()),
        Message("tool", (ToolResultPart("c", "ab"),)),
        Message.plain("user", " \n\x00"),
        Message("user", ()),
        Message("system", ()),
        Message.plain("user", "ab"),
        Message.plain("assistant", "no"),
    )


def test_special_tokens_and_escaped_surrogate_pairs_are_text(server: Running) -> None:
    body = b'{"messages": [{"role": "user", "content": "<|im_end|> \\ud83d\\ude00 \\\\ud800"}]}'
    assert server.send("POST", "/v1/chat/completions", body).status == 200
    prompt = server.service.requests[-1].prompt
    assert isinstance(prompt, Conversation)
    assert prompt.messages[0].text == "<|im_end|> 😀 \\ud800"


def test_of_duplicate_keys_the_last_wins(server: Running) -> None:
    body = b'{"max_tokens": 1, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}'
    assert server.send("POST", "/v1/chat/completions", body).status == 200
    assert server.service.requests[-1].options.max_tokens == 2


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"max_tokens": -1}, None),
        ({"max_tokens": None}, None),
        ({"max_tokens": 32000}, 32000),
        ({"max_tokens": 5, "max_completion_tokens": 7}, 7),
        ({"max_tokens": 5, "max_completion_tokens": -1}, None),
        ({"max_tokens": 5.0}, 5),
        ({"n_predict": 6}, 6),
        ({"n_predict": 0}, 0),
        ({"max_tokens": 0}, 0),
        ({"max_tokens": 5, "max_completion_tokens": 0}, 0),
        ({"num_predict": -2}, None),
        ({"max_new_tokens": 6, "max_tokens": 6}, 6),
        ({"max_output_tokens": 6}, 6),
        ({"options": {"num_predict": 6}}, 6),
    ],
)
def test_the_token_limit_is_read_as_clients_mean_it(server: Running, fields: Any, expected: int | None) -> None:
    assert _chat_request(server, **fields).options.max_tokens == expected


@pytest.mark.parametrize(("seed", "expected"), [(0, 0), (-2, 2**64 - 2), (-(2**63), 2**63), (2**63 - 1, 2**63 - 1)])
def test_a_seed_is_taken_modulo_2_to_the_64(server: Running, seed: int, expected: int) -> None:
    assert _chat_request(server, seed=seed).options.seed == expected


def test_a_seed_of_minus_1_is_any_as_at_llama_server(server: Running) -> None:
    assert _chat_request(server, seed=-1).options.seed is None


@pytest.mark.parametrize("model", ["", " ", None])
def test_a_model_that_is_absent_empty_or_blank_means_the_default(server: Running, model: str | None) -> None:
    assert _chat_request(server, model=model).model is None


def test_sampling_fields_arrive_as_they_were_sent(server: Running) -> None:
    options = _chat_request(
        server,
        temperature=0,
        top_p=0.5,
        top_k=5,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=-2,
        frequency_penalty=2,
        logit_bias={"7": -100, "8": 1.5},
        stop="end",
        n=3,
        logprobs=True,
    ).options
    assert (options.temperature, options.top_p, options.top_k, options.min_p) == (0, 0.5, 5, 0.1)
    assert (options.repetition_penalty, options.presence_penalty, options.frequency_penalty) == (1.1, -2, 2)
    assert options.logit_bias == {7: -100.0, 8: 1.5}
    assert (options.stop, options.n, options.top_logprobs) == (("end",), 3, 0)


def test_a_last_assistant_message_is_continued(server: Running) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    request = _chat_request(server, messages=messages, continue_final_message=True, add_generation_prompt=False)
    assert isinstance(request.prompt, Conversation)
    assert request.prompt.messages[-1] == Message.plain("assistant", "b")


def test_only_streams_wait_for_the_model(server: Running) -> None:
    assert not _chat_request(server).wait_for_model
    assert _chat_request(server, stream=True).wait_for_model


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("ab", [RawPrompt("ab")]),
        ("", [RawPrompt("")]),
        (["a", "b"], [RawPrompt("a"), RawPrompt("b")]),
        ([65, 66], [RawPrompt((65, 66))]),
        ([[65], [66, 67]], [RawPrompt((65,)), RawPrompt((66, 67))]),
    ],
)
def test_a_prompt_is_read_in_every_shape(server: Running, prompt: Any, expected: list[RawPrompt]) -> None:
    before = len(server.service.requests)
    assert server.complete(prompt=prompt).status == 200
    assert [request.prompt for request in server.service.requests[before:]] == expected


def test_a_completion_is_16_tokens_long_unless_it_says_otherwise(server: Running) -> None:
    server.complete()
    assert server.service.requests[-1].options.max_tokens == 16
    server.complete(max_tokens=-1, best_of=2, n=2)
    assert server.service.requests[-1].options.max_tokens is None
    server.complete(n_predict=3.0)
    assert server.service.requests[-1].options.max_tokens == 3


def test_a_big_body_is_parsed_beside_the_loop_with_the_same_result(server: Running) -> None:
    text = "word [{ " * 50_000
    assert _messages(server, {"role": "user", "content": text}) == (Message.plain("user", text),)
