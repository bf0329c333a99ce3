"""The one grammar of tools, tool choice and shape: what it lets through, and what it says of what it cannot enforce."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import llguidance
import pytest

from server.chat.formats.choose import FORMATS
from server.chat.formats.format import CallGrammar
from server.chat.formats.hermes import Hermes
from server.chat.grammar import lark
from server.chat.grammar.compose import Composer
from server.chat.shapes import AnyJson, GrammarText, JsonSchema, OneOf, Regex, Shape, StructuralTag
from server.chat.tokenizers.tokenizer import ChatTokenizer
from server.chat.tokenizers.vocabulary import Vocabulary
from server.chat.tools import FREE, Tool, ToolChoice
from server.engine_client.protocol import Grammar
from server.errors import InvalidRequest
from tests.support.tiny_model import START, START_ID, write_tiny_model
from tests.support.vocabulary import vocabulary_of

OBJECT = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = Tool("weather", parameters=OBJECT)
CLOCK = Tool("clock", parameters={"type": "object"})


class Angled(Hermes):
    """Calls are `<|im_start|>name{...}`; the marker is a token."""

    def answer_opening(self, vocabulary: Vocabulary) -> str:
        return ""

    def call_grammar(self, vocabulary: Vocabulary, tools: Sequence[Tool], choice: ToolChoice) -> CallGrammar | None:
        calls = [
            f"{lark.marker(vocabulary, START)} {lark.literal(tool.name)} "
            + lark.json_schema(tool.parameters or {}, lenient=not tool.strict)
            for tool in tools
        ]
        return CallGrammar(f"calls: call{'+' if choice.parallel else ''}\ncall: {' | '.join(calls)}", (START,))


class NoCalls(Angled):
    def call_grammar(self, vocabulary: Vocabulary, tools: Sequence[Tool], choice: ToolChoice) -> CallGrammar | None:
        return None


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    return ChatTokenizer.load(write_tiny_model(tmp_path_factory.mktemp("compose") / "model"))


@pytest.fixture(scope="module")
def composer(tokenizer: ChatTokenizer) -> Composer:
    return Composer(Angled(), vocabulary_of(tokenizer), 2**20)


class Reader:
    """llguidance with the tiny model's tokens."""

    eos_token_id = 2
    bos_token_id = None

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        vocabulary = vocabulary_of(tokenizer)
        self.tokens = [vocabulary.token_bytes(token) for token in range(vocabulary.vocab_size)]
        self.special_token_ids = (0, 1, 2)
        self._encode = tokenizer.encode
        self._tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(self))

    def __call__(self, text: bytes) -> list[int]:
        return self._encode(text.decode(), False)

    def accepts(self, grammar: Grammar | None, text: str) -> bool:
        assert grammar is not None
        matcher = llguidance.LLMatcher(self._tokenizer, grammar.text, log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        tokens = self._encode(text, False)
        return bool(matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting())


@pytest.fixture(scope="module")
def reader(tokenizer: ChatTokenizer) -> Reader:
    return Reader(tokenizer)


CALL = f'{START}weather{{"city": "Paris"}}'
OTHER = f"{START}clock{{}}"
NEITHER = f"{START}rm{{}}"


def test_auto_waits_for_a_call_to_begin(composer: Composer, reader: Reader) -> None:
    grammar, banned, notes = composer.compose((WEATHER, CLOCK), FREE, None)
    assert grammar is not None
    assert (grammar.opening, grammar.once, banned, notes) == ([START], False, [], [])
    assert [text for text in (CALL, OTHER, NEITHER, "text") if reader.accepts(grammar, text)] == [CALL, OTHER]


def test_auto_with_one_call_at_most_ends_with_it(composer: Composer) -> None:
    grammar, *_ = composer.compose((WEATHER,), ToolChoice(parallel=False), None)
    assert grammar is not None
    assert grammar.once


@pytest.mark.parametrize(
    ("choice", "accepted"),
    [
        (ToolChoice("required"), [CALL, OTHER, CALL + OTHER]),
        (ToolChoice("required", parallel=False), [CALL, OTHER]),
        (ToolChoice("required", ("weather",)), [CALL]),
    ],
)
def test_required_is_calls_from_the_first_token(
    composer: Composer, reader: Reader, choice: ToolChoice, accepted: list[str]
) -> None:
    grammar, *_ = composer.compose((WEATHER, CLOCK), choice, JsonSchema(OBJECT))
    assert grammar is not None
    assert not grammar.opening
    texts = [CALL, OTHER, CALL + OTHER, NEITHER, '{"city": "x"}', "text"]
    assert [text for text in texts if reader.accepts(grammar, text)] == accepted


def test_none_bans_the_marker_of_a_call_and_keeps_the_shape(composer: Composer, reader: Reader) -> None:
    choice = ToolChoice("none")
    assert composer.compose((WEATHER,), choice, None) == (None, [[START_ID]], [])
    grammar, banned, _ = composer.compose((WEATHER,), choice, OneOf(("a", "b")))
    assert (banned, reader.accepts(grammar, "b"), reader.accepts(grammar, CALL)) == ([[START_ID]], True, False)


def test_a_model_without_calls_can_be_asked_for_none_only(tokenizer: ChatTokenizer) -> None:
    composer = Composer(NoCalls(), vocabulary_of(tokenizer), 2**20)
    assert composer.compose((WEATHER,), FREE, None) == (None, [], [])
    with pytest.raises(InvalidRequest) as error:
        composer.compose((WEATHER,), ToolChoice("required"), None)
    assert error.value.param == "tool_choice"


GBNF = """\
root ::= greeting " " name
greeting ::= "Hello" | "Hi"
name ::= [A-Z] [a-z]+
"""


@pytest.mark.parametrize(
    ("shape", "right", "wrong"),
    [
        (AnyJson(), '{"a": [1]}', "[1]"),
        (JsonSchema(OBJECT), '{"city": "Paris"}', '{"town": 1}'),
        (Regex("^[a-z]+/[0-9]{2}$"), "ab/42", "ab/4"),
        (OneOf(('"yes"', "no")), '"yes"', "yes"),
        (GrammarText(GBNF), "Hi Bob", "Hi bob"),
        (GrammarText(GBNF, "gbnf"), "Hello Ann", "Hello"),
        (GrammarText('start: "x" calls\ncalls: "y"+', "lark"), "xyy", "x"),
        (GrammarText('start: "x"'), "x", "y"),
    ],
)
@pytest.mark.parametrize("tools", [(), (WEATHER,)])
def test_every_shape_holds_with_tools_beside_it_and_without(
    composer: Composer, reader: Reader, shape: Shape, right: str, wrong: str, tools: tuple[Tool, ...]
) -> None:
    """A name of the client's own grammar, `calls`, does not meet ours."""
    grammar, *_ = composer.compose(tools, FREE, shape)
    assert grammar is not None
    assert not grammar.opening
    assert reader.accepts(grammar, right)
    assert not reader.accepts(grammar, wrong)
    assert reader.accepts(grammar, CALL) is bool(tools)


def test_a_structural_tag_waits_for_its_triggers(composer: Composer, reader: Reader) -> None:
    shape = StructuralTag((("<f=a>", OBJECT, "</f>"), ("<f=b>", {"type": "integer"}, "</f>")), ("<f=",))
    grammar, *_ = composer.compose((), FREE, shape)
    assert grammar is not None
    assert grammar.opening == ["<f="]
    assert reader.accepts(grammar, "<f=b>12</f>")
    assert not reader.accepts(grammar, "<f=a>12</f>")


@pytest.mark.parametrize(
    ("shape", "param", "words"),
    [
        (
            JsonSchema({"type": "object", "properties": {"a/b": {"if": {}}}}),
            "response_format",
            '"if" at /properties/a/b',
        ),
        (
            JsonSchema({"$defs": {"x": {"type": "array", "uniqueItems": True}}, "$ref": "#/$defs/x"}, param="p.schema"),
            "p.schema",
            '"uniqueItems" at /$defs/x',
        ),
        (JsonSchema({"type": "string", "pattern": "(?=a)b"}), "response_format", '"pattern" at / '),
        (JsonSchema({"type": "strange"}), "response_format", '"type" at /'),
        (JsonSchema({"$ref": "#/nowhere"}), "response_format", '"$ref" at /'),
        (
            JsonSchema({"items": {"type": "object", "properties": {"a": {}}, "minProperties": 1}}),
            "response_format",
            '"minProperties" at /items',
        ),
        (
            JsonSchema({"anyOf": [{"oneOf": [{"type": "string"}, {"pattern": "a"}]}]}),
            "response_format",
            '"oneOf" at /anyOf/0',
        ),
        (Regex("a(b"), "structured_outputs.regex", "unclosed group"),
        (Regex(r"(a)\1"), "structured_outputs.regex", "backreferences"),
        (GrammarText("root ::= nowhere"), "grammar", "nowhere"),
        (GrammarText("root :::= x", "gbnf"), "grammar", "::="),
        (GrammarText("root ::= " + "(" * 5000, "gbnf"), "grammar", "nested"),
        (GrammarText('root ::= "\\', "gbnf"), "grammar", "GBNF"),
        (GrammarText("start: <[999999]>", "lark"), "grammar", "999999"),
    ],
)
def test_what_cannot_be_enforced_is_refused_with_its_place(
    composer: Composer, shape: Shape, param: str, words: str
) -> None:
    with pytest.raises(InvalidRequest) as error:
        composer.compose((), FREE, shape)
    assert error.value.param == param
    assert words in error.value.message
    assert "\n" not in error.value.message


def test_a_format_that_nobody_checks_is_an_annotation_even_when_strict(composer: Composer, reader: Reader) -> None:
    schema = {
        "type": "object",
        "properties": {"format": {"type": "string", "format": "colour"}},
        "required": ["format"],
    }
    grammar, _, notes = composer.compose((), FREE, JsonSchema(schema))
    assert notes == ["response_format: not enforced: format colour"]
    assert reader.accepts(grammar, '{"format": "red"}')
    of_openapi = {"$ref": "#/components/schemas/A", "components": {"schemas": {"A": schema}}}
    assert len(composer.compose((), FREE, JsonSchema(of_openapi))[2]) == 1
    dated, _, notes = composer.compose((), FREE, JsonSchema({"type": "string", "format": "date"}))
    assert (notes, reader.accepts(dated, '"2026-11-26"'), reader.accepts(dated, '"today"')) == ([], True, False)


def test_a_strict_tool_is_refused_for_what_a_lenient_one_only_notes(composer: Composer) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "not": {"const": "x"}}}}
    grammar, _, notes = composer.compose((CLOCK, Tool("f", parameters=schema)), FREE, None)
    assert grammar is not None
    assert len(notes) == 1
    assert '"not"' in notes[0]
    assert "tools[1]" in notes[0]
    with pytest.raises(InvalidRequest, match=r'"not" at /properties/a') as error:
        composer.compose((CLOCK, Tool("f", parameters=schema, strict=True)), FREE, None)
    assert error.value.param == "tools[1].function.parameters"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?!x).*"}}},
        {"type": "object", "properties": {"a": {"type": "strange"}, "b": {"type": "integer"}}},
        {"type": "object", "properties": {"a": {"$ref": "http://example.com/other.json"}}},
        {"properties": {"pattern": {"type": "string", "minLength": 9, "maxLength": 2}}, "required": ["pattern"]},
        {"type": "object", "properties": {"a": 5}},
        {"properties": []},
        {"properties": {"a": {"oneOf": [{"type": "string"}, {"pattern": "a"}], "uniqueItems": True}}},
        {"$ref": "#"},
        {"type": "object", "allOf": [{"not": {}}], "$schema": "http://json-schema.org/draft-07/schema#"},
    ],
)  # fmt: skip
def test_a_tool_that_is_not_strict_is_never_refused(composer: Composer, reader: Reader, schema: Any) -> None:
    grammar, _, notes = composer.compose((Tool("f", parameters=schema),), FREE, None)
    assert notes
    assert reader.accepts(grammar, f"{START}f{{}}") or reader.accepts(grammar, f'{START}f{{"pattern": "x"}}')


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "objekt"}, '"type" at / cannot be enforced: Invalid type: objekt'),
        ({"properties": {"a": {"type": "strng"}}}, '"type" at /properties/a'),
        ({"properties": {"a": {"$ref": "#/$defs/nope"}}}, '"$ref" at /properties/a'),
        ({"$ref": "http://example.com/other.json"}, '"$ref" at /'),
        ({"enum": "a"}, "enum must be an array"),
        ({"properties": {"a": 5}}, "cannot be enforced"),
    ],
)  # fmt: skip
def test_an_answer_is_not_made_to_what_is_no_schema_even_when_it_is_not_strict(
    composer: Composer, schema: Any, words: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        composer.compose((), FREE, JsonSchema(schema, strict=False))
    assert words in refused.value.message


@pytest.mark.parametrize(
    "narrowing", [{"pattern": "(?!x).*"}, {"minLength": 9, "maxLength": 2}, {"format": "("}, {"maxLength": "x"}]
)
def test_what_only_narrows_a_value_is_given_up_when_it_is_not_strict(
    composer: Composer, reader: Reader, narrowing: Any
) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", **narrowing}}, "required": ["a"]}
    grammar, _, notes = composer.compose((), FREE, JsonSchema(schema, strict=False))
    assert notes
    assert reader.accepts(grammar, '{"a": "b"}')
    assert not reader.accepts(grammar, '{"a": 5}')


def test_a_grammar_has_a_greatest_size(tokenizer: ChatTokenizer) -> None:
    composer = Composer(Angled(), vocabulary_of(tokenizer), 2000)
    big = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(200)}}
    with pytest.raises(InvalidRequest, match=r"limits\.max_grammar_bytes is 2000"):
        composer.compose((), FREE, JsonSchema(big))
    # Arguments of any kind are a small grammar, and such a tool must not be refused.
    grammar, _, notes = composer.compose((Tool("f", parameters=big),), FREE, None)
    assert grammar is not None
    assert "not enforced" in notes[-1]
    with pytest.raises(InvalidRequest, match="max_grammar_bytes"):
        composer.compose((Tool("f", parameters=big, strict=True),), FREE, None)


