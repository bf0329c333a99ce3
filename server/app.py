"""The one place where the server is put together: routes, middleware, models. HTTP process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

from fastapi import FastAPI

from server.api import operations
from server.api.anthropic import messages
from server.api.compat import elsewhere, llama_server, lm_studio, ollama, tokenize, vllm
from server.api.openai import chat_completions, completions, embeddings
from server.api.openai import models as model_routes
from server.api.openai.decisions import routes as decisions
from server.api.openai.responses import routes as responses
from server.api.protocols import WireProtocol, mount
from server.engine_client.supervisor import ENGINE_COMMAND, Supervisor
from server.generation.step import Generation
from server.http.guard import Guard
from server.metrics import Metrics
from server.models import awake
from server.models.acquire import Acquirer
from server.models.awake import Awake
from server.models.catalog import Catalog
from server.models.memory import Memory
from server.models.residency import Residency
from server.models.verified import Verifier
from server.settings.types import Settings
from server.text.client import TextProcess

PROTOCOLS: tuple[WireProtocol, ...] = (
    chat_completions,
    completions,
    responses,
    decisions,
    messages,
    embeddings,
    model_routes,
    operations,
    tokenize,
    llama_server,
    lm_studio,
    vllm,
    elsewhere,
    # Last: what it refuses is all that is left below /api.
    ollama,
)

# Runs beside the server for as long as it is up, e.g. to show progress on the terminal.
Companion = Callable[[Residency, Catalog], Awaitable[None]]


@dataclass(frozen=True)
class Configi:
    """A server that is ready to be run: `asgi` for uvicorn, `generation` for its shutdown."""

    asgi: Guard
    generation: Generation


def create_app(
    settings: Settings,
    *,
    engine_command: Sequence[str] = ENGINE_COMMAND,
    acquirer: Acquirer | None = None,
    companions: Sequence[Companion] = (),
) -> Configi:
    """Put the parts together. Tests give the command of a scripted engine; nothing starts before the lifespan."""
    catalog = Catalog(settings)
    residency = Residency(
        settings.lifecycle,
        catalog,
        acquirer or Acquirer(settings.storage),
        Verifier(settings.storage),
        Memory(settings.lifecycle),
        lambda: Supervisor(settings, engine_command),
        TextProcess.opener(settings),
        Awake(awake.command() if settings.lifecycle.keep_awake else ()),
    )
    metrics = Metrics()
    generation = Generation(settings, catalog, residency, metrics)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if settings.lifecycle.load_at_start:
            residency.preload(catalog.default)
        tasks = [asyncio.ensure_future(companion(residency, catalog)) for companion in companions]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await residency.close()

    # The generated API pages load scripts from elsewhere; docs/api.md is the reference.
    # A redirect would be built from the Host header, and leave outside the envelope.
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False, lifespan=lifespan)
    dialects = mount(app, generation, PROTOCOLS)
    return Configi(Guard(app, settings.server, dialects, metrics.answered), generation)
