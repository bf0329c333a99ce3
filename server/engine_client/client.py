"""The asyncio side of one running engine: sends commands and sorts its events by request. HTTP process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from server.engine_client.protocol import (
    Cancel,
    EngineCommand,
    EngineEvent,
    Failed,
    Finished,
    Generate,
    Load,
    Loaded,
    Loading,
    OptionsScored,
    Prefilled,
    PromptScored,
    Request,
    Stats,
    Stop,
    Tokens,
    TokenTable,
    decode_events,
    encode,
)
from server.errors import (
    ConfigiError,
    ContextLengthExceeded,
    EngineFailed,
    InsufficientMemory,
    InvalidRequest,
    ModelUnavailable,
)

RequestEvent = Prefilled | PromptScored | OptionsScored | Tokens | Finished
OnLoading = Callable[[int, int], None]

_FAILURES: dict[str, type[ConfigiError]] = {
    "invalid": InvalidRequest,
    # Agents that see this code compact their conversation.
    "too_long": ContextLengthExceeded,
    "load": ModelUnavailable,
    "memory": InsufficientMemory,
    "internal": EngineFailed,
}


class EngineClient:
    """One engine process, from its first command to its end."""

    def __init__(self, socket: zmq.asyncio.Socket) -> None:
        self._socket = socket
        self._streams: dict[int, EngineStream] = {}
        self._last_id = 0
        self._knows_tokens = False
        self._loaded: asyncio.Future[Loaded] = asyncio.get_running_loop().create_future()
        self._silence_s = 0.0
        # Told how many bytes of its weights, of how many, the engine has in memory.
        self.on_loading: OnLoading = lambda done, total: None
        # Whether its requests share forward passes; known once the model is loaded.
        self.batched = True
        # For how long a sequence it has memory.
        self.most_tokens: int | None = None
        self.closed: ConfigiError | None = None
        # What it said of its own end.
        self.last_words: asyncio.Future[ConfigiError] = asyncio.get_running_loop().create_future()
        self.stats: Stats | None = None
        # Requests that ended well: the supervisor then forgets past failures.
        self.finished = 0

    @property
    def silence_s(self) -> float:
        """How long this process has listened for a sign of life while work is waiting; 0 with nothing to do."""
        return self._silence_s if self._streams else 0.0

    def listened(self, seconds: float) -> None:
        """The event loop was awake for so long. Only that counts: while it stood still, or the machine slept, nothing
        could be heard."""
        self._silence_s += seconds

    async def load(self, command: Load) -> Loaded:
        """Raises what the engine reports, or what ends it meanwhile."""
        # Goes out when the engine connects. It may end before that, which `close` reports through `_loaded` alone.
        sending = asyncio.ensure_future(self._socket.send(encode(command)))
        try:
            loaded = await self._loaded
        finally:
            sending.cancel()
        if self.closed is not None:
            # It ended at the very moment when it became ready.
            raise self.closed
        return loaded

    async def hears_why(self, seconds: float) -> bool:
        """Whether the engine, which has ended, said why, or why it did not load: that may still be under way."""
        said: set[asyncio.Future[Any]] = {self.last_words} | ({self._loaded} if not self._loaded.done() else set())
        done, _ = await asyncio.wait(said, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        return bool(done)

    def know(self, table: Callable[[], TokenTable]) -> None:
        """Tell it once how the model's tokens are spelled, before the first request with a grammar or a thought."""
        if self.closed is None and not self._knows_tokens:
            self._knows_tokens = True
            self._send(table())

    def generate(
        self, requests: Sequence[Request], table: Callable[[], TokenTable] | None = None, followed_by: int = 0
    ) -> EngineStream:
        """Send `requests`, whose ids are chosen here; the stream distinguishes them by their index. `followed_by`: so
        many others are on their way.

        `table` is for `know`, which may not have been called when the model was loaded. What comes too late for this
        process is lost, like what it never began with.
        """
        stream = EngineStream(self)
        if self.closed is not None:
            stream.open_ids = dict(enumerate(range(len(requests))))
            stream.lose(self.closed)
            return stream
        if table is not None and any(map(_needs_tokens, requests)):
            self.know(table)
        if not self._streams:
            self._silence_s = 0.0
        for index, request in enumerate(requests):
            self._last_id += 1
            stream.open_ids[self._last_id] = index
            self._streams[self._last_id] = stream
            behind = followed_by + len(requests) - index - 1
            self._send(msgspec.structs.replace(request, id=self._last_id, followed_by=behind))
        return stream

    def cancel(self, ids: Sequence[int]) -> None:
        """Synchronous, so that a cancelled task cannot be interrupted half way through giving its slots back."""
        for id in ids:
            self._streams.pop(id, None)
            if self.closed is None:
                self._send(Cancel(id))

    def stop(self) -> None:
        """Ask the engine to exit."""
        self._send(Stop())

    async def receive(self) -> None:
        """Sort events until cancelled. Runs as a task of the supervisor's."""
        while True:
            for event in decode_events(await self._socket.recv()):
                self._sort(event)
            self._silence_s = 0.0
            # When the next frame is there already, `recv` does not yield; the streams must get their turn.
            await asyncio.sleep(0)

    def close(self, error: ConfigiError) -> None:
        """The process is gone: whatever waits for it gets `error`."""
        self.closed = error
        if not self._loaded.done():
            self._loaded.set_exception(error)
            # There may be nobody waiting for it any more.
            self._loaded.exception()
        self._fail_all(error)

    def _sort(self, event: EngineEvent) -> None:
        match event:
            case Stats():
                self.stats = event
            case Loading():
                self.on_loading(event.done, event.total)
            case Loaded():
                self.batched = event.batched
                self.most_tokens = event.most_tokens
                self._loaded.set_result(event)
            case Failed(id=id):
                error = _FAILURES[event.kind](event.message)
                if id is None and self._loaded.done():
                    self._fail_all(error)
                    if not self.last_words.done():
                        self.last_words.set_result(error)
                elif id is None:
                    self._loaded.set_exception(error)
                elif stream := self._streams.pop(id, None):
                    stream.fail(error)
            case Finished():
                self.finished += 1
                if stream := self._streams.pop(event.id, None):
                    stream.put(event)
            case _:
                # An event may still be under way for a request that was just cancelled.
                if stream := self._streams.get(event.id):
                    stream.put(event)

    def _fail_all(self, error: ConfigiError) -> None:
        # In order of arrival, in which they may ask again.
        for stream in dict.fromkeys(self._streams.values()):
            stream.lose(error)
        self._streams.clear()

    def _send(self, command: EngineCommand) -> None:
        # Never blocks: the queue is unbounded. It fails only when the engine has just died, which `close` will report.
        sent: Any = self._socket.send(encode(command), zmq.NOBLOCK)
        sent.exception()


