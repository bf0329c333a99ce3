"""One grammar of all that a request asks of its answer: tools, the choice among them, and the shape of the text.

Text process: schemas, patterns and grammars cost what their authors like.
"""

from __future__ import annotations

import json
from itertools import islice

import msgspec
from llguidance.gbnf_to_lark import any_to_lark, gbnf_to_lark

from server.chat.formats.format import CallGrammar, WireFormat
from server.chat.grammar import lark
from server.chat.grammar.checking import GrammarFault, check
from server.chat.grammar.schemas import usable
from server.chat.grammar.unheld import unheld
from server.chat.shapes import AnyJson, GrammarText, JsonSchema, OneOf, Regex, Shape, StructuralTag
from server.chat.tokenizers.vocabulary import Vocabulary
from server.chat.tools import Tool, ToolChoice
from server.engine_client.protocol import Grammar
from server.errors import InvalidRequest

# Between a thought or a marker and JSON, models leave a line or two.
_LINES = r"/\n{0,2}/"
# What is not held of one tool: a line each in the log.
_MOST_NOTES = 20


# The grammar, the token sequences that are banned, and what of the request's schemas is not enforced.
Composed = tuple[Grammar | None, list[list[int]], list[str]]


class Composer:
    """For one model. `most_bytes`: of a grammar."""

    def __init__(self, wire_format: WireFormat, vocabulary: Vocabulary, most_bytes: int) -> None:
        self._format = wire_format
        self._vocabulary = vocabulary
        self._most_bytes = most_bytes

    def compose(self, tools: tuple[Tool, ...], choice: ToolChoice, shape: Shape | None) -> Composed:
        """
        Raises:
            InvalidRequest: the request's own words cannot be made into a grammar, with the `param` that has them.
        """
        notes: list[str] = []
        allowed = choice.allowed(tools)
        callable_tools = tuple(self._usable(tool, tools.index(tool), notes) for tool in allowed)
        calls = self._format.call_grammar(self._vocabulary, callable_tools, choice) if callable_tools else None
        if choice.mode == "required" and calls is None:
            raise InvalidRequest(
                "This model has no format for tool calls, so none can be required.", param="tool_choice"
            )
        if choice.mode == "none":
            return self._of_shape(shape, None, notes), self._ban(calls), notes
        try:
            return self._of(calls, choice, shape, notes), [], notes
        except GrammarFault as fault:
            return self._with_any_arguments(callable_tools, choice, shape, notes, str(fault))

    def _usable(self, tool: Tool, index: int, notes: list[str]) -> Tool:
        if tool.parameters is None:
            return tool
        param = f"tools[{index}].function.parameters"
        # Arguments are an object whether the schema says so or not.
        whole = {"type": "object", **tool.parameters}
        size = self._vocabulary.vocab_size
        schema, more = usable(whole, strict=tool.strict, param=param, vocab_size=size, of_tool=True)
        notes += more
        lost: list[tuple[str, str]] = []
        if isinstance(schema, dict):
            lost = list(islice(unheld(self._format.arguments, schema), _MOST_NOTES))
        if lost and tool.strict:
            place, keyword = lost[0]
            raise InvalidRequest(
                f'{param}: the keyword "{keyword}" at {place} cannot be enforced in the calls of this model.',
                param=param,
            )
        notes += [f'{param}: not enforced in the calls of this model: "{key}" at {place}' for place, key in lost]
        return msgspec.structs.replace(tool, parameters=schema if isinstance(schema, dict) else {})

    def _with_any_arguments(
        self, tools: tuple[Tool, ...], choice: ToolChoice, shape: Shape | None, notes: list[str], reason: str
    ) -> Composed:
        """What one schema by itself allowed may be too much in the sum: then only the strict ones are enforced."""
        if not any(tool.parameters and not tool.strict for tool in tools):
            raise InvalidRequest(f"The tools and the shape of the answer cannot be enforced: {reason}", param="tools")
        loose = tuple(tool if tool.strict else msgspec.structs.replace(tool, parameters=None) for tool in tools)
        calls = self._format.call_grammar(self._vocabulary, loose, choice)
        try:
            grammar = self._of(calls, choice, shape, notes)
        except GrammarFault as fault:
            raise InvalidRequest(f"The tools cannot be enforced: {fault}", param="tools") from None
        return grammar, [], [*notes, f"tools: arguments are not enforced: {reason}"]

    def _ban(self, calls: CallGrammar | None) -> list[list[int]]:
        """Where no call may be made, the markers that open one, where they are tokens."""
        found = (self._vocabulary.marker(opening) for opening in (calls.opening if calls else ()))
        return [[token] for token in found if token is not None]

    def _of(
        self, calls: CallGrammar | None, choice: ToolChoice, shape: Shape | None, notes: list[str]
    ) -> Grammar | None:
        if calls is None:
            return self._of_shape(shape, None, notes)
        if choice.mode == "required":
            return self._checked(Grammar(text=f"start: calls\n{calls.lark}"))
        if shape is None:
            return self._checked(
                Grammar(text=f"start: calls\n{calls.lark}", opening=list(calls.opening), once=not choice.parallel)
            )
        return self._of_shape(shape, calls, notes)

    def _of_shape(self, shape: Shape | None, calls: CallGrammar | None, notes: list[str]) -> Grammar | None:
        """Text of `shape`, or `calls`."""
        rest = f"\n{calls.lark}" if calls else ""
        if isinstance(shape, StructuralTag):
            text, opening = self._of_tags(shape, notes)
            start = "start: tags | calls" if calls else "start: tags"
            opening += calls.opening if calls else ()
            return self._checked(Grammar(text=f"{start}\n{text}{rest}", opening=opening), shape.param)
        if shape is None:
            return None
        start = f"start: {self._format.answer_opening(self._vocabulary)} shape" + (" | calls" if calls else "")
        if isinstance(shape, GrammarText):
            main = f"{start}\nshape: @shape{rest}"
            parts = [{"name": "answer", "lark_grammar": main}, {"name": "shape", "lark_grammar": _lark_of(shape)}]
            return self._checked(Grammar(text=json.dumps({"grammars": parts})), shape.param)
        return self._checked(Grammar(text=f"{start}\nshape: {self._term(shape, notes)}{rest}"), shape.param)

    def _term(self, shape: AnyJson | JsonSchema | Regex | OneOf, notes: list[str]) -> str:
        lines = f"{_LINES} " if self._format.thought else ""
        match shape:
            case AnyJson():
                return lines + lark.any_json()
            case JsonSchema():
                return lines + self._json(shape.schema, shape.strict, shape.param, notes)
            case Regex():
                return lark.regex(shape.pattern)
            case OneOf():
                return lark.choice(shape.texts)

    def _of_tags(self, shape: StructuralTag, notes: list[str]) -> tuple[str, list[str]]:
        rules = [
            f"{self._mark(begin)} {self._json(schema, False, shape.param, notes)} {self._mark(end)}"
            for begin, schema, end in shape.tags
        ]
        return f"tags: {' | '.join(rules)}", list(shape.triggers or (begin for begin, _, _ in shape.tags))

    def _mark(self, text: str) -> str:
        return lark.marker(self._vocabulary, text)

    def _json(self, schema: dict[str, object] | bool, strict: bool, param: str, notes: list[str]) -> str:
        made, more = usable(schema, strict=strict, param=param, vocab_size=self._vocabulary.vocab_size)
        notes += more
        return lark.json_schema(made, lenient=not strict)

    def _checked(self, grammar: Grammar, param: str | None = None) -> Grammar:
        """Raises GrammarFault without a `param` that is to blame, InvalidRequest with one."""
        size = len(grammar.text.encode())
        try:
            if size > self._most_bytes:
                raise GrammarFault(f"it has {size} bytes, and limits.max_grammar_bytes is {self._most_bytes}.")
            check(grammar.text, self._vocabulary.vocab_size)
        except GrammarFault as fault:
            if param is None:
                raise
            raise InvalidRequest(f"{param} cannot be used as a grammar: {fault}", param=param) from None
        return grammar


def _lark_of(shape: GrammarText) -> str:
    if shape.dialect == "lark":
        return shape.text
    try:
        made: str = gbnf_to_lark(shape.text) if shape.dialect == "gbnf" else any_to_lark(shape.text)
        return made
    except RecursionError:
        reason = "it is nested too deeply."
    except Exception as error:
        # Its own class for what it understands, and IndexError and others for what it does not.
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    raise InvalidRequest(f"{shape.param} cannot be read as GBNF: {reason}", param=shape.param)
