"""Chat templates: rendered as Hugging Face does, whatever order of messages clients send."""

from __future__ import annotations

import json
import re
import sys
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from types import FrameType

import jinja2
import pytest

from server.chat.conversation import Conversation
from server.chat.parts import Message, Role, TextPart, ToolCallPart, ToolResultPart
from server.chat.template import ChatTemplate
from server.chat.tools import Tool
from server.errors import InvalidRequest, ModelUnavailable
from tests.support.tiny_model import CHAT_TEMPLATE

# Roles must alternate, the system message is folded into the first user turn, contents are trimmed.
GEMMA_LIKE = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first = messages[0]['content'] + '\\n\\n' -%}
    {%- set rest = messages[1:] -%}
{%- else -%}
    {%- set first = '' -%}
    {%- set rest = messages -%}
{%- endif -%}
{%- for message in rest -%}
    {%- if message['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' + (first if loop.first else '') }}
    {{- message['content'] | trim }}{{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + (
    "{% for m in messages %}[{{ m.role }}:{{ m.content }}]{% endfor %}"
)
DROPS_LATER_SYSTEM = """\
{% for m in messages[:1] + (messages[1:] | rejectattr('role', 'equalto', 'system') | list) %}
{{- '[' + m.role + ':' + m.content + ']' }}
{%- endfor %}
"""
ROLES: dict[str, Role] = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}


def _conversation(*turns: str) -> Conversation:
    """`"u hello"` is the user saying hello."""
    return Conversation(tuple(Message.plain(ROLES[turn[0]], turn[2:]) for turn in turns))


def _render(source: str, *turns: str) -> str:
    return ChatTemplate(source, {"bos_token": "<bos>"}).render(_conversation(*turns)).text


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
    assert template.render(_conversation("u x")).text == "x answerTrue"
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
    text = ChatTemplate(source, {}).render(_conversation("u 1")).text
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


def test_the_ends_of_messages_are_where_the_template_ends_them() -> None:
    rendered = ChatTemplate(CHAT_TEMPLATE, {}).render(_conversation("s a", "u b", "a c", "u d"))
    assert [rendered.text[: end.offset].rsplit("<|im_start|>", 1)[1] for end in rendered.ends] == [
        "system\na<|im_end|>\n",
        "user\nb<|im_end|>\n",
        "assistant\nc<|im_end|>\n",
        "user\nd<|im_end|>\n",
    ]


def test_a_long_conversation_marks_its_system_message_and_its_latest_messages() -> None:
    turns = [f"{role} {index}" for index in range(100) for role in "ua"]
    rendered = ChatTemplate(CHAT_TEMPLATE, {}).render(_conversation("s x", *turns, "u last"))
    assert rendered.ends[0].offset == len("<|im_start|>system\nx<|im_end|>\n")
    assert len(rendered.ends) == 9
    assert rendered.text[rendered.ends[-1].offset :] == "<|im_start|>assistant\n"


LONG = {
    "chat": [f"{role} turn {index}" for index in range(30) for role in "ua"],
    "agent": ["u do it", *(f"{role} step {index} " for index in range(30) for role in "at"), "a so"],
    "same words": ["u yes", *(f"{role} yes" for _ in range(20) for role in "au")],
}


@pytest.mark.parametrize(
    ("source", "turns"),
    [*((source, turns) for source in (CHAT_TEMPLATE, NO_SYSTEM) for turns in LONG), (GEMMA_LIKE, "chat")],
)
@pytest.mark.parametrize("last", [(), ("u last",)])
def test_the_ends_in_a_long_conversation_are_those_of_rendering_each_beginning_of_it(
    source: str, turns: str, last: tuple[str, ...]
) -> None:
    messages = _conversation(*LONG[turns], *last).messages
    rendered = ChatTemplate(source, {"bos_token": "<bos>"}).render(Conversation(messages))
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    plain = environment.from_string(source)
    # Results that answer no call are the user's words.
    said = {"tool": "user"}
    values = [{"role": said.get(message.role, message.role), "content": message.text} for message in messages]
    expected = []
    for count in range(max(1, len(messages) - 7), len(messages) + 1):
        prefix = plain.render(messages=values[:count], bos_token="<bos>", add_generation_prompt=False)
        if rendered.text.startswith(prefix) and len(prefix) <= len(rendered.text):
            expected.append((len(prefix), values[count - 1]["role"]))
    assert expected and list(rendered.ends) == expected


def _pieces_rendered(count: int) -> int:
    """How many pieces of text the template makes in all for a chat of `count` messages."""
    pieces = 0

    def seen(frame: FrameType, event: str, argument: object) -> None:
        nonlocal pieces
        pieces += event == "call" and frame.f_code.co_name == "root"

    conversation = _conversation("s x", *(f"{'ua'[index % 2]} {index}" for index in range(count - 1)))
    template = ChatTemplate(CHAT_TEMPLATE, {})
    sys.setprofile(seen)
    try:
        template.render(conversation)
    finally:
        sys.setprofile(None)
    return pieces


@pytest.mark.parametrize(("count", "again"), [(2, 2), (20, 12), (600, 12)])
def test_a_conversation_is_rendered_once_and_its_latest_messages_once_more(count: int, again: int) -> None:
    # The template makes one piece of each message, and one for the reply; its end is a call too.
    assert _pieces_rendered(count) <= count + 2 + again + 1


MISTRAL_LIKE = (
    "<s>{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]"
    "{% else %} {{ m.content | trim }}</s>{% endif %}{% endfor %}"
)
# Nothing closes a message but the next one.
GLM_LIKE = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
# Results of tools that follow one another are said in one turn.
QWEN_LIKE = """\
{%- for m in messages %}
    {%- if m.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{% endif %}
        {{- '\n<tool_response>\n' + m.content + '\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\n' }}{% endif %}
    {%- else %}
        {{- '<|im_start|>' + m.role + '\n' + m.content }}
        {%- for call in m.tool_calls %}
            {{- '\n<tool_call>\n' + (call.function | tojson) + '\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}
"""


def _ends_of(source: str, *messages: Message) -> list[str]:
    """What the prompt is cut into at its ends."""
    rendered = ChatTemplate(source, {}).render(Conversation(messages))
    cuts = sorted({0, *(end.offset for end in rendered.ends), len(rendered.text)})
    return [rendered.text[start:stop] for start, stop in pairwise(cuts)]


def test_roles_that_are_closed_in_different_ways_have_their_ends() -> None:
    said = _conversation("u a", "a b", "u c ").messages
    assert _ends_of(MISTRAL_LIKE, *said) == ["<s>[INST] a[/INST]", " b", "</s>[INST] c [/INST]"]
    assert _ends_of(GLM_LIKE, *said) == ["<|user|>\na", "<|assistant|>\nb", "<|user|>\nc "]


def test_calls_of_tools_and_their_results_end_where_their_turns_do() -> None:
    call = Message("assistant", (ToolCallPart("1", "f", '{"a": "<|im_end|>"}'),))
    spoken = Message("assistant", (TextPart("Both."), ToolCallPart("2", "g", "{}")))
    results = [Message("tool", (ToolResultPart("1", text),)) for text in ("one", "")]
    pieces = _ends_of(QWEN_LIKE, *_conversation("s be", "u do").messages, call, *results, spoken, results[1])
    openings = ["system\nbe", "user\ndo", "assistant\n\n<tool_call>", "user\n<tool_response>\none"]
    openings += ["assistant\nBoth.\n<tool_call>", "user\n<tool_response>\n\n", "assistant\n"]
    assert len(pieces) == len(openings)
    for piece, opening in zip(pieces, openings, strict=True):
        assert piece.startswith(f"<|im_start|>{opening}")
    assert all(piece.endswith("<|im_end|>\n") for piece in pieces[:-1])


@pytest.mark.parametrize("computed", ["length", "reverse"])
def test_texts_that_the_template_computes_with_have_no_ends(computed: str) -> None:
    source = f"{{% for m in messages %}}[{{{{ m.content | {computed} }}}}{{{{ m.content }}}}]{{% endfor %}}"
    said = [f"{role} x{index}b" for index in range(20) for role in "ua"]
    rendered = ChatTemplate(source + "{% if add_generation_prompt %}!{% endif %}", {}).render(
        _conversation(*said, "u c")
    )
    assert rendered.ends == ()


def test_a_text_that_looks_like_a_mark_costs_ends_and_nothing_else() -> None:
    said = ("s x", "u a", f"a \ufdef{2}\ufdef", "u c")
    rendered = ChatTemplate(CHAT_TEMPLATE, {}).render(_conversation(*said))
    assert "\ufdef2\ufdef<|im_end|>" in rendered.text
    assert [rendered.text[: end.offset].count("<|im_end|>\n") for end in rendered.ends] == [1, 2]


def test_a_folded_system_message_marks_no_end_of_its_own() -> None:
    rendered = ChatTemplate(GEMMA_LIKE, {"bos_token": "<bos>"}).render(_conversation("s a", "u b"))
    assert [rendered.text[: end.offset] for end in rendered.ends] == ["<bos><start_of_turn>user\na\n\nb<end_of_turn>\n"]


def test_a_model_without_a_template_points_to_completions(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="/v1/completions"):
        ChatTemplate.load(tmp_path, {}).render(_conversation("u Hi"))


def test_templates_are_found_where_transformers_finds_them(tmp_path: Path) -> None:
    says = "{{ messages[0].content }} "

    def load(value: object) -> str:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
        return ChatTemplate.load(tmp_path, {"bos_token": "<s>"}).render(_conversation("u Hi")).text

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
    said = _conversation(*filter(None, ("u a", answer, "u e"))).messages
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
