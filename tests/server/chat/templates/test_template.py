"""Chat templates: rendered as Hugging Face does, whatever order of messages clients send."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path

import pytest

from server.chat.conversation import Conversation
from server.chat.parts import Message, TextPart, ToolCallPart, ToolResultPart
from server.chat.templates.template import ChatTemplate
from server.chat.tools import Tool
from server.errors import InvalidRequest, ModelUnavailable
from tests.support.conversations import GEMMA_LIKE, NO_SYSTEM, conversation
from tests.support.tiny_model import CHAT_TEMPLATE

DROPS_LATER_SYSTEM = """\
{% for m in messages[:1] + (messages[1:] | rejectattr('role', 'equalto', 'system') | list) %}
{{- '[' + m.role + ':' + m.content + ']' }}
{%- endfor %}
"""


def _render(source: str, *turns: str) -> str:
    return ChatTemplate(source, {"bos_token": "<bos>"}).render(conversation(*turns)).text


def test_chatml_renders_up_to_where_the_model_writes() -> None:
    assert _render(CHAT_TEMPLATE, "s Be nice.", "u Hi") == (
        "<|im_start|>system\nBe nice.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_leading_system_messages_become_one() -> None:
    assert _render(CHAT_TEMPLATE, "s one", "s ", "s two", "u Hi").startswith(
        "<|im_start|>system\none\n\ntwo<|im_end|>\n<|im_start|>user"
    )


def test_orders_that_the_template_accepts_are_rendered_as_sent() -> None:
    text = _render(CHAT_TEMPLATE, "u one", "u two", "s later", "u three")
    assert re.findall(r"<\|im_start\|>(\w+)\n([^<]*)", text) == [
        ("user", "one"),
        ("user", "two"),
        ("system", "later"),
        ("user", "three"),
        ("assistant", ""),
    ]


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        (("s a", "s b", "u c"), "user\na\n\nb\n\nc"),
        (("u a", "u b"), "user\na\n\nb"),
        (("u a", "s b", "u c"), "user\na\n\nb\n\nc"),
        (("u a", "s b"), "user\na\n\nb"),
        (
            ("s a", "u b", "a c", "s d", "u e"),
            "user\na\n\nb<end_of_turn>\n<start_of_turn>model\nc<end_of_turn>\n<start_of_turn>user\nd\n\ne",
        ),
    ],
)
def test_orders_that_the_template_refuses_are_made_to_alternate(turns: tuple[str, ...], expected: str) -> None:
    assert _render(GEMMA_LIKE, *turns) == f"<bos><start_of_turn>{expected}<end_of_turn>\n<start_of_turn>model\n"


def test_a_template_without_system_messages_gets_them_in_the_user_turn() -> None:
    assert _render(NO_SYSTEM, "s a", "u b") == "[user:a\n\nb]"


def test_a_system_message_that_the_template_would_drop_goes_into_the_user_turn() -> None:
    assert _render(DROPS_LATER_SYSTEM, "u a", "a b", "s c", "u d") == "[user:a][assistant:b][user:c\n\nd]"


def test_what_no_order_mends_is_refused_with_the_templates_own_sentence() -> None:
    with pytest.raises(InvalidRequest) as error:
        _render(GEMMA_LIKE, "a I speak first", "u Hi")
    assert error.value.message == "Conversation roles must alternate user/assistant/user/assistant/..."
    assert error.value.param == "messages"


@pytest.mark.parametrize("content", ["Sure, ", "", "im_end", "\n", "assistant", "  indented"])
def test_a_last_assistant_message_is_continued(content: str) -> None:
    assert _render(CHAT_TEMPLATE, "u Hi", f"a {content}") == (
        f"<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n{content}"
    )


def test_continuing_keeps_the_trailing_space_that_the_template_would_trim() -> None:
    assert _render(GEMMA_LIKE, "u Hi", "a Sure, ") == (
        "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nSure, "
    )


def test_noncharacters_of_a_user_do_not_disturb_a_continuation() -> None:
    assert _render(CHAT_TEMPLATE, "u a\ufdefb", "a c\ufdefd").endswith(
        "user\na\ufdefb<|im_end|>\n<|im_start|>assistant\nc\ufdefd"
    )


def test_thinking_is_off_unless_the_conversation_turns_it_on() -> None:
    source = "{{ messages[0].content }} {{ 'think' if enable_thinking else 'answer' }}{{ tools is none }}"
    template = ChatTemplate(source, {})
    assert template.render(conversation("u x")).text == "x answerTrue"
    asked = Conversation((Message.plain("user", "x"),), template_variables={"enable_thinking": True})
    assert template.render(asked).text == "x thinkTrue"


def test_the_environment_is_hugging_faces() -> None:
    source = """\
{% for m in messages %}
    {% if loop.index > 1 %}{% break %}{% endif %}
    {% generation %}
{{ {'b': '<é>', 'a': m.content} | tojson }}
    {% endgeneration %}
{{ [1] | tojson(indent=2, separators=(',', ':'), sort_keys=true) }}
{{ strftime_now('%Y') }}
{% endfor %}
"""
    text = ChatTemplate(source, {}).render(conversation("u 1")).text
    assert text == f'{{"b": "<é>", "a": "1"}}\n[\n  1\n]\n{datetime.now().astimezone():%Y}\n'


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ messages[0].nothing.at_all }}", "has no attribute 'nothing'"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{% for i in range(99999999) %}x{% endfor %}", "an argument is too large"),
        ("{% for i in range(9999) %}{{ 'x' * 9999 }}{% endfor %}", "too long"),
    ],
)
def test_whatever_a_template_does_wrong_is_one_sentence(source: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason) as error:
        _render(source, "u Hi")
    assert "\n" not in error.value.message and "/" not in error.value.message


def test_a_model_without_a_template_points_to_completions(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="/v1/completions"):
        ChatTemplate.load(tmp_path, {}).render(conversation("u Hi"))


def test_templates_are_found_where_transformers_finds_them(tmp_path: Path) -> None:
    says = "{{ messages[0].content }} "

    def load(value: object) -> str:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
        return ChatTemplate.load(tmp_path, {"bos_token": "<s>"}).render(conversation("u Hi")).text

    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": says + "oldest"}))
    assert load(None) == "Hi oldest"
    assert load(says + "text {{ bos_token }}") == "Hi text <s>"
    named = {"rag": "no", "default": says + "named"}
    assert load(named) == "Hi named"
    assert load([{"name": name, "template": source} for name, source in named.items()]) == "Hi named"
    with pytest.raises(InvalidRequest, match=r"for special uses only \(rag\)"):
        load({"rag": "no"})
    (tmp_path / "chat_template.jinja").write_text(says + "file")
    assert load(named) == "Hi file"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("no")
    assert load(named) == "Hi file"


LOOPS_OVER_PARTS = (
    "{% for m in messages %}<{{ m['role'] }}>{% for c in m['content'] %}"
    "{% if c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}</>{% endfor %}"
)
TAKES_THE_FIRST_PART = "{% for m in messages %}{{ m['role'] + ': ' + m['content'][0]['text'] + '\n' }}{% endfor %}"
# As models of images do: a system message is text, a user's has parts.
BY_ROLE = (
    "{% for m in messages %}[{% if m.role == 'system' %}{{ m.content + '' }}"
    "{% else %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endif %}]{% endfor %}"
)
TAKES_BOTH = "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}PARTS{% endif %}{% endfor %}"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (LOOPS_OVER_PARTS, "<system>Be nice.</><user>Hello world</><assistant>Yes</><user>go</>"),
        (TAKES_THE_FIRST_PART, "system: Be nice.\nuser: Hello world\nassistant: Yes\nuser: go\n"),
        (BY_ROLE, "[Be nice.][Hello world][Yes][go]"),
        (TAKES_BOTH, "Be nice.Hello worldYesgo"),
    ],
)
def test_content_is_given_as_the_template_takes_it(source: str, expected: str) -> None:
    assert _render(source, "s Be nice.", "u Hello world", "a Yes", "u go") == expected


def test_a_message_that_is_continued_may_be_parts() -> None:
    assert _render(LOOPS_OVER_PARTS, "u Hi", "a Sure, ") == "<user>Hi</><assistant>Sure, "


@pytest.mark.parametrize(
    ("source", "turns", "role"),
    [
        ("You are asked something. Answer:", ("u Hi",), "user"),
        ("{{ messages[-1].content }}", ("u one", "a two", "u three"), "user"),
        (
            "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
            ("u a", "a bcd", "u e"),
            "assistant",
        ),
        ("{% for m in messages %}{{ m.content[:2] }}{% endfor %}", ("u Hello",), "user"),
    ],
)
def test_a_message_that_is_left_out_is_an_error(source: str, turns: tuple[str, ...], role: str) -> None:
    with pytest.raises(InvalidRequest, match=f"leaves out what a message of role '{role}' says"):
        _render(source, *turns)


@pytest.mark.parametrize("answer", ["", "a It is 21."])
def test_a_result_that_is_left_out_is_an_error_also_where_its_text_is_in_another(answer: str) -> None:
    source = "{% for m in messages if m.role != 'tool' %}{{ m.content }}{{ m.tool_calls }}{% endfor %}"
    call = Message("assistant", (TextPart("b"), ToolCallPart("1", "f", "{}")))
    result = Message("tool", (ToolResultPart("1", "21"),))
    said = conversation(*filter(None, ("u a", answer, "u e"))).messages
    with pytest.raises(InvalidRequest, match="leaves out what a message of role 'tool' says"):
        ChatTemplate(source, {}).render(Conversation((said[0], call, result, *said[1:])))


@pytest.mark.parametrize(
    ("source", "turns", "expected"),
    [
        # A switch is taken out of a text, a thought is, and a result is written as JSON.
        ("{{ messages[0].content | replace('/no_think', '') }}", ("u Hi /no_think there",), "Hi  there"),
        (
            "{% for m in messages %}{{ m.content.split('</think>')[-1] }}|{% endfor %}",
            ("u a", "a x</think>y", "u b"),
            "a|y|b|",
        ),
        (
            "{% for m in messages %}{{ m.content | tojson }}{% endfor %}",
            ('u say "é"', "a b", "u c"),
            '"say \\"é\\"""b""c"',
        ),
    ],
)
def test_what_a_template_makes_of_a_text_is_its_own(source: str, turns: tuple[str, ...], expected: str) -> None:
    assert _render(source, *turns) == expected


def test_a_template_that_does_not_compile_makes_the_model_unavailable() -> None:
    with pytest.raises(ModelUnavailable, match="chat template is broken at line 2"):
        ChatTemplate("\n{% if %}", {})


def test_a_template_of_its_own_for_tools_renders_the_conversations_that_have_some(tmp_path: Path) -> None:
    named = [
        {"name": "default", "template": "{{ messages[0].content }}"},
        {"name": "tool_use", "template": "{{ tools[0].function.name }}: {{ messages[0].content }}"},
    ]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    template = ChatTemplate.load(tmp_path, {})
    messages = (Message.plain("user", "Hi"),)
    assert template.render(Conversation(messages)).text == "Hi"
    assert template.render(Conversation(messages, (Tool("look"),))).text == "look: Hi"