def _needs_tokens(request: Request) -> bool:
    return isinstance(request, Generate) and bool(request.grammar or request.thought)


class EngineStream:
    """The events of one or more requests that were sent together, as (index, event), until all have finished.

    Not closed, it would hold slots: use `contextlib.closing`.
    """

    def __init__(self, client: EngineClient) -> None:
        self._client = client
        # The queue holds at most max_tokens small events a request; a reader that stalls is cut by its write timeout.
        self._events: asyncio.Queue[tuple[int, RequestEvent] | ConfigiError] = asyncio.Queue()
        # Done when there is an event, or an error: for `asyncio.wait`, among others, and never to be cancelled.
        self.begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.open_ids: dict[int, int] = {}
        # The process ended before it had begun with any of the requests: another one may be asked the same.
        self.lost = False
        self._stopped: set[int] = set()

    def __aiter__(self) -> EngineStream:
        return self

    async def __anext__(self) -> tuple[int, RequestEvent]:
        """Raises the ConfigiError that ended the requests."""
        while self.open_ids or not self._events.empty():
            item = await self._events.get()
            if isinstance(item, ConfigiError):
                # With every request complete, nobody needs to know any more.
                if self.open_ids:
                    raise item
            elif item[0] not in self._stopped:
                return item
        raise StopAsyncIteration

    def put(self, event: RequestEvent) -> None:
        index = self.open_ids[event.id]
        if isinstance(event, Finished):
            del self.open_ids[event.id]
        self._put((index, event))

    def fail(self, error: ConfigiError) -> None:
        self._put(error)

    def lose(self, error: ConfigiError) -> None:
        """The process has ended."""
        self.lost = not self.begun.done()
        self._put(error)

    def stop(self, index: int) -> None:
        """The answer of one request is complete for its reader (a stop string): free its slot, and drop what the
        engine has sent for it meanwhile."""
        self._stopped.add(index)
        ids = [id for id, i in self.open_ids.items() if i == index]
        for id in ids:
            del self.open_ids[id]
        self._client.cancel(ids)

    def _put(self, item: tuple[int, RequestEvent] | ConfigiError) -> None:
        self._events.put_nowait(item)
        if not self.begun.done():
            self.begun.set_result(None)

    def close(self) -> None:
        """Free the slots of all requests that have not finished."""
        ids = list(self.open_ids)
        self.open_ids.clear()
        self._client.cancel(ids)
