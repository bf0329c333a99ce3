"""The events of generations gathered: into whole answers, or into one stream of several. HTTP process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

import anyio

from server.chat.deltas import (
    Delta,
    Event,
    Finish,
    FinishReason,
    PromptLogprobs,
    ReasoningDelta,
    ScoredToken,
    Started,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from server.errors import EngineFailed

_FAN_IN_EVENTS = 64


@dataclass(slots=True)
class MadeCall:
    """One tool call; `arguments` is JSON text."""

    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(slots=True)
class Choice:
    """One whole answer to one prompt. Without logprobs `tokens`, those of the text, and `ids`, of all, are empty."""

    text: str = ""
    reasoning: str = ""
    calls: list[MadeCall] = field(default_factory=list)
    tokens: list[ScoredToken] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    prompt_tokens: tuple[ScoredToken, ...] = ()
    reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    started: Started
    choices: list[Choice]
    usage: Usage


async def collect(events: AsyncGenerator[Event, None], n: int) -> Answer:
    started: Started | None = None
    usage: Usage | None = None
    gathered = [_Pieces() for _ in range(n)]
    async with aclosing(events):
        async for event in events:
            match event:
                case TextDelta() | ReasoningDelta() | ToolCallDelta():
                    gathered[event.choice].add(event)
                case Finish():
                    gathered[event.choice].reason = event.reason
                case PromptLogprobs():
                    gathered[event.choice].prompt_tokens = event.tokens
                case Started():
                    started = event
                case Usage():
                    usage = event
    if started is None or usage is None or any(pieces.reason is None for pieces in gathered):
        raise unfinished()
    return Answer(started, [pieces.choice() for pieces in gathered], usage)


class _Pieces:
    """What has come of one choice; joined once, since adding to a string copies it."""

    def __init__(self) -> None:
        self.reason: FinishReason | None = None
        self.prompt_tokens: tuple[ScoredToken, ...] = ()
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, tuple[MadeCall, list[str]]] = {}
        self._tokens: list[ScoredToken] = []
        self._ids: list[int] = []

    def add(self, delta: Delta) -> None:
        self._ids += [token.id for token in delta.tokens]
        match delta:
            case TextDelta():
                self._text.append(delta.text)
                self._tokens += delta.tokens
            case ReasoningDelta():
                self._reasoning.append(delta.text)
            case ToolCallDelta():
                call, arguments = self._calls.setdefault(delta.index, (MadeCall(), []))
                call.id, call.name = delta.id or call.id, delta.name or call.name
                arguments.append(delta.arguments)

    def choice(self) -> Choice:
        calls = [MadeCall(call.id, call.name, "".join(arguments)) for call, arguments in self._calls.values()]
        text, reasoning = "".join(self._text), "".join(self._reasoning)
        return Choice(text, reasoning, calls, self._tokens, self._ids, self.prompt_tokens, self.reason)


async def collect_all(generations: Sequence[AsyncGenerator[Event, None]], n: int) -> list[Answer]:
    """The answers of generations that run side by side; the first failure ends them all."""
    tasks = [asyncio.create_task(collect(events, n)) for events in generations]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def unfinished() -> EngineFailed:
    return EngineFailed("The generation ended before its answer was complete.")


async def merged(generations: Sequence[AsyncGenerator[Event, None]]) -> AsyncGenerator[tuple[int, Event], None]:
    """The events of several generations as they come, each with the index of its generation.

    All have given their first event before any is passed on, so that a bad prompt is still an HTTP error.
    """
    queue: asyncio.Queue[_Item] = asyncio.Queue(_FAN_IN_EVENTS)
    pumps = [asyncio.create_task(_pump(index, events, queue)) for index, events in enumerate(generations)]
    silent = set(range(len(pumps)))
    running = len(pumps)
    held: list[tuple[int, Event]] = []
    try:
        while running:
            index, event = await queue.get()
            silent.discard(index)
            if isinstance(event, Exception):
                raise event
            if event is None:
                running -= 1
            else:
                held.append((index, event))
            if not silent:
                for item in held:
                    yield item
                held.clear()
    finally:
        for pump in pumps:
            pump.cancel()
        # Shielded: a cancelled anyio scope would interrupt the wait, and the generations end in it.
        with anyio.CancelScope(shield=True):
            await asyncio.gather(*pumps, return_exceptions=True)


_Item = tuple[int, Event | Exception | None]


async def _pump(index: int, events: AsyncGenerator[Event, None], queue: asyncio.Queue[_Item]) -> None:
    """Puts what `events` gives, then None or its error."""
    last: Exception | None = None
    async with aclosing(events):
        try:
            async for event in events:
                await queue.put((index, event))
        except Exception as error:
            last = error
    await queue.put((index, last))
