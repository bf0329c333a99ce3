"""How a wire protocol words what is not content: an error, an error in a stream, the end of a stream. HTTP process.

Errors arise at every depth: below ASGI, in the guard, in a route, in the middle of a stream. Each is worded by the
dialect of the path, so that a client of any protocol reads errors in the form that its SDK knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from server.errors import ConfigiError


def error_headers(error: ConfigiError) -> dict[str, str]:
    """What HTTP and the SDKs of every dialect look for beside the body."""
    headers = {}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    if error.retry_after is not None:
        headers["retry-after"] = str(error.retry_after)
    if error.status >= 500 and not error.retryable:
        headers["x-should-retry"] = "false"
    return headers


@dataclass(frozen=True, slots=True)
class Dialect:
    """`paths`: what begins with one of them, segment by segment, speaks this dialect, whether it is a route or not.

    `error_body` is the JSON of an error. `error_event` is the frame that says it inside a stream, and `last_frame` the
    one that ends every stream, after an error too.
    """

    error_body: Callable[[ConfigiError], bytes]
    error_event: Callable[[ConfigiError], bytes]
    last_frame: bytes = b""
    paths: tuple[str, ...] = ()
    # Where its SDK looks for the id of a request, beside `x-request-id`.
    id_header: str | None = None
    headers: Callable[[ConfigiError], dict[str, str]] = error_headers

    def answer(self, error: ConfigiError) -> tuple[bytes, dict[str, str]]:
        """Body and headers of an HTTP answer that is this error."""
        return self.error_body(error), {"content-type": "application/json", **self.headers(error)}


class Dialects:
    """Every dialect by its paths; `default` is for all other paths, and for what fails before there is a path."""

    def __init__(self, default: Dialect, others: Iterable[Dialect] = ()) -> None:
        self.default = default
        self._by_path = {_segments(path): dialect for dialect in others for path in dialect.paths}

    def of(self, path: str) -> Dialect:
        """The dialect with the longest path that `path` begins with."""
        segments = _segments(path)
        fitting = (self._by_path.get(segments[:count]) for count in range(len(segments), 0, -1))
        return next((dialect for dialect in fitting if dialect is not None), self.default)


def _segments(path: str) -> tuple[str, ...]:
    """Doubled slashes are one, as everywhere in this server."""
    return tuple(segment for segment in path.split("/") if segment)
