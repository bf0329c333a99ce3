"""The strict pydantic base of every request body, and its errors in one readable sentence. HTTP process.

Strict: "5" and true are not integers, 1 is not a boolean; a whole number may be written 3.0. Extra keys are ignored
here because `fields.py` has already dealt with every one of them. A list whose length the client chooses is declared
FailFast: pydantic makes an error object for every bad item, seconds of work for a million of them.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainValidator, ValidationError

from server.errors import InvalidRequest

_SHOWN_ERRORS = 5
_SHOWN_CHARS = 80
_PARAM_CHARS = 200
# What pydantic's sentences say beside the rule: whose it is, and what came instead, which is shown anyhow.
_NOISE = re.compile(
    r"^(Value error, |(Input|List|String|Dictionary|Value) (?=should ))|( after validation)?, not (\d+|more)$"
)


class Wire(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False, protected_namespaces=())


W = TypeVar("W", bound=Wire)


def whole(value: Any) -> Any:
    """3 for 3.0: JavaScript and JSON know one kind of number, and some languages write it so."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(whole)]


def text_or_list(value: Any) -> Any:
    """One sentence, and the field's own path, where pydantic has both for each type of a union."""
    if not isinstance(value, str | list):
        raise ValueError("should be a string or a list")
    return value


TextOrList = Annotated[str | list[Any], PlainValidator(text_or_list)]


def validated(
    model: type[W], values: dict[str, Any], spelled: Mapping[str, str] | None = None, *, where: str = ""
) -> W:
    """For the error: `spelled`, the client's names for fields that have several, and `where` the values stand."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _invalid(error, spelled or {}, where) from None


def shown(value: object) -> str:
    """`value` short enough for an error message, control characters escaped."""
    text = reprlib.repr(value) if isinstance(value, dict | list | tuple) else repr(value)[: _SHOWN_CHARS * 2]
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 3] + "..."


def _invalid(error: ValidationError, spelled: Mapping[str, str], where: str) -> InvalidRequest:
    details = error.errors(include_url=False, include_context=False)
    paths = [_path(detail["loc"], spelled, where) for detail in details[:_SHOWN_ERRORS]]
    sentences = [_sentence(path, detail) for path, detail in zip(paths, details, strict=False)]
    if len(details) > _SHOWN_ERRORS:
        sentences.append(f"and {len(details) - _SHOWN_ERRORS} more")
    return InvalidRequest("; ".join(sentences) + ".", param=paths[0] or None)


def _path(place: tuple[int | str, ...], spelled: Mapping[str, str], where: str) -> str:
    first, *rest = (str(part) for part in place)
    return ".".join((*([where] if where else []), spelled.get(first, first), *rest))[:_PARAM_CHARS]


def _sentence(path: str, detail: Any) -> str:
    if detail["type"] == "missing":
        return f"{path} is required"
    reason = _NOISE.sub("", str(detail["msg"]))
    return f"{path} {reason}, not {shown(detail['input'])}"
