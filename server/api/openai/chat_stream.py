"""One stream of /v1/chat/completions: events -> chunks. HTTP process."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET, UnsetType

from server.api.collected import unfinished
from server.api.openai.chat_request import ChatCall
from server.api.openai.chat_wire import (
    ChatChunk,
    ChunkChoice,
    Function,
    MessageDelta,
    ToolCallChunk,
    finish_reason,
    logprobs,
)
from server.api.openai.shown import WireUsage, wire_usage
from server.api.progress import PromptProgress, prompt_text, reading, waiting
from server.chat.deltas import (
    Event,
    Finish,
    ModelPending,
    PrefillProgress,
    ReasoningDelta,
    ScoredToken,
    Started,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from server.http.sse import comment, frame


class ChatStream:
    """Renders one stream. Every chunk carries what clients break without: id, index, finish_reason, role first."""

    def __init__(self, id: str, created: int, call: ChatCall) -> None:
        self._id = id
        self._created = created
        self._model = ""
        self._n = call.options.n
        self._shown = call.shown
        # An answer that may turn out to be calls does not begin with a content.
        self._calls = bool(call.conversation.tools) and call.options.tool_choice.mode != "none"
        self._no_usage: UnsetType | None = None if call.shown.usage else UNSET
        self._usage: Usage | None = None
        self._prompt_tokens = 0
        self._begun = False

    def render(self, event: Event) -> bytes:
        match event:
            case TextDelta(choice, text, tokens):
                return self._text(choice, text, tokens) if text or tokens else b""
            case ReasoningDelta(choice, text, tokens):
                return self._reasoning(choice, text, tokens)
            case ToolCallDelta():
                return self._call(event)
            case Finish():
                reason = finish_reason(event.reason, functions=self._shown.functions)
                return self._chunk(ChunkChoice(event.choice, MessageDelta(), None, reason))
            case Started():
                return self._started(event)
            case ModelPending():
                return self._waiting(event)
            case PrefillProgress():
                return self._progress(reading(event)) if self._shown.progress else comment(prompt_text(event))
            case Usage():
                self._usage = event
        return b""

    def end(self) -> bytes:
        if self._usage is None:
            raise unfinished()
        return self._chunk(None, wire_usage([self._usage])) if self._shown.usage else b""

    def _started(self, event: Started) -> bytes:
        self._model, self._prompt_tokens = event.model, event.prompt_tokens
        ids = event.prompt_ids if self._shown.token_ids else UNSET
        if self._begun:
            return b"" if ids is UNSET else self._chunk(ChunkChoice(0, MessageDelta()), prompt_ids=ids)
        return self._begin(ids)

    def _begin(self, ids: Sequence[int] | UnsetType = UNSET) -> bytes:
        self._begun = True
        opening = MessageDelta(role="assistant", content=None if self._calls else "")
        first = self._chunk(ChunkChoice(0, opening), prompt_ids=ids)
        return first + b"".join(self._chunk(ChunkChoice(index, opening)) for index in range(1, self._n))

    def _waiting(self, event: ModelPending) -> bytes:
        if not self._shown.progress:
            return comment(event.text)
        self._model = event.model
        # Clients take a choice from the role of its first chunk.
        opening = b"" if self._begun else self._begin()
        return opening + self._progress(waiting(event, self._prompt_tokens))

    def _progress(self, progress: PromptProgress) -> bytes:
        """With a choice, which naive clients expect of every chunk, and nothing in it."""
        return self._chunk(ChunkChoice(0, MessageDelta()), progress=progress)

    def _text(self, choice: int, text: str, tokens: Sequence[ScoredToken]) -> bytes:
        scored = logprobs(tokens) if tokens and self._shown.logprobs else None
        if not text and scored is None and not self._shown.token_ids:
            return b""
        return self._chunk(ChunkChoice(choice, MessageDelta(content=text), scored, None, self._ids(tokens)))

    def _reasoning(self, choice: int, text: str, tokens: Sequence[ScoredToken]) -> bytes:
        if self._shown.reasoning and text:
            delta = MessageDelta(reasoning_content=text, reasoning=text)
        elif self._shown.token_ids and tokens:
            delta = MessageDelta()
        else:
            return b""
        return self._chunk(ChunkChoice(choice, delta, None, None, self._ids(tokens)))

    def _call(self, event: ToolCallDelta) -> bytes:
        function = Function(event.arguments, UNSET if event.name is None else event.name)
        if self._shown.functions:
            delta = MessageDelta(function_call=function)
        else:
            piece = ToolCallChunk(event.index, function)
            if event.id is not None:
                piece = ToolCallChunk(event.index, function, event.id, "function")
            delta = MessageDelta(tool_calls=[piece])
        return self._chunk(ChunkChoice(event.choice, delta, None, None, self._ids(event.tokens)))

    def _ids(self, tokens: Sequence[ScoredToken]) -> list[int] | UnsetType:
        return [token.id for token in tokens] if self._shown.token_ids else UNSET

    def _chunk(
        self,
        choice: ChunkChoice | None,
        usage: WireUsage | None = None,
        prompt_ids: Sequence[int] | UnsetType = UNSET,
        progress: PromptProgress | UnsetType = UNSET,
    ) -> bytes:
        return frame(
            ChatChunk(
                id=self._id,
                created=self._created,
                model=self._model,
                choices=[choice] if choice else [],
                usage=usage or self._no_usage,
                prompt_progress=progress,
                prompt_token_ids=prompt_ids,
            )
        )
