"""What the server costs beyond the model: `python -m bench.overhead`, with the scripted engine, no MLX.

64 clients x 200 requests (nothing but planned 503s may fail), time per streamed token with one and with 64 streams,
`/health` under load, idle CPU, start to `/health`, memory of the HTTP process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

from bench.result import RESULTS, Figure, Result, Target, lines, write
from bench.setup import setup
from tests.support.running import Running, serving_script
from tests.support.tiny_model import write_tiny_model


class Client:
    """One keep-alive connection, raw asyncio: a heavier client would measure itself."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def post(self, body: dict[str, object]) -> tuple[int, int]:
        """Status, and number of data events of the answer."""
        raw = json.dumps(body).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(raw)}\r\n"
        return await self._call(head.encode() + b"Content-Type: application/json\r\n\r\n" + raw)

    async def get(self, path: str) -> int:
        status, _ = await self._call(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        return status

    async def _call(self, request: bytes) -> tuple[int, int]:
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        assert self._reader is not None
        self._writer.write(request)
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        status = int(head.split(b" ", 2)[1])
        events = 0
        if b"content-length:" in head:
            length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
            await self._reader.readexactly(length)
        else:
            while size := int(await self._reader.readline(), 16):
                chunk = await self._reader.readexactly(size + 2)
                events += chunk.count(b"data: ")
            await self._reader.readline()
        if b"connection: close" in head:
            self._writer.close()
            self._writer = None
        return status, events

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def chat(tokens: int, *, stream: bool = True) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": tokens, "stream": stream}


async def storm(server: Running, clients: int, requests: int) -> Counter[str]:
    """`clients` at once, `requests` each, half of them streams."""
    seen: Counter[str] = Counter()

    async def one(index: int) -> None:
        client = Client(server.port)
        for turn in range(requests):
            try:
                status, _ = await client.post(chat(4, stream=(index + turn) % 2 == 0))
                seen[str(status)] += 1
            except (OSError, asyncio.IncompleteReadError) as error:
                seen[type(error).__name__] += 1
                client = Client(server.port)
        client.close()

    await asyncio.gather(*(one(i) for i in range(clients)))
    return seen


async def per_token_us(server: Running, streams: int, tokens: int) -> float:
    """Microseconds of wall time per streamed token, all streams together."""
    clients = [Client(server.port) for _ in range(streams)]
    await asyncio.gather(*(c.post(chat(1)) for c in clients))
    start = time.perf_counter()
    await asyncio.gather(*(c.post(chat(tokens)) for c in clients))
    elapsed = time.perf_counter() - start
    for client in clients:
        client.close()
    return elapsed / (streams * tokens) * 1e6


async def health_ms(server: Running, samples: int) -> list[float]:
    client = Client(server.port)
    times = []
    for _ in range(samples):
        start = time.perf_counter()
        await client.get("/health")
        times.append((time.perf_counter() - start) * 1e3)
        await asyncio.sleep(0.01)
    client.close()
    return times


async def health_under_load(server: Running) -> list[float]:
    load = asyncio.create_task(per_token_us(server, 16, 2000))
    times = await health_ms(server, 200)
    await load
    return times


def figures(folder: Path, clients: int, requests: int) -> list[Figure]:
    """Every figure, in the order of the table."""
    model = write_tiny_model(folder / "model", context=1_000_000)
    engine = {"max_concurrent": 64, "queue_limit": 64}
    start = time.perf_counter()
    with serving_script(folder, model, engine=engine, log={"level": "warning"}) as server:
        while server.get("/health")[0] != 200:
            pass
        first_byte = time.perf_counter() - start
        server.assert_still_serves()
        process = psutil.Process(server.process.pid)
        one = statistics.median(asyncio.run(per_token_us(server, 1, 2000)) for _ in range(3))
        many = statistics.median(asyncio.run(per_token_us(server, 64, 200)) for _ in range(3))
        health = sorted(asyncio.run(health_under_load(server)))
        start = time.perf_counter()
        seen = asyncio.run(storm(server, clients, requests))
        rate = clients * requests / (time.perf_counter() - start)
        process.cpu_percent()
        idle, memory = process.cpu_percent(5), process.memory_info().rss / 2**20
    with serving_script(folder, model, engine={"max_concurrent": 8, "queue_limit": 8}) as server:
        server.assert_still_serves()
        crowd = asyncio.run(storm(server, clients, 10))
    return [
        _figure("start to the first byte of `/health`", "s", first_byte),
        _figure("per streamed token, 1 stream", "us", one),
        _figure("per streamed token, 64 streams", "us", many),
        _figure("`/health`, 16 streams as fast as they go, p99", "ms", health[int(len(health) * 0.99)]),
        _figure(f"{clients} clients x {requests} requests: a second", "", rate),
        _figure("the same: not answered with 200", "", clients * requests - seen["200"], Target(0, absolute=True)),
        _figure("idle CPU over 5 s", "%", idle, Target(1, absolute=True)),
        _figure("memory of the HTTP process", "MiB", memory),
        _figure(f"{clients} clients x 10 on 16 places: answered", "", crowd["200"]),
        _figure("the same: turned away with 503", "", crowd["503"]),
        _figure("the same: anything else", "", crowd.total() - crowd["200"] - crowd["503"], Target(0, absolute=True)),
    ]


def _figure(label: str, unit: str, value: float, target: Target | None = None) -> Figure:
    return Figure(label, unit, None, value, target)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.overhead")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the JSON file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        measured = figures(Path(name), args.clients, args.requests)
    result = Result("overhead", "What the server costs beyond the model", "", setup(), tuple(measured))
    write(result, args.output)
    print("\n".join(lines(result)))


if __name__ == "__main__":
    main()
