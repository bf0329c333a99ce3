"""POST /infill, inwards: llama-server's body -> a text with a gap, and options. Pure functions. HTTP process."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import FailFast, Field

from server.api.compat.table import INFILL
from server.api.fields import screen
from server.api.sampling import SamplingFields, checked_options, model_name
from server.api.wire import Whole, shown, validated
from server.chat.conversation import GenerationOptions, Infill, OtherFile
from server.errors import InvalidRequest
from server.http.body import json_object
from server.settings.types import LimitSettings

_UNNAMED = "tmp"
# For an answer of any length; most are far shorter.
_ROOM = 512
_LIKELIEST = "infill"
# The samplers by llama-server's names, and what turns each off.
_OFF: dict[str, dict[str, float]] = {
    "temperature": {"temperature": 1.0},
    "top_k": {"top_k": 0},
    "top_p": {"top_p": 1.0},
    "min_p": {"min_p": 0.0},
    "xtc": {"xtc_probability": 0.0},
    "penalties": {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0},
}
# Not built in, and so off whether they are listed or not; their own fields are refused.
_ABSENT = ("dry", "top_n_sigma", "typ_p", "typical_p", "adaptive_p")


class InfillFields(SamplingFields):
    input_prefix: str = ""
    input_suffix: str = ""
    prompt: str = ""
    input_extra: Annotated[list[dict[str, Any]], FailFast()] = Field([])
    max_tokens: Whole = Field(-1, ge=-2)
    n_indent: Whole = Field(0, ge=0)
    t_max_predict_ms: float = Field(0, ge=0)
    samplers: list[str] = Field([])
    response_fields: list[str] = Field([])


@dataclass(frozen=True, slots=True)
class InfillCall:
    """`response_fields`: those that the answer is to hold; all if there are none. `progress`: a stream tells it as
    data."""

    model: str | None
    prompt: Infill
    options: GenerationOptions
    stream: bool
    progress: bool
    keep_alive_s: float | None
    response_fields: tuple[str, ...]
    cache_salt: str
    headers: dict[str, str]


def parse_infill(raw: bytes, limits: LimitSettings) -> InfillCall:
    screened = screen(json_object(raw, limits), INFILL)
    fields = _sampled(validated(InfillFields, screened.values, screened.spelled))
    options = checked_options(fields, limits, max_tokens=fields.max_tokens, top_logprobs=None)
    files, ignored = _files(fields.input_extra)
    room = _ROOM if options.max_tokens is None else options.max_tokens
    return InfillCall(
        model=model_name(fields.model),
        prompt=Infill(fields.input_prefix + fields.prompt, fields.input_suffix, files, room),
        options=replace(options, min_indent=fields.n_indent, time_limit_s=fields.t_max_predict_ms / 1000),
        stream=fields.stream,
        progress=fields.return_progress,
        keep_alive_s=fields.keep_alive,
        response_fields=tuple(fields.response_fields),
        cache_salt=fields.cache_salt,
        headers=screened.headers(*ignored),
    )


def _sampled(fields: InfillFields) -> InfillFields:
    """With the samplers off that a list leaves out."""
    chosen = fields.samplers
    if not chosen:
        return fields
    for name in chosen:
        if name not in (*_OFF, *_ABSENT, _LIKELIEST):
            names = ", ".join((*_OFF, _LIKELIEST))
            raise InvalidRequest(f"samplers holds {shown(name)}; there are {names}.", param="samplers")
    off: dict[str, float] = {}
    for name, values in _OFF.items():
        if name not in chosen:
            off |= values
    if _LIKELIEST in chosen and "temperature" not in chosen:
        off["temperature"] = 0.0
    return fields.model_copy(update=off)


def _files(extra: list[dict[str, Any]]) -> tuple[tuple[OtherFile, ...], tuple[str, ...]]:
    """The files, and the names of what is not read of them."""
    files, ignored = [], set()
    for index, file in enumerate(extra):
        name, text = file.get("filename") or _UNNAMED, file.get("text")
        for key, value in (("filename", name), ("text", text)):
            if not isinstance(value, str):
                where = f"input_extra.{index}.{key}"
                raise InvalidRequest(f"{where} must be a string, not {shown(value)}.", param=where)
        files.append(OtherFile(name, str(text)))
        ignored |= {f"input_extra.{key}" for key in file.keys() - {"filename", "text"}}
    return tuple(files), tuple(sorted(ignored))
