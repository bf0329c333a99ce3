"""A model's chat template: conversation to prompt text, as Hugging Face renders it. Text process."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError
from msgspec.structs import replace

from server.chat.conversation import Conversation
from server.chat.encoded import End
from server.chat.message_ends import excerpt, message_ends, with_marks
from server.chat.model_files import read_object
from server.chat.parts import Message, TextPart
from server.chat.sandbox import TemplateEnvironment
from server.chat.template_values import template_values
from server.chat.turns import Messages, arrangements
from server.errors import InvalidRequest, ModelUnavailable

_MAX_CHARS = 2**25
# Unicode guarantees that this is never a character; see `_continuation`.
_CUT = "\ufdef"
# Templates test `tools is not none`, so these must be defined; and some models think unless told otherwise.
_ALWAYS: dict[str, Any] = {"tools": None, "documents": None, "enable_thinking": False}


@dataclass(frozen=True, slots=True)
class Rendered:
    """`ends`, ascending, are those of the system message and of each of the latest messages."""

    text: str
    ends: tuple[End, ...]


class ChatTemplate:
    """One model's template, compiled once. Thread-safe."""

    def __init__(self, source: str | None, variables: dict[str, str]) -> None:
        self._variables = variables
        try:
            self._template = None if source is None else TemplateEnvironment().from_string(source)
        except TemplateSyntaxError as error:
            raise ModelUnavailable(
                f"The model's chat template is broken at line {error.lineno}: {error.message}"
            ) from error

    @staticmethod
    def load(folder: Path, special: dict[str, str]) -> ChatTemplate:
        """The folder's template, which may name the tokenizer's special tokens, such as bos_token."""
        return ChatTemplate(_source(folder, read_object(folder, "tokenizer_config.json")), special)

    def render(self, conversation: Conversation, change: Callable[[str], str] = str) -> Rendered:
        """Render up to where the model is to write, every string of the conversation as `change` makes it.

        Raises:
            InvalidRequest: with the template's own sentence when it refuses the conversation.
        """
        if self._template is None:
            raise InvalidRequest("This model has no chat template; use /v1/completions with a prompt of your own.")
        asked = {
            name: change(value) if isinstance(value, str) else value
            for name, value in conversation.template_variables.items()
        }
        rendering = _Rendering(self._template, _ALWAYS | self._variables | asked, change, conversation)
        messages, text = _first_complete(rendering, conversation.messages)
        return Rendered(text, _message_ends(rendering, messages, text))


class _Rendering:
    def __init__(
        self, template: Template, variables: dict[str, Any], change: Callable[[str], str], conversation: Conversation
    ) -> None:
        self._template = template
        self._variables = variables
        self._open = conversation.open
        self._continues = conversation.continues
        # A message is rendered many times, and a long one is long to change.
        self._values = functools.cache(lambda message: template_values(message, change))

    def prompt(self, messages: Messages) -> str:
        if self._continues:
            return self._continuation(messages)
        return self.text(messages, add_generation_prompt=self._open)

    def _continuation(self, messages: Messages) -> str:
        """Up to the end of the last content. A mark finds it where searching would find the template's own words, and
        keeps the template from stripping its trailing space."""
        marked = replace(messages[-1], parts=(*messages[-1].parts, TextPart(_CUT)))
        text, mark, _ = self.text((*messages[:-1], marked), add_generation_prompt=False).rpartition(_CUT)
        if not mark:
            raise InvalidRequest("This model's chat template cannot continue an assistant message.", param="messages")
        return text

    def content(self, message: Message) -> str:
        """Its content as templates write it that trim."""
        return str(self._values(message)["content"]).strip()

    def text(self, messages: Messages, *, add_generation_prompt: bool) -> str:
        names = self._variables | {
            "messages": [self._values(message) for message in messages],
            "add_generation_prompt": add_generation_prompt,
        }
        pieces = []
        size = 0
        try:
            for piece in self._template.generate(names):
                size += len(piece)
                if size > _MAX_CHARS:
                    raise InvalidRequest("The conversation is too long for the model's chat template.")
                pieces.append(piece)
        except InvalidRequest:
            raise
        except Exception as error:  # a template can raise whatever Python can
            reason = error.message if isinstance(error, TemplateError) else type(error).__name__
            raise InvalidRequest(
                f"The model's chat template cannot render this conversation: {reason}", param="messages"
            ) from error
        return "".join(pieces)


def _first_complete(rendering: _Rendering, messages: Messages) -> tuple[Messages, str]:
    """The first arrangement that the template renders whole; else the first that it renders; else its first refusal."""
    partial: tuple[Messages, str] | None = None
    refusal: InvalidRequest | None = None
    for arrangement in arrangements(messages):
        try:
            text = rendering.prompt(arrangement)
        except InvalidRequest as error:
            refusal = refusal or error
            continue
        if _is_complete(rendering, arrangement, text):
            return arrangement, text
        partial = partial or (arrangement, text)
    if partial is None:
        raise refusal or InvalidRequest("The conversation has no messages.", param="messages")
    return partial


def _is_complete(rendering: _Rendering, messages: Messages, text: str) -> bool:
    """Some templates do not refuse a system message that they do not expect but leave it out. Assistant messages may
    lose their thinking rightly, so they do not count."""
    cursor = 0
    for message in messages:
        if message.role in ("system", "user"):
            content = rendering.content(message)
            found = text.find(content, cursor)
            if found < 0 and content not in text:
                return False
            cursor = max(cursor, found + len(content))
    return True


def _message_ends(rendering: _Rendering, messages: Messages, text: str) -> tuple[End, ...]:
    few = excerpt(messages)
    try:
        marked = rendering.text(with_marks(few), add_generation_prompt=False)
    except InvalidRequest:
        return ()
    return message_ends(few, text, marked, is_excerpt=len(few) < len(messages))


def _source(folder: Path, config: dict[str, Any]) -> str | None:
    """chat_template.jinja, else `chat_template` of tokenizer_config.json: a string, or a list with a "default"."""
    try:
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError) as error:
        raise ModelUnavailable("The model's chat_template.jinja cannot be read.") from error
    value = config.get("chat_template")
    if isinstance(value, list):
        entries = (entry for entry in value if isinstance(entry, dict) and entry.get("name") == "default")
        value = next(entries, {}).get("template")
    return value if isinstance(value, str) else None
