"""Gemma 4, with and without what its models do when no grammar holds them; and FunctionGemma, its smaller sister."""

from __future__ import annotations

from functools import partial

from tests.support.transcripts import Transcript

MARKERS = ("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", '<|"|>')
_gemma = partial(Transcript, "gemma4", markers=MARKERS)
_function = partial(Transcript, "functiongemma", markers=("<start_function_call>", "<end_function_call>", "<escape>"))

_OPEN, _CLOSE, _Q = "<|tool_call>", "<tool_call|>", '<|"|>'

TRANSCRIPTS = (
    _gemma("an answer", "The capital is Paris.", "The capital is Paris."),
    _gemma("no thought", "<|channel>thought\n<channel|>Paris.", "Paris."),
    _gemma(
        "a thought",
        "<|channel>thought\nFrance, so\n\nParis: a < b & {c}.\n<channel|>Paris.",
        "Paris.",
        "France, so\n\nParis: a < b & {c}.",
    ),
    _gemma(
        "a thought and a call",
        f"<|channel>thought\nI need the weather.\n<channel|>{_OPEN}call:get_weather{{city:{_Q}Paris{_Q},days:3}}{_CLOSE}",
        "",
        "I need the weather.",
        (("get_weather", {"city": "Paris", "days": 3}),),
    ),
    _gemma(
        "a call that ends a thought",
        f"<|channel>thought\nI need the weather.\n{_OPEN}call:get_weather{{city:{_Q}Paris{_Q}}}{_CLOSE}",
        "",
        "I need the weather.",
        (("get_weather", {"city": "Paris"}),),
    ),
    _gemma(
        "text and two calls",
        f"Let me look.\n{_OPEN}call:get_weather{{city:{_Q}Paris{_Q}}}{_CLOSE}{_OPEN}call:list_files{{}}{_CLOSE}",
        "Let me look.",
        "",
        (("get_weather", {"city": "Paris"}), ("list_files", {})),
    ),
    _gemma(
        "strings that hold everything",
        f'{_OPEN}call:write_file{{content:{_Q}a "b" {{c}} [d], e:f\n\t\\n é 👋{_Q},path:{_Q}x.py{_Q}}}{_CLOSE}',
        calls=(("write_file", {"content": 'a "b" {c} [d], e:f\n\t\\n é 👋', "path": "x.py"}),),
    ),
    _gemma(
        "values of every type",
        f"{_OPEN}call:write_file{{options:{{deep:[1,-2.5,{{k:{_Q}v{_Q}}}],empty:{{}}}},overwrite:false,ratio:null,tags:[{_Q}a{_Q},{_Q}b{_Q}]}}{_CLOSE}",
        calls=(
            (
                "write_file",
                {
                    "options": {"deep": [1, -2.5, {"k": "v"}], "empty": {}},
                    "overwrite": False,
                    "ratio": None,
                    "tags": ["a", "b"],
                },
            ),
        ),
    ),
    # What models do when no grammar holds them.
    _gemma(
        "a dotted and a colon name",
        f"{_OPEN}call:default_api.get_weather{{city:{_Q}P{_Q}}}{_CLOSE}{_OPEN}call:files:list_files{{}}{_CLOSE}",
        calls=(("get_weather", {"city": "P"}), ("list_files", {})),
    ),
    _gemma(
        "hyphens, space and line breaks",
        f"{_OPEN}call:get-weather {{\n  city: {_Q}P{_Q},\n  days: 3,\n  x-y: 1\n}}\n{_CLOSE}",
        calls=(("get_weather", {"city": "P", "days": 3, "x-y": 1}),),
    ),
    _gemma(
        "parentheses",
        f"{_OPEN}call:get_weather(city={_Q}P{_Q}, days=3){_CLOSE}",
        calls=(("get_weather", {"city": "P", "days": 3}),),
    ),
    _gemma(
        "parentheses around braces",
        f"{_OPEN}call:get_weather({{city:{_Q}P{_Q}}}){_CLOSE}",
        calls=(("get_weather", {"city": "P"}),),
    ),
    _gemma(
        "a value without a name",
        f'{_OPEN}call:get_weather("P", unit="C"){_CLOSE}',
        calls=(("get_weather", {"city": "P", "unit": "C"}),),
    ),
    _gemma(
        "words without quotes",
        f"{_OPEN}call:get_weather{{city:New York, NY,unit:C}}{_CLOSE}",
        calls=(("get_weather", {"city": "New York, NY", "unit": "C"}),),
    ),
    _gemma(
        "digits where a string is wanted",
        f"{_OPEN}call:get_weather{{city:75001}}{_CLOSE}",
        calls=(("get_weather", {"city": "75001"}),),
    ),
    _gemma(
        "Python's words",
        f"{_OPEN}call:write_file{{overwrite:True,ratio:None,options:{{a:False}}}}{_CLOSE}",
        calls=(("write_file", {"overwrite": True, "ratio": None, "options": {"a": False}}),),
    ),
    _gemma(
        "JSON",
        f'{_OPEN}call:get_weather{{"city": "P\\u00e9\\n", "days": 3}}{_CLOSE}',
        calls=(("get_weather", {"city": "Pé\n", "days": 3}),),
    ),
    _gemma(
        "no brace at the end",
        f"{_OPEN}call:write_file{{path:{_Q}a{_Q},options:{{b:1{_CLOSE}",
        calls=(("write_file", {"path": "a", "options": {"b": 1}}),),
    ),
    _gemma(
        "two calls in one",
        f"{_OPEN}call:get_weather{{city:{_Q}P{_Q}}}call:list_files{{}}{_CLOSE}",
        calls=(("get_weather", {"city": "P"}), ("list_files", {})),
    ),
    _gemma(
        "no prefix and no end",
        f"{_OPEN}get_weather{{city:{_Q}P{_Q}}}",
        calls=(("get_weather", {"city": "P"}),),
    ),
    # What cannot be repaired is text.
    _gemma("a tool that was not offered", f"{_OPEN}call:rm_rf{{path:{_Q}/{_Q}}}{_CLOSE}", 'call:rm_rf{path:"/"}'),
    _gemma("no arguments", f"So: {_OPEN}call:get_weather{_CLOSE}", "So: call:get_weather"),
    _gemma(
        "words in place of arguments", f"{_OPEN}call:get_weather{{what?}}{_CLOSE} Oh.", "call:get_weather{what?} Oh."
    ),
    _gemma("a string without an end", f"{_OPEN}call:get_weather{{city:{_Q}P", 'call:get_weather{city:"P'),
    _gemma("stray markers", f"a{_CLOSE}b<channel|>c{_Q}d", 'abc"d'),
    _function(
        "a call",
        "<start_function_call>call:get_weather{city:<escape>Paris<escape>,days:2}<end_function_call>",
        calls=(("get_weather", {"city": "Paris", "days": 2}),),
    ),
    _function(
        "text and calls",
        "Sure.<start_function_call>call:list_files{}<end_function_call><start_function_call>call:get_weather{city:<escape>{x}, y:z<escape>}<end_function_call>",
        "Sure.",
        calls=(("list_files", {}), ("get_weather", {"city": "{x}, y:z"})),
    ),
    _function(
        "a tool that was not offered",
        "<start_function_call>call:turn_on{light:<escape>all<escape>}<end_function_call>",
        'call:turn_on{light:"all"}',
    ),
)
