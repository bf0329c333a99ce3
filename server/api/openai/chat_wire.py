"""The JSON of /v1/chat/completions, outwards: structs that are encoded once per token of every stream. HTTP process.

Clients break without index, id, type and name of a call, the role of the first delta, and finish_reason. Reasoning
has two names among clients, and all of them get theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from server.api.collected import MadeCall
from server.api.openai.shown import SYSTEM_FINGERPRINT, WireUsage, wire_logprob
from server.api.progress import PromptProgress
from server.chat.deltas import ScoredToken


class Alternative(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]


class ContentLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[Alternative]


class Logprobs(msgspec.Struct, frozen=True):
    content: list[ContentLogprob]
    refusal: None = None


class Function(msgspec.Struct, frozen=True):
    """`name` is there with the first piece of a call only."""

    arguments: str
    name: str | UnsetType = UNSET


class ToolCall(msgspec.Struct, frozen=True):
    id: str
    function: Function
    type: Literal["function"] = "function"


class ToolCallChunk(msgspec.Struct, frozen=True):
    """`id` and `type` are there with the first piece of a call only."""

    index: int
    function: Function
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class AssistantMessage(msgspec.Struct, frozen=True, kw_only=True):
    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET
    function_call: Function | UnsetType = UNSET


class MessageDelta(msgspec.Struct, frozen=True, kw_only=True):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[ToolCallChunk] | UnsetType = UNSET
    function_call: Function | UnsetType = UNSET


class ChatChoice(msgspec.Struct, frozen=True):
    index: int
    message: AssistantMessage
    logprobs: Logprobs | None
    finish_reason: str | None
    token_ids: list[int] | UnsetType = UNSET


class ChunkChoice(msgspec.Struct, frozen=True):
    index: int
    delta: MessageDelta
    logprobs: Logprobs | None = None
    finish_reason: str | None = None
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str = SYSTEM_FINGERPRINT
    choices: list[ChatChoice]
    usage: WireUsage
    prompt_token_ids: Sequence[int] | UnsetType = UNSET


class ChatChunk(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str = SYSTEM_FINGERPRINT
    choices: list[ChunkChoice]
    usage: WireUsage | UnsetType | None
    prompt_progress: PromptProgress | UnsetType = UNSET
    prompt_token_ids: Sequence[int] | UnsetType = UNSET


def logprobs(tokens: Sequence[ScoredToken]) -> Logprobs:
    return Logprobs(
        [
            ContentLogprob(
                token.text,
                wire_logprob(token.logprob),
                list(token.raw),
                [Alternative(text, wire_logprob(logprob), list(raw)) for _, text, raw, logprob in token.top],
            )
            for token in tokens
        ]
    )


def function(call: MadeCall) -> Function:
    return Function(call.arguments, call.name)


def finish_reason(reason: str | None, *, functions: bool) -> str | None:
    """`functions`: as the former API had it."""
    return "function_call" if functions and reason == "tool_calls" else reason
