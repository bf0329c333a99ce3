"""The request fields that chat and text completions share, and their GenerationOptions. HTTP process."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, FailFast, Field

from server.api.keep_alive import KeepAlive
from server.api.shape_fields import ShapeFields, asked_shape
from server.api.wire import Whole, Wire, shown
from server.chat.conversation import GenerationOptions, Reasoning
from server.chat.shapes import Shape
from server.chat.tools import FREE, ToolChoice
from server.errors import InvalidRequest
from server.settings.types import LimitSettings

_MAX_TOKEN_ID = 2**31
# The seed by which llama-server, LM Studio and Ollama mean one of the server's choice.
_ANY_SEED = -1
# Up to the context: -1, and Ollama's -2.
_UNLIMITED = (-1, -2)


def _listed(value: Any) -> Any:
    """A string alone means the same as a list of one, and an empty one means none."""
    return ([value] if value else []) if isinstance(value, str) else value


TextList = Annotated[list[str], FailFast(), BeforeValidator(_listed)]
# 0 reads the prompt and answers nothing.
TokenLimit = Annotated[Whole, Field(ge=-2)]
TokenIds = Annotated[list[Annotated[Whole, Field(ge=0, lt=_MAX_TOKEN_ID)]], FailFast()]


class StreamOptions(Wire):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class SamplingFields(ShapeFields):
    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    max_tokens: TokenLimit | None = None
    min_tokens: Whole = Field(0, ge=0)
    ignore_eos: bool = False
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: Whole | None = Field(None, ge=-1, le=2**31)
    min_p: float | None = Field(None, ge=0, le=1)
    xtc_probability: float = Field(0.0, ge=0, le=1)
    xtc_threshold: float = Field(0.1, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: dict[str, Any] = Field({})
    allowed_token_ids: TokenIds = Field([])
    bad_words: TextList = Field([])
    # Not `lt=2**63`: pydantic words a bound that needs more than 63 bits as a rounded float.
    seed: Whole | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: TextList = Field([])
    n: Whole = Field(1, ge=1)
    return_token_ids: bool = False
    cache_salt: str = Field("", max_length=1024)
    keep_alive: KeepAlive = None
    return_progress: bool = False


def checked_options(
    fields: SamplingFields,
    limits: LimitSettings,
    *,
    max_tokens: int | None,
    top_logprobs: int | None,
    prompt_logprobs: bool = False,
    shape: tuple[str, Shape | None] = ("", None),
    stop: tuple[str, list[str]] | None = None,
    tool_choice: ToolChoice = FREE,
    reasoning: Reasoning | None = None,
) -> GenerationOptions:
    """The options of `fields` within `limits`; `max_tokens` -1 and None both mean up to the context.

    `shape`, `stop`: a dialect's own fields for the form of the answer and the stop strings, with what they ask for.
    """
    if fields.n > limits.max_n:
        raise InvalidRequest(f"n is {fields.n}; at most {limits.max_n} choices are possible.", param="n")
    if fields.stream_options.include_usage is not None and not fields.stream:
        raise InvalidRequest("stream_options is only possible with stream: true.", param="stream_options")
    stop_name, stops = stop or ("stop", fields.stop)
    return GenerationOptions(
        max_tokens=_limit(max_tokens, fields.min_tokens),
        temperature=fields.temperature,
        top_p=fields.top_p,
        top_k=None if fields.top_k is None else max(0, fields.top_k),
        min_p=fields.min_p,
        repetition_penalty=fields.repetition_penalty,
        presence_penalty=fields.presence_penalty,
        frequency_penalty=fields.frequency_penalty,
        logit_bias=_logit_bias(fields.logit_bias, limits),
        seed=None if fields.seed in (None, _ANY_SEED) else fields.seed % 2**64,
        stop=_texts(stops, stop_name, limits.max_stop, limits),
        n=fields.n,
        # Token ids travel with the logprobs of their tokens.
        top_logprobs=0 if top_logprobs is None and fields.return_token_ids else top_logprobs,
        prompt_logprobs=prompt_logprobs,
        min_tokens=fields.min_tokens,
        ignore_eos=fields.ignore_eos,
        allowed_token_ids=tuple(sorted(set(fields.allowed_token_ids))) or None,
        bad_words=_texts(fields.bad_words, "bad_words", limits.max_bad_words, limits),
        xtc_probability=fields.xtc_probability,
        xtc_threshold=fields.xtc_threshold,
        shape=asked_shape(fields, shape),
        tool_choice=tool_choice,
        reasoning=reasoning or Reasoning(),
    )


def model_name(model: str | None) -> str | None:
    """None for absent, empty or blank: the default model. Anything else is left to the catalog as it is."""
    return model if model and model.strip() else None


def _limit(most: int | None, least: int) -> int | None:
    limit = None if most in _UNLIMITED else most
    if limit is not None and least > limit:
        message = f"min_tokens is {least}, and at most {limit} tokens are asked for."
        raise InvalidRequest(message, param="min_tokens")
    return limit


def _texts(texts: list[str], name: str, most: int, limits: LimitSettings) -> tuple[str, ...]:
    if len(texts) > most:
        raise InvalidRequest(f"{name} has {len(texts)} strings; at most {most} are possible.", param=name)
    if not all(texts):
        raise InvalidRequest(f"{name} holds an empty string.", param=name)
    if any(len(text) > limits.max_stop_chars for text in texts):
        message = f"A string of {name} has at most {limits.max_stop_chars} characters."
        raise InvalidRequest(message, param=name)
    return tuple(texts)


def _logit_bias(bias: dict[str, Any], limits: LimitSettings) -> dict[int, float]:
    if len(bias) > limits.max_logit_bias:
        message = f"logit_bias has {len(bias)} entries; at most {limits.max_logit_bias} are possible."
        raise InvalidRequest(message, param="logit_bias")
    for key, value in bias.items():
        # At most ten digits: token ids have 32 bits, and int() of a long string is slow.
        if not (key.isascii() and key.isdigit() and len(key) <= 10 and int(key) < _MAX_TOKEN_ID):
            message = f"logit_bias has the key {shown(key)}, which is not a token id."
            raise InvalidRequest(message, param="logit_bias")
        if type(value) not in (int, float) or not -100 <= value <= 100:
            message = f"logit_bias.{key} must be a number from -100 to 100, not {shown(value)}."
            raise InvalidRequest(message, param=f"logit_bias.{key}")
    return {int(key): float(value) for key, value in bias.items()}
