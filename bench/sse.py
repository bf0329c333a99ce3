"""A client that notes when each piece of an answer came. One connection per request: mlx_lm.server keeps none."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2

from bench.prompts import Body

TIMEOUT_S = 300.0


class NoAnswer(Exception):
    """A request did not end as it must; one sentence."""


@dataclass(slots=True)
class Answer:
    """What came back. `times`: seconds since the request was sent, one for each chunk that holds text.

    `error`: what the server said is wrong, or `lost`: what happened to the connection.
    """

    status: int = 0
    text: str = ""
    times: list[float] = field(default_factory=list)
    seconds: float = 0.0
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    error: str = ""
    lost: str = ""

    @property
    def whole(self) -> bool:
        return self.finish_reason is not None and not self.error

    @property
    def ttft(self) -> float:
        """Seconds to the first text."""
        return self.times[0]

    @property
    def decode_rate(self) -> float:
        """Tokens a second after the first."""
        return (self.completion_tokens - 1) / (self.times[-1] - self.times[0])

    @property
    def gaps(self) -> list[float]:
        return [later - earlier for earlier, later in itertools.pairwise(self.times)]


class Client:
    """Talks to one server, about its `model` if that must be named."""

    def __init__(self, url: str, timeout: float = TIMEOUT_S, model: str | None = None) -> None:
        self._url = url
        self._timeout = timeout
        self._named: Body = {} if model is None else {"model": model}

    async def ask(self, body: Body, on_text: Callable[[Answer], None] | None = None) -> Answer:
        """The whole answer; `on_text` is called at each chunk with text.

        Raises:
            NoAnswer: an error status, an error event, or nothing whole in time.
        """
        answer = await self.attempt(body, on_text)
        if not answer.whole:
            raise NoAnswer(f"Status {answer.status}: {answer.error or 'the answer just stopped'}")
        return answer

    async def attempt(self, body: Body, on_text: Callable[[Answer], None] | None = None) -> Answer:
        """Whatever came back. Status 0: nothing did; `error` says why an answer is not whole."""
        answer = Answer()
        try:
            async with asyncio.timeout(self._timeout):
                await self._converse(body, answer, on_text)
        except TimeoutError:
            answer.lost = f"nothing whole within {self._timeout:.0f} s"
        except (httpx2.HTTPError, OSError) as error:
            answer.lost = f"the connection broke: {type(error).__name__} {error}"
        answer.error = answer.error or answer.lost
        return answer

    async def leave(self, body: Body, after: float) -> Answer | None:
        """Ask, and close the connection `after` seconds later. What came back before that, or None."""
        try:
            async with asyncio.timeout(after):
                return await self.attempt(body)
        except TimeoutError:
            return None

    async def _converse(self, body: Body, answer: Answer, on_text: Callable[[Answer], None] | None) -> None:
        # Certificates take longer to load than many an answer takes, and there is no TLS.
        async with httpx2.AsyncClient(timeout=None, trust_env=False, verify=False) as client:
            start = time.perf_counter()
            async with client.stream("POST", f"{self._url}/v1/chat/completions", json=self._named | body) as response:
                await self._read(response, body, answer, start, on_text)
            answer.seconds = time.perf_counter() - start

    async def _read(
        self,
        response: httpx2.Response,
        body: Body,
        answer: Answer,
        start: float,
        on_text: Callable[[Answer], None] | None,
    ) -> None:
        answer.status = response.status_code
        if response.status_code != 200:
            answer.error = (await response.aread()).decode(errors="replace")[:500]
        elif body.get("stream"):
            async for line in response.aiter_lines():
                # Comments keep the connection alive; they are no tokens.
                if line.startswith("data: ") and line != "data: [DONE]":
                    _read_chunk(json.loads(line[6:]), answer, time.perf_counter() - start, on_text)
        else:
            _read_whole(json.loads(await response.aread()), answer)


def _read_chunk(chunk: Any, answer: Answer, now: float, on_text: Callable[[Answer], None] | None) -> None:
    if "error" in chunk:
        answer.error = json.dumps(chunk["error"])
    _read_usage(chunk, answer)
    for choice in chunk.get("choices", ()):
        answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
        if piece := _text_of(choice.get("delta") or {}):
            answer.text += piece
            answer.times.append(now)
            if on_text is not None:
                on_text(answer)


def _read_whole(body: Any, answer: Answer) -> None:
    _read_usage(body, answer)
    choice = body["choices"][0]
    answer.text, answer.finish_reason = _text_of(choice["message"]), choice["finish_reason"]


def _text_of(message: Any) -> str:
    return (message.get("reasoning") or message.get("reasoning_content") or "") + (message.get("content") or "")


def _read_usage(body: Any, answer: Answer) -> None:
    if usage := body.get("usage"):
        answer.prompt_tokens = usage["prompt_tokens"]
        answer.completion_tokens = usage["completion_tokens"]
        answer.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
