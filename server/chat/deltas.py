"""What a generation yields, free of any wire protocol, and what else is answered. `choice` is the index among the
request's n choices."""

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
    """Not started yet: the model is being fetched, built or loaded, or the request is queued. `text` is one line that
    says all of it.

    `state`: fetching, building, loading, unloading or queued. `place` in the queue: 1 is next. `done` of `total` bytes
    of a transfer, a build or a load, at `rate` a second.
    """

    text: str
    state: str = "loading"
    model: str = ""
    place: int | None = None
    done: int = 0
    total: int | None = None
    rate: float | None = None
    seconds_left: float | None = None


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
    """Prefill of the prompt: `done` of `total` tokens, `cached` of them from the prefix cache, `seconds` after it
    began. `diverged_at`: as in `CacheDivergence`."""

    done: int
    total: int
    cached: int
    seconds: float = 0.0
    diverged_at: int | None = None


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
class CacheDivergence:
    """Where a prompt leaves all earlier ones: `at` is the first token that is new. `part` is where that is, if the
    prompt tells: in the system message (with the tools), or behind it."""

    at: int
    part: Literal["system", "messages"] | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """The last event of a generation. `reasoning_tokens` are among the `completion_tokens`. `divergence` is None for a
    prompt that is like no earlier one, or like one to its end."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int = 0
    divergence: CacheDivergence | None = None


Event = ModelPending | Started | PrefillProgress | PromptLogprobs | Delta | Finish | Usage


@dataclass(frozen=True, slots=True)
class Decided:
    """The natural log-probability of every option of every question of an `Inquiry`. The prompt tokens of `usage` are
    those of the messages, once, and of each question."""

    model: str
    logprobs: Sequence[Sequence[float]]
    usage: Usage


@dataclass(frozen=True, slots=True)
class TokenArray:
    """Token ids that nobody on the way reads: `json` is the array that a client is sent. As a list, a million of them
    would keep the event loop for 45 ms."""

    count: int
    json: bytes
