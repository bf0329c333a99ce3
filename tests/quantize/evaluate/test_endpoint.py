"""What needs no logits, asked of an endpoint on a real socket whose answers the test writes."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from quantize.evaluate.endpoint import Endpoint, EndpointError
from quantize.evaluate.tasks.tool_calls import TOOLS, is_valid
from tests.support.running import ROOT

WEATHER = {"city": "Lisbon", "day": "tomorrow"}


@pytest.mark.parametrize(
    ("name", "arguments", "valid"),
    [
        ("get_weather", WEATHER, True),
        ("get_weather", json.dumps(WEATHER), True),
        ("get_weather", {**WEATHER, "unit": "C"}, False),
        ("get_weather", {"city": "Lisbon"}, False),
        ("get_weather", {"city": "Lisbon", "day": "monday"}, False),
        ("get_weather", "{not json", False),
        ("get_weather", None, False),
        ("weather", WEATHER, False),
        ("set_timer", {"minutes": 9}, True),
        ("set_timer", {"minutes": True}, False),
        ("set_timer", {"minutes": 9.5}, False),
        ("search_files", {"pattern": "*.py", "folders": "src"}, False),
    ],
)
def test_a_call_is_valid_where_its_declaration_allows_it(name: str, arguments: Any, valid: bool) -> None:
    assert is_valid(name, arguments, TOOLS) is valid


# What a server that is not OpenAI's may say, and what of it a user is told.
BROKEN_STREAMS = {
    "an error": ('data: {"error": {"message": "out of memory"}}', "out of memory"),
    "a list": ("data: [1]", "does not answer as OpenAI's"),
    "another usage": ('data: {"choices": [], "usage": "x"}', "does not answer as OpenAI's"),
    "a negative count": ('data: {"choices": [], "usage": {"completion_tokens": -5}}', "does not answer as OpenAI's"),
    "no JSON": ("data: {", "does not answer as OpenAI's"),
    "a page": ("<html>hello</html>", "ended its stream"),
    "half a reply": ('data: {"choices": [{"delta": {"content": "a"}}]}', "ended its stream"),
}
BROKEN_MESSAGES: dict[str, Any] = {
    "a number": 5,
    "calls of text": {"tool_calls": "x"},
    "calls of nothing": {"tool_calls": [None]},
    "a call without a function": {"tool_calls": [{}]},
    "a call of a list": {"tool_calls": [{"function": {"name": ["a"], "arguments": "{}"}}]},
}


class Served(BaseHTTPRequestHandler):
    """Calls a tool in answer to questions about weather, else says the letter C; a broken answer to its name."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if asked["model"] in BROKEN_STREAMS:
            self._send(BROKEN_STREAMS[asked["model"]][0].encode() + b"\n\n")
        elif asked["model"] in BROKEN_MESSAGES:
            self._answer(200, {"choices": [{"message": BROKEN_MESSAGES[asked["model"]]}]})
        elif asked["model"] == "small" and len(json.dumps(asked)) > 10_000:
            self._answer(400, {"error": {"message": "longer than the context"}})
        elif asked["model"] not in ("m", "small"):
            self._answer(404, {"error": {"message": "no such model"}})
        elif asked.get("stream"):
            self._stream()
        else:
            self._answer(200, {"choices": [{"message": self._message(asked)}]})

    def _message(self, asked: dict[str, Any]) -> dict[str, Any]:
        said = asked["messages"][-1]["content"]
        if asked.get("tools") and ("weather" in said or "raining" in said):
            arguments = json.dumps(WEATHER if "Lisbon" in said else {"town": "Bergen"})
            return {"content": None, "tool_calls": [{"function": {"name": "get_weather", "arguments": arguments}}]}
        return {"content": "Answer: C"}

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        words = [{"choices": [{"delta": {"content": word}}]} for word in ("Once", " upon")]
        end = {"choices": [{"delta": {}, "finish_reason": "length"}], "usage": {"completion_tokens": 2}}
        for event in [*words, end]:
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        self._send(json.dumps(body).encode(), status)

    def _send(self, content: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Served) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


def ask(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "quantize", "eval-endpoint", url, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_a_served_model_is_measured(url: str, tmp_path: Path) -> None:
    questions = tmp_path / "even_test.csv"
    questions.write_text("Which is even?,1,3,4,5,C\nWhich is odd?,1,2,4,6,A\n")
    done = ask(url, "--model", "m", "--mmlu", str(questions), "--generate", "2", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["tool_calls"] == {"asked": 8, "called": 2, "valid": 1}
    assert (told["mmlu_chat"]["right"], told["mmlu_chat"]["asked"]) == (1, 2)
    assert (told["reply"]["tokens"], told["reply"]["finish"]) == (2, "length")
    assert "needles" not in told


def test_an_endpoint_that_refuses_or_is_not_there_is_one_sentence(url: str) -> None:
    refused = ask(url, "--model", "other", "--generate", "0")
    assert refused.returncode == 1
    assert "answered 404" in refused.stderr
    streamed = ask(url, "--model", "other", "--no-tools")
    assert "answered 404: " in streamed.stderr
    assert "no such model" in streamed.stderr
    absent = ask("http://127.0.0.1:9/v1", "--model", "m")
    assert absent.returncode == 1
    assert "cannot be reached" in absent.stderr
    assert "Traceback" not in absent.stderr + refused.stderr


def test_what_fails_half_way_costs_no_figure_before_it(url: str) -> None:
    done = ask(url, "--model", "small", "--needles", "1", "--json")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert told["tool_calls"]["asked"] == 8
    assert "needles" not in told
    assert "longer than the context" in told["failed"]
    assert "longer than the context" in done.stderr


@pytest.mark.parametrize("model", BROKEN_STREAMS)
def test_a_stream_that_is_none_is_not_timed_but_said(model: str, url: str) -> None:
    with pytest.raises(EndpointError, match=BROKEN_STREAMS[model][1]):
        Endpoint(url, model).timed(8)


@pytest.mark.parametrize("model", BROKEN_MESSAGES)
def test_an_answer_in_another_form_is_one_sentence(model: str, url: str) -> None:
    with pytest.raises(EndpointError, match="does not answer as OpenAI's"):
        Endpoint(url, model).calls("Is it raining?", TOOLS)


@pytest.mark.parametrize("key", ["ключ", "a\nb"])
def test_a_key_that_no_header_carries_is_refused_and_not_told(key: str, url: str) -> None:
    with pytest.raises(EndpointError, match="API key has characters") as refused:
        Endpoint(url, "m", key)
    assert key not in refused.value.message


def test_an_address_that_is_none_is_one_sentence() -> None:
    with pytest.raises(EndpointError, match="cannot be reached"):
        Endpoint("http://[::1", "m").timed(1)


def test_nothing_to_measure_is_a_wrong_command(url: str) -> None:
    done = ask(url, "--model", "m", "--no-tools", "--generate", "0")
    assert done.returncode == 2
    assert "nothing to measure" in done.stderr
