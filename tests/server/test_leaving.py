"""Clients that leave, by the hundred: real server, real engine, raw sockets."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from tests.support.running import serving
from tests.support.streams import running_sequences, waiting_sequences
from tests.support.tiny_model import write_tiny_model

CLIENTS = 200


async def leave_early(port: int, index: int) -> None:
    """Send a long prompt, streaming or not, wait half a second, and go."""
    # All different, or the prefix cache would spare the engine the work.
    content = " ".join(str(index * 1000 + word) for word in range(300))
    asked = {"messages": [{"role": "user", "content": content}], "max_tokens": 500, "stream": bool(index % 2)}
    body = json.dumps(asked).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
    await writer.drain()
    await asyncio.sleep(0.5)  # what the client does, not what the test waits for
    writer.close()


def test_two_hundred_clients_leave_and_the_next_one_is_answered(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model", context=8192)
    with serving(tmp_path, model, engine={"queue_limit": 400}) as server:
        server.assert_still_serves()

        async def crowd() -> None:
            await asyncio.gather(*(leave_early(server.port, index) for index in range(CLIENTS)))

        asyncio.run(crowd())
        server.assert_still_serves()
        assert waiting_sequences(server) == 0
        # Two tokens were all that was left to make: had the others run on, they would hold every slot still.
        assert running_sequences(server) <= 1
