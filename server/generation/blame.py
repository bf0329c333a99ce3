"""Which field of a request is at fault when its engine refuses it: engines know tokens and no fields. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from server.chat.conversation import Conversation, DecisionRequest, GenerationRequest
from server.errors import ContextLengthExceeded, InvalidRequest


@contextmanager
def blaming(request: GenerationRequest | DecisionRequest) -> Iterator[None]:
    """Every InvalidRequest that passes names a field."""
    try:
        yield
    except InvalidRequest as error:
        error.param = error.param or _field(request, error)
        raise


def _field(request: GenerationRequest | DecisionRequest, error: InvalidRequest) -> str:
    if isinstance(request, DecisionRequest):
        return "input"
    prompt, options = request.prompt, request.options
    of_prompt = "messages" if isinstance(prompt, Conversation) else "prompt"
    if isinstance(error, ContextLengthExceeded):
        return of_prompt
    if options.shape is not None:
        return options.shape.param
    if isinstance(prompt, Conversation) and prompt.tools:
        return "tools"
    if options.allowed_token_ids is not None:
        return "allowed_token_ids"
    return "bad_words" if options.bad_words else of_prompt
