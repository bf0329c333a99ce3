"""What a generation yields, free of any wire protocol. `choice` is the index among the request's n choices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """One token as logprobs show it: `text` is lossy where the token is part of a character, `raw` is not. `offset`:
    at which character of the prompt or of the answer the token begins."""

    id: int
    text: str
    raw: bytes
    logprob: float
    top: tuple[tuple[int, str, bytes, float], ...] = ()
    offset: int = 0


@dataclass(frozen=True, slots=True)
class ModelPending:
    """Not started yet: the model is being fetched, built or loaded, or the request is queued. `text` is one line."""

    text: str


@dataclass(frozen=True, slots=True)
class Started:
    """The first event when nothing has to be waited for: the prompt is valid and the engine has it. `truncated`:
    something was left out of it, as the request allows."""

    model: str
    prompt_tokens: int
    # Logprobs of the prompt come later, as `PromptLogprobs`.
    prompt_text: str = ""
    prompt_ids: Sequence[int] = ()
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class PrefillProgress:
    """Prefill of the prompt: `done` of `total` tokens, `cached` of them from the prefix cache."""

    done: int
    total: int
    cached: int


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """The prompt's tokens with their logprobs; the first token's is NaN (it has none)."""

    choice: int
    tokens: tuple[ScoredToken, ...]


@dataclass(frozen=True, slots=True)
class TextDelta:
    """The next piece of the answer. May be empty when it only carries logprobs of held-back text."""

    choice: int
    text: str
    tokens: tuple[ScoredToken, ...] = ()


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """The next piece of the model's reasoning."""

    choice: int
    text: str
    tokens: tuple[ScoredToken, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """The next piece of the choice's call number `index`: `id` and `name` with its first, then the arguments' JSON."""

    choice: int
    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""
    tokens: tuple[ScoredToken, ...] = ()


Delta = TextDelta | ReasoningDelta | ToolCallDelta


@dataclass(frozen=True, slots=True)
class Finish:
    """The last event of one choice. `completion_tokens` counts tokens the model made, stop token not counted.

    `stop_string`: the one that ended it, if one did.
    """

    choice: int
    reason: FinishReason
    completion_tokens: int
    stop_string: str | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """The last event of a generation. `reasoning_tokens` are among the `completion_tokens`."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int = 0


Event = ModelPending | Started | PrefillProgress | PromptLogprobs | Delta | Finish | Usage
