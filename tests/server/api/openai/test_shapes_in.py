"""Every way to ask for output of a form, on a real socket, in chat and completions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from server.chat.conversation import GenerationRequest
from server.chat.shapes import AnyJson, GrammarText, JsonSchema, OneOf, Regex, StructuralTag
from tests.support.scripted_service import Running, ScriptedService, running

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(ScriptedService()) as up:
        yield up


def _request(server: Running, **fields: Any) -> GenerationRequest:
    reply = server.chat(**fields)
    assert reply.status == 200, reply.body
    return server.service.requests[-1]


ANY = {"type": "json_object"}
TAG = {"structures": [{"begin": "<f>", "schema": SCHEMA, "end": "</f>"}], "triggers": ["<f"]}
SHAPES: list[tuple[dict[str, Any], Any]] = [
    ({}, None),
    ({"response_format": {"type": "text"}}, None),
    ({"response_format": ANY}, AnyJson()),
    ({"response_format": {**ANY, "schema": SCHEMA}}, JsonSchema(SCHEMA, False, "response_format.schema")),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}}},
     JsonSchema(SCHEMA, True, "response_format.json_schema.schema")),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
     JsonSchema(SCHEMA, False, "response_format.json_schema.schema")),
    ({"response_format": {"type": "json_schema", "schema": SCHEMA}},
     JsonSchema(SCHEMA, False, "response_format.schema")),
    ({"response_format": {"type": "structural_tag", **TAG}},
     StructuralTag((("<f>", SCHEMA, "</f>"),), ("<f",), "response_format")),
    ({"structured_outputs": {"json": SCHEMA}}, JsonSchema(SCHEMA, True, "structured_outputs.json")),
    ({"structured_outputs": {"json": '{"type": "null"}', "regex": None, "json_object": False}},
     JsonSchema({"type": "null"}, True, "structured_outputs.json")),
    ({"structured_outputs": {"json_object": True, "disable_fallback": True}}, AnyJson()),
    ({"structured_outputs": {"regex": "a+"}}, Regex("a+", "structured_outputs.regex")),
    ({"structured_outputs": {"choice": ["a", "b", "a"]}}, OneOf(("a", "b"), "structured_outputs.choice")),
    ({"structured_outputs": {"grammar": "start: /a/"}},
     GrammarText("start: /a/", "auto", "structured_outputs.grammar")),
    ({"structured_outputs": {"structural_tag": '{"structures": [{"begin": "a", "end": "b"}]}'}},
     StructuralTag((("a", {}, "b"),), (), "structured_outputs.structural_tag")),
    ({"guided_json": SCHEMA, "guided_decoding_backend": "xgrammar"}, JsonSchema(SCHEMA, True, "guided_json")),
    ({"guided_regex": "a+"}, Regex("a+", "guided_regex")),
    ({"guided_choice": ["a"]}, OneOf(("a",), "guided_choice")),
    ({"guided_choice": []}, None),
    ({"guided_grammar": "root ::= x"}, GrammarText("root ::= x", "auto", "guided_grammar")),
    ({"grammar": "root ::= x"}, GrammarText("root ::= x", "gbnf", "grammar")),
    ({"grammar": ""}, None),
    ({"json_schema": {}}, JsonSchema({}, True, "json_schema")),
    ({"json_schema": '{"type": "null"}'}, JsonSchema({"type": "null"}, True, "json_schema")),
    ({"regex": "a+"}, Regex("a+", "regex")),
    ({"ebnf": "root ::= x"}, GrammarText("root ::= x", "gbnf", "ebnf")),
    ({"format": "json"}, AnyJson()),
    ({"format": ""}, None),
    ({"format": SCHEMA}, JsonSchema(SCHEMA, True, "format")),
    ({"json_mode": True}, AnyJson()),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "shape"), SHAPES, ids=range(len(SHAPES)))
def test_every_way_to_ask_for_a_form_is_understood_in_chat_and_completions(
    server: Running, fields: dict[str, Any], shape: Any
) -> None:
    assert _request(server, **fields).options.shape == shape
    reply = server.complete(**fields)
    assert reply.status == 200, reply.body
    assert server.service.requests[-1].options.shape == shape
    assert "x-configi-ignored" not in reply.headers


BAD_SHAPES: list[tuple[dict[str, Any], str]] = [
    ({"response_format": "json"}, "response_format"),
    ({"response_format": {}}, "response_format.type"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": ["text"]}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}, "response_format.json_schema.schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": []}}}, "response_format.json_schema.schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "strict": 1}}},
     "response_format.json_schema.strict"),
    ({"response_format": {"type": "structural_tag", "format": {}}}, "response_format.format"),
    ({"response_format": {"type": "structural_tag"}}, "response_format.structures"),
    ({"structured_outputs": {"xml": "a"}}, "structured_outputs.xml"),
    ({"structured_outputs": {"whitespace_pattern": " "}}, "structured_outputs.whitespace_pattern"),
    ({"structured_outputs": {"regex": 5}}, "structured_outputs.regex"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
    ({"structured_outputs": {"choice": ["a", ""]}}, "structured_outputs.choice"),
    ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
    ({"structured_outputs": {"json": 5}}, "structured_outputs.json"),
    ({"structured_outputs": {"json_object": 1}}, "structured_outputs.json_object"),
    ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs.choice"),
    ({"response_format": ANY, "guided_regex": "a"}, "guided_regex"),
    ({"guided_choice": [5]}, "guided_choice"),
    ({"guided_whitespace_pattern": "x"}, "guided_whitespace_pattern"),
    ({"structural_tag": {"structures": [{"begin": ""}]}}, "structural_tag.structures.0"),
    ({"structural_tag": {"structures": [TAG["structures"][0]], "triggers": [""]}}, "structural_tag.triggers"),
    ({"format": 5}, "format"),
    ({"grammar": 5}, "grammar"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param"), BAD_SHAPES, ids=range(len(BAD_SHAPES)))
def test_a_form_that_cannot_be_read_is_a_400_that_names_the_place(
    server: Running, fields: dict[str, Any], param: str
) -> None:
    reply = server.chat(**fields)
    assert (reply.status, reply.json()["error"]["param"]) == (400, param), reply.body
