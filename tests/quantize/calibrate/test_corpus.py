"""The text to calibrate with: what ships, what a user gives, what is held back, what may not overlap."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from quantize.calibrate.corpus import (
    HELD_BACK_KIND,
    SHIPPED,
    CalibrationTextError,
    Document,
    calibration_text,
    is_held_back,
)
from quantize.calibrate.overlap import runs, shared_runs

KINDS = {"prose", "reference", "documentation", "code", "chat", "tools", "reasoning", "scripts", "law"}


def test_what_ships_has_every_kind_and_is_small() -> None:
    shipped = calibration_text()
    assert shipped.kinds.keys() == KINDS
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 2_000_000
    # Four bytes a token in English; other scripts have more tokens, not fewer.
    assert sum(len(d.whole.encode()) for d in shipped.documents) / 4 > 131_072


def test_the_terms_of_every_kind_are_written_down() -> None:
    readme = (SHIPPED / "README.md").read_text(encoding="utf-8")
    assert {f"`{path.name}`" for path in SHIPPED.glob("*.jsonl")} == {f"`{kind}.jsonl`" for kind in KINDS}
    assert [kind for kind in KINDS if f"`{kind}.jsonl`" not in readme] == []


def repeated_share(texts: Iterable[str]) -> float:
    """The share of all runs of words that stood before already."""
    counts = Counter(run for text in texts for run in runs(text))
    return 1 - len(counts) / counts.total()


def test_what_ships_hardly_repeats_itself() -> None:
    shipped = calibration_text()
    for kind in KINDS:
        assert repeated_share(d.whole for d in shipped.documents if d.kind == kind) < 0.1, kind
    assert repeated_share(document.whole for document in shipped.documents) < 0.02


def test_many_scripts_are_there() -> None:
    text = "".join(document.whole for document in calibration_text().documents if document.kind == "scripts")
    for letter in "жωابאकকதతกខမአ中のが한ქհ":
        assert letter in text, letter


def test_conversations_are_in_a_form_that_templates_take() -> None:
    talks = [document for document in calibration_text().documents if document.messages is not None]
    assert {document.kind for document in talks} == {"chat", "tools", "reasoning"}
    for document in talks:
        assert document.messages is not None
        assert document.messages[-1]["role"] == "assistant"
        for message in document.messages:
            assert message["role"] in ("system", "user", "assistant", "tool")
            for call in message.get("tool_calls", ()):
                assert isinstance(call["function"]["arguments"], dict)
                assert document.tools is not None
                assert call["function"]["name"] in {tool["function"]["name"] for tool in document.tools}
    assert any("reasoning_content" in message for document in talks for message in document.messages or ())


def test_one_kind_and_one_chunk_in_eight_are_held_back() -> None:
    assert [chunk for chunk in range(20) if is_held_back("prose", chunk)] == [7, 15]
    assert all(is_held_back(HELD_BACK_KIND, chunk) for chunk in range(20))


# ---- a user's own


def test_a_folder_of_all_forms_is_read(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("Plain words.")
    (tmp_path / "deep").mkdir()
    lines = [
        {"text": "A line.", "kind": "lines"},
        {"prompt": "Two and two?", "completion": "Four."},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}], "tools": []},
    ]
    (tmp_path / "deep" / "mine.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    read = calibration_text(tmp_path)
    own = [document for document in read.documents if document.kind != HELD_BACK_KIND]
    turns = [{"role": "user", "content": "Two and two?"}, {"role": "assistant", "content": "Four."}]
    assert own == [
        Document("lines", text="A line."),
        Document("mine", messages=turns),
        Document("mine", messages=lines[2]["messages"], tools=[]),
        Document("plain", text="Plain words."),
    ]


def test_a_users_data_is_judged_on_the_shipped_kind_too(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Some words.")
    assert calibration_text(tmp_path).kinds == {"plain": 1, "law": 2}
    (tmp_path / "law.jsonl").write_text('{"text": "My own law."}\n')
    assert calibration_text(tmp_path).kinds == {"plain": 1, "law": 1}


def test_the_hash_is_of_the_text_and_not_of_its_files(tmp_path: Path) -> None:
    for folder, name in (("one", "a.txt"), ("two", "b.md"), ("three", "c.txt")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text("Some words." if folder != "three" else "Other words.")
    one, two, three = (calibration_text(tmp_path / name).sha256 for name in ("one", "two", "three"))
    assert one == two != three
    assert calibration_text().sha256 == calibration_text().sha256


CALL = '{"messages": [{"role": "assistant", "tool_calls": %s}]}'
WRONG_CALL = "line 1: a tool call is not a function with a name and an object of arguments."


NOT_TEXT = "line 1: the content of a message is neither text nor parts of text."


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "line 1: not valid JSON."),
        ('{"text": "a"}\n[1]', "line 2: not a JSON object."),
        ('{"content": "a"}', "line 1: has none of text, messages, or prompt and completion."),
        ('{"messages": "hello"}', "line 1: messages is not a list of objects with a role."),
        ('{"messages": []}', "line 1: messages is not a list of objects with a role."),
        ('{"messages": [{"role": "user"}], "tools": 1}', "line 1: tools is not a list of objects."),
        ('{"text": "a", "kind": 1}', "line 1: kind is not a string."),
        ('{"messages": [{"role": 1, "content": "a"}]}', "line 1: messages is not a list of objects with a role."),
        ('{"messages": [{"role": "user"}]}', "line 1: a message has neither content nor tool calls."),
        ('{"messages": [{"role": "user", "tool_calls": 5}]}', "line 1: a message has neither content nor tool calls."),
        (CALL % '["a"]', "line 1: a message has neither content nor tool calls."),
        (CALL % '[{"function": {}}]', WRONG_CALL),
        (CALL % '[{"function": {"name": "f", "arguments": "{}"}}]', WRONG_CALL),
        ('{"text": ""}', "line 1: holds no text."),
        ('{"prompt": "", "completion": " \\n"}', "line 1: holds no text."),
        ('{"messages": [{"role": "user", "content": ""}]}', "line 1: holds no text."),
        ('{"messages": [{"role": "user", "content": 5}]}', NOT_TEXT),
        ('{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}', NOT_TEXT),
        (r'{"text": "\ud800"}', r"line 1: holds half a character, a \ud800 to \udfff alone."),
        ("[" * 100_000, "line 1: not valid JSON."),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "mine.jsonl").write_text(content)
    with pytest.raises(CalibrationTextError) as refused:
        calibration_text(tmp_path / "mine.jsonl")
    assert refused.value.message.endswith(sentence)


def test_a_line_ends_where_json_lines_end(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text('{"text": "one\u2028two\u0085three"}\n\n{"text": "four"}\n', encoding="utf-8")
    found = calibration_text(tmp_path / "mine.jsonl").documents
    assert [document.text for document in found[:2]] == ["one\u2028two\u0085three", "four"]


def test_parts_of_text_are_one_text(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "two and two?"}]
    result = [{"type": "text", "text": "any JSON"}]
    messages = [{"role": "user", "content": parts}, {"role": "tool", "content": result}]
    (tmp_path / "mine.jsonl").write_text(json.dumps({"messages": messages}))
    [own] = [d for d in calibration_text(tmp_path).documents if d.kind != HELD_BACK_KIND]
    assert own.messages == [{"role": "user", "content": "What is two and two?"}, messages[1]]


def test_only_files_of_text_are_taken_for_text(tmp_path: Path) -> None:
    (tmp_path / "chat.json").write_text('[{"text": "An array is no line."}]')
    with pytest.raises(CalibrationTextError, match=r"chat\.json does not end in \.jsonl, \.txt or \.md"):
        calibration_text(tmp_path / "chat.json")
    (tmp_path / "LINES.JSONL").write_text('{"text": "A line."}')
    assert calibration_text(tmp_path / "LINES.JSONL").documents[0].text == "A line."


def test_a_folder_with_the_name_of_a_file_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "notes.md").mkdir()
    (tmp_path / "empty.txt").mkdir()
    (tmp_path / "notes.md" / "a.txt").write_text("Once.")
    assert calibration_text(tmp_path).kinds == {"plain": 1, "law": 2}


def test_what_holds_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationTextError, match=r"has no \.jsonl, \.txt or \.md file"):
        calibration_text(tmp_path)
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(CalibrationTextError, match="has no text to calibrate with"):
        calibration_text(tmp_path)
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(CalibrationTextError, match="is not text in UTF-8"):
        calibration_text(tmp_path)
    with pytest.raises(CalibrationTextError, match="cannot be read: No such file"):
        calibration_text(tmp_path / "nothing.txt")


# ---- overlap

SENTENCE = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"


def test_sixteen_words_in_a_row_are_an_overlap_and_fifteen_are_not() -> None:
    inside = f"Before it: {SENTENCE.upper().replace(' ', ', ')}! After it."
    assert shared_runs([inside], ["nothing", f"x {SENTENCE} y"]) == [SENTENCE]
    assert shared_runs([inside], [SENTENCE.replace("sixteen", "sixty")]) == []


def test_scripts_without_spaces_are_compared_by_character() -> None:
    assert len(list(runs("通货膨胀是指一段时间内大多数商品和服务的价格"))) == 7


def test_a_long_text_is_compared_at_no_more_memory_than_its_words() -> None:
    long = " ".join(str(number) for number in range(100_000))
    tracemalloc.start()
    assert shared_runs([f"x {SENTENCE} y"], [long, SENTENCE]) == [SENTENCE]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * len(long)
