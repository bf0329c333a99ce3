# /// script
# dependencies = ["open-webui"]
# [tool.driver]
# client = "Open WebUI"
# apis = ["chat"]
# ///
"""Open WebUI's backend with the server as its one connection: a first user signs up and asks through its API.

It is started in a folder of its own, and needs minutes for its first start. A PyTorch for CPUs is enough for it.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
from drive import CAPITAL, DEGREES, FORM, KEY, MODEL, PLACE, SCHEMA, TOO_LONG, V1, WEATHER, Lacks, feature, main

_START_S = 250
_SETTINGS = {
    "DATA_DIR": str(Path("data").absolute()),
    "OPENAI_API_BASE_URL": V1,
    "OPENAI_API_KEY": KEY,
    "ENABLE_OLLAMA_API": "false",
    # So that it asks no model hub.
    "OFFLINE_MODE": "true",
    "HF_HUB_OFFLINE": "1",
    "RAG_EMBEDDING_ENGINE": "openai",
    "WEBUI_SECRET_KEY": "of-a-test",
}


def _free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def backend():
    """Its address, with nobody signed up."""
    port = _free_port()
    program = str(Path(sys.executable).with_name("open-webui"))
    command = [program, "serve", "--host", "127.0.0.1", "--port", str(port)]
    with Path("backend.log").open("w") as log:
        process = subprocess.Popen(command, env=os.environ | _SETTINGS, stdout=log, stderr=log)
    try:
        yield _awaited(process, f"http://127.0.0.1:{port}")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def _awaited(process, base):
    end = time.monotonic() + _START_S
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{base}/health").status_code == 200:
                return base
        time.sleep(0.5)
    raise AssertionError(Path("backend.log").read_text()[-2000:])


def post(path, body):
    reply = client.post(path, json=body)
    return reply.json() if reply.status_code == 200 else {"refused": reply.text}


def ask(content, model=MODEL, **more):
    return {"model": model, "messages": [{"role": "user", "content": content}], "stream": False, **more}


@feature
def plain():
    listed = client.get("/api/models").json()["data"]
    assert MODEL in [model["id"] for model in listed], listed
    return post("/api/chat/completions", ask(CAPITAL))["choices"][0]["message"]["content"]


@feature
def stream():
    pieces = []
    with client.stream("POST", "/api/chat/completions", json=ask(CAPITAL, stream=True)) as reply:
        for line in reply.iter_lines():
            if line.startswith("data: {"):
                choices = json.loads(line.removeprefix("data: ")).get("choices") or [{}]
                pieces.append(choices[0].get("delta", {}).get("content") or "")
    return pieces


@feature
def tools():
    """The client's own, as its API passes them on."""
    tool = {"type": "function", "function": {"name": "weather", "parameters": PLACE}}
    asked = ask(WEATHER, tools=[tool])
    said = post("/api/chat/completions", asked)["choices"][0]["message"]
    results = [{"role": "tool", "tool_call_id": call["id"], "content": DEGREES} for call in said["tool_calls"]]
    asked["messages"] += [said, *results]
    functions = [call["function"] for call in said["tool_calls"]]
    return {
        "calls": [[function["name"], json.loads(function["arguments"])] for function in functions],
        "text": post("/api/chat/completions", asked)["choices"][0]["message"]["content"],
    }


@feature
def structured():
    schema = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA, "strict": True}}
    said = post("/api/chat/completions", ask(FORM, response_format=schema))["choices"][0]["message"]
    return json.loads(said["content"])


@feature
def usage():
    used = post("/api/chat/completions", ask(CAPITAL))["usage"]
    return [used["prompt_tokens"], used["completion_tokens"], used["prompt_tokens_details"]["cached_tokens"]]


@feature
def overflow():
    return {"message": post("/api/chat/completions", ask(TOO_LONG))["refused"]}


@feature
def unknown_model():
    assert "not found" in post("/api/chat/completions", ask(CAPITAL, "nobody"))["refused"]
    raise Lacks("it refuses by its own list of models")


@feature
def wrong_key():
    """As an administrator tries a connection."""
    return {"message": post("/openai/verify", {"url": V1, "key": "wrong"})["refused"]}


with backend() as base, httpx.Client(base_url=base, timeout=60) as client:
    person = {"name": "Ada", "email": "ada@example.org", "password": "Of-a-test-1"}
    client.headers["Authorization"] = f"Bearer {post('/api/v1/auths/signup', person)['token']}"
    main()
