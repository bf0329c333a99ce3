"""Formats that put tags around JSON or around each argument: Hermes and Qwen, Qwen3-Coder, MiniMax M2, GLM 4.5."""

from __future__ import annotations

from functools import partial

from tests.support.transcripts import Transcript, shown

_THINK = ("<think>", "</think>")
_hermes = partial(Transcript, "hermes", markers=(*_THINK, "<tool_call>", "</tool_call>"), hidden=shown)
_coder = partial(Transcript, "qwen3-coder", markers=(*_THINK, "<tool_call>", "</tool_call>"), hidden=shown)
_minimax = partial(
    Transcript, "minimax-m2", markers=(*_THINK, "<minimax:tool_call>", "</minimax:tool_call>"), hidden=shown
)
_glm = partial(
    Transcript,
    "glm",
    markers=(*_THINK, "<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    hidden=shown,
)

HERMES = (
    _hermes("an answer", "Paris <b>is</b> it.\n", "Paris <b>is</b> it.\n"),
    _hermes("a thought", "<think>\nFrance.\n\nSo:\n</think>\n\nParis.", "Paris.", "France.\n\nSo:"),
    _hermes(
        "a thought that the prompt began", "France.\n</think>\n\nParis.", "Paris.", "France.", prompt_tail="<think>\n"
    ),
    _hermes("an empty thought", "<think>\n\n</think>\n\nParis.", "Paris."),
    _hermes(
        "a thought, text and two calls",
        '<think>\nLook.\n</think>\n\nI look.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}\n'
        '</tool_call>\n<tool_call>\n{"name": "list_files", "arguments": {}}\n</tool_call>',
        "I look.",
        "Look.",
        (("get_weather", {"city": "Paris", "days": 3}), ("list_files", {})),
    ),
    _hermes(
        "strings that hold everything",
        '<tool_call>\n{"name": "write_file", "arguments": {"path": "a/b", "content": "\\"x\\" {y} [z], \\u00e9 \\ud83d\\udc4b é 👋\\n\\\\"}}\n</tool_call>',
        calls=(("write_file", {"path": "a/b", "content": '"x" {y} [z], é 👋 é 👋\n\\'}),),
    ),
    _hermes(
        "values of every type",
        '<tool_call>{"name": "write_file", "arguments": {"options": {"deep": [1, -2.5e3, {"k": null}]}, "overwrite": true, "tags": []}}</tool_call>',
        calls=(("write_file", {"options": {"deep": [1, -2500.0, {"k": None}]}, "overwrite": True, "tags": []}),),
    ),
    _hermes(
        "a brace too few",
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "P"}\n</tool_call>',
        calls=(("get_weather", {"city": "P"}),),
    ),
    _hermes(
        "Python's quotes, words and commas",
        "<tool_call>\n{'name': 'write_file', 'arguments': {'path': 'it\\'s \"a\"', 'overwrite': True, 'ratio': None,},}\n</tool_call>",
        calls=(("write_file", {"path": 'it\'s "a"', "overwrite": True, "ratio": None}),),
    ),
    _hermes(
        "line breaks inside a string",
        '<tool_call>\n{"name": "write_file", "arguments": {"content": "a\n\tb"}}\n</tool_call>',
        calls=(("write_file", {"content": "a\n\tb"}),),
    ),
    _hermes(
        "arguments before the name",
        '<tool_call>{"arguments": {"city": "P"}, "name": "get_weather"}</tool_call>',
        calls=(("get_weather", {"city": "P"}),),
    ),
    _hermes(
        "arguments as a string",
        '<tool_call>{"name": "get_weather", "arguments": "{\\"city\\": \\"P\\"}"}</tool_call>',
        calls=(("get_weather", {"city": "P"}),),
    ),
    _hermes(
        "OpenAI's own form, and no arguments",
        '<tool_call>{"id": "x", "type": "function", "function": {"name": "list_files"}}</tool_call>',
        calls=(("list_files", {}),),
    ),
    _hermes(
        "a list",
        '<tool_call>[{"name": "list_files", "arguments": null}, {"name": "list_files", "arguments": {}}]</tool_call>',
        calls=(("list_files", {}), ("list_files", {})),
    ),
    _hermes(
        "the tags of Qwen3-Coder",
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nP\n</parameter>\n</function>\n</tool_call>",
        calls=(("get_weather", {"city": "P"}),),
    ),
    _hermes(
        "half of a pair of surrogates",
        '<tool_call>{"name": "get_weather", "arguments": {"city": "\\ud83d!"}}</tool_call>',
        calls=(("get_weather", {"city": "\ufffd!"}),),
    ),
    _hermes(
        "a tool that was not offered",
        '<tool_call>{"name": "rm", "arguments": {}}</tool_call>',
        '{"name": "rm", "arguments": {}}',
    ),
    _hermes("no JSON", "I would use <tool_call> now.", "I would use  now."),
    _hermes(
        "a value that is missing",
        'Hm. <tool_call>{"name": "get_weather", "arguments": {"city": }}</tool_call>',
        'Hm. {"name": "get_weather", "arguments": {"city": }}',
    ),
    _hermes(
        "a string without an end",
        '<tool_call>{"name": "get_weather", "arguments": {"city": "P',
        '{"name": "get_weather", "arguments": {"city": "P',
    ),
    _hermes(
        "arguments that are a list",
        '<tool_call>{"name": "get_weather", "arguments": [1]}</tool_call>',
        '{"name": "get_weather", "arguments": [1]}',
    ),
    _hermes("stray markers", "a</tool_call>b</think>c", "abc"),
)

