"""Base URLs as people paste them, and what a client is told whose path or method leads nowhere."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from anthropic import Anthropic, BadRequestError
from openai import OpenAI

from tests.support.scripted_service import MODEL, Running, ScriptedService, running

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(ScriptedService(), guarded=True) as up:
        yield up


@pytest.mark.parametrize("pasted", ["/v1/chat/completions", "/chat/completions/", "/v1/completions", "/v1/responses"])
def test_an_endpoint_pasted_as_base_url_is_understood(server: Running, pasted: str) -> None:
    with OpenAI(base_url=server.url + pasted, api_key="any", max_retries=0, timeout=20) as sdk:
        assert [model.id for model in sdk.models.list()] == [MODEL]
        chat = sdk.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hi"}])
        assert chat.choices[0].message.content
        response = sdk.responses.create(model=MODEL, input="hi")
        assert response.output_text
        # What stands behind a response's id is no endpoint.
        assert sdk.responses.retrieve(response.id).id == response.id
        assert sdk.responses.input_items.list(response.id).data


@pytest.mark.parametrize("pasted", ["/v1", "/v1/messages", "/messages"])
def test_so_is_one_of_anthropics(server: Running, pasted: str) -> None:
    with Anthropic(base_url=server.url + pasted, api_key="any", max_retries=0, timeout=20) as sdk:
        said = sdk.messages.create(model=MODEL, max_tokens=5, messages=[{"role": "user", "content": "hi"}])
        assert said.content
        assert sdk.messages.count_tokens(model=MODEL, messages=[{"role": "user", "content": "hi"}]).input_tokens


@pytest.mark.parametrize(
    ("path", "endpoint"),
    [
        ("/openai/v1/chat/completions", "/v1/chat/completions"),
        ("/openai/deployments/gpt-4/chat/completions?api-version=1", "/v1/chat/completions"),
        ("/v1/engines/davinci/completions", "/v1/completions"),
        ("/anthropic/v1/messages", "/v1/messages"),
        ("/api/v1/models", "/v1/models"),
    ],
)
def test_the_base_url_of_another_server_is_told_the_right_one(server: Running, path: str, endpoint: str) -> None:
    reply = server.send("POST", path, {})
    assert reply.status == 404
    assert f"the endpoint is {endpoint}," in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/nowhere", 404),
        ("/v1/audio/transcriptions", 400),
        ("/v1/embeddings", 400),
        ("/v1/responses/resp_1/cancel", 404),
        (CHAT, 415),
    ],
)
def test_who_does_not_read_a_body_does_not_judge_its_type(server: Running, path: str, status: int) -> None:
    reply = server.send("POST", path, b"--x", **{"content-type": "multipart/form-data; boundary=x"})
    assert (reply.status, "Content-Type" in reply.json()["error"]["message"]) == (status, status == 415)


def test_a_model_may_be_called_like_an_endpoint(server: Running) -> None:
    reply = server.send("GET", "/v1/models/embeddings")
    assert (reply.status, reply.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/v1/models", "GET, HEAD"),
        ("DELETE", "/v1/models/org/tiny-model", "GET, HEAD"),
        ("PUT", "/v1/responses", "GET, HEAD, POST"),
        ("POST", "/v1/responses/resp_1", "GET, HEAD, DELETE"),
        ("GET", "/v1/chat/completions/", "POST"),
        ("GET", "/v1/messages", "POST"),
        ("GET", "/api/chat", "POST, DELETE"),
    ],
)
def test_a_wrong_method_is_told_all_that_work(server: Running, method: str, path: str, allowed: str) -> None:
    reply = server.send(method, path, None if method == "GET" else {})
    assert (reply.status, reply.headers["allow"]) == (405, allowed)
    assert f"takes {allowed}." in reply.json()["error"]["message"]
    assert ("type" in reply.json()) is path.startswith("/v1/messages")


@pytest.mark.parametrize(("path", "allowed"), [("/v1/chat/completions", "POST"), ("/v1/models", "GET, HEAD")])
def test_options_tells_what_a_path_takes(server: Running, path: str, allowed: str) -> None:
    reply = server.send("OPTIONS", path)
    assert (reply.status, reply.headers["allow"], reply.body) == (204, allowed, b"")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/completion", "use POST /v1/completions"),
        ("/v1/rerank", "no model for ranking"),
        ("/v1/audio/transcriptions", "reads and writes text"),
        ("/v1/images/generations", "reads and writes text"),
        ("/v1/threads/abc/runs", "use POST /v1/responses"),
        ("/v1/files", "keeps no files"),
        ("/api/v1/chat", "use POST /v1/chat/completions"),
        ("/api/v1/models/load", "loaded by the first request"),
        ("/generate", "use POST /v1/completions"),
    ],
)
def test_what_only_other_servers_have_is_refused_with_what_does_it_here(server: Running, path: str, words: str) -> None:
    """Not as a 404, which clients take for a model that is missing."""
    reply = server.send("POST", path, {"model": MODEL})
    assert reply.status == 400
    assert reply.json()["error"]["message"].startswith(f"{path}"[:5]) and words in reply.json()["error"]["message"]


def test_so_are_anthropics_batches_in_its_own_envelope(server: Running) -> None:
    with Anthropic(base_url=server.url, api_key="any", max_retries=0, timeout=20) as sdk:
        for call in (
            lambda: sdk.messages.batches.create(requests=[]),
            lambda: sdk.messages.batches.retrieve("batch_1"),
        ):
            with pytest.raises(BadRequestError) as refused:
                call()
            assert refused.value.body["error"]["type"] == "invalid_request_error"
            assert "send each of its messages to POST /v1/messages" in refused.value.body["error"]["message"]
