"""The asyncio side of an engine, with the frames of an engine written by hand at the other end of the socket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import pytest
import zmq.asyncio

from server.engine_client.client import EngineClient, EngineStream, RequestEvent
from server.engine_client.protocol import EngineEvent, Failed, Finished, Generate, Sampling, Tokens, encode
from server.errors import EngineFailed

REQUEST = Generate(id=0, prompt=[1], max_tokens=9, stop_tokens=[], sampling=Sampling(seed=0))


class Engine:
    """The engine's end: what it sends has been sorted when `send` returns."""

    def __init__(self, client: EngineClient, socket: zmq.asyncio.Socket) -> None:
        self.client = client
        self._socket = socket

    async def send(self, *events: EngineEvent) -> None:
        # Events keep their order: when this request is seen to have finished, the others have been sorted.
        marker = self.client.generate([REQUEST])
        [id] = marker.open_ids
        await self._socket.send(encode([*events, Finished(id, "stop")]))
        await anext(marker)


@contextlib.asynccontextmanager
async def engine() -> AsyncIterator[Engine]:
    context = zmq.asyncio.Context()
    ours, theirs = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    ours.bind("inproc://engine")
    theirs.connect("inproc://engine")
    client = EngineClient(ours)
    receiving = asyncio.create_task(client.receive())
    try:
        yield Engine(client, theirs)
    finally:
        receiving.cancel()
        context.destroy(linger=0)


async def rest(stream: EngineStream) -> Sequence[tuple[int, RequestEvent]]:
    return [item async for item in stream]


def test_a_request_that_was_stopped_gives_no_more_events_however_many_are_there_already() -> None:
    async def run() -> None:
        async with engine() as far:
            stream = far.client.generate([REQUEST, REQUEST])
            await far.send(Tokens(1, [1]), Tokens(2, [2]), Tokens(1, [3]), Tokens(1, [4]), Finished(1, "length"))
            assert await anext(stream) == (0, Tokens(1, [1]))
            stream.stop(0)
            await far.send(Finished(2, "length"))
            assert await rest(stream) == [(1, Tokens(2, [2])), (1, Finished(2, "length"))]

    asyncio.run(run())


def test_a_failure_that_was_under_way_when_all_was_complete_is_nobodys() -> None:
    async def run() -> None:
        async with engine() as far:
            stream = far.client.generate([REQUEST])
            await far.send(Tokens(1, [1]), Failed(1, "internal", "too late"))
            assert await anext(stream) == (0, Tokens(1, [1]))
            stream.stop(0)
            assert await rest(stream) == []

    asyncio.run(run())


def test_a_failure_ends_the_stream_after_what_came_before_it() -> None:
    async def run() -> None:
        async with engine() as far:
            stream = far.client.generate([REQUEST, REQUEST])
            await far.send(Tokens(1, [1]), Finished(2, "stop"), Failed(1, "internal", "The engine fails."))
            assert [await anext(stream) for _ in range(2)] == [(0, Tokens(1, [1])), (1, Finished(2, "stop"))]
            with pytest.raises(EngineFailed, match="The engine fails"):
                await anext(stream)

    asyncio.run(run())