CODER = (
    _coder(
        "text and a call with values of every type",
        'I write.\n\n<tool_call>\n<function=write_file>\n<parameter=path>\na b.py\n</parameter>\n<parameter=content>\n\nif x < 1 && "y":\n    {é 👋}\n\n</parameter>\n'
        '<parameter=mode>\n7\n</parameter>\n<parameter=overwrite>\nTrue\n</parameter>\n<parameter=tags>\n["a", "b"]\n</parameter>\n'
        '<parameter=ratio>\nnull\n</parameter>\n<parameter=options>\n{"k": [1]}\n</parameter>\n</function>\n</tool_call>',
        "I write.",
        "",
        (
            (
                "write_file",
                {
                    "path": "a b.py",
                    "content": '\nif x < 1 && "y":\n    {é 👋}\n',
                    "mode": 7,
                    "overwrite": True,
                    "tags": ["a", "b"],
                    "ratio": None,
                    "options": {"k": [1]},
                },
            ),
        ),
    ),
    _coder(
        "a thought and two calls",
        "<think>\nhm\n</think>\n\n<tool_call>\n<function=list_files>\n</function>\n</tool_call>\n<tool_call>\n<function=get_weather>\n<parameter=city>\n007\n</parameter>\n</function>\n</tool_call>",
        "",
        "hm",
        (("list_files", {}), ("get_weather", {"city": "007"})),
    ),
    _coder(
        "no tag around the function",
        "<function=get_weather>\n<parameter=city>\nP\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
        calls=(("get_weather", {"city": "P", "days": 3}),),
    ),
    _coder(
        "no line breaks",
        "<tool_call><function=get_weather><parameter=city>P</parameter></function></tool_call>",
        calls=(("get_weather", {"city": "P"}),),
    ),
    _coder(
        "no end",
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nP\n</parameter>",
        calls=(("get_weather", {"city": "P"}),),
    ),
    _coder(
        "JSON",
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "P"}}\n</tool_call>',
        calls=(("get_weather", {"city": "P"}),),
    ),
    _coder(
        "a parameter that is not declared",
        "<tool_call>\n<function=get_weather>\n<parameter=other>\n5\n</parameter>\n</function>\n</tool_call>",
        calls=(("get_weather", {"other": "5"}),),
    ),
    _coder(
        "a tool that was not offered",
        "<function=rm>\n<parameter=path>\n/\n</parameter>\n</function>",
        "<function=rm>\n<parameter=path>\n/\n</parameter>\n</function>",
    ),
    _coder(
        "words in a call",
        "<tool_call>\n<function=get_weather>\nwhat?\n</function>\n</tool_call>",
        "\n<function=get_weather>\nwhat?\n</function>\n",
    ),
)

MINIMAX = (
    _minimax(
        "a thought that the prompt began, text and two calls",
        'hm\n</think>\n\nI look.\n<minimax:tool_call>\n<invoke name="get_weather"><parameter name="city">Paris</parameter><parameter name="days">3</parameter>'
        '</invoke>\n<invoke name="list_files"></invoke>\n</minimax:tool_call>',
        "I look.",
        "hm",
        (("get_weather", {"city": "Paris", "days": 3}), ("list_files", {})),
        prompt_tail="]~b]ai\n<think>\n",
    ),
    _minimax(
        "values of every type",
        '<minimax:tool_call>\n<invoke name="write_file">\n<parameter name="content">a\n  <b>"x"</b>\n</parameter>\n<parameter name="overwrite">true</parameter>\n'
        '<parameter name="tags">["é"]</parameter>\n<parameter name="options">{"a": {"b": 1}}</parameter>\n</invoke>\n</minimax:tool_call>',
        calls=(
            (
                "write_file",
                {"content": 'a\n  <b>"x"</b>\n', "overwrite": True, "tags": ["é"], "options": {"a": {"b": 1}}},
            ),
        ),
    ),
    _minimax(
        "a tool that was not offered",
        '<minimax:tool_call>\n<invoke name="rm"></invoke>\n</minimax:tool_call>',
        '\n<invoke name="rm"></invoke>\n',
    ),
)

GLM = (
    _glm(
        "a thought, text and two calls",
        "\n<think>hm</think>\nI look.\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>\n"
        "<tool_call>list_files\n</tool_call>",
        "I look.",
        "hm",
        (("get_weather", {"city": "Paris", "days": 3}), ("list_files", {})),
    ),
    _glm(
        "no line breaks, as GLM 4.7 writes",
        '<tool_call>write_file<arg_key>content</arg_key><arg_value>a\n"b" {c}\n</arg_value><arg_key>overwrite</arg_key><arg_value>true</arg_value><arg_key>options</arg_key><arg_value>{"k": 1}</arg_value></tool_call>',
        calls=(("write_file", {"content": 'a\n"b" {c}\n', "overwrite": True, "options": {"k": 1}}),),
    ),
    _glm(
        "JSON behind the name",
        '<tool_call>get_weather\n{"city": "P"}\n</tool_call>',
        calls=(("get_weather", {"city": "P"}),),
    ),
    _glm(
        "a tool that was not offered",
        "<tool_call>rm\n<arg_key>path</arg_key>\n<arg_value>/</arg_value>\n</tool_call>",
        "rm\n<arg_key>path</arg_key>\n<arg_value>/</arg_value>\n",
    ),
)

TRANSCRIPTS = (*HERMES, *CODER, *MINIMAX, *GLM)
