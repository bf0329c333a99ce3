"""A model's chat template: conversation to prompt text, as Hugging Face renders it. Text process."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError
from msgspec.structs import replace

from server.chat.conversation import Conversation
from server.chat.encoded import End
from server.chat.formats.choose import FORMATS, choose
from server.chat.parts import Message, Role, TextPart, ToolCallPart
from server.chat.templates.completeness import lost_message
from server.chat.templates.content_style import in_parts, roles_with_parts
from server.chat.templates.history import arranged, declaration
from server.chat.templates.message_ends import excerpt, message_ends, with_marks
from server.chat.templates.sandbox import TemplateEnvironment
from server.chat.templates.template_files import DEFAULT, TOOL_USE, template_sources
from server.chat.templates.template_values import changed_strings, template_values
from server.chat.templates.traits import Traits, template_variables
from server.chat.templates.turns import Messages, arrangements
from server.errors import InvalidRequest, ModelUnavailable

_MAX_CHARS = 2**25
# Unicode guarantees that this is never a character; see `_continuation`.
_CUT = "\ufdef"
# Templates test `tools is not none`, so these must be defined; and some models think unless told otherwise.
_ALWAYS: dict[str, Any] = {"tools": None, "documents": None, "enable_thinking": False}
_NO_TEMPLATE = "This model has no chat template; use /v1/completions with a prompt of your own."


@dataclass(frozen=True, slots=True)
class Rendered:
    """`ends`, ascending, are those of the system message and of each of the latest messages."""

    text: str
    ends: tuple[End, ...]


class ChatTemplate:
    """One model's template, compiled once. Thread-safe."""

    def __init__(self, source: str | None, variables: dict[str, str], missing: str = _NO_TEMPLATE) -> None:
        """`missing` is what users are told where there is none."""
        self._variables = _ALWAYS | variables
        self._missing = missing
        # What the folder has for conversations with tools, if that is another template.
        self.with_tools: ChatTemplate | None = None
        self.source = source
        self.wire_format = choose(source)
        environment = TemplateEnvironment()
        self._traits = Traits() if source is None else Traits.of(source, environment)
        try:
            self._template = None if source is None else environment.from_string(source)
        except TemplateSyntaxError as error:
            raise ModelUnavailable(
                f"The model's chat template is broken at line {error.lineno}: {error.message}"
            ) from error

    @staticmethod
    def load(folder: Path, special: dict[str, str]) -> ChatTemplate:
        """The folder's template, which may name the tokenizer's special tokens, such as bos_token."""
        sources = template_sources(folder)
        missing = _NO_TEMPLATE
        if sources and DEFAULT not in sources:
            names = ", ".join(sorted(sources))
            missing = f"This model has chat templates for special uses only ({names}) and none that is the default."
        template = ChatTemplate(sources.get(DEFAULT), special, missing)
        if TOOL_USE in sources:
            template.with_tools = ChatTemplate(sources[TOOL_USE], special)
            template.wire_format = template.with_tools.wire_format
        return template

    @property
    def declares_tools(self) -> bool:
        """Whether it writes tools itself, as the model was trained to read them."""
        return self._traits.knows_tools or (self.with_tools is not None and self.with_tools.declares_tools)

    @property
    def reasons(self) -> bool:
        """Whether it knows the thoughts of its format."""
        thought, source = FORMATS[self.wire_format].thought, self.source or ""
        return thought is not None and (thought.begin.strip() in source or thought.end.strip() in source)

    def render(self, conversation: Conversation, change: Callable[[str], str] = str) -> Rendered:
        """Render up to where the model is to write, every string of the conversation as `change` makes it.

        Raises:
            InvalidRequest: with the template's own sentence when it refuses the conversation.
        """
        if conversation.tools and self.with_tools is not None:
            return self.with_tools.render(conversation, change)
        if self._template is None:
            raise InvalidRequest(self._missing)
        asked = {
            name: change(value) if isinstance(value, str) else value
            for name, value in conversation.template_variables.items()
        }
        told = template_variables(conversation.reasoning, self._traits)
        declared = [changed_strings(declaration(tool), change) for tool in conversation.tools]
        names = self._variables | told | asked | ({"tools": declared} if declared else {})
        rendering = _Rendering(self._template, names, change, conversation, self._traits, self._with_parts)
        arranged_messages = arranged(conversation.messages, conversation.tools, self._traits)
        messages, text = _first_complete(rendering, arranged_messages)
        return Rendered(text, _message_ends(rendering, messages, text))

    @functools.cached_property
    def _with_parts(self) -> frozenset[Role]:
        """Found out by rendering, so by the first request: what a template takes for it is then bounded."""
        return roles_with_parts(self._bare)

    def _bare(self, messages: Sequence[Mapping[str, Any]]) -> str:
        assert self._template is not None
        return self._template.render(self._variables | {"messages": messages, "add_generation_prompt": False})


