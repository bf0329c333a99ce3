"""What a request asks for, free of any wire protocol: the frozen values that `api` makes and `generation` takes."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from server.chat.parts import Message


class Conversation(msgspec.Struct, frozen=True, tag=True):
    """Messages for the chat template. When the last is the assistant's, the model continues it (prefill)."""

    messages: tuple[Message, ...]
    # Extra variables for the chat template, from an allow-list; scalars only.
    template_variables: dict[str, str | int | float | bool] = {}


class RawPrompt(msgspec.Struct, frozen=True, tag=True):
    """A prompt without a template: text, or token ids."""

    content: str | tuple[int, ...]


Prompt = Conversation | RawPrompt


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """Everything about the answer but its prompt. `None` means the model's or the server's default.

    `max_tokens` None = up to the context, 0 = read the prompt only. `top_logprobs` None = no logprobs, k = k
    alternatives per token.
    Sampling fields that are None take the model's `generation_config.json` values.
    `prompt_logprobs` scores the prompt's own tokens too (completions with echo and logprobs).
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    top_logprobs: int | None = None
    prompt_logprobs: bool = False


@dataclass(frozen=True, slots=True)
class Client:
    """Who asks. `group` is served fairly beside others; prefixes are shared by those with the same `cache_salt`."""

    group: str = ""
    cache_salt: str = ""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One request as `generation` takes it. `id` is the request id of the log and of the x-request-id header.

    A request that is to `wait_for_model` (a stream) is told the model's state while it loads; others wait up to
    `lifecycle.load_wait_s` and then fail with ModelLoading.
    """

    id: str
    model: str | None
    prompt: Prompt
    options: GenerationOptions
    client: Client = Client()
    wait_for_model: bool = False
