"""Fields of other servers on a real socket: each works, has no effect, or is refused by name; none is just ignored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from server.api.openai.table import CHAT, COMPLETIONS
from server.settings.types import LimitSettings, ServerSettings, Settings
from tests.support.field_names import CHAT_FIELDS
from tests.support.scripted_service import REPLY, Running, ScriptedService, running


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(ScriptedService()) as up:
        yield up


def _options(server: Running, **fields: Any) -> Any:
    reply = server.chat(**fields)
    assert reply.status == 200, reply.body
    assert "x-configi-ignored" not in reply.headers
    return server.service.requests[-1].options


@pytest.mark.parametrize("whose", CHAT_FIELDS)
@pytest.mark.parametrize("fields", [CHAT, COMPLETIONS], ids=["chat", "completions"])
def test_every_name_in_use_has_a_place(fields: Any, whose: str) -> None:
    known = {*fields.works, *fields.accepted, *fields.refused, *fields.aliases, *fields.inside}
    assert [name for name in CHAT_FIELDS[whose] if name not in known] == []


@pytest.mark.parametrize(
    ("given", "field", "value"),
    [
        ({"repeat_penalty": 1.1}, "repetition_penalty", 1.1),
        ({"n_cmpl": 2}, "n", 2),
        ({"min_new_tokens": 3}, "min_tokens", 3),
        ({"min_tokens": 3.0}, "min_tokens", 3),
        ({"ignore_eos": True}, "ignore_eos", True),
        ({"allowed_token_ids": [7, 5, 7]}, "allowed_token_ids", (5, 7)),
        ({"bad_words": "no"}, "bad_words", ("no",)),
        ({"bad_words": ["no", "never"]}, "bad_words", ("no", "never")),
        ({"xtc_probability": 0.5, "xtc_threshold": 0.2}, "xtc_threshold", 0.2),
        ({"min_p": 0}, "min_p", 0),
        ({"top_k": -1}, "top_k", 0),
        ({"top_k": 0}, "top_k", 0),
        ({"top_k": 40.0}, "top_k", 40),
        ({"top_p": 0}, "top_p", 0),
        ({"stop": ""}, "stop", ()),
        ({"stop": []}, "stop", ()),
        ({"top_logprobs": 0}, "top_logprobs", None),
        ({"options": {"temperature": 0.5, "repeat_penalty": 1.2, "num_ctx": 8192}}, "repetition_penalty", 1.2),
        ({"options": {"stop": ["a"], "num_predict": 5}, "max_tokens": 5}, "stop", ("a",)),
    ],
)
def test_what_other_servers_call_by_their_own_names_works(server: Running, given: Any, field: str, value: Any) -> None:
    assert getattr(_options(server, **given), field) == value


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "two names that differ": ({"max_tokens": 5, "n_predict": 6}, "n_predict"),
    "an option that differs": ({"temperature": 1, "options": {"temperature": 0}}, "options.temperature"),
    "a bad value under its own name": ({"repeat_penalty": "x"}, "repeat_penalty"),
    "a bad value in options": ({"options": {"num_predict": "x"}}, "options.num_predict"),
    "a refused option": ({"options": {"tfs_z": 0.5}}, "options.tfs_z"),
    "options that are none": ({"options": 5}, "options"),
    "min above max": ({"min_tokens": 6, "max_tokens": 5}, "min_tokens"),
    "dry": ({"dry_multiplier": 0.8}, "dry_multiplier"),
    "truncation": ({"truncate_prompt_tokens": 100}, "truncate_prompt_tokens"),
    "prompt_logprobs in chat": ({"prompt_logprobs": 1}, "prompt_logprobs"),
    "stop_regex": ({"stop_regex": "a+"}, "stop_regex"),
    "images": ({"images": ["QUJD"]}, "images"),
    "65 bad words": ({"bad_words": ["a"] * 65}, "bad_words"),
    "an empty bad word": ({"bad_words": ["a", ""]}, "bad_words"),
    "a token id that is none": ({"allowed_token_ids": [-1]}, "allowed_token_ids.0"),
    "a long salt": ({"cache_salt": "x" * 1025}, "cache_salt"),
    "not a whole number": ({"top_k": 1.5}, "top_k"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_refused_by_the_name_that_was_used(server: Running, case: str) -> None:
    fields, param = REFUSED[case]
    reply = server.chat(**fields)
    assert (reply.status, reply.json()["error"]["param"]) == (400, param), reply.body


def test_the_defaults_of_llama_server_may_be_spelled_out(server: Running) -> None:
    """As llama.vscode does when it edits a text."""
    options = _options(
        server, cache_prompt=True, samplers="edkypmxt", temperature=0.8, dynatemp_range=0, dynatemp_exponent=1,
        top_k=40, top_p=0.95, min_p=0.05, typical_p=1, xtc_probability=0, xtc_threshold=0.1, repeat_last_n=64,
        repeat_penalty=1, presence_penalty=0, frequency_penalty=0, dry_multiplier=0, dry_base=1.75,
        dry_allowed_length=2, dry_penalty_last_n=-1, max_tokens=-1, timings_per_token=False,
    )  # fmt: skip
    assert (options.temperature, options.top_k, options.min_p) == (0.8, 40, 0.05)
    assert server.chat(samplers="tk").status == server.chat(repeat_last_n=32).status == 400


def test_an_option_that_nobody_knows_is_named(server: Running) -> None:
    reply = server.chat(options={"messages": [], "num_gpu": 1, "foo": 1, "seed": 3})
    assert reply.status == 200
    assert reply.headers["x-configi-ignored"] == "options.messages, options.foo"
    assert server.service.requests[-1].options.seed == 3


def test_each_bound_is_a_setting() -> None:
    limits = LimitSettings(max_bad_words=1, max_tools=1)
    with running(ScriptedService(Settings(limits=limits))) as small:
        assert small.chat(bad_words=["a", "b"]).json()["error"]["param"] == "bad_words"
        tool = {"type": "function", "function": {"name": "f"}}
        assert small.chat(tools=[tool, tool]).json()["error"]["param"] == "tools"


def test_a_cache_salt_is_a_tree_of_prefixes_of_its_own_below_that_of_its_key(server: Running) -> None:
    def salt(up: Running, **fields: Any) -> str:
        assert up.chat(**fields).status == 200
        chat = up.service.requests[-1].client.cache_salt
        assert up.complete(**fields).status == 200
        assert up.service.requests[-1].client.cache_salt == chat
        assert up.send("POST", "/v1/responses", {"input": "hi", **fields}).status == 200
        assert up.service.requests[-1].client.cache_salt == chat
        message = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, **fields}
        assert up.send("POST", "/v1/messages", message).headers.get("x-configi-ignored") is None
        assert up.service.requests[-1].client.cache_salt == chat
        return chat

    plain, salted, other = salt(server), salt(server, cache_salt="a"), salt(server, cache_salt="b")
    assert len({plain, salted, other}) == 3
    keys = {"one": "key-of-one-0123", "two": "key-of-two-0123"}
    with running(ScriptedService(Settings(server=ServerSettings(api_keys=keys))), guarded=True) as keyed:
        for key in keys.values():
            body = {"messages": [{"role": "user", "content": "hi"}], "cache_salt": "a"}
            assert keyed.send("POST", "/v1/chat/completions", body, authorization=f"Bearer {key}").status == 200
        first, second = (request.client.cache_salt for request in keyed.service.requests)
        assert first != second


@pytest.mark.parametrize("logprobs", [False, True])
def test_token_ids_come_with_the_answer_when_they_are_asked_for(server: Running, logprobs: bool) -> None:
    ids = list(range(len(REPLY)))
    whole = server.chat(return_token_ids=True, logprobs=logprobs).json()
    assert whole["prompt_token_ids"] == [1, 2, 3, 4, 5]
    assert whole["choices"][0]["token_ids"] == ids
    assert (whole["choices"][0]["logprobs"] is not None) == logprobs
    *chunks, _ = server.chat(return_token_ids=True, logprobs=logprobs, stream=True).events()
    assert chunks[0]["prompt_token_ids"] == [1, 2, 3, 4, 5]
    assert [id for chunk in chunks for id in chunk["choices"][0].get("token_ids", [])] == ids
    assert any(chunk["choices"][0]["logprobs"] for chunk in chunks) == logprobs
    assert "token_ids" not in server.chat().json()["choices"][0]


def test_token_ids_of_a_text_completion(server: Running) -> None:
    ids = list(range(len(REPLY)))
    whole = server.complete(return_token_ids=True, n=2).json()["choices"]
    assert [(choice["token_ids"], choice["prompt_token_ids"], choice["logprobs"]) for choice in whole] == [
        (ids, [1, 2, 3, 4, 5], None)
    ] * 2
    *chunks, _ = server.complete(return_token_ids=True, stream=True).events()
    assert chunks[0]["choices"][0]["prompt_token_ids"] == [1, 2, 3, 4, 5]
    assert [id for chunk in chunks for id in chunk["choices"][0].get("token_ids", [])] == ids
