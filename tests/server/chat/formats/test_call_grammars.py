"""The grammar of each format's calls: it lets through what the model was trained on, and all that it lets through is a
call of an offered tool."""

from __future__ import annotations

import json
import random

import jsonschema
import pytest

from server.chat.formats.choose import FORMATS
from server.chat.formats.format import CallGrammar
from server.chat.grammar.unheld import unheld
from server.chat.tokenizers.vocabulary import Vocabulary
from server.chat.tools import Tool, ToolChoice
from tests.support.grammars import accepts, token_ids, walk
from tests.support.transcripts.every import TRANSCRIPTS
from tests.support.wire import TOOLS, read, tokens, vocabulary

MARKERS = {transcript.wire_format: transcript.markers for transcript in TRANSCRIPTS}
HIDDEN = {transcript.wire_format: transcript.hidden for transcript in TRANSCRIPTS}

# As the template of each format writes a call in the history.
WRITTEN = {
    "gemma4": '<|tool_call>call:get_weather{city:<|"|>Paris {x}<|"|>,days:3,unit:<|"|>C<|"|>}<tool_call|>',
    "functiongemma": "<start_function_call>call:get_weather{city:<escape>Paris {x}<escape>,days:3}<end_function_call>",
    "hermes": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}\n</tool_call>',
    "plain": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}\n</tool_call>',
    "think": '<tool_call>\n{"name": "list_files", "arguments": {}}\n</tool_call>',
    "qwen3-coder": "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n"
    "</parameter>\n</function>\n</tool_call>",
    "minimax-m2": '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Paris</parameter>\n'
    '<parameter name="days">3</parameter>\n</invoke>\n</minimax:tool_call>',
    "glm": "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n<arg_key>days</arg_key>\n"
    "<arg_value>3</arg_value>\n</tool_call>",
    "llama3": '{"name": "get_weather", "parameters": {"city": "Paris", "days": 3}}',
    "mistral": '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris", "days": 3}',
    "harmony": '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city":"Paris","days":3}',
}


def _known(name: str, spelled: bool) -> Vocabulary:
    return vocabulary(() if spelled else MARKERS[name], HIDDEN[name])


def _grammar(name: str, known: Vocabulary, tools: tuple[Tool, ...] = TOOLS, parallel: bool = True) -> CallGrammar:
    grammar = FORMATS[name].call_grammar(known, tools, ToolChoice(parallel=parallel))
    assert grammar is not None
    return grammar


@pytest.mark.parametrize("spelled", [False, True], ids=["tokens", "characters"])
@pytest.mark.parametrize("name", FORMATS)
def test_a_call_as_the_template_writes_it_is_let_through(name: str, spelled: bool) -> None:
    known = _known(name, spelled)
    text = WRITTEN[name]
    if spelled and name == "mistral":
        text = '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}]'
    grammar = _grammar(name, known)
    ids = token_ids(tokens(text, known, MARKERS[name]))
    assert accepts(known, grammar.lark, ids)
    assert any(text.startswith(opening) for opening in grammar.opening) or name == "llama3"


@pytest.mark.parametrize("name", FORMATS)
def test_no_other_tool_and_no_value_of_another_type_is_let_through(name: str) -> None:
    known = _known(name, False)
    lark = _grammar(name, known).lark
    for wrong in (WRITTEN[name].replace("get_weather", "rm_rf").replace("list_files", "rm_rf"), WRITTEN[name][:-1]):
        assert not accepts(known, lark, token_ids(tokens(wrong, known, MARKERS[name])))
    if name != "think":
        wrong = WRITTEN[name].replace("3", "many")
        assert not accepts(known, lark, token_ids(tokens(wrong, known, MARKERS[name])))


@pytest.mark.parametrize("spelled", [False, True], ids=["tokens", "characters"])
@pytest.mark.parametrize("name", FORMATS)
def test_all_that_is_let_through_is_read_as_calls_that_their_schemas_allow(name: str, spelled: bool) -> None:
    known = _known(name, spelled)
    lark = _grammar(name, known).lark
    rng = random.Random(name)
    # Made once: `jsonschema.validate` would look through the schema itself at each call.
    schemas = {tool.name: jsonschema.Draft202012Validator(tool.parameters or {}) for tool in TOOLS}
    found = 0
    for _ in range(25):
        made = walk(known, lark, rng)
        if made is None:
            continue
        stream = known.stream()
        pieces = [(token, stream.push(token)) for token in made]
        for held in (False, True):
            answer = read(name, pieces, known, held=held)
            assert answer.calls and (answer.text, answer.reasoning) == ("", "")
            for called, arguments in answer.called():
                schemas[called].validate(arguments)
                found += 1
    assert found > 10


