"""Formats that name what comes: Llama 3 and its bare JSON, Mistral's two styles, the headers of harmony; plain models."""

from __future__ import annotations

from functools import partial

from tests.support.transcripts import Transcript, shown

_llama = partial(Transcript, "llama3", markers=("<|python_tag|>",))
_mistral = partial(Transcript, "mistral", markers=("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]"))
HARMONY_MARKERS = ("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|call|>", "<|return|>")
_harmony = partial(Transcript, "harmony", markers=HARMONY_MARKERS)
_think = partial(Transcript, "think", markers=("<think>", "</think>"), hidden=shown)

LLAMA = (
    _llama("an answer", "Paris {is} it.", "Paris {is} it."),
    _llama(
        "a call",
        '{"name": "get_weather", "parameters": {"city": "Paris", "days": 3}}',
        calls=(("get_weather", {"city": "Paris", "days": 3}),),
    ),
    _llama(
        "a tag, and two calls",
        '<|python_tag|>{"type": "function", "name": "get_weather", "parameters": {"city": "P"}}; {"name": "list_files", "parameters": {}}',
        calls=(("get_weather", {"city": "P"}), ("list_files", {})),
    ),
    _llama(
        "as Python",
        '<|python_tag|>get_weather.call(city="P", days=3)',
        calls=(("get_weather", {"city": "P", "days": 3}),),
    ),
    _llama("a JSON answer", ' {"name": "Bob", "age": 3} it is', ' {"name": "Bob", "age": 3} it is'),
    _llama("JSON that is no call", '{"a": {', '{"a": {'),
    _llama(
        "JSON behind text is an example",
        'Say {"name": "list_files", "parameters": {}}',
        'Say {"name": "list_files", "parameters": {}}',
    ),
    _llama(
        "a tool that was not offered",
        '<|python_tag|>{"name": "rm", "parameters": {}}',
        '{"name": "rm", "parameters": {}}',
    ),
)

MISTRAL = (
    _mistral("an answer", "Paris [1].", "Paris [1]."),
    _mistral(
        "a list",
        '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "P"}, "id": "abcdefghi"}, {"name": "list_files", "arguments": {}}]',
        calls=(("get_weather", {"city": "P"}), ("list_files", {})),
    ),
    _mistral(
        "a list, as its tokenizer spaces it",
        'So.[TOOL_CALLS] [{"arguments": {"city": "P"}, "name": "get_weather"}]',
        "So.",
        calls=(("get_weather", {"city": "P"}),),
    ),
    _mistral(
        "names, behind a thought",
        '[THINK]Look.[/THINK]I look.[TOOL_CALLS]get_weather[ARGS]{"city": "P"}[TOOL_CALLS]list_files[CALL_ID]123456789[ARGS]{}',
        "I look.",
        "Look.",
        (("get_weather", {"city": "P"}), ("list_files", {})),
    ),
    _mistral("a tool that was not offered", '[TOOL_CALLS]rm[ARGS]{"path": "/"}', 'rm{"path": "/"}'),
)

HARMONY = (
    _harmony("an answer", "<|channel|>final<|message|>Paris <b>.", "Paris <b>."),
    _harmony(
        "a thought and an answer",
        "<|channel|>analysis<|message|>France.\nSo Paris.<|end|><|start|>assistant<|channel|>final<|message|>Paris.",
        "Paris.",
        "France.\nSo Paris.",
    ),
    _harmony(
        "a thought, a preamble and a call",
        "<|channel|>analysis<|message|>Look.<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
        '<|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city":"Paris","days":3}',
        "I look.",
        "Look.",
        (("get_weather", {"city": "Paris", "days": 3}),),
    ),
    _harmony(
        "the header as its template writes it",
        " to=functions.list_files<|channel|>commentary json<|message|>{}<|call|>",
        calls=(("list_files", {}),),
    ),
    _harmony(
        "two calls",
        '<|channel|>commentary to=functions.list_files <|constrain|>json<|message|>{}<|call|><|start|>assistant<|channel|>commentary to=functions.get_weather<|message|>{"city": "P"}<|call|>',
        calls=(("list_files", {}), ("get_weather", {"city": "P"})),
    ),
    _harmony(
        "a tool that was not offered",
        '<|channel|>commentary to=functions.rm <|constrain|>json<|message|>{"path": "/"}<|call|>',
        'rm {"path": "/"}',
    ),
)

PLAIN = (
    _think("a thought", "<think>\nFrance.\n</think>\n\nParis.", "Paris.", "France."),
    _think("a thought that the prompt began", "France.</think>Paris.", "Paris.", "France.", prompt_tail="<think>\n"),
    _think("two thoughts", "<think>a</think>\nb\n<think>c</think>\nd", "b\n\nd", "ac"),
    Transcript("plain", "an answer", "Paris <think> {is} it.", "Paris <think> {is} it."),
    Transcript(
        "plain",
        "a call in the form that it was taught in the prompt",
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "P"}}\n</tool_call>',
        calls=(("get_weather", {"city": "P"}),),
    ),
)

TRANSCRIPTS = (*LLAMA, *MISTRAL, *HARMONY, *PLAIN)
