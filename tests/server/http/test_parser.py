"""Bodies that take long to read: in a real process of their own, one after the other, clients in turn."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import psutil
import pytest
from starlette.requests import ClientDisconnect

from server.child.asked import Bounds
from server.errors import ConfigiError, InvalidRequest
from server.http.body import json_object
from server.http.parser import PARSE_COMMAND, BodyParser
from server.settings.types import LimitSettings

PARSE = partial(json_object, limits=LimitSettings())
BODY = json.dumps({"text": "é" * 100_000, "numbers": [1, 2.5, None]}).encode()


# Where it finds the functions of this file.
COMMAND = [part for part in PARSE_COMMAND if part != "-P"]


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await main()

    asyncio.run(bounded())


async def here() -> bool:
    return False


async def gone() -> bool:
    return True


def asked(parser: BodyParser, raw: bytes = BODY, parse: Callable[[bytes], Any] = PARSE, client: str = "a") -> Any:
    return parser.parse(parse, deque([raw[:1000], raw[1000:]]), client, here)


def process_of(raw: bytes) -> int:
    return os.getpid()


def endless(raw: bytes) -> None:
    while True:
        pass


def dying(raw: bytes) -> None:
    os._exit(1)


def broken(raw: bytes) -> None:
    raise KeyError("nobody thought of it")


def slow(raw: bytes) -> str:
    time.sleep(0.5)
    return "read"


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


def test_what_comes_back_is_what_reading_it_here_would_give() -> None:
    bad = b'{"a' + b"b" * 1000 + b"\x01"
    with pytest.raises(InvalidRequest) as read_here:
        PARSE(bad)

    async def main() -> None:
        parser = BodyParser(COMMAND)
        assert await asked(parser) == json.loads(BODY)
        with pytest.raises(InvalidRequest) as read_there:
            await asked(parser, bad)
        assert read_there.value.message == read_here.value.message
        await parser.close()

    run(main)


def test_one_process_reads_them_all_and_ends_with_the_parser() -> None:
    async def main() -> None:
        before = children()
        parser = BodyParser(COMMAND)
        pids = await asyncio.gather(*(asked(parser, parse=process_of) for _ in range(4)))
        assert len({*pids}) == 1
        assert pids[0] != os.getpid()
        await parser.close()
        assert children() == before

    run(main)


@pytest.mark.parametrize(
    ("parse", "error", "sentence"),
    [
        (endless, InvalidRequest, r"took longer than 2 s"),
        (dying, InvalidRequest, "ended the process"),
        (broken, ConfigiError, "its log has the reason"),
    ],
)
def test_what_it_cannot_read_costs_its_own_request(
    parse: Callable[[bytes], Any], error: type[Exception], sentence: str
) -> None:
    async def main() -> None:
        parser = BodyParser(COMMAND, Bounds(seconds=2, memory=2**32))
        with pytest.raises(error, match=sentence):
            await asked(parser, parse=parse)
        assert await asked(parser) == json.loads(BODY)
        await parser.close()

    run(main)


def test_the_loop_is_awake_while_a_body_is_read() -> None:
    async def main() -> None:
        parser = BodyParser(COMMAND)
        reading = asyncio.create_task(asked(parser, parse=slow))
        wakes = 0
        while not reading.done():
            await asyncio.sleep(0.001)
            wakes += 1
        assert reading.result() == "read"
        assert wakes > 50
        await parser.close()

    run(main)


def test_the_body_of_a_client_that_has_left_is_not_read() -> None:
    async def main() -> None:
        before = children()
        parser = BodyParser(COMMAND)
        with pytest.raises(ClientDisconnect):
            await parser.parse(PARSE, deque([BODY]), "a", gone)
        assert children() == before
        await parser.close()

    run(main)


def test_clients_are_served_in_turn() -> None:
    async def main() -> None:
        parser = BodyParser(COMMAND)
        order: list[str] = []

        async def ask(client: str) -> None:
            await asked(parser, client=client)
            order.append(client)

        await asyncio.gather(*(ask("many") for _ in range(10)), ask("one"))
        assert order.index("one") <= 2
        await parser.close()

    run(main)


def test_the_process_ends_with_its_parent() -> None:
    read, write = os.pipe()

    async def main() -> None:
        child = await asyncio.create_subprocess_exec(*PARSE_COMMAND, stdin=read)
        os.close(read)
        os.close(write)
        assert await child.wait() == 0

    run(main)
