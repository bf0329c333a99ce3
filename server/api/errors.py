"""Every error becomes an answer in the dialect of its path: ours, the framework's and the unforeseen. HTTP process.

Nothing of an unforeseen error reaches the client; its traceback goes to the log.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Match

from server.errors import ConfigiError, InvalidRequest, MethodNotAllowed, NotFound
from server.http.dialect import Dialect, Dialects
from server.http.disconnect import CLIENT_LEFT
from server.http.paths import endpoint_below

# HEAD is GET, see the guard.
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


def error_response(dialect: Dialect, error: ConfigiError, headers: Mapping[str, str] | None = None) -> Response:
    body, own = dialect.answer(error)
    return Response(body, error.status, headers={**own, **(headers or {})})


def install_error_handlers(app: FastAPI, dialects: Dialects) -> None:
    async def answer(request: Request, exception: Exception) -> Response:
        dialect = dialects.of(request.scope["path"])
        if isinstance(exception, HTTPException):
            return _of_the_framework(request, exception, dialect)
        if isinstance(exception, RequestValidationError):
            return error_response(dialect, InvalidRequest("The request is not valid."))
        return error_response(dialect, exception if isinstance(exception, ConfigiError) else ConfigiError())

    async def client_left(_: Request, __: Exception) -> Response:
        return Response(status_code=CLIENT_LEFT)

    for kind in (ConfigiError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(ClientDisconnect, client_left)


def _of_the_framework(request: Request, exception: HTTPException, dialect: Dialect) -> Response:
    if exception.status_code == 404:
        return error_response(dialect, NotFound(_nothing_at(request.scope["path"])))
    if exception.status_code == 405:
        return _other_methods(request, dialect)
    if exception.status_code < 500:
        return error_response(dialect, InvalidRequest("The request is not valid HTTP for this API."))
    return error_response(dialect, ConfigiError())


def _nothing_at(path: str) -> str:
    endpoint = endpoint_below(path)
    if endpoint is not None:
        return f"There is nothing at this URL: the endpoint is {endpoint}, with no other path before it."
    if path.startswith("/v1/"):
        return "There is nothing at this URL: this server has no such endpoint."
    return "There is nothing at this URL. The API is under /v1."


def _other_methods(request: Request, dialect: Dialect) -> Response:
    """What the framework calls allowed is what the first route of several takes."""
    allowed = ", ".join(_allowed(request))
    if request.method == "OPTIONS":
        return Response(status_code=204, headers={"allow": allowed})
    error = MethodNotAllowed(f"{request.method[:20]} is not possible here; this URL takes {allowed}.")
    return error_response(dialect, error, {"allow": allowed})


def _allowed(request: Request) -> Iterator[str]:
    for method in _METHODS:
        scope = {**request.scope, "method": "GET" if method == "HEAD" else method}
        if any(route.matches(scope)[0] is Match.FULL for route in request.app.routes):
            yield method
