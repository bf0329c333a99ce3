"""The fields that say whether a model thinks before it answers, how long, and whether that is shown. Pure.

Every server has its own; all of them become one `Reasoning`, which the template is told in words of its own. Two fields
that say different things are refused; only `chat_template_kwargs` wins over the others, as everywhere. HTTP process.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import Field

from server.api.wire import Whole, Wire, shown, whole
from server.chat.conversation import Reasoning
from server.errors import InvalidRequest, UnsupportedField

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
# What templates document, and its type. Other variables could replace the template's own inputs.
TEMPLATE_SWITCHES: dict[str, type] = {
    **dict.fromkeys(("enable_thinking", "thinking", "add_thoughts", "low_effort"), bool),
    **dict.fromkeys(("thinking_mode", "reasoning_mode", "reasoning_effort", "thinking_effort"), str),
    "thinking_budget": int,
    # Whether the reasoning of a history is kept.
    **dict.fromkeys(("preserve_thinking", "preserved_thinking", "keep_past_thinking"), bool),
    **dict.fromkeys(("clear_thinking", "drop_thinking", "truncate_history_thinking"), bool),
    **dict.fromkeys(("model_identity", "date_string"), str),
    **dict.fromkeys(("tools_in_user_message", "add_vision_id"), bool),
}
_WORDS = {bool: "a boolean", str: "a string", int: "an integer"}
_SWITCH_CHARS = 1000

T = TypeVar("T")
Scalar = str | int | float | bool


class ThoughtFields(Wire):
    reasoning_effort: str | None = None
    reasoning: Any = None
    thinking: Any = None
    think: Any = None
    enable_thinking: bool | None = None
    thinking_token_budget: Whole | None = Field(None, ge=-1)
    include_reasoning: bool = True
    chat_template_kwargs: dict[str, Any] = Field({})


@dataclass(frozen=True, slots=True)
class AskedReasoning:
    """`switches`: variables for the chat template. `shown`: whether answers hold the reasoning. `ignored`: keys."""

    reasoning: Reasoning
    switches: dict[str, Scalar]
    shown: bool
    ignored: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Said:
    """What one field says; None where it is silent."""

    where: str
    enabled: bool | None = None
    effort: str | None = None
    budget: int | None = None
    shown: bool | None = None


def asked_reasoning(fields: ThoughtFields) -> AskedReasoning:
    ignored: list[str] = []
    said = list(_said(fields, ignored))
    switches = _switches(fields.chat_template_kwargs)
    enabled = _agreed([(one.where, one.enabled) for one in said])
    effort = _agreed([(one.where, one.effort) for one in said])
    budget = _agreed([(one.where, one.budget) for one in said])
    visible = _agreed([(one.where, one.shown) for one in said if one.shown is not None])
    if enabled is None and budget is not None:
        enabled = budget != 0
    chosen = switches.get("enable_thinking", switches.get("thinking", enabled))
    effort = switches.get("reasoning_effort", effort)
    budget = switches.get("thinking_budget", budget)
    limit = None if budget is None or budget < 0 or chosen is False else budget
    return AskedReasoning(Reasoning(chosen, effort, limit), switches, visible is not False, tuple(ignored))


def _said(fields: ThoughtFields, ignored: list[str]) -> Iterator[_Said]:
    if fields.reasoning_effort is not None:
        yield _effort(fields.reasoning_effort, "reasoning_effort")
    if fields.enable_thinking is not None:
        yield _Said("enable_thinking", fields.enable_thinking)
    if fields.thinking_token_budget is not None:
        yield _Said("thinking_token_budget", budget=fields.thinking_token_budget)
    if not fields.include_reasoning:
        yield _Said("include_reasoning", shown=False)
    yield from _anthropics(fields.thinking, ignored)
    yield from _open_routers(fields.reasoning, ignored)
    if fields.think is not None:
        yield _switch_or_effort(fields.think, "think")


def _anthropics(thinking: Any, ignored: list[str]) -> Iterator[_Said]:
    """thinking: true, or {"type": "enabled", "budget_tokens": 1024}."""
    if thinking is None or isinstance(thinking, bool):
        yield _Said("thinking", thinking)
        return
    given = _object(thinking, "thinking")
    kinds = {"enabled": True, "adaptive": True, "disabled": False, "auto": None, None: None}
    kind = given.get("type")
    if not isinstance(kind, str | None) or kind not in kinds:
        message = f"thinking.type must be enabled, adaptive or disabled, not {shown(kind)}."
        raise InvalidRequest(message, param="thinking.type")
    ignored += [f"thinking.{name}" for name in given if name not in ("type", "budget_tokens")]
    yield _Said("thinking", kinds[kind], budget=_budget(given.get("budget_tokens"), "thinking.budget_tokens"))


def _open_routers(reasoning: Any, ignored: list[str]) -> Iterator[_Said]:
    """reasoning: "on", or {"enabled": true, "effort": "low", "max_tokens": 1024, "exclude": false}."""
    if reasoning is None:
        return
    if isinstance(reasoning, bool | str):
        yield _switch_or_effort(reasoning, "reasoning")
        return
    given = _object(reasoning, "reasoning")
    known = ("enabled", "effort", "max_tokens", "exclude")
    ignored += [f"reasoning.{name}" for name, value in given.items() if name not in known and value is not None]
    yield _Said(
        "reasoning",
        enabled=_boolean(given.get("enabled"), "reasoning.enabled"),
        budget=_budget(given.get("max_tokens"), "reasoning.max_tokens"),
        shown=False if _boolean(given.get("exclude"), "reasoning.exclude") else None,
    )
    if given.get("effort") is not None:
        yield _effort(given["effort"], "reasoning.effort")


def _switch_or_effort(value: Any, where: str) -> _Said:
    if isinstance(value, bool):
        return _Said(where, value)
    return _Said(where, value == "on") if value in ("on", "off") else _effort(value, where)


def _effort(value: Any, where: str) -> _Said:
    if value not in EFFORTS:
        raise InvalidRequest(f"{where} must be one of {', '.join(EFFORTS)}, not {shown(value)}.", param=where)
    return _Said(where, value != "none", value)


def _agreed(said: list[tuple[str, T | None]]) -> T | None:
    given = [(where, value) for where, value in said if value is not None]
    for where, value in given:
        if value != given[0][1]:
            raise InvalidRequest(f"{given[0][0]} and {where} say different things about reasoning.", param=where)
    return given[0][1] if given else None


def _switches(kwargs: dict[str, Any]) -> dict[str, Any]:
    switches = {}
    for name, value in kwargs.items():
        where = f"chat_template_kwargs.{name[:60]}"
        if value is None:
            continue
        if name not in TEMPLATE_SWITCHES:
            known = ", ".join(TEMPLATE_SWITCHES)
            raise UnsupportedField(f"chat_template_kwargs takes {known}, not {shown(name)}.", param=where)
        kind = TEMPLATE_SWITCHES[name]
        if type(value) is not kind:
            raise InvalidRequest(f"{where} must be {_WORDS[kind]}, not {shown(value)}.", param=where)
        if isinstance(value, str) and len(value) > _SWITCH_CHARS:
            raise InvalidRequest(f"{where} has at most {_SWITCH_CHARS} characters.", param=where)
        switches[name] = value
    return switches


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequest(f"{where} must be an object, not {shown(value)}.", param=where)
    return value


def _boolean(value: Any, where: str) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise InvalidRequest(f"{where} must be a boolean, not {shown(value)}.", param=where)
    return value


def _budget(value: Any, where: str) -> int | None:
    """Tokens; -1 is without a bound."""
    if value is None:
        return None
    value = whole(value)
    if type(value) is not int or value < -1:
        raise InvalidRequest(
            f"{where} must be a number of tokens, or -1 for no bound, not {shown(value)}.", param=where
        )
    return value
