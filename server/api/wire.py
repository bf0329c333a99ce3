"""The strict pydantic base of every request body, and its errors in one readable sentence. HTTP process.

Strict: "5", 3.0 and true are not integers, 1 is not a boolean. Extra keys are ignored here because `fields.py` has
already dealt with every one of them. A list whose length the client chooses is declared FailFast: pydantic makes an
error object for every bad item, seconds of work for a million of them.
"""

from __future__ import annotations

import reprlib
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from server.errors import InvalidRequest

_SHOWN_ERRORS = 5
_SHOWN_CHARS = 80
_PARAM_CHARS = 200


class Wire(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False, protected_namespaces=())


W = TypeVar("W", bound=Wire)


def validated(model: type[W], values: dict[str, Any]) -> W:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _invalid(error) from None


def shown(value: object) -> str:
    """`value` short enough for an error message, control characters escaped."""
    text = reprlib.repr(value) if isinstance(value, dict | list | tuple) else repr(value)[: _SHOWN_CHARS * 2]
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 3] + "..."


def _invalid(error: ValidationError) -> InvalidRequest:
    details = error.errors(include_url=False, include_context=False)
    paths = [".".join(str(part) for part in detail["loc"])[:_PARAM_CHARS] for detail in details[:_SHOWN_ERRORS]]
    sentences = [_sentence(path, detail) for path, detail in zip(paths, details, strict=False)]
    if len(details) > _SHOWN_ERRORS:
        sentences.append(f"and {len(details) - _SHOWN_ERRORS} more")
    return InvalidRequest("; ".join(sentences) + ".", param=paths[0] or None)


def _sentence(path: str, detail: Any) -> str:
    if detail["type"] == "missing":
        return f"{path} is required"
    reason = str(detail["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    return f"{path} {reason}, not {shown(detail['input'])}"