@pytest.mark.parametrize("name", FORMATS)
def test_one_call_at_most_where_they_may_not_be_parallel(name: str) -> None:
    known = _known(name, False)
    lark = _grammar(name, known, parallel=False).lark
    rng = random.Random(name)
    for _ in range(10):
        made = walk(known, lark, rng)
        if made is not None:
            stream = known.stream()
            assert len(read(name, [(token, stream.push(token)) for token in made], known).calls) == 1


HARD = (
    Tool('quo"ted', 'a "b" \\', {"type": "object", "properties": {'k"e y: z': {"enum": ["a/b", 'c"d', "\\"]}}}),
    Tool("nested", "", {
        "type": "object",
        "$defs": {"point": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}},
        "properties": {
            "points": {"type": "array", "items": {"$ref": "#/$defs/point"}},
            "either": {"anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "null"}]},
            "free": {},
            "fixed": {"const": 7},
        },
        "required": ["points"],
    }),
    Tool("anything", "", None),
    Tool("no-type", "", {"properties": {"a": {"type": "boolean"}}}),
    Tool("ns:dotted.name", "", {"type": "object", "additionalProperties": {"type": "integer"}}),
)  # fmt: skip


@pytest.mark.parametrize("spelled", [False, True], ids=["tokens", "characters"])
@pytest.mark.parametrize("name", FORMATS)
def test_tools_of_every_kind_have_a_grammar(name: str, spelled: bool) -> None:
    known = _known(name, spelled)
    rng = random.Random(name)
    found = set()
    for tool in HARD:
        lark = _grammar(name, known, (tool,)).lark
        for _ in range(6):
            made = walk(known, lark, rng)
            if made is None:
                continue
            stream = known.stream()
            answer = read(name, [(token, stream.push(token)) for token in made], known, (tool,))
            assert answer.calls, known and bytes(token for token in made if token < 256)
            for called, arguments in answer.called():
                assert called == tool.name and json.dumps(arguments)
                found.add(called)
    assert found == {tool.name for tool in HARD}


STRICT = {
    "type": "object",
    "$defs": {"step": {
        "type": "object", "properties": {"line": {"type": "integer", "minimum": 1, "maximum": 40}},
        "required": ["line"], "additionalProperties": False,
    }},
    "properties": {
        "name": {"type": "string", "minLength": 2, "maxLength": 5},
        "code": {"type": "string", "pattern": "^[A-C]{2}[0-9]$"},
        "steps": {"type": "array", "items": {"$ref": "#/$defs/step"}, "minItems": 1, "maxItems": 3},
        "next": {"anyOf": [{"$ref": "#/$defs/step"}, {"type": "null"}]},
        "many": {"anyOf": [{"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2}, {"type": "null"}]},
        "ratio": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
        "sizes": {"type": "object", "additionalProperties": {"type": "integer", "minimum": 0}},
        "maybe": {"type": ["object", "null"], "properties": {"on": {"type": "boolean"}}, "required": ["on"]},
    },
    "required": ["name", "code", "steps", "next", "many", "ratio", "sizes", "maybe"],
    "additionalProperties": False,
}  # fmt: skip


@pytest.mark.parametrize("spelled", [False, True], ids=["tokens", "characters"])
@pytest.mark.parametrize("name", ["gemma4", "functiongemma"])
def test_what_a_strict_schema_says_is_held_in_gemmas_own_values(name: str, spelled: bool) -> None:
    known, tool = _known(name, spelled), Tool("run", "", STRICT, strict=True)
    assert list(unheld(FORMATS[name].arguments, STRICT)) == []
    lark = _grammar(name, known, (tool,)).lark
    rng = random.Random(name)
    found = 0
    for _ in range(25):
        made = walk(known, lark, rng)
        if made is not None:
            stream = known.stream()
            answer = read(name, [(token, stream.push(token)) for token in made], known, (tool,), held=True)
            for _, arguments in answer.called():
                jsonschema.validate(arguments, STRICT)
                found += 1
    assert found > 10