def test_notes_name_each_keyword_once(composer: Composer) -> None:
    schema = {"type": "object", "properties": {name: {"type": "array", "uniqueItems": True} for name in "abc"}}
    _, _, notes = composer.compose((Tool("f", parameters=schema),), FREE, None)
    assert len(notes) == 1
    assert json.dumps("uniqueItems") in notes[0]


PLACE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "description": "Of the place.", "maxLength": 20},
        "unit": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
        "kind": {"enum": ["town", "river"]},
        "sizes": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "founded": {"type": "string", "format": "date"},
    },
    "required": ["name", "kind"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("wire_format", "lost"),
    [
        ("gemma4", [("/properties/founded", "format")]),
        ("functiongemma", [("/properties/founded", "format")]),
        # A list is JSON there as well, and only a bare text is free.
        ("qwen3-coder", [("/properties/name", "maxLength"), ("/properties/founded", "format")]),
        ("minimax-m2", [("/properties/name", "maxLength"), ("/properties/founded", "format")]),
        ("glm", [("/properties/name", "maxLength"), ("/properties/founded", "format")]),
        *((name, []) for name in ("hermes", "llama3", "mistral", "harmony", "plain", "think")),
    ],
)
def test_what_the_calls_of_a_model_cannot_hold_is_noted_and_refused_when_strict(
    tokenizer: ChatTokenizer, wire_format: str, lost: list[tuple[str, str]]
) -> None:
    composer = Composer(FORMATS[wire_format], vocabulary_of(tokenizer), 2**20)
    _, _, notes = composer.compose((Tool("place", parameters=PLACE),), FREE, None)
    assert [note.partition(": not enforced in the calls of this model: ")[2] for note in notes] == [
        f'"{keyword}" at {place}' for place, keyword in lost
    ]
    strict = Tool("place", parameters=PLACE, strict=True)
    if not lost:
        assert composer.compose((strict,), FREE, None)[0] is not None
        return
    with pytest.raises(InvalidRequest, match=f'the keyword "{lost[0][1]}" at {lost[0][0]}') as error:
        composer.compose((strict,), FREE, None)
    assert error.value.param == "tools[0].function.parameters"
    held = {**PLACE, "properties": {key: PLACE["properties"][key] for key in ("unit", "kind")}, "required": ["kind"]}
    assert composer.compose((Tool("place", parameters=held, strict=True),), FREE, None)[0] is not None


def test_a_schema_that_holds_itself_is_held_as_deep_as_the_grammar_goes(tokenizer: ChatTokenizer) -> None:
    tree = {
        "$ref": "#/$defs/node",
        "$defs": {"node": {"properties": {"size": {"type": "integer"}, "left": {"$ref": "#/$defs/node"}}}},
    }
    composer = Composer(FORMATS["gemma4"], vocabulary_of(tokenizer), 2**20)
    grammar, _, notes = composer.compose((Tool("grow", parameters=tree),), FREE, None)
    assert grammar is not None
    assert f"/properties/left{'/properties/left' * 3}" in notes[-1]
