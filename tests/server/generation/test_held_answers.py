"""Answers that a request holds to a form, from its options to its events: a real engine with a tiny real model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from server.chat.conversation import Conversation, GenerationOptions, GenerationRequest
from server.chat.deltas import Event, Finish, TextDelta, ToolCallDelta
from server.chat.parts import Message
from server.chat.shapes import GrammarText, JsonSchema, OneOf, Regex
from server.chat.tools import Tool, ToolChoice
from server.engine_client.supervisor import Supervisor
from server.errors import InvalidRequest
from server.generation.step import Generation
from server.metrics import Metrics
from server.models.acquire import Acquirer
from server.models.catalog import Catalog
from server.models.memory import Memory
from server.models.residency import Residency
from server.models.verified import Verifier
from server.settings.types import ModelSettings, Settings
from server.text.client import TextProcess
from tests.support.tiny_model import write_tiny_model

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"mode": {"enum": ["on", "off"]}, "level": {"type": "integer", "enum": [1, 2, 3]}},
    "required": ["mode", "level"],
    "additionalProperties": False,
}
TOOLS = (Tool("switch", parameters=SCHEMA), Tool("beep", parameters={"type": "object", "additionalProperties": False}))
Ask = Callable[..., Coroutine[Any, Any, list[Event]]]
Run = Callable[[Callable[[Ask], Coroutine[Any, Any, None]]], None]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("held") / "model")


@pytest.fixture(scope="module")
def run(model: Path) -> Iterator[Run]:
    """Calls a test with a way to ask, the same for all."""
    entry = ModelSettings(id="tiny", acquire="local", path=model)
    settings = Settings.model_validate({"models": [entry], "cache": {"disk_limit": 0}})
    catalog = Catalog(settings)
    residency = Residency(
        settings.lifecycle,
        catalog,
        Acquirer(settings.storage),
        Verifier(settings.storage),
        Memory(settings.lifecycle),
        lambda: Supervisor(settings),
        TextProcess.opener(settings),
    )
    generation = Generation(settings, catalog, residency, Metrics())

    async def ask(tools: tuple[Tool, ...] = (), **options: Any) -> list[Event]:
        prompt = Conversation((Message.plain("user", "Hello"),), tools=tools)
        options = {"max_tokens": 300, "seed": 1} | options
        request = GenerationRequest("id", "tiny", prompt, GenerationOptions(**options))
        return [event async for event in generation.generate(request)]

    with asyncio.Runner() as runner:
        try:
            yield lambda test: runner.run(test(ask))
        finally:
            runner.run(residency.close())


def text_of(events: list[Event], choice: int = 0) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta) and event.choice == choice)


def calls_of(events: list[Event]) -> list[tuple[str, dict[str, Any]]]:
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    for event in events:
        if isinstance(event, ToolCallDelta):
            names.setdefault(event.index, event.name or "")
            arguments[event.index] = arguments.get(event.index, "") + event.arguments
    return [(names[index], json.loads(arguments[index])) for index in names]


def reasons(events: list[Event]) -> list[str]:
    return [event.reason for event in events if isinstance(event, Finish)]


def test_every_choice_satisfies_the_shape_that_was_asked_for(run: Run) -> None:
    async def test(ask: Ask) -> None:
        events = await ask(shape=JsonSchema(SCHEMA), n=3, temperature=1.5)
        assert reasons(events) == ["stop"] * 3
        for choice in range(3):
            jsonschema.validate(json.loads(text_of(events, choice)), SCHEMA)
        assert text_of(await ask(shape=OneOf(("yes", "no")))) in ("yes", "no")
        assert text_of(await ask(shape=Regex("[0-9]{3}-[0-9]"), bad_words=("0",)))[3] == "-"
        assert text_of(await ask(shape=GrammarText('root ::= "a" "b"'))) == "ab"

    run(test)


def test_required_calls_are_made_and_named_ones_only(run: Run) -> None:
    async def test(ask: Ask) -> None:
        for seed in range(3):
            choice = ToolChoice("required", ("switch",), parallel=False)
            events = await ask(TOOLS, tool_choice=choice, seed=seed)
            [(name, arguments)] = calls_of(events)
            assert (name, text_of(events), reasons(events)) == ("switch", "", ["tool_calls"])
            jsonschema.validate(arguments, SCHEMA)
            several = await ask(TOOLS, tool_choice=ToolChoice("required"), seed=seed, max_tokens=600)
            assert {name for name, _ in calls_of(several)} <= {"switch", "beep"}
            assert calls_of(several)

    run(test)


def test_what_only_the_engine_can_refuse_names_its_field(run: Run) -> None:
    async def test(ask: Ask) -> None:
        with pytest.raises(InvalidRequest, match="exclude each other") as error:
            await ask(shape=Regex("abc"), allowed_token_ids=(5,))
        assert error.value.param == "structured_outputs.regex"

    run(test)


def test_what_cannot_be_enforced_ends_before_it_begins(run: Run) -> None:
    async def test(ask: Ask) -> None:
        with pytest.raises(InvalidRequest, match='"if" at /properties/a') as error:
            await ask(shape=JsonSchema({"properties": {"a": {"if": {}}}}))
        assert error.value.param == "response_format"
        with pytest.raises(InvalidRequest, match='"not" at /'):
            await ask((Tool("f", parameters={"not": {}}, strict=True),))
        # And the next one is served.
        assert text_of(await ask(shape=OneOf(("x",)))) == "x"

    run(test)
