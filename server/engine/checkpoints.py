"""Up to where a prompt is worth keeping. Pure; engine process."""

from __future__ import annotations

from server.engine_client.protocol import Generate, Kind, Request

# With non-trimmable layers each checkpoint holds all their state: the system prompt's end and the latest are kept.
_LATEST_CHECKPOINTS = 2
# A pass over so few tokens more takes hardly longer.
_NEAR_TOKENS = 32


def checkpoints(request: Request) -> list[int]:
    """Offsets up to which the prompt is worth keeping, ascending. What opens the reply is kept with the reply; the last
    token is read with it."""
    ends, most = request.boundaries, len(request.prompt) - 1
    system = [end.offset for end in ends if end.kind == "system"][-1:]
    kept = {*system, *(end.offset for end in ends[-_LATEST_CHECKPOINTS:])}
    return sorted({min(offset, most) for offset in kept}) or [most]


def checkpoints_behind(found: int, request: Request) -> list[int]:
    """Without those just behind the first `found` tokens, which are kept: reading on from there costs no more. The last
    one is where the next turn goes on."""
    ends = checkpoints(request)
    return [end for end in ends if end == ends[-1] or not found < end <= found + _NEAR_TOKENS] if found else ends


def worth_keeping(request: Request, tokens: int) -> tuple[int, Kind]:
    """How much of the `tokens` that are read of its prompt and answer, and what they end with."""
    if tokens < len(request.prompt) - 1:
        return tokens, kind_at(request, tokens)
    if isinstance(request, Generate) and request.keep_answer:
        return tokens, "assistant"
    last = checkpoints(request)[-1]
    return last, kind_at(request, last)


def kind_at(request: Request, end: int) -> Kind:
    """Of what the first `end` tokens of the prompt end with."""
    return next((boundary.kind for boundary in request.boundaries if boundary.offset == end), "user")
