"""Where tokens begin in a text: characters of several tokens, added tokens, bytes that are no characters."""

from __future__ import annotations

from server.chat.tokenizers.offsets import left_by_others, offsets_in, offsets_of

SPANS_ARE_NOT_ASKED = [(99, 99)] * 5


def test_the_tokens_of_a_character_all_begin_at_it() -> None:
    tokens = [b"a ", b"\xe6\x97", b"\xa5", b"\xe6\x9c\xac b"]
    assert offsets_in("a 日本 b", tokens, SPANS_ARE_NOT_ASKED) == [0, 2, 2, 3]
    assert offsets_of(tokens) == [0, 2, 2, 3]


def test_a_token_that_was_added_takes_no_text_and_a_space_of_the_spelling_is_passed_over() -> None:
    assert offsets_in("Hello you", [b"", b" Hello", b" you", b""], SPANS_ARE_NOT_ASKED) == [0, 0, 5, 9]


def test_where_a_normalizer_has_changed_the_text_the_spans_of_the_tokenizer_count() -> None:
    assert offsets_in("ÄB c", [b"", b"ab", b" c", b""], [(0, 0), (0, 2), (2, 4), (0, 0)]) == [0, 0, 2, 4]


def test_a_byte_that_is_no_character_is_one_of_its_own_before_the_next_token() -> None:
    assert offsets_of([b"a", b"\xe6", b"3", b"b"]) == [0, 1, 2, 3]
    assert left_by_others(b"3", "\ufffd3") == 1
    assert left_by_others(b"\xa5", "日") == 0
