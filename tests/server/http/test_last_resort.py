"""What is no Exception, such as a panic of native code, is still an answer, a line of the log and a count."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import MutableMapping
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from server.api.default_dialect import OPENAI
from server.http.dialect import Dialects
from server.http.guard import Guard
from server.metrics import Metrics
from server.settings.types import ServerSettings


class PanicException(BaseException):
    """As pyo3 raises it."""


def answer_of(error: BaseException) -> list[MutableMapping[str, Any]]:
    """What a client is sent when the application raises `error`."""
    sent: list[MutableMapping[str, Any]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise error

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "GET", "path": "/v1/models", "headers": [(b"host", b"localhost")], "state": {},
    }  # fmt: skip
    asyncio.run(Guard(app, ServerSettings(), Dialects(OPENAI))(scope, receive, send))
    return sent


def test_a_panic_is_a_500_in_the_envelope_with_an_id_and_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    start, body = answer_of(PanicException("index out of bounds"))
    assert start["status"] == 500
    assert any(name == b"x-request-id" and value for name, value in start["headers"])
    assert json.loads(body["body"])["error"]["type"] == "server_error"
    assert b"bounds" not in body["body"]
    assert [record.status for record in caplog.records if record.name == "configi.access"] == [500]  # type: ignore[attr-defined]
    assert any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize("error", [asyncio.CancelledError, SystemExit, KeyboardInterrupt])
def test_what_ends_a_request_or_the_server_goes_on(error: type[BaseException]) -> None:
    with pytest.raises(error):
        answer_of(error())


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(PanicException, "internal"), (ValueError, "internal"), (asyncio.CancelledError, "cancelled")],
)
def test_a_panic_counts_as_our_failure_and_not_as_a_client_that_left(error: type[BaseException], outcome: str) -> None:
    metrics = Metrics()
    with pytest.raises(error), metrics.request("tiny"):
        raise error
    assert f'configi_requests_total{{model="tiny",outcome="{outcome}"}} 1.0' in metrics.render([]).decode()
