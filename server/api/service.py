"""What the wire adapters need from the rest of the server, and nothing more.

`server/generation/` implements it in the HTTP process; tests put a scripted one behind the same routes.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from server.chat.conversation import DecisionRequest, GenerationRequest, Prompt
from server.chat.deltas import Decided, Event, TokenArray
from server.chat.description import Description
from server.models.status import ModelStatus
from server.settings.types import Settings


class Service(Protocol):
    @property
    def settings(self) -> Settings: ...

    def generate(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        """The events of one request. The first is Started, or ModelPending while the model comes up.

        Raises ConfigiError. Closing or cancelling it cancels everything behind it. It is advanced from more than one
        task (the first event before the response starts, the rest inside it), so no cancel scope may span a yield.
        A stream that is cut is cancelled again at every await until it ends, so clean-up that waits must be shielded.
        """
        ...

    async def decide(self, request: DecisionRequest) -> Decided:
        """Raises ConfigiError. Cancelling it cancels everything behind it."""
        ...

    async def tokenize(self, model: str | None, prompt: Prompt, add_special: bool, client: str) -> TokenArray: ...

    async def detokenize(self, model: str | None, tokens: list[int], client: str) -> str: ...

    def models(self) -> list[ModelStatus]: ...

    def model(self, name: str) -> ModelStatus:
        """The model of that id or alias; raises ModelNotFound."""
        ...

    async def description(self, name: str) -> Description | None:
        """What the model's files say; None while they are not on this machine, or cannot be read in a few seconds.

        Raises:
            ModelNotFound: there is no such model.
        """
        ...

    def default_model(self) -> ModelStatus: ...

    def healthy(self) -> bool:
        """Alive and making progress."""
        ...

    def metrics(self) -> bytes:
        """Prometheus text."""
        ...
