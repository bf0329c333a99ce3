"""What a wire protocol is to this server, and how all of them are added to the application. HTTP process.

A new one is a new module with these two names, in the list of `server/app.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from fastapi import APIRouter, FastAPI

from server.api.default_dialect import OPENAI
from server.api.errors import install_error_handlers
from server.api.service import Service
from server.http.dialect import Dialect, Dialects


class WireProtocol(Protocol):
    """A module: `router` takes its requests and renders its answers, `DIALECT` words its errors."""

    @property
    def DIALECT(self) -> Dialect: ...

    def router(self, service: Service) -> APIRouter: ...


def mount(app: FastAPI, service: Service, protocols: Sequence[WireProtocol]) -> Dialects:
    """Add the routes of all `protocols` to `app`, and its errors in their dialects, which the guard needs as well."""
    dialects = Dialects(OPENAI, [protocol.DIALECT for protocol in protocols])
    for protocol in protocols:
        app.include_router(protocol.router(service))
    install_error_handlers(app, dialects)
    return dialects
