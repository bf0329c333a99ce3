"""POST /v1/completions, inwards: body -> prompts and options. Pure functions. HTTP process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import Field

from server.api.fields import screen
from server.api.openai.table import COMPLETIONS
from server.api.sampling import SamplingFields, checked_options, model_name
from server.api.wire import Whole, shown, validated
from server.chat.conversation import GenerationOptions, Infill, RawPrompt
from server.errors import InvalidRequest, UnsupportedField
from server.http.body import json_object
from server.settings.types import LimitSettings

# OpenAI's documented default for this endpoint.
_DEFAULT_MAX_TOKENS = 16
_MAX_TOKEN_ID = 2**31


class CompletionFields(SamplingFields):
    prompt: Any
    suffix: str = ""
    # 0 reads the prompt, and with echo scores it, without an answer.
    max_tokens: Whole | None = Field(None, ge=-1)
    echo: bool = False
    logprobs: Whole | None = Field(None, ge=0, le=5)
    best_of: Whole | None = Field(None, ge=1)


@dataclass(frozen=True, slots=True)
class CompletionCall:
    """`options` apply to every prompt; choice k of prompt p has the index p * options.n + k."""

    model: str | None
    prompts: tuple[RawPrompt | Infill, ...]
    options: GenerationOptions
    echo: bool
    stream: bool
    include_usage: bool
    logprobs: bool
    token_ids: bool
    progress: bool
    cache_salt: str
    keep_alive_s: float | None
    headers: dict[str, str]


def parse_completion(raw: bytes, limits: LimitSettings) -> CompletionCall:
    screened = screen(json_object(raw, limits), COMPLETIONS)
    fields = validated(CompletionFields, screened.values, screened.spelled)
    options = checked_options(
        fields,
        limits,
        max_tokens=_DEFAULT_MAX_TOKENS if fields.max_tokens is None else fields.max_tokens,
        top_logprobs=fields.logprobs,
        prompt_logprobs=fields.echo and fields.logprobs is not None,
    )
    if fields.best_of is not None and fields.best_of > fields.n:
        raise UnsupportedField("best_of above n is not supported: answers are not ranked.", param="best_of")
    prompts: tuple[RawPrompt | Infill, ...]
    prompts = given = _prompts(fields.prompt)
    if fields.suffix:
        prompts = tuple(_before(prompt, index, fields) for index, prompt in enumerate(given))
    if len(prompts) * fields.n > limits.max_n:
        message = f"{len(prompts)} prompts with n {fields.n} are more than {limits.max_n} choices."
        raise InvalidRequest(message, param="prompt" if len(prompts) > 1 else "n")
    return CompletionCall(
        model=model_name(fields.model),
        prompts=prompts,
        options=options,
        echo=fields.echo,
        stream=fields.stream,
        include_usage=bool(fields.stream_options.include_usage),
        logprobs=fields.logprobs is not None,
        token_ids=fields.return_token_ids,
        progress=fields.return_progress,
        cache_salt=fields.cache_salt,
        keep_alive_s=fields.keep_alive,
        headers=screened.headers(),
    )


def _prompts(prompt: Any) -> tuple[RawPrompt, ...]:
    if isinstance(prompt, str):
        return (RawPrompt(prompt),)
    if not isinstance(prompt, list) or not prompt:
        raise _bad_prompt(prompt, "prompt")
    if type(prompt[0]) is int:
        return (_tokens(prompt, "prompt"),)
    return tuple(_one_of_many(item, f"prompt.{index}") for index, item in enumerate(prompt))


def _before(prompt: RawPrompt, index: int, fields: CompletionFields) -> Infill:
    """The gap between `prompt` and the suffix."""
    if not isinstance(prompt.content, str):
        where = f"prompt.{index}" if isinstance(fields.prompt[0], list) else "prompt"
        raise InvalidRequest(f"{where} must be text where there is a suffix.", param=where)
    if fields.echo:
        raise UnsupportedField("echo is not supported with a suffix: answers stand between two texts.", param="echo")
    return Infill(prompt.content, fields.suffix)


def _one_of_many(item: Any, where: str) -> RawPrompt:
    if isinstance(item, str):
        return RawPrompt(item)
    if isinstance(item, list) and item:
        return _tokens(item, where)
    raise _bad_prompt(item, where)


def _tokens(ids: list[Any], where: str) -> RawPrompt:
    for index, token in enumerate(ids):
        if type(token) is not int or not 0 <= token < _MAX_TOKEN_ID:
            at = f"{where}.{index}"
            raise InvalidRequest(f"{at} must be a token id, not {shown(token)}.", param=at)
    return RawPrompt(tuple(ids))


def _bad_prompt(value: Any, where: str) -> InvalidRequest:
    kinds = "a string or a non-empty list of token ids"
    if where == "prompt":
        kinds = "a string, or a non-empty list of strings, of token ids or of lists of token ids"
    return InvalidRequest(f"{where} must be {kinds}, not {shown(value)}.", param=where)
