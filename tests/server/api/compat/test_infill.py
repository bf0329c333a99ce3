"""POST /infill and `suffix` on a real socket, over a scripted service: fields in, llama-server's shapes out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from server.api.compat.table import INFILL
from server.chat.conversation import Infill, OtherFile
from tests.support.field_names import CHAT_FIELDS
from tests.support.scripted_service import MODEL, REPLY, Running, ScriptedService, running

TEXT = "".join(REPLY)
# As llama.vscode and llama.vim send it.
EDITOR = {
    "input_prefix": "def f():\n",
    "prompt": "    ret",
    "input_suffix": "\n",
    "input_extra": [{"filename": "a.py", "text": "x = 1\n", "time": 5}],
    "n_predict": 128,
    "n_indent": 4,
    "top_k": 40,
    "top_p": 0.99,
    "stream": False,
    "samplers": ["top_k", "top_p", "infill"],
    "cache_prompt": True,
    "id_slot": 0,
    "t_max_prompt_ms": 500,
    "t_max_predict_ms": 2500,
}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(ScriptedService(), guarded=True) as up:
        yield up


def infill(server: Running, **fields: Any) -> Any:
    reply = server.send("POST", "/infill", {"input_prefix": "a(", "input_suffix": ")", **fields})
    assert reply.status == 200, reply.body
    return reply.json()


def test_what_an_editor_sends_becomes_a_gap_between_two_texts(server: Running) -> None:
    reply = server.send("POST", "/infill", EDITOR)
    assert reply.status == 200
    asked = server.service.requests[-1]
    assert asked.prompt == Infill("def f():\n    ret", "\n", (OtherFile("a.py", "x = 1\n"),), room=128)
    options = asked.options
    assert (options.max_tokens, options.top_k, options.top_p, options.temperature) == (128, 40, 0.99, 0)
    assert (options.min_p, options.repetition_penalty, options.xtc_probability) == (0, 1, 0)
    assert (options.min_indent, options.time_limit_s) == (4, 2.5)
    assert reply.headers["x-configi-ignored"] == "input_extra.time"


def test_the_answer_is_llama_servers(server: Running) -> None:
    answer = infill(server)
    timings = answer.pop("timings")
    assert answer == {
        "index": 0,
        "content": TEXT,
        "tokens": [],
        "stop": True,
        "model": MODEL,
        "tokens_predicted": len(REPLY),
        "tokens_evaluated": 5,
        "prompt": "a(|)",
        "has_new_line": False,
        "truncated": False,
        "stop_type": "eos",
        "stopping_word": "",
        "tokens_cached": 2,
    }
    assert (timings["cache_n"], timings["prompt_n"], timings["predicted_n"]) == (2, 3, len(REPLY))
    assert {f"{what}_{of}" for what in ("prompt", "predicted") for of in ("ms", "per_token_ms", "per_second")} < set(
        timings
    )
    assert infill(server, n_predict=2)["stop_type"] == "limit"


def test_a_stream_is_pieces_and_a_last_event_and_nothing_behind_it(server: Running) -> None:
    reply = server.send("POST", "/infill", {"input_prefix": "a", "input_suffix": "", "stream": True})
    *pieces, last = reply.events()
    assert "".join(piece["content"] for piece in pieces) == TEXT
    assert all(piece["stop"] is False and piece["index"] == 0 for piece in pieces)
    assert (last["stop"], last["content"], last["tokens_predicted"]) == (True, "", len(REPLY))


def test_progress_is_data_where_it_is_asked_for(server: Running) -> None:
    asked = {"input_prefix": "a", "stream": True, "return_progress": True, "keep_alive": "5m"}
    first, *pieces, last = server.send("POST", "/infill", asked).events()
    progress = first["prompt_progress"]
    assert (progress["total"], progress["cache"], progress["processed"]) == (5, 2, 5)
    assert (first["content"], first["stop"], last["stop"]) == ("", False, True)
    assert not any("prompt_progress" in piece for piece in pieces)
    assert server.service.requests[-1].keep_alive_s == 300


def test_headers_tell_what_was_cached(server: Running) -> None:
    assert server.send("POST", "/infill", {"input_prefix": "a"}).headers["x-configi-cached-tokens"] == "2"


def test_an_answer_may_be_asked_for_in_parts(server: Running) -> None:
    fields = ["content", "timings/prompt_n", "tokens_cached", "none", "content/none"]
    assert infill(server, response_fields=fields) == {"content": TEXT, "timings/prompt_n": 3, "tokens_cached": 2}


def test_samplers_that_are_not_listed_are_off(server: Running) -> None:
    infill(server, temperature=0.5, top_k=5, samplers=["temperature"])
    options = server.service.requests[-1].options
    assert (options.temperature, options.top_k, options.top_p, options.min_p) == (0.5, 0, 1, 0)
    infill(server, temperature=0.5, samplers=["temperature", "infill", "dry"])
    assert server.service.requests[-1].options.temperature == 0.5
    infill(server, temperature=0.5, top_k=5)
    assert server.service.requests[-1].options.top_k == 5


def test_a_warm_up_reads_the_prompt_and_answers_nothing(server: Running) -> None:
    assert infill(server, n_predict=0, samplers=[], t_max_predict_ms=1)["content"] == ""
    assert server.service.requests[-1].options.max_tokens == 0


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input_prefix": 5}, "input_prefix"),
        ({"input_extra": "x"}, "input_extra"),
        ({"input_extra": [{"filename": "a"}]}, "input_extra.0.text"),
        ({"input_extra": [{"filename": 5, "text": "x"}]}, "input_extra.0.filename"),
        ({"samplers": ["magic"]}, "samplers"),
        ({"samplers": "edkypmxt"}, "samplers"),
        ({"n_indent": -1}, "n_indent"),
        ({"t_max_predict_ms": "x"}, "t_max_predict_ms"),
        ({"n_predict": -3}, "n_predict"),
        ({"n_probs": 5}, "n_probs"),
        ({"return_tokens": True}, "return_tokens"),
        ({"lora": [{"id": 0, "scale": 1}]}, "lora"),
        ({"n": 2}, "n"),
        ({"suffix": "x"}, "suffix"),
        ({"mirostat": 2}, "mirostat"),
        ({"messages": [{}]}, "messages"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(server: Running, fields: Any, param: str) -> None:
    reply = server.send("POST", "/infill", {"input_prefix": "a", "input_suffix": "b", **fields})
    assert (reply.status, reply.json()["error"]["param"]) == (400, param), reply.body


def test_every_field_of_llama_server_has_a_place() -> None:
    known = {*INFILL.works, *INFILL.accepted, *INFILL.refused, *INFILL.aliases, *INFILL.inside}
    assert [name for name in (*CHAT_FIELDS["llama-server"], *EDITOR) if name not in known] == []
    # One place each.
    assert not (set(INFILL.works) | set(INFILL.aliases)) & (set(INFILL.refused) | set(INFILL.accepted))


def test_a_failure_in_a_stream_is_its_last_event(server: Running) -> None:
    reply = server.send("POST", "/infill", {"input_prefix": "fail late", "stream": True})
    assert reply.status == 200
    *_, last = reply.events()
    assert last["error"]["code"] == "engine_failed"
    reply = server.send("POST", "/infill", {"input_prefix": "a", "model": "nobody", "stream": True})
    assert (reply.status, reply.json()["error"]["code"]) == (404, "model_not_found")


# ---- suffix


def test_a_suffix_makes_a_gap_of_a_completion(server: Running) -> None:
    reply = server.complete(prompt=["a(", "b("], suffix=")", max_tokens=2)
    assert reply.status == 200
    assert [request.prompt for request in server.service.requests[-2:]] == [Infill("a(", ")"), Infill("b(", ")")]
    assert [choice["text"] for choice in reply.json()["choices"]] == ["Paris is"] * 2
    assert server.complete(suffix="").status == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": [1, 2], "suffix": "x"}, "prompt"),
        ({"prompt": [[1], [2]], "suffix": "x"}, "prompt.0"),
        ({"echo": True, "suffix": "x"}, "echo"),
        ({"suffix": 5}, "suffix"),
    ],
)
def test_a_suffix_needs_a_text_before_it(server: Running, fields: Any, param: str) -> None:
    reply = server.complete(**fields)
    assert (reply.status, reply.json()["error"]["param"]) == (400, param), reply.body
