"""Chat templates that write calls and their results in the ways of published ones."""

from __future__ import annotations

_HEAD = """\
{%- set ns = namespace(last=-1) %}
{%- for m in messages if m.role == 'user' %}{% set ns.last = messages.index(m) %}{% endfor %}
{%- if tools %}{{ '<|im_start|>system\\n' }}{{ tools | tojson }}{{ '<|im_end|>\\n' }}{% endif %}
"""
# A result is a turn of its own; the reply opens with an empty thought that the history drops.
TURNS = (
    _HEAD
    + """\
{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\\n' + m.content }}
{%- for c in m.tool_calls or [] %}{{ '<tool_call>' + c.function.arguments | tojson + '</tool_call>' }}{% endfor %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think></think>' }}{% endif %}
"""
)
# The thoughts of the turns behind the last question stay in the history, as with Qwen 3.
THOUGHTS = TURNS.replace(
    "'\\n' + m.content }}",
    "'\\n' }}{% if m.reasoning_content and loop.index0 > ns.last %}{{ '<think>' + m.reasoning_content + '</think>' }}"
    "{% endif %}{{ m.content }}",
)
# Results stand in the model's own turn, which goes on behind them, as with Gemma 4.
ONE_TURN = (
    _HEAD
    + """\
{%- for m in messages %}
{%- if m.role == 'tool' %}{{ '<|im_start|>' + m.content + '<|im_end|>' }}
{%- else %}
{%- if not (m.role == 'assistant' and loop.previtem and loop.previtem.role == 'tool') %}
{{- '<|im_start|>' + m.role + '\\n' }}{% endif %}{{ m.content }}
{%- for c in m.tool_calls or [] %}{{ '<tool_call>' + c.function.arguments | tojson + '</tool_call>' }}{% endfor %}
{%- if not m.tool_calls %}{{ '<|im_end|>\\n' }}{% endif %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt and messages[-1].role != 'tool' -%}
{{ '<|im_start|>assistant\\n<think></think>' }}{% endif %}
"""
)
