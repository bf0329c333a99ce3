"""OpenAI's error envelope and end of stream; this server's own endpoints use them too. HTTP process."""

from __future__ import annotations

from typing import Any

import msgspec

from server.errors import ConfigiError
from server.http.dialect import Dialect
from server.http.sse import frame


def envelope(error: ConfigiError) -> dict[str, Any]:
    return {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}


OPENAI = Dialect(
    error_body=lambda error: msgspec.json.encode(envelope(error)),
    error_event=lambda error: frame(envelope(error)),
    last_frame=b"data: [DONE]\n\n",
)
