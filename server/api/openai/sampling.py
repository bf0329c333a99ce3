"""The request fields that chat and text completions share, and their GenerationOptions. HTTP process."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, FailFast, Field

from server.api.wire import Wire, shown
from server.chat.conversation import GenerationOptions
from server.errors import InvalidRequest
from server.settings.types import LimitSettings


def _not_zero(value: int) -> int:
    if value == 0:
        raise ValueError("must be at least 1, or -1 for up to the context")
    return value


# A string alone means the same as a list of one.
StopStrings = Annotated[
    list[str], FailFast(), BeforeValidator(lambda value: [value] if isinstance(value, str) else value)
]
TokenLimit = Annotated[int, Field(ge=-1), AfterValidator(_not_zero)]


class StreamOptions(Wire):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class SamplingFields(Wire):
    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    max_tokens: TokenLimit | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=2**31)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: dict[str, Any] = Field({})
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: StopStrings = Field([])
    n: int = Field(1, ge=1)


def checked_options(
    fields: SamplingFields,
    limits: LimitSettings,
    *,
    max_tokens: int | None,
    top_logprobs: int | None,
    prompt_logprobs: bool = False,
) -> GenerationOptions:
    """The options of `fields` within `limits`; `max_tokens` -1 and None both mean up to the context."""
    if fields.n > limits.max_n:
        raise InvalidRequest(f"n is {fields.n}; at most {limits.max_n} choices are possible.", param="n")
    if fields.stream_options.include_usage is not None and not fields.stream:
        raise InvalidRequest("stream_options is only possible with stream: true.", param="stream_options")
    return GenerationOptions(
        max_tokens=None if max_tokens == -1 else max_tokens,
        temperature=fields.temperature,
        top_p=fields.top_p,
        top_k=fields.top_k,
        min_p=fields.min_p,
        repetition_penalty=fields.repetition_penalty,
        presence_penalty=fields.presence_penalty,
        frequency_penalty=fields.frequency_penalty,
        logit_bias=_logit_bias(fields.logit_bias, limits),
        seed=None if fields.seed is None else fields.seed % 2**64,
        stop=_stop(fields.stop, limits),
        n=fields.n,
        top_logprobs=top_logprobs,
        prompt_logprobs=prompt_logprobs,
    )


def model_name(model: str | None) -> str | None:
    """None for absent, empty or blank: the default model. Anything else is left to the catalog as it is."""
    return model if model and model.strip() else None


def _stop(stop: list[str], limits: LimitSettings) -> tuple[str, ...]:
    if len(stop) > limits.max_stop:
        message = f"stop has {len(stop)} strings; at most {limits.max_stop} are possible."
        raise InvalidRequest(message, param="stop")
    if not all(stop):
        raise InvalidRequest("stop holds an empty string.", param="stop")
    if any(len(text) > limits.max_stop_chars for text in stop):
        message = f"A stop string has at most {limits.max_stop_chars} characters."
        raise InvalidRequest(message, param="stop")
    return tuple(stop)


def _logit_bias(bias: dict[str, Any], limits: LimitSettings) -> dict[int, float]:
    if len(bias) > limits.max_logit_bias:
        message = f"logit_bias has {len(bias)} entries; at most {limits.max_logit_bias} are possible."
        raise InvalidRequest(message, param="logit_bias")
    for key, value in bias.items():
        # At most ten digits: token ids have 32 bits, and int() of a long string is slow.
        if not (key.isascii() and key.isdigit() and len(key) <= 10 and int(key) < 2**31):
            message = f"logit_bias has the key {shown(key)}, which is not a token id."
            raise InvalidRequest(message, param="logit_bias")
        if type(value) not in (int, float) or not -100 <= value <= 100:
            message = f"logit_bias.{key} must be a number from -100 to 100, not {shown(value)}."
            raise InvalidRequest(message, param=f"logit_bias.{key}")
    return {int(key): float(value) for key, value in bias.items()}
