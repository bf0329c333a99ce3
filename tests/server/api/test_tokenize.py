"""/tokenize and /detokenize, as clients of llama-server and of vLLM ask."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.scripted_service import MODEL, Running, ScriptedService, running


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(ScriptedService()) as up:
        yield up


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"content": "ab"}, [97, 98]),
        ({"content": "ab", "add_special": True}, [1, 97, 98]),
        ({"prompt": "ab"}, [1, 97, 98]),
        ({"prompt": "ab", "add_special_tokens": False}, [97, 98]),
        ({"messages": [{"role": "user", "content": "ab"}], "model": MODEL}, [97, 98]),
        ({"content": ""}, []),
    ],
)
def test_tokenize_takes_the_names_of_llama_server_and_of_vllm(server: Running, body: Any, tokens: list[int]) -> None:
    reply = server.send("POST", "/tokenize", body)
    assert reply.json() == {"tokens": tokens, "count": len(tokens), "max_model_len": 4096}


def test_detokenize_is_the_way_back(server: Running) -> None:
    assert server.send("POST", "/detokenize", {"tokens": [97, 98]}).json() == {"content": "ab", "prompt": "ab"}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "content"),
        ("/tokenize", {"content": "a", "prompt": "b"}, "prompt"),
        ("/tokenize", {"content": 5}, "content"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"content": "a", "with_pieces": True}, "with_pieces"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens.0"),
        ("/detokenize", {"tokens": ["a"]}, "tokens.0"),
        ("/detokenize", {"tokens": [1.5]}, "tokens.0"),
    ],
)
def test_a_bad_tokenizer_request_is_a_400_that_names_the_field(
    server: Running, path: str, body: Any, param: str
) -> None:
    reply = server.send("POST", path, json.dumps(body).encode())
    assert (reply.status, reply.json()["error"]["param"]) == (400, param)
