"""Grammar terms, read by llguidance itself: what each accepts and what it does not."""

from __future__ import annotations

import json
from typing import Any

import llguidance
import pytest

from server.chat.grammar import lark


class _Bytes:
    """A vocabulary of an end, a marker, and the 256 bytes."""

    eos_token_id = 0
    bos_token_id = None
    tokens = (b"</s>", b"<call>", *(bytes([byte]) for byte in range(256)))
    special_token_ids = (0, 1)

    def __call__(self, text: bytes) -> list[int]:
        return [2 + byte for byte in text]

    def marker(self, text: str) -> int | None:
        return 1 if text == "<call>" else None


TOKENIZER = llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Bytes()))


def accepts(term: str, tokens: list[int] | str) -> bool:
    if isinstance(tokens, str):
        tokens = _Bytes()(tokens.encode())
    matcher = llguidance.LLMatcher(TOKENIZER, f"start: {term}", log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    return bool(matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "plain",
        'quo"te',
        "back\\slash",
        "\\",
        '\\"',
        "new\nline\r\ttab\x00\x1f\x7f",
        "é ☃ 𝄞",
        "/*",
        "%json {}",
        "a | b",
    ],
)
def test_a_literal_is_its_own_text_and_nothing_else(text: str) -> None:
    assert accepts(lark.literal(text), text)
    assert not accepts(lark.literal(text), text + "x")


def test_a_marker_is_its_token_where_the_vocabulary_has_one_and_its_spelling_elsewhere() -> None:
    assert accepts(lark.marker(_Bytes(), "<call>"), [1])
    assert not accepts(lark.marker(_Bytes(), "<call>"), "<call>")
    assert accepts(lark.marker(_Bytes(), "<other>"), "<other>")


def test_a_choice_is_one_of_its_texts() -> None:
    term = lark.choice(['yes"', "no | maybe", "ye"])
    assert [text for text in ('yes"', "no | maybe", "ye", "no", "maybe") if accepts(term, text)] == [
        'yes"', "no | maybe", "ye",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "right", "wrong"),
    [
        ("a/b", "a/b", "ab"),
        (r"a\/b", "a/b", r"a\/b"),
        ("^[0-9]+$", "42", "42\n"),
        ("^(a|b)$", "b", "c"),
        ("^a|b$", "b", "ab"),
        ("a\nb", "a\nb", "anb"),
        (r"cost\$", "cost$", "cost"),
        (r"cost\\$", "cost\\", "cost\\$"),
        ("", "", "x"),
        ("/", "/", "//"),
    ],
)
def test_a_regex_matches_from_end_to_end(pattern: str, right: str, wrong: str) -> None:
    assert accepts(lark.regex(pattern), right)
    assert not accepts(lark.regex(pattern), wrong)


def test_json_of_a_schema_may_be_laid_out_but_not_with_endless_space() -> None:
    term = lark.json_schema({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]})
    assert accepts(term, '{"city":"Paris"}')
    assert accepts(term, '{\n    "city": "Paris"\n}')
    assert not accepts(term, '{"town":"Paris"}')
    assert not accepts(term, "{" + " " * 40 + '"city":"Paris"}')


@pytest.mark.parametrize("schema", [True, {}])
def test_json_of_a_schema_without_bounds_is_any_json(schema: dict[str, Any] | bool) -> None:
    assert accepts(lark.json_schema(schema), json.dumps({"a": [1, None, "x"]}))
    assert accepts(lark.json_schema(schema), "3")


def test_a_client_cannot_make_its_schema_lenient_by_itself() -> None:
    term = lark.json_schema({"type": "object", "if": {}, "x-guidance": {"lenient": True}})
    matcher = llguidance.LLMatcher(TOKENIZER, f"start: {term}", log_level=0)
    assert "if" in matcher.get_error()


def test_any_json_is_an_object() -> None:
    assert accepts(lark.any_json(), '{"a": {"b": []}}')
    assert not accepts(lark.any_json(), "[]")
