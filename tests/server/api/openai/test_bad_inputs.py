"""Bad inputs 18-20 and 23-64 on a real socket: the promised answer, and the next good request still works."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.scripted_service import MODEL, REPLY, Running, ScriptedService, running


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(ScriptedService()) as up:
        yield up


def _chat(**fields: Any) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": "hi"}], **fields}).encode()


def _raw(value: str, field: str = "max_tokens") -> bytes:
    """A chat body whose field has a value that json.dumps would not write."""
    return _chat(**{field: 0}).replace(f'"{field}": 0'.encode(), f'"{field}": {value}'.encode())


def _message(**message: Any) -> bytes:
    return _chat(messages=[message])


def _refuses(server: Running, path: str, body: bytes, param: str | None = None, status: int = 400) -> dict[str, Any]:
    reply = server.send("POST", path, body)
    assert reply.status == status, reply.body[:500]
    assert reply.headers["content-type"] == "application/json"
    assert len(reply.body) < 32_000
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == ("not_found_error" if status == 404 else "invalid_request_error")
    if param is not None:
        assert error["param"] == param
    good = server.chat()
    assert good.status == 200
    assert good.json()["choices"][0]["message"]["content"] == "".join(REPLY)
    return dict(error)


DEEP = {"a": 1}
for _ in range(70):
    DEEP = {"a": DEEP}  # type: ignore[dict-item]

MALFORMED = {
    "23 empty": (b"", "empty"),
    "23 blank": (b" \n", "empty"),
    "24 truncated": (b'{"messages": [{"role": "us', "byte 26"),
    "24 trailing": (_chat() + b"x", "byte"),
    "25 array": (b"[]", "object"),
    "25 string": (b'"hi"', "object"),
    "25 number": (b"5", "object"),
    "25 null": (b"null", "object"),
    "26 invalid UTF-8": (b'{"messages": "\xff"}', "UTF-8"),
    "26 encoded surrogate": (b'{"messages": "\xed\xa0\x80"}', "UTF-8"),
    "27 BOM": (b"\xef\xbb\xbf" + _chat(), "byte order mark"),
    "27 UTF-16": (_chat().decode().encode("utf-16"), "UTF-8"),
    "27 UTF-16 without BOM": (_chat().decode().encode("utf-16-le"), "UTF-8"),
    "28 surrogate in content": (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "surrogate"),
    "28 surrogate in model": (_raw('"\\udc00"', "model"), "surrogate"),
    "28 surrogate in stop": (_raw('["a\\ud800\\u0041"]', "stop"), "surrogate"),
    "28 surrogate as key": (b'{"\\ud800": 1}', "surrogate"),
    "30 NaN": (_raw("NaN", "temperature"), "NaN"),
    "30 Infinity": (_raw("Infinity", "temperature"), "NaN"),
    "30 -Infinity": (_raw("-Infinity", "temperature"), "NaN"),
    "30 1e999": (_raw("1e999", "temperature"), "out of range"),
    "31 5000 digits": (_raw("9" * 5000), "out of range"),
    "32 400 digits": (_raw("9" * 400), "64 bits"),
    "32 400 digits in seed": (_raw("9" * 400, "seed"), "64 bits"),
    "32 400 digits in an unknown field": (_raw("9" * 400, "foo"), "64 bits"),
    "33 100000 deep": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "too complex"),
    "33 100000 open": (b"[" * 100_000, "too complex"),
    "34 70 deep in tools": (_chat(tools=[DEEP]), "nested"),
    "34 70 deep in an unknown field": (_chat(foo=DEEP), "nested"),
    "34 950 deep": (b'{"a":' + b"[" * 950 + b"]" * 950 + b"}", "nested"),
}


@pytest.mark.parametrize("case", MALFORMED)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"])
def test_a_malformed_body_is_a_400_that_says_what_is_wrong(server: Running, case: str, path: str) -> None:
    body, words = MALFORMED[case]
    assert words in _refuses(server, path, body)["message"]


IMAGE = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}}

CHAT_CASES: dict[str, tuple[bytes, str | None]] = {
    "36 3.5 for max_tokens": (_raw("3.5"), "max_tokens"),
    "36 string for max_tokens": (_chat(max_tokens="5"), "max_tokens"),
    "36 true for max_tokens": (_chat(max_tokens=True), "max_tokens"),
    "36 yes for stream": (_chat(stream="yes"), "stream"),
    "36 1 for stream": (_chat(stream=1), "stream"),
    "36 string for temperature": (_chat(temperature="0.5"), "temperature"),
    "36 true for temperature": (_chat(temperature=True), "temperature"),
    "38 audio": (_chat(audio={"voice": "x"}), "audio"),
    "38 modalities": (_chat(modalities=["text", "audio"]), "modalities"),
    "38 web search": (_chat(web_search_options={"search_context_size": "low"}), "web_search_options"),
    "38 a refused field's harmless value in another type": (_chat(typical_p=True), "typical_p"),
    "38 documents": (_chat(documents=[{"text": "x"}]), "documents"),
    "39 12000 bad messages": (_chat(messages=[{"role": 5, "content": 5}] * 12_000), "messages"),
    "39 2000 bad messages": (_chat(messages=[{"role": "x" * 4000}] * 2000), "messages.0.role"),
    "40 40000 tiny messages": (b'{"messages":[' + b"{}," * 40_000 + b"{}]}", "messages"),
    "41 missing": (b"{}", "messages"),
    "41 null": (_chat(messages=None), "messages"),
    "41 string": (_chat(messages="hi"), "messages"),
    "41 empty": (_chat(messages=[]), "messages"),
    "42 empty message": (_chat(messages=[{}]), "messages.0.role"),
    "42 number": (_chat(messages=[123]), "messages.0"),
    "42 role number": (_message(role=123, content="a"), "messages.0.role"),
    "42 role unknown": (_message(role="king", content="a"), "messages.0.role"),
    "42 content number": (_message(role="user", content=123), "messages.0.content"),
    "42 content object": (_message(role="user", content={}), "messages.0.content"),
    "44 unknown part": (_message(role="user", content=[{"type": "x"}]), "messages.0.content.0.type"),
    "44 part without type": (_message(role="user", content=[{"text": "x"}]), "messages.0.content.0.type"),
    "44 part is a string": (_message(role="user", content=["x"]), "messages.0.content.0"),
    "44 text is a number": (_message(role="user", content=[{"type": "text", "text": 5}]), "messages.0.content.0.text"),
    "44 image_url": (_message(role="user", content=[IMAGE]), "messages.0.content.0"),
    "44 audio": (_message(role="user", content=[{"type": "input_audio"}]), "messages.0.content.0"),
    "44 file": (_message(role="user", content=[{"type": "file"}]), "messages.0.content.0"),
    "44 type is a list": (_message(role="user", content=[{"type": ["text"]}]), "messages.0.content.0.type"),
    "44 assistant audio": (_message(role="assistant", audio={"id": "a"}), "messages.0.audio"),
    "45 the template refuses": (_message(role="user", content="fail early"), "messages"),
    "50 max_tokens -5": (_chat(max_tokens=-5), "max_tokens"),
    "50 max_completion_tokens -3": (_chat(max_completion_tokens=-3), "max_completion_tokens"),
    "51 temperature -0.1": (_chat(temperature=-0.1), "temperature"),
    "51 temperature 2.1": (_chat(temperature=2.1), "temperature"),
    "52 top_p 1.1": (_chat(top_p=1.1), "top_p"),
    "52 min_p 2": (_chat(min_p=2), "min_p"),
    "52 repetition_penalty 0": (_chat(repetition_penalty=0), "repetition_penalty"),
    "52 presence_penalty 3": (_chat(presence_penalty=3), "presence_penalty"),
    "53 n 0": (_chat(n=0), "n"),
    "53 n 9": (_chat(n=9), "n"),
    "53 n 1e9": (_chat(n=10**9), "n"),
    "54 seed 2**80": (_chat(seed=2**80), None),
    "54 seed 2**63": (_chat(seed=2**63), "seed"),
    "54 seed x": (_chat(seed="x"), "seed"),
    "55 key not a number": (_chat(logit_bias={"x": 1}), "logit_bias"),
    "55 key -5": (_chat(logit_bias={"-5": 1}), "logit_bias"),
    "55 key 2**40": (_chat(logit_bias={str(2**40): 1}), "logit_bias"),
    "55 key of 5000 digits": (_chat(logit_bias={"9" * 5000: 1}), "logit_bias"),
    "55 key of other digits": (_chat(logit_bias={"٣": 1}), "logit_bias"),
    "55 value 1e9": (_chat(logit_bias={"5": 1e9}), "logit_bias.5"),
    "55 value true": (_chat(logit_bias={"5": True}), "logit_bias.5"),
    "55 1e5 entries": (_chat(logit_bias={str(i): 1 for i in range(100_000)}), "logit_bias"),
    "55 a list": (_chat(logit_bias=[1]), "logit_bias"),
    "52 top_k -2": (_chat(top_k=-2), "top_k"),
    "56 list of empty": (_chat(stop=[""]), "stop"),
    "56 17 items": (_chat(stop=["a"] * 17), "stop"),
    "56 1 MB": (_chat(stop="a" * 2**20), "stop"),
    "56 number": (_chat(stop=[1]), "stop.0"),
    "57 top without logprobs": (_chat(top_logprobs=2), "top_logprobs"),
    "57 top with logprobs false": (_chat(top_logprobs=2, logprobs=False), "top_logprobs"),
    "57 -1": (_chat(logprobs=True, top_logprobs=-1), "top_logprobs"),
    "57 21": (_chat(logprobs=True, top_logprobs=21), "top_logprobs"),
    "57 1e6": (_chat(logprobs=True, top_logprobs=10**6), "top_logprobs"),
    "57 logprobs 5": (_chat(logprobs=5), "logprobs"),
    "58 without stream": (_chat(stream_options={"include_usage": True}), "stream_options"),
    "58 not a boolean": (_chat(stream=True, stream_options={"include_usage": "x"}), "stream_options.include_usage"),
    "58 not an object": (_chat(stream=True, stream_options=True), "stream_options"),
    "59 schema": (_chat(response_format={"type": "json_schema"}), "response_format.json_schema"),
    "61 chat_template": (_chat(chat_template="{{ 7 * 7 }}"), "chat_template"),
    "61 kwargs chat_template": (
        _chat(chat_template_kwargs={"chat_template": "x"}),
        "chat_template_kwargs.chat_template",
    ),
    "61 kwargs tokenize": (_chat(chat_template_kwargs={"tokenize": False}), "chat_template_kwargs.tokenize"),
    "61 kwargs not a scalar": (
        _chat(chat_template_kwargs={"enable_thinking": [0]}),
        "chat_template_kwargs.enable_thinking",
    ),
    "62 tools": (_chat(tools=[{"type": "x"}]), "tools.0.type"),
    "62 1000 tools": (_chat(tools=[{"type": "function"}] * 1000), "tools"),
    "62 tool_choice": (_chat(tool_choice="required"), "tool_choice"),
    "62 assistant tool_calls": (
        _message(role="assistant", tool_calls=[{"id": "a"}]),
        "messages.0.tool_calls.0.function",
    ),
    "continue a user message": (_chat(continue_final_message=True), "continue_final_message"),
    "do not answer a user message": (_chat(add_generation_prompt=False), "add_generation_prompt"),
    "answer an assistant message": (
        _chat(messages=[{"role": "assistant", "content": "a"}], add_generation_prompt=True),
        "add_generation_prompt",
    ),
    "63 model is a number": (_chat(model=5), "model"),
}


@pytest.mark.parametrize("case", CHAT_CASES)
def test_a_bad_chat_request_is_a_400_that_names_the_field(server: Running, case: str) -> None:
    body, param = CHAT_CASES[case]
    before = len(server.service.requests)
    _refuses(server, "/v1/chat/completions", body, param)
    # One request reached the service: the good one. Only the template's refusal comes from behind it.
    assert len(server.service.requests) - before == (2 if case.startswith("45") else 1)


def _completion(**fields: Any) -> bytes:
    return json.dumps({"prompt": "hi", **fields}).encode()


COMPLETION_CASES = {
    "prompt missing": (b"{}", "prompt"),
    "prompt null": (_completion(prompt=None), "prompt"),
    "prompt empty list": (_completion(prompt=[]), "prompt"),
    "prompt empty ids": (_completion(prompt=[[]]), "prompt.0"),
    "prompt number": (_completion(prompt=5), "prompt"),
    "prompt mixed": (_completion(prompt=[1, "a"]), "prompt.1"),
    "prompt booleans": (_completion(prompt=[True]), "prompt.0"),
    "prompt negative id": (_completion(prompt=[1, -1]), "prompt.1"),
    "prompt huge id": (_completion(prompt=[[2**31]]), "prompt.0.0"),
    "prompts x n": (_completion(prompt=["a"] * 3, n=3), "prompt"),
    "53 best_of above n": (_completion(best_of=3, n=2), "best_of"),
    "53 best_of 0": (_completion(best_of=0), "best_of"),
    "57 logprobs 6": (_completion(logprobs=6), "logprobs"),
    "57 logprobs true": (_completion(logprobs=True), "logprobs"),
    "38 suffix": (_completion(suffix=5), "suffix"),
    "36 echo 1": (_completion(echo=1), "echo"),
    "50 max_tokens -2": (_completion(max_tokens=-2), "max_tokens"),
    "45 a later prompt is bad": (_completion(prompt=["a", "fail early"]), "messages"),
    "45 a later prompt of a stream is bad": (_completion(prompt=["a", "fail early"], stream=True), "messages"),
}


@pytest.mark.parametrize("case", COMPLETION_CASES)
def test_a_bad_completion_request_is_a_400_that_names_the_field(server: Running, case: str) -> None:
    body, param = COMPLETION_CASES[case]
    _refuses(server, "/v1/completions", body, param)
    assert server.service.idle.wait(5)


NAMES = ["nope", "../../etc", "/abs/path", "~/x", "a/b/c", "x/y@rev", "a\nb", "x" * 10_000, "http://x/", MODEL + " "]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
@pytest.mark.parametrize("stream", [False, True])
def test_a_model_that_is_not_in_the_catalog_is_a_404(server: Running, name: str, stream: bool) -> None:
    for path, body in (("/v1/chat/completions", _chat), ("/v1/completions", _completion)):
        error = _refuses(server, path, body(model=name, stream=stream), "model", 404)
        assert error["code"] == "model_not_found"


ROUTES = {
    "18 GET on chat": ("GET", "/v1/chat/completions", 405),
    "18 PUT on chat": ("PUT", "/v1/chat/completions", 405),
    "18 TRACE on chat": ("TRACE", "/v1/chat/completions", 405),
    "18 POST on models": ("POST", "/v1/models", 405),
    "19 unknown": ("GET", "/v1/nope", 404),
    "19 etc passwd": ("GET", "/v1/models/..%2f..%2fetc/passwd", 404),
    "19 openapi": ("GET", "/openapi.json", 404),
    "20 unknown with a slash": ("GET", "/v1/models/org/nope", 404),
    "21 ANSI and CRLF": ("GET", "/v1/models/%1b%5b31m%0d%0aset-cookie:x", 404),
    "trailing slash": ("POST", "/v1/chat/completions/", 404),
    "sub-resource of responses": ("POST", "/v1/responses/x/nope", 404),
}


@pytest.mark.parametrize("case", ROUTES)
def test_a_wrong_path_or_method_gets_the_envelope(server: Running, case: str) -> None:
    method, path, status = ROUTES[case]
    reply = server.send(method, path)
    assert reply.status == status
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
    assert b"passwd" not in reply.body
    assert ("allow" in reply.headers) == (status == 405)
    assert server.chat().status == 200


def test_nothing_of_an_unforeseen_error_reaches_the_client(server: Running) -> None:
    reply = server.chat(messages=[{"role": "user", "content": "crash"}])
    assert reply.status == 500
    assert reply.json()["error"]["type"] == "server_error"
    assert b"secret" not in reply.body
    assert server.chat().status == 200


@pytest.mark.parametrize(("depth", "status"), [(64, 200), (65, 400)])
def test_the_body_may_be_nested_64_levels_deep(server: Running, depth: int, status: int) -> None:
    # The body itself is the first level.
    nested = "[" * (depth - 1) + "]" * (depth - 1)
    assert server.send("POST", "/v1/chat/completions", _raw(nested, "foo")).status == status


@pytest.mark.parametrize(("number", "status"), [(2**64 - 1, 200), (2**64, 400), (-(2**63), 200), (-(2**63) - 1, 400)])
def test_an_integer_has_at_most_64_bits_wherever_it_stands(server: Running, number: int, status: int) -> None:
    assert server.chat(foo=[{"a": number}]).status == status


def test_several_errors_are_named_in_one_message_with_short_inputs(server: Running) -> None:
    fields = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "seed")
    error = _refuses(server, "/v1/chat/completions", _chat(**dict.fromkeys(fields, "x" * 1000)), "temperature")
    assert error["message"].startswith("temperature should be a valid number, not 'xxx")
    assert error["message"].endswith("; and 2 more.")
    assert len(error["message"]) < 1000


MANY_BAD = {
    "/v1/chat/completions stop": _raw("[" + "1," * 300_000 + "1]", "stop"),
    "/v1/chat/completions logit_bias": _chat(logit_bias={str(token): "x" for token in range(300)}),
    "/v1/completions prompt": b'{"prompt": [' + b'"a",' * 300_000 + b"1]}",
    "/v1/chat/completions tools": _raw("[" + "1," * 300_000 + "1]", "tools"),
    "/v1/chat/completions allowed_token_ids": _raw("[" + '"a",' * 300_000 + "1]", "allowed_token_ids"),
    "/detokenize tokens": b'{"tokens": [' + b'"a",' * 300_000 + b'"a"]}',
}


@pytest.mark.parametrize("case", MANY_BAD)
def test_of_many_bad_items_the_first_is_named_and_the_rest_cost_nothing(server: Running, case: str) -> None:
    path, field = case.split()
    error = _refuses(server, path, MANY_BAD[case])
    assert error["param"].startswith(field)
    assert " more" not in error["message"]