class _Rendering:
    """`with_parts`: the roles whose content the template takes as parts."""

    def __init__(
        self,
        template: Template,
        variables: dict[str, Any],
        change: Callable[[str], str],
        conversation: Conversation,
        traits: Traits,
        with_parts: frozenset[Role],
    ) -> None:
        self._template = template
        self._variables = variables
        self._open = conversation.open
        self._continues = conversation.continues
        self._with_parts = with_parts
        # A message is rendered many times, and a long one is long to change.
        self._values = functools.cache(
            lambda message: template_values(message, change, traits, arguments_as_text=self._arguments_as_text)
        )
        self._arguments_as_text = False

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

    def take_arguments_as_text(self) -> None:
        """Some templates put the text of a call's arguments together with other text, where most want an object."""
        self._arguments_as_text = True
        self._values.cache_clear()

    def content(self, message: Message) -> str:
        """Its content as templates write it that trim."""
        return str(self._values(message)["content"]).strip()

    def _as_taken(self, message: Message) -> dict[str, Any]:
        """Its values as the template takes them. Reasoning has a second name, which gpt-oss reads."""
        values = self._values(message)
        if (reasoning := values.get("reasoning_content")) is not None:
            values = {"thinking": reasoning, **values}
        # Calls without a word have no part either.
        if message.role in self._with_parts and (values["content"] or "tool_calls" not in values):
            values = values | {"content": in_parts(values["content"])}
        return values

    def text(self, messages: Messages, *, add_generation_prompt: bool) -> str:
        names = self._variables | {
            "messages": [self._as_taken(message) for message in messages],
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
    """`_first_of`, with the arguments of calls as objects, or else as text."""
    try:
        return _first_of(rendering, messages)
    except InvalidRequest:
        if not any(isinstance(part, ToolCallPart) for message in messages for part in message.parts):
            raise
        rendering.take_arguments_as_text()
        return _first_of(rendering, messages)


def _first_of(rendering: _Rendering, messages: Messages) -> tuple[Messages, str]:
    """The first arrangement that the template renders whole, with its rendering.

    Raises:
        InvalidRequest: there is none: its first refusal, or whose message it leaves out.
    """
    refusal: InvalidRequest | None = None
    lost: Message | None = None
    for arrangement in arrangements(messages):
        try:
            text = rendering.prompt(arrangement)
        except InvalidRequest as error:
            refusal = refusal or error
            continue
        left_out = lost_message(arrangement, text, rendering.content, rendering.prompt)
        if left_out is None:
            return arrangement, text
        lost = lost or left_out
    if refusal is None and lost is not None:
        refusal = InvalidRequest(
            f"This model's chat template leaves out what a message of role '{lost.role}' says.", param="messages"
        )
    raise refusal or InvalidRequest("The conversation has no messages.", param="messages")


def _message_ends(rendering: _Rendering, messages: Messages, text: str) -> tuple[End, ...]:
    few = excerpt(messages)
    try:
        marked = rendering.text(with_marks(few), add_generation_prompt=False)
    except InvalidRequest:
        return ()
    return message_ends(few, text, marked, is_excerpt=len(few) < len(messages))
