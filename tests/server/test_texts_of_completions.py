"""The text of completions over the wire: no space lost, offsets that point into it, prompts that are read alone."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.kinds_of_tokenizer import BOS, KINDS, write_tokenizer
from tests.support.running import Running, serving
from tests.support.tiny_model import write_tiny_model

TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
PROMPT = "the capital of France is"


@pytest.fixture(scope="module", params=["a space is prepended", "metaspace first", "byte-level"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("server")
    backend = KINDS[request.param]()
    write_tiny_model(folder / "model", tokenizer=backend)
    model = json.loads((folder / "model" / "config.json").read_text())
    write_tokenizer(folder / "model", backend, TEMPLATE)
    (folder / "model" / "config.json").write_text(json.dumps(model))
    with serving(folder, folder / "model") as up:
        yield up


def complete(server: Running, **fields: Any) -> dict[str, Any]:
    status, answer = server.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 4, "temperature": 0} | fields)
    assert status == 200, answer
    choice: dict[str, Any] = answer["choices"][0]
    return choice | {"usage": answer["usage"]}


def streamed(server: Running, **fields: Any) -> list[dict[str, Any]]:
    body = json.dumps({"prompt": PROMPT, "max_tokens": 4, "temperature": 0, "stream": True} | fields).encode()
    request = urllib.request.Request(server.url + "/v1/completions", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        lines = [line[6:] for line in response.read().decode().splitlines() if line.startswith("data: {")]
    return [choice for line in lines for choice in json.loads(line)["choices"]]


def a_word(server: Running) -> int:
    """The token that " Paris" begins with behind a text."""
    both = server.post("/tokenize", {"content": f"{PROMPT} Paris"})[1]["tokens"]
    before = server.post("/tokenize", {"content": PROMPT})[1]["tokens"]
    assert both[: len(before)] == before
    token: int = both[len(before)]
    return token


def test_an_answer_goes_on_from_its_prompt_with_the_space_that_it_has(server: Running) -> None:
    forced = {"logit_bias": {str(a_word(server)): 100}, "max_tokens": 1}
    answer = complete(server, **forced)["text"]
    assert answer.startswith(" ")
    assert complete(server, echo=True, **forced)["text"] == PROMPT + answer
    assert "".join(choice["text"] for choice in streamed(server, echo=True, **forced)) == PROMPT + answer
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": PROMPT}]
    continued = server.post("/v1/chat/completions", {"messages": messages, "temperature": 0, **forced})[1]
    assert continued["choices"][0]["message"]["content"] == answer


@pytest.mark.parametrize(
    "prompt", [PROMPT, "\U0001f600 the capital", "\u65e5\u672c is", f"{BOS}Hello", "", "  Hello  world\n"]
)
@pytest.mark.parametrize("echo", [True, False])
def test_offsets_point_at_the_tokens_in_the_text(server: Running, prompt: str, echo: bool) -> None:
    asked = {"prompt": prompt, "echo": echo, "logprobs": 2}
    choice = complete(server, **asked)
    logprobs = choice["logprobs"]
    spelled = [
        (token, choice["text"][at : at + len(token)])
        for token, at in zip(logprobs["tokens"], logprobs["text_offset"], strict=True)
        # Parts of a character have no text of their own, and BOS that was added is not in the text.
        if "\ufffd" not in token and (token != BOS or token in prompt)
    ]
    assert spelled and all(token == there for token, there in spelled)
    assert logprobs["text_offset"] == sorted(logprobs["text_offset"])
    chunks = [chunk["logprobs"] for chunk in streamed(server, **asked) if chunk["logprobs"]]
    assert [at for chunk in chunks for at in chunk["text_offset"]] == logprobs["text_offset"]
    assert [token for chunk in chunks for token in chunk["tokens"]] == logprobs["tokens"]


@pytest.mark.parametrize("fields", [{}, {"echo": True}, {"echo": True, "logprobs": 1}, {"n": 2, "logprobs": 0}])
def test_a_prompt_is_read_without_an_answer(server: Running, fields: dict[str, Any]) -> None:
    choice = complete(server, max_tokens=0, **fields)
    text = PROMPT if fields.get("echo") else ""
    assert (choice["text"], choice["finish_reason"]) == (text, "length")
    assert choice["usage"]["completion_tokens"] == 0
    assert "".join(part["text"] for part in streamed(server, max_tokens=0, **fields) if part["index"] == 0) == text
    if "logprobs" in fields:
        scored = complete(server, max_tokens=1, **fields)["logprobs"]["tokens"][:-1]
        assert choice["logprobs"]["tokens"] == scored
