"""Every error becomes an answer in the dialect of its path: ours, the framework's and the unforeseen. HTTP process.

Nothing of an unforeseen error reaches the client; its traceback goes to the log.
"""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from server.errors import ConfigiError, InvalidRequest, MethodNotAllowed, NotFound
from server.http.dialect import Dialect, Dialects
from server.http.disconnect import CLIENT_LEFT


def error_response(dialect: Dialect, error: ConfigiError, headers: Mapping[str, str] | None = None) -> Response:
    body, own = dialect.answer(error)
    return Response(body, error.status, headers={**own, **(headers or {})})


def install_error_handlers(app: FastAPI, dialects: Dialects) -> None:
    async def answer(request: Request, exception: Exception) -> Response:
        dialect = dialects.of(request.scope["path"])
        if isinstance(exception, HTTPException):
            return error_response(dialect, _of_the_framework(request, exception), exception.headers)
        if isinstance(exception, RequestValidationError):
            return error_response(dialect, InvalidRequest("The request is not valid."))
        return error_response(dialect, exception if isinstance(exception, ConfigiError) else ConfigiError())

    async def client_left(_: Request, __: Exception) -> Response:
        return Response(status_code=CLIENT_LEFT)

    for kind in (ConfigiError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(ClientDisconnect, client_left)


def _of_the_framework(request: Request, exception: HTTPException) -> ConfigiError:
    if exception.status_code == 404:
        return NotFound("There is nothing at this URL. The API is under /v1.")
    if exception.status_code == 405:
        allowed = (exception.headers or {}).get("Allow", "")
        return MethodNotAllowed(f"{request.method[:20]} is not possible here; this URL takes {allowed}.")
    if exception.status_code < 500:
        return InvalidRequest("The request is not valid HTTP for this API.")
    return ConfigiError()
