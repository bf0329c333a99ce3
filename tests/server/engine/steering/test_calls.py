"""Calls of every wire format under its grammar: the real engine process with a tiny real model."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from server.chat.formats.choose import FORMATS
from server.chat.grammar.compose import Composer
from server.chat.shapes import JsonSchema
from server.chat.tokenizers.tokenizer import ChatTokenizer
from server.chat.tokenizers.vocabulary import Vocabulary
from server.chat.tools import FREE, Tool, ToolChoice
from tests.support.steered import Answer, Asked, Run, request
from tests.support.wire import read

SWITCH: dict[str, Any] = {
    "type": "object",
    "properties": {
        "mode": {"type": "string", "enum": ["on", "off"]},
        "level": {"type": "integer", "enum": [1, 22, 333]},
        "now": {"type": "boolean"},
    },
    "required": ["mode", "level", "now"],
    "additionalProperties": False,
}
TOOLS = (Tool("switch", parameters=SWITCH), Tool("beep", parameters={"type": "object", "additionalProperties": False}))


def called(name: str, answer: Answer, vocabulary: Vocabulary) -> list[tuple[str, dict[str, Any]]]:
    stream = vocabulary.stream()
    pieces = [(token, stream.push(token)) for token in answer.tokens]
    read_answer = read(name, pieces, vocabulary, TOOLS, held=True)
    assert (read_answer.text.strip(), read_answer.reasoning) == ("", "")
    return read_answer.called()


@pytest.mark.parametrize("name", FORMATS)
def test_a_required_call_is_made_whatever_is_drawn(run: Run, vocabulary: Vocabulary, name: str) -> None:
    composer = Composer(FORMATS[name], vocabulary, 2**20)
    any_call, *_ = composer.compose(TOOLS, ToolChoice("required", parallel=False), None)
    this_call, *_ = composer.compose(TOOLS, ToolChoice("required", ("switch",), parallel=False), None)

    async def test(ask: Asked) -> None:
        rows = [request(grammar, seed=seed, temperature=1.5) for seed in range(3) for grammar in (any_call, this_call)]
        for index, answer in enumerate(await ask(*rows)):
            assert answer.reason == "stop", answer.text(vocabulary)
            [(tool, arguments)] = called(name, answer, vocabulary)
            if index % 2:
                assert tool == "switch"
            jsonschema.validate(arguments, SWITCH if tool == "switch" else {})

    run(test)


def test_with_tools_a_shape_leaves_the_model_the_choice_between_both(
    run: Run, tokenizer: ChatTokenizer, vocabulary: Vocabulary
) -> None:
    composer = Composer(FORMATS["hermes"], vocabulary, 2**20)
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    grammar, *_ = composer.compose(TOOLS, FREE, JsonSchema(schema))
    [angle], [brace] = tokenizer.encode("<", False), tokenizer.encode("{", False)

    async def test(ask: Asked) -> None:
        calls, shaped = await ask(
            request(grammar, logit_bias={angle: 60.0, brace: -60.0}), request(grammar, logit_bias={angle: -60.0})
        )
        assert called("hermes", calls, vocabulary)
        jsonschema.validate(json.loads(shaped.text(vocabulary)), schema)

    run(test)
