"""Harmony, the format of gpt-oss: every message has a header that names its channel and whom it is for.

An answer is one message or several. Analysis is reasoning, what is for a function is a call, everything else is text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import ClassVar

from server.chat.channels import Channels
from server.chat.formats.format import Arguments, CallGrammar, ThoughtMarkers
from server.chat.formats.inlet import Broken, Cut, Inlet, Steps, Stops
from server.chat.formats.loose_json import JsonStyle, LooseJson
from server.chat.formats.marked import Steered
from server.chat.formats.outlet import Outlet
from server.chat.formats.reader import Calls
from server.chat.formats.rules import grammar, json_arguments
from server.chat.formats.schema import arguments_schema
from server.chat.formats.symbols import Symbols
from server.chat.grammar import lark
from server.chat.tokenizers.vocabulary import Vocabulary
from server.chat.tools import Tool, ToolChoice

START, CHANNEL, MESSAGE, CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
END, CALL, RETURN = "<|end|>", "<|call|>", "<|return|>"
_TOKENS = (START, CHANNEL, MESSAGE, CONSTRAIN, END, CALL, RETURN)
_FINAL = f"{END}{START}assistant{CHANNEL}final{MESSAGE}"
_HEADER = re.compile(r"\b(?:assistant|analysis|commentary|final|json|code)\b")
_RECIPIENT = re.compile(r"(?<![^\s\ud800-\udfff>])to=(?:functions[.:])?([^\s\ud800-\udfff<]+)")


class Harmony:
    name = "harmony"
    arguments: ClassVar[Arguments] = "json"
    tokens = _TOKENS
    thought = ThoughtMarkers(f"{CHANNEL}analysis{MESSAGE}", END, _FINAL)

    def channels(
        self, vocabulary: Vocabulary, tools: Sequence[Tool], prompt_tail: str, *, held: bool = False
    ) -> Channels:
        symbols = Symbols(vocabulary, _TOKENS)
        source = Inlet(symbols)
        messages = HarmonyMessages(source, Outlet(source), tools, held=held, body=prompt_tail.endswith(MESSAGE))
        messages.reasoning = prompt_tail.endswith(self.thought.begin)
        return messages

    def answer_opening(self, vocabulary: Vocabulary) -> str:
        start, channel, message = (lark.marker(vocabulary, token) for token in (START, CHANNEL, MESSAGE))
        return f'({start} "assistant")? {channel} "final" {message}'

    def call_grammar(self, vocabulary: Vocabulary, tools: Sequence[Tool], choice: ToolChoice) -> CallGrammar | None:
        """One call: the token behind it ends the answer."""
        start, channel, message, constrain = (
            lark.marker(vocabulary, token) for token in (START, CHANNEL, MESSAGE, CONSTRAIN)
        )
        names = [f"function_{index}" for index in range(len(tools))]
        rules = [
            ("calls", " | ".join(names)),
            ("head", f'({start} "assistant")? {channel} "commentary to=functions."'),
            ("head_of_template", f'{start} "assistant to=functions."'),
        ]
        for name, tool in zip(names, tools, strict=True):
            called = lark.literal(tool.name)
            usual = f'head {called} (" "? {constrain} "json" | " json")? {message}'
            other = f'head_of_template {called} {channel} "commentary json" {message}'
            rules.append((name, f"({usual} | {other}) {name}_arguments"))
            rules.append((f"{name}_arguments", json_arguments(tool)))
        openings = (f"{CHANNEL}commentary to=functions.", f"{START}assistant to=functions.")
        return CallGrammar(grammar(rules), openings)


class HarmonyMessages(Steered):
    """`body`: the prompt has written the header of the first message."""

    def __init__(self, source: Inlet, out: Outlet, tools: Sequence[Tool], *, held: bool, body: bool) -> None:
        super().__init__(source, out)
        of = source.symbols.of
        self._calls = Calls(source, out, tools)
        self._held = held
        self._body = body
        self._ends = tuple(map(of, (END, CALL, RETURN, START)))
        self._start, self._channel, self._message, self._constrain = map(of, (START, CHANNEL, MESSAGE, CONSTRAIN))
        # In a body a channel or a message without its header is a message that was not ended.
        self._body_stops = Stops(*self._ends, self._channel, self._message, self._constrain)

    def answer(self) -> Steps[None]:
        source, out = self.source, self.out
        if self._body:
            yield from self._body_of(out.reasoning if self.reasoning else out.text)
            self.reasoning = False
        while (yield from source.more()):
            header: list[str] = []
            _, stop = yield from source.until(Stops(self._message, *self._ends), header.append)
            if stop in self._ends:
                # The header of the next message begins, or there was none to end.
                source.take(len(stop))
                self._loose("".join(header))
            elif not stop:
                self._loose("".join(header))
            else:
                source.take(len(stop))
                yield from self._message_of("".join(header))

    def _loose(self, header: str) -> None:
        """What of a header has no meaning is text of a model that has lost the form."""
        words = header.replace(self._channel, " ").replace(self._constrain, " ")
        if text := _HEADER.sub("", words).strip():
            self.out.text(text)

    def _message_of(self, header: str) -> Steps[None]:
        words = header.replace(self._channel, " ").replace(self._constrain, " ")
        recipient = _RECIPIENT.search(words)
        channel = header.partition(self._channel)[2].strip()
        self._loose(_RECIPIENT.sub("", header, count=1))
        if recipient is not None:
            yield from self._call(recipient[1])
        elif channel.startswith("analysis"):
            self.reasoning = True
            yield from self._body_of(self.out.reasoning)
            self.reasoning = False
        else:
            yield from self._body_of(self.out.text)

    def _body_of(self, emit: Callable[[str], None]) -> Steps[None]:
        """The rest of a message, and what ends it."""
        source = self.source
        while True:
            _, stop = yield from source.until(self._body_stops, emit)
            if stop == self._channel:
                return
            source.take(len(stop))
            if not stop or stop in self._ends:
                return

    def _call(self, name: str) -> Steps[None]:
        source, out = self.source, self.out
        out.attempt(name + " ", wait=not self._held)
        try:
            tool = self._calls.tool(name)
            yield from source.skip()
            if not (yield from source.accept("{")):
                raise Cut if source.ended and source.cut else Broken
            out.begin(tool.name)
            reader = LooseJson(source, JsonStyle(self._ends), out.arguments)
            yield from reader.members(arguments_schema(tool), "{")
            out.end()
            yield from source.skip()
            source.recorded()
        except Broken:
            out.text(out.give_up())
        except Cut:
            out.text(out.cut())
        yield from self._body_of(out.text)
