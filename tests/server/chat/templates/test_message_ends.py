"""Where messages end in a prompt: what the prefix cache keeps, found in one more rendering."""

from __future__ import annotations

import sys
from itertools import pairwise
from types import FrameType

import jinja2
import pytest

from server.chat.conversation import Conversation
from server.chat.parts import Message, TextPart, ToolCallPart, ToolResultPart
from server.chat.templates.template import ChatTemplate
from tests.support.conversations import GEMMA_LIKE, NO_SYSTEM, conversation
from tests.support.tiny_model import CHAT_TEMPLATE


def test_the_ends_of_messages_are_where_the_template_ends_them() -> None:
    rendered = ChatTemplate(CHAT_TEMPLATE, {}).render(conversation("s a", "u b", "a c", "u d"))
    assert [rendered.text[: end.offset].rsplit("<|im_start|>", 1)[1] for end in rendered.ends] == [
        "system\na<|im_end|>\n",
        "user\nb<|im_end|>\n",
        "assistant\nc<|im_end|>\n",
        "user\nd<|im_end|>\n",
    ]


def test_a_long_conversation_marks_its_system_message_and_its_latest_messages() -> None:
    turns = [f"{role} {index}" for index in range(100) for role in "ua"]
    rendered = ChatTemplate(CHAT_TEMPLATE, {}).render(conversation("s x", *turns, "u last"))
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
    messages = conversation(*LONG[turns], *last).messages
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

    said = conversation("s x", *(f"{'ua'[index % 2]} {index}" for index in range(count - 1)))
    template = ChatTemplate(CHAT_TEMPLATE, {})
    # The first conversation of all finds out how the template takes content.
    template.render(conversation("s x", "u y"))
    sys.setprofile(seen)
    try:
        template.render(said)
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
    said = conversation("u a", "a b", "u c ").messages
    assert _ends_of(MISTRAL_LIKE, *said) == ["<s>[INST] a[/INST]", " b", "</s>[INST] c [/INST]"]
    assert _ends_of(GLM_LIKE, *said) == ["<|user|>\na", "<|assistant|>\nb", "<|user|>\nc "]


def test_calls_of_tools_and_their_results_end_where_their_turns_do() -> None:
    call = Message("assistant", (ToolCallPart("1", "f", '{"a": "<|im_end|>"}'),))
    spoken = Message("assistant", (TextPart("Both."), ToolCallPart("2", "g", "{}")))
    results = [Message("tool", (ToolResultPart("1", text),)) for text in ("one", "")]
    pieces = _ends_of(QWEN_LIKE, *conversation("s be", "u do").messages, call, *results, spoken, results[1])
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
        conversation(*said, "u c")
    )
    assert rendered.ends == ()


def test_a_text_that_looks_like_a_mark_costs_ends_and_nothing_else() -> None:
    said = ("s x", "u a", f"a \ufdef{2}\ufdef", "u c")
    rendered = ChatTemplate(CHAT_TEMPLATE, {}).render(conversation(*said))
    assert "\ufdef2\ufdef<|im_end|>" in rendered.text
    assert [rendered.text[: end.offset].count("<|im_end|>\n") for end in rendered.ends] == [1, 2]


def test_a_folded_system_message_marks_no_end_of_its_own() -> None:
    rendered = ChatTemplate(GEMMA_LIKE, {"bos_token": "<bos>"}).render(conversation("s a", "u b"))
    assert [rendered.text[: end.offset] for end in rendered.ends] == ["<bos><start_of_turn>user\na\n\nb<end_of_turn>\n"]
