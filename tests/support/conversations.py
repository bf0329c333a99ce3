"""Short conversations, and templates in the manner of published ones."""

from __future__ import annotations

from server.chat.conversation import Conversation
from server.chat.parts import Message, Role

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
ROLES: dict[str, Role] = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}


def conversation(*turns: str) -> Conversation:
    """`"u hello"` is the user saying hello."""
    return Conversation(tuple(Message.plain(ROLES[turn[0]], turn[2:]) for turn in turns))
