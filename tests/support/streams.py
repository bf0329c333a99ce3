"""Streams and gauges of a running server, read event by event."""

from __future__ import annotations

import contextlib
import http.client
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from tests.support.running import Running

# Guards against a test that hangs, on a busy machine too; it measures nothing.
_FOR_EVER_S = 30
ENDLESS = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": -1, "stream": True}


def send(server: Running, **fields: Any) -> http.client.HTTPConnection:
    """A connection with the request sent and no answer read."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    body = json.dumps(ENDLESS | fields)
    connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
    return connection


class Stream:
    """One streaming chat request, read event by event."""

    def __init__(self, server: Running, **fields: Any) -> None:
        self.connection = send(server, **fields)
        self.response = self.connection.getresponse()
        assert self.response.status == 200

    def events(self) -> Iterator[Any]:
        """The payloads of the data lines, `[DONE]` as a string; ends with the stream."""
        for line in self.response:
            if line.startswith(b"data: "):
                yield json.loads(line[6:]) if line != b"data: [DONE]\n" else "[DONE]"

    def text(self) -> Any:
        """The next event that holds text."""
        return next(e for e in self.events() if e != "[DONE]" and e["choices"][0]["delta"].get("content"))

    def leave(self) -> None:
        self.connection.close()
        self.response.close()


@contextlib.contextmanager
def stream(server: Running, **fields: Any) -> Iterator[Stream]:
    s = Stream(server, **fields)
    try:
        yield s
    finally:
        s.leave()


def until(condition: Callable[[], bool]) -> None:
    """Polls what only an outside look can tell."""
    deadline = time.monotonic() + _FOR_EVER_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def running_sequences(server: Running) -> float:
    return gauge(server, "configi_engine_running")


def waiting_sequences(server: Running) -> float:
    return gauge(server, "configi_engine_waiting")


def gauge(server: Running, name: str, model: str = "tiny") -> float:
    return samples(server)[f'{name}{{model="{model}"}}']


def samples(server: Running) -> dict[str, float]:
    """What /metrics tells, by name and labels as they are written there."""
    lines = server.get("/metrics")[1].splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def assert_ends_with_error(s: Stream, words: str) -> None:
    *_, error, done = s.events()
    assert words in error["error"]["message"]
    assert set(error["error"]) == {"message", "type", "param", "code"}
    assert done == "[DONE]"
