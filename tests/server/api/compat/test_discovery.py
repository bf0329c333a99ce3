"""What editors ask before they use a server, on a real socket, as they ask Ollama, llama-server, LM Studio and vLLM."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from server.chat.description import Description
from server.models.status import ModelStatus
from tests.support import http_raw
from tests.support.scripted_service import MODEL, Running, ScriptedService, running

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"
ABOUT = Description(
    architecture="qwen3",
    weight_bytes=11_000_000_000,
    bits=4,
    dtype="bfloat16",
    tools=True,
    reasoning=True,
    infill=True,
    special={"bos_token": "<s>", "eos_token": "</s>"},
    template=TEMPLATE,
    digest="ab" * 32,
    modified=1_700_000_000.0,
)
READY = ModelStatus(MODEL, "ready", "in memory", context_length=40_960, context_length_now=8192)


@pytest.fixture(scope="module")
def one_server() -> Iterator[Running]:
    with running(ScriptedService(), guarded=True) as up:
        yield up


@pytest.fixture
def server(one_server: Running) -> Running:
    one_server.service.about, one_server.service.state = ABOUT, READY
    return one_server


def get(server: Running, path: str) -> Any:
    reply = server.send("GET", path)
    assert reply.status == 200, reply.body
    return reply.json()


def show(server: Running, **body: object) -> Any:
    reply = server.send("POST", "/api/show", body)
    assert reply.status == 200, reply.body
    return reply.json()


# ---- Ollama


def test_the_version_is_one_that_copilot_and_codex_take(server: Running) -> None:
    version = get(server, "/api/version")["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert tuple(map(int, version.split("."))) >= (0, 13, 4)


def test_tags_list_the_models_as_ollama_does(server: Running) -> None:
    assert get(server, "/api/tags") == {
        "models": [
            {
                "name": MODEL,
                "model": MODEL,
                "modified_at": "2023-11-14T22:13:20+00:00",
                "size": 11_000_000_000,
                "digest": "ab" * 32,
                "details": {
                    "parent_model": "",
                    "format": "safetensors",
                    "family": "qwen3",
                    "families": ["qwen3"],
                    "parameter_size": "",
                    "quantization_level": "4-bit",
                },
            }
        ]
    }


@pytest.mark.parametrize("body", [{"model": MODEL}, {"name": MODEL}, {"model": "gpt-5"}, {}, {"model": ""}])
def test_show_tells_the_context_and_what_the_model_can(server: Running, body: dict[str, str]) -> None:
    shown = show(server, **body)
    info = shown["model_info"]
    assert info["general.architecture"] == "qwen3"
    assert info["qwen3.context_length"] == 40_960
    assert shown["capabilities"] == ["completion", "tools", "thinking", "insert"]


@pytest.mark.parametrize(
    ("lacks", "capabilities"),
    [
        ({"tools": False}, ["completion", "thinking", "insert"]),
        ({"tools": False, "reasoning": False, "infill": False}, ["completion"]),
    ],
)
def test_capabilities_are_those_that_the_files_tell(server: Running, lacks: Any, capabilities: list[str]) -> None:
    server.service.about = msgspec.structs.replace(ABOUT, **lacks)
    assert show(server, model=MODEL)["capabilities"] == capabilities


def test_a_model_whose_files_are_not_here_claims_nothing(server: Running) -> None:
    server.service.about = None
    server.service.state = ModelStatus(MODEL, "absent", "not loaded yet")
    shown = show(server, model=MODEL)
    assert (shown["capabilities"], shown["model_info"]) == (
        ["completion"],
        {"general.architecture": "unknown", "general.basename": MODEL},
    )
    assert get(server, "/api/tags")["models"][0]["size"] == 0
    assert get(server, "/api/ps") == {"models": []}
    assert get(server, "/api/v0/models")["data"][0]["capabilities"] == []
    assert get(server, "/props")["default_generation_settings"] == {"n_ctx": None}
    assert server.send("GET", "/tokenizer_info").status == 503


def test_ps_has_what_is_in_memory_with_the_context_that_fits(server: Running) -> None:
    (running_now,) = get(server, "/api/ps")["models"]
    assert (running_now["name"], running_now["context_length"]) == (MODEL, 8192)
    assert running_now["size_vram"] == 11_000_000_000


@pytest.mark.parametrize(
    ("path", "instead"),
    [
        ("/api/chat", "/v1/chat/completions"),
        ("/api/generate", "/v1/chat/completions"),
        ("/api/embed", "embeddings"),
        ("/api/pull", "config.toml"),
    ],
)
def test_the_rest_of_ollamas_protocol_is_refused_with_what_does_it_here(
    server: Running, path: str, instead: str
) -> None:
    reply = server.send("POST", path, {"model": MODEL})
    assert reply.status == 400
    assert instead in reply.json()["error"]["message"]


def test_an_unknown_model_is_a_404(server: Running) -> None:
    assert server.send("POST", "/api/show", {"model": "nobody"}).status == 404
    for path in ("/props?model=nobody", "/api/v0/models/nobody", "/tokenizer_info?model=nobody", "/v1/models/nobody"):
        assert server.send("GET", path).json()["error"]["code"] == "model_not_found", path


# ---- llama-server, LM Studio, vLLM


@pytest.mark.parametrize("query", ["", f"?model={MODEL}&autoload=false", "?model="])
def test_props_tell_the_context_that_fits_and_no_path(server: Running, query: str) -> None:
    props = get(server, f"/props{query}")
    assert props["default_generation_settings"]["n_ctx"] == 8192
    assert (props["model_path"], props["model_alias"]) == (MODEL, MODEL)
    assert props["total_slots"] == server.service.settings.engine.max_concurrent
    assert props["modalities"] == {"vision": False, "audio": False}
    assert (props["chat_template"], props["eos_token"]) == (TEMPLATE, "</s>")
    server.service.state = replace(READY, context_length_now=None)
    assert get(server, "/props")["default_generation_settings"]["n_ctx"] == 40_960


def test_lm_studios_list_has_both_contexts(server: Running) -> None:
    (model,) = get(server, "/api/v0/models")["data"]
    assert model == get(server, f"/api/v0/models/{MODEL}")
    assert model == {
        "id": MODEL,
        "object": "model",
        "type": "llm",
        "publisher": "org",
        "arch": "qwen3",
        "compatibility_type": "mlx",
        "quantization": "4bit",
        "state": "loaded",
        "max_context_length": 40_960,
        "loaded_context_length": 8192,
        "capabilities": ["tool_use"],
    }
    server.service.state = replace(READY, state="absent", context_length_now=None)
    (model,) = get(server, "/api/v0/models")["data"]
    assert (model["state"], "loaded_context_length" in model) == ("not-loaded", False)


def test_lm_studios_completions_are_openais(server: Running) -> None:
    chat = server.send("POST", "/api/v0/chat/completions", {"messages": [{"role": "user", "content": "hi"}]})
    assert chat.json()["object"] == "chat.completion"
    text = server.send("POST", "/api/v0/completions", {"prompt": "hi"})
    assert text.json()["object"] == "text_completion"


def test_lm_evals_tokenizer_finds_what_it_reads(server: Running) -> None:
    info = get(server, "/tokenizer_info")
    assert (info["bos_token"], info["eos_token"], info["pad_token"]) == ("<s>", "</s>", None)
    assert (info["chat_template"], info["model_max_length"]) == (TEMPLATE, 40_960)
    tokens = server.send("POST", "/tokenize", {"prompt": "hi", "add_special_tokens": False}).json()
    assert (tokens["tokens"], tokens["max_model_len"]) == ([104, 105], 40_960)
    assert server.send("POST", "/detokenize", {"tokens": [104, 105]}).json()["prompt"] == "hi"


# ---- OpenAI's side


def test_the_model_list_tells_its_own_context_and_the_one_that_fits(server: Running) -> None:
    (model,) = get(server, "/v1/models")["data"]
    assert (model["context_length"], model["max_model_len"], model["context_length_now"]) == (40_960, 40_960, 8192)
    assert get(server, f"/v1/models/{MODEL}") == model
    # llama.vscode takes a server with `meta` for llama.cpp.
    assert "meta" not in model and model["owned_by"] == "configi"


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings", "/api/v0/embeddings", "//v1//embeddings?x=1"])
def test_embeddings_are_refused_with_a_sentence(server: Running, path: str) -> None:
    # As the SDKs of OpenAI and LangChain ask.
    body = {"model": MODEL, "input": [[1, 2]], "encoding_format": "base64", "dimensions": 8, "user": "me"}
    reply = server.send("POST", path, body)
    error = reply.json()["error"]
    assert (reply.status, error["type"]) == (400, "invalid_request_error")
    assert "No embedding model is configured" in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/models", None),
        ("GET", "//models?limit=1000", None),
        ("POST", "/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
        ("POST", "/completions", {"prompt": "hi"}),
        ("POST", "/responses", {"input": "hi"}),
        ("POST", "/messages?beta=true", {"max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}),
        ("POST", "/messages/count_tokens", {"messages": [{"role": "user", "content": "hi"}]}),
    ],
)
def test_paths_work_without_their_version_and_with_two(server: Running, method: str, path: str, body: Any) -> None:
    for base in ("", "/v1/v1/"):
        assert server.send(method, base + path, body).status == 200


@pytest.mark.parametrize("path", ["/api/version", "/api/tags", "/api/ps", "/api/v0/models"])
def test_editors_find_the_models_below_a_base_url_of_openais_too(server: Running, path: str) -> None:
    assert server.send("GET", f"/v1{path}").json() == server.send("GET", path).json()


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_ollama_has_not_is_not_there(server: Running, method: str) -> None:
    reply = server.send(method, "/api/blabla", {})
    assert (reply.status, reply.json()["error"]["type"]) == (404, "not_found_error")


@pytest.mark.parametrize("path", ["/health", "/props"])
def test_what_llama_vscode_asks_is_answered_below_a_base_url_of_openais_too(server: Running, path: str) -> None:
    assert server.send("GET", f"/v1{path}", None).status == 200


@pytest.mark.parametrize("path", ["/v1/responses", "/responses"])
def test_a_websocket_is_answered_by_a_plain_404_and_the_connection_goes_on(server: Running, path: str) -> None:
    upgrade = http_raw.request(
        "GET",
        path,
        connection="Upgrade",
        upgrade="websocket",
        sec_websocket_key="dGhlIHNhbXBsZSBub25jZQ==",
        sec_websocket_version="13",
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
        sock.sendall(upgrade)
        answer = http_raw.read_answer(sock)
        assert answer is not None and (answer.status, answer.error["type"]) == (404, "not_found_error")
        sock.sendall(http_raw.request("GET", "/v1/models", connection=None))
        again = http_raw.read_answer(sock)
        assert again is not None and again.status == 200
