"""How a prompt ends: with the beginning of an answer, in a message to be continued, or as the conversation stands."""

from __future__ import annotations

from server.chat.conversation import Conversation
from server.chat.parts import Message, ToolCallPart
from server.chat.templates.template import ChatTemplate

SOURCE = (
    "{% for m in messages %}[{{ m.role }}:{{ m.content }}"
    "{% for call in m.tool_calls or [] %}!{{ call.function.name }}{% endfor %}]{% endfor %}"
    "{% if add_generation_prompt %}[assistant:{% endif %}"
)
QUESTION = Message.plain("user", "a")
ANSWER = Message.plain("assistant", "b")
CALL = Message("assistant", (ToolCallPart("c1", "f", "{}"),))


def _text(*messages: Message, is_open: bool = True) -> str:
    return ChatTemplate(SOURCE, {}).render(Conversation(messages, open=is_open)).text


def test_a_user_is_answered_and_an_assistant_continued() -> None:
    assert _text(QUESTION) == "[user:a][assistant:"
    assert _text(QUESTION, ANSWER) == "[user:a][assistant:b"


def test_a_message_that_ends_in_calls_is_closed_and_answered() -> None:
    assert _text(QUESTION, CALL) == "[user:a][assistant:!f][assistant:"


def test_a_closed_conversation_is_rendered_as_it_stands() -> None:
    assert _text(QUESTION, is_open=False) == "[user:a]"
    assert _text(QUESTION, ANSWER, is_open=False) == "[user:a][assistant:b]"
