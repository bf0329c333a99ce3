"""Every error becomes the one envelope: ours, the framework's and the unforeseen. HTTP process.

Nothing of an unforeseen error reaches the client; its traceback goes to the log.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from server.errors import ConfigiError, InvalidRequest, MethodNotAllowed, NotFound
from server.http.disconnect import CLIENT_LEFT


def error_response(error: ConfigiError, headers: Mapping[str, str] | None = None) -> Response:
    return Response(
        msgspec.json.encode(error.envelope()),
        error.status,
        headers={**error.headers(), **(headers or {})},
        media_type="application/json",
    )


def install_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(ConfigiError, _on_configi_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_request_validation)
    app.add_exception_handler(ClientDisconnect, _on_client_left)
    app.add_exception_handler(Exception, _on_unforeseen)


async def _on_configi_error(_: Request, error: Exception) -> Response:
    if not isinstance(error, ConfigiError):
        raise error
    return error_response(error)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    if error.status_code == 404:
        return error_response(NotFound("There is nothing at this URL. The API is under /v1."))
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        message = f"{request.method[:20]} is not possible here; this URL takes {allowed}."
        return error_response(MethodNotAllowed(message), error.headers)
    if error.status_code < 500:
        return error_response(InvalidRequest("The request is not valid HTTP for this API."), error.headers)
    return error_response(ConfigiError())


async def _on_request_validation(_: Request, __: Exception) -> Response:
    return error_response(InvalidRequest("The request is not valid."))


async def _on_client_left(_: Request, __: Exception) -> Response:
    return Response(status_code=CLIENT_LEFT)


async def _on_unforeseen(_: Request, __: Exception) -> Response:
    return error_response(ConfigiError())
