"""Inputs that only the whole server can judge: real catalog, template, tokenizer and engine behind a real socket.

The numbers are those of the other tests of bad inputs; after each of them the next good request is served.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.running import Running, serving, serving_command, serving_script
from tests.support.tiny_model import VOCAB_SIZE, write_tiny_model

CONTEXT = 512


@pytest.fixture(scope="module")
def one_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("whole")
    # A folder of this name where the server stands must not be taken for a model.
    write_tiny_model(folder / "org" / "model", context=CONTEXT)
    with serving_command(folder, folder / "org" / "model") as up:
        yield up


@pytest.fixture
def server(one_server: Running) -> Iterator[Running]:
    yield one_server
    one_server.assert_still_serves()


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def prompt_of(server: Running, tokens: int) -> str:
    """A text that is so many tokens long with the template around it."""
    text = ""
    while (count := server.post("/tokenize", {"messages": [user(text)]})[1]["count"]) < tokens:
        text += "x" * (tokens - count)
    assert count == tokens
    return text


PARTS = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
SERVED: dict[str, dict[str, Any]] = {
    "43 empty content": {"messages": [user("")]},
    "43 blank content": {"messages": [user(" \n")]},
    "29 control characters": {"messages": [user("a\x00\x1b[31m\x7f")]},
    "46 special tokens as text": {"messages": [user("<|im_end|>\n<|im_start|>system\n<|endoftext|>")]},
    "48 more than the context": {"max_tokens": 2**31},
    "50 -1": {"max_tokens": -1},
    "51 temperature 0": {"temperature": 0},
    "51 temperature 1e-300": {"temperature": 1e-300},
    "51 temperature 2": {"temperature": 2},
    "52 top_k of 32 bits": {"top_k": 2**31},
    "52 the least top_p": {"top_p": 1e-300},
    "52 min_p 1": {"min_p": 1},
    "53 n 8": {"n": 8},
    "54 seed -1": {"seed": -1},
    "55 bias on the last token": {"logit_bias": {str(VOCAB_SIZE - 1): 100}},
    "56 stop of 16 strings": {"stop": ["stop" * 64] * 16},
    "57 20 alternatives": {"logprobs": True, "top_logprobs": 20},
    "no stop": {"stop": []},
    "top_p 0": {"top_p": 0},
    "whole numbers as floats": {"max_tokens": 3.0, "top_k": -1.0, "n": 1.0},
    "a tool": {"tools": [{"type": "function", "function": {"name": "f"}}]},
    "calls, results and reasoning": {
        "messages": [
            user("a"),
            {"role": "assistant", "reasoning_content": "b", "tool_calls": [{"id": "c", "function": {"name": "f"}}]},
            {"role": "tool", "tool_call_id": "c", "content": None},
        ]
    },
    "a tool's result to no call": {"messages": [user("a"), {"role": "tool", "tool_call_id": "c", "content": "b"}]},
    "nothing but nulls": {"messages": [{"role": "user", "content": None}]},
    "several system messages": {"messages": [{"role": "system", "content": c} for c in "ab"] + [user("c")]},
    "system in the middle": {"messages": [user("a"), {"role": "system", "content": "b"}, user("c")]},
    "a role for developers": {"messages": [{"role": "developer", "content": PARTS}, user("b")]},
    "prefill": {"messages": [user("a"), {"role": "assistant", "content": "b "}]},
    "an assistant without content": {"messages": [user("a"), {"role": "assistant"}, user("b")]},
    "a tool's result in parts": {"messages": [user("a"), {"role": "tool", "content": PARTS}]},
    "a blank model": {"model": " "},
    "nulls": dict.fromkeys(("seed", "stop", "logprobs", "temperature", "tools", "n", "stream", "model")),
}  # fmt: skip


@pytest.mark.parametrize("case", SERVED)
@pytest.mark.parametrize("stream", [False, True])
def test_an_odd_but_legal_request_is_served(server: Running, case: str, stream: bool) -> None:
    status, answer = server.chat(**SERVED[case] | {"stream": stream})
    assert status == 200, answer
    if stream:
        assert answer.endswith("data: [DONE]\n\n")
        assert '"error"' not in answer


@pytest.mark.parametrize("prompt", ["", [""], " ", [0], "<|im_end|>"])
def test_a_completion_of_nothing_is_an_answer(server: Running, prompt: Any) -> None:
    status, answer = server.post("/v1/completions", {"prompt": prompt, "max_tokens": 2})
    assert (status, answer["usage"]["completion_tokens"]) == (200, 2)


def test_47_and_48_a_prompt_fills_the_context_to_its_last_token_and_no_further(server: Running) -> None:
    text = prompt_of(server, CONTEXT - 3)
    status, answer = server.chat(messages=[user(text)], max_tokens=32_000)
    assert (status, answer["choices"][0]["finish_reason"]) == (200, "length")
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (CONTEXT - 3, 3)
    assert server.chat(messages=[user(text + "xx")], max_tokens=32_000)[1]["usage"]["completion_tokens"] == 1
    status, answer = server.chat(messages=[user(text + "xxx")])
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    assert answer["error"]["message"].count(str(CONTEXT)) == 2


def test_the_log_has_the_peak_of_each_prompt_as_foretold_and_as_measured(server: Running) -> None:
    server.assert_still_serves()
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    line = [line for line in lines if "peak_measured_mb" in line][-1]
    assert line["request_id"]
    assert line["peak_predicted_mb"] == pytest.approx(line["peak_measured_mb"], abs=2)


@pytest.mark.parametrize("piece", ["a", "a b", "<|im_end|>", "\n"])
def test_49_eight_megabytes_of_text_are_refused_before_they_are_read(server: Running, piece: str) -> None:
    # Just below the limit of a body.
    text = piece * (7_990_000 // len(json.dumps(piece)[1:-1]))
    for path, body in (
        ("/v1/chat/completions", {"messages": [user(text)]}),
        ("/v1/completions", {"prompt": text}),
        ("/tokenize", {"content": text}),
        ("/tokenize", {"messages": [user(text)]}),
    ):
        status, answer = server.post(path, body)
        assert (status, answer["error"]["code"]) == (400, "context_length_exceeded"), path
        assert answer["error"]["param"] in body


REFUSED: dict[str, tuple[dict[str, Any], str, int]] = {
    "55 a token beyond the vocabulary": ({"logit_bias": {str(VOCAB_SIZE): 1}}, "logit_bias", 400),
    "63 unknown": ({"model": "nope"}, "model", 404),
    "63 a folder that is there": ({"model": "org/model"}, "model", 404),
    "63 above": ({"model": "../../etc"}, "model", 404),
    "63 absolute": ({"model": "/etc"}, "model", 404),
    "63 a revision": ({"model": "org/model@main"}, "model", 404),
    "63 10 kB": ({"model": "x" * 10_000}, "model", 404),
    "64 another case": ({"model": "TINY"}, "model", 404),
    "64 a trailing space": ({"model": "tiny "}, "model", 404),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_cannot_be_meant_is_refused_by_name(server: Running, case: str, stream: bool) -> None:
    fields, param, status = REFUSED[case]
    got, answer = server.chat(**fields, stream=stream)
    assert (got, answer["error"]["param"]) == (status, param)
    if case.startswith("64"):
        assert "did you mean 'tiny'?" in answer["error"]["message"]


def test_45_a_template_that_refuses_says_why(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    strict = (
        "{% if messages|length > 1 %}{{ raise_exception('One message only.') }}{% endif %}{{ messages[0].content }}"
    )
    (model / "chat_template.jinja").write_text(strict)
    with serving_script(tmp_path, model) as server:
        status, answer = server.chat(messages=[user("a"), {"role": "assistant", "content": "b"}, user("c")])
        assert (status, answer["error"]["param"]) == (400, "messages")
        assert answer["error"]["message"].endswith("One message only.")
        server.assert_still_serves()


BROKEN: dict[str, tuple[str, bytes]] = {
    "65 a list": ("config.json", b"[]"),
    "65 half an object": ("config.json", b"{"),
    "65 no model_type": ("config.json", b"{}"),
    "65 a path as model_type": ("config.json", b'{"model_type": "../../os"}'),
    "65 a module as model_type": ("config.json", b'{"model_type": "cache"}'),
    "66 empty": ("model.safetensors", b""),
    "66 zeroed": ("model.safetensors", bytes(1000)),
    "66 a huge header": ("model.safetensors", b"\xff" * 8 + b"{"),
}


def test_65_and_66_a_damaged_model_is_one_sentence_and_served_once_it_is_mended(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    with serving(tmp_path, model, lifecycle={"failed_retry_s": 0}) as server:
        for case, (name, damage) in BROKEN.items():
            good = (model / name).read_bytes()
            (model / name).write_bytes(damage)
            status, answer = server.chat()
            assert (status, answer["error"]["code"]) == (503, "model_unavailable"), case
            assert str(tmp_path) not in answer["error"]["message"], case
            assert "\n" not in answer["error"]["message"], case
            assert server.get("/health")[0] == 200
            (model / name).write_bytes(good)
        server.assert_still_serves()


@pytest.mark.slow
def test_60_requests_that_are_all_different_leave_nothing_behind(server: Running) -> None:
    process = psutil.Process(server.process.pid)

    def some(start: int) -> int:
        for i in range(start, start + 400):
            fields: dict[str, Any] = {f"unknown{i}": i, "model": f"gpt-{i}", "user": str(i), "seed": i}
            fields |= {"top_p": 1 / (i + 2), "temperature": 1 + 1 / (i + 2), "logit_bias": {str(i % VOCAB_SIZE): 1}}
            assert server.chat(**fields, stop=[f"{i}", f"{i} again"], max_tokens=1)[0] == 200
        return sum(p.memory_info().rss for p in [process, *process.children()])

    warm = some(0)
    assert some(400) - warm < 8 * 2**20
