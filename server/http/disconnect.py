"""Work for a client ends when the client leaves: before the answer starts, and for answers that do not stream.

Streams that have started watch for themselves (`sse.py`). HTTP process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

# nginx's number for "the client left"; nobody reads it.
CLIENT_LEFT = 499


async def while_connected(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """What `work` returns; cancels it when the client leaves. The body must have been read."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_client_left(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else Response(status_code=CLIENT_LEFT)
    finally:
        working.cancel()
        watching.cancel()
        # Until both have really ended, so that the slot is free when this returns.
        await asyncio.wait({working, watching})


async def _client_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
