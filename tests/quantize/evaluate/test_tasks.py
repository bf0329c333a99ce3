"""The texts and tasks, with answers that the test itself gives in a model's place."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm.utils import load_tokenizer

from quantize.errors import SourceError
from quantize.evaluate.tasks import mmlu, niah, questions
from quantize.evaluate.texts import COVERED, OWN, Text, passages, read_texts
from tests.support.tiny_model import write_tiny_model

ROW = 'Which is even?,1,3,"4, of course",5,C\n'


def test_the_text_that_ships_has_covered_and_uncovered_kinds_and_is_small() -> None:
    kinds = {text.kind for text in read_texts(OWN)}
    assert kinds & set(COVERED)
    assert kinds - set(COVERED)
    assert OWN.stat().st_size < 300_000


def test_a_passage_is_the_answer_behind_the_request_and_long_ones_are_cut(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_tiny_model(tmp_path))
    answer = "The answer is the number forty-two. " * 20
    text = Text("prose", [{"role": "user", "content": "hello"}, {"role": "assistant", "content": answer}])
    found = passages([text], tokenizer, 64)
    assert len(found) > 2
    assert {passage.given for passage in found} == {found[0].given}
    assert all(len(passage.tokens) <= 64 for passage in found)
    assert tokenizer.decode(list(found[0].tokens[: found[0].given])).endswith("<|im_start|>assistant\n")
    assert tokenizer.decode([t for passage in found for t in passage.tokens[passage.given :]]) == answer


class Letters:
    """A tokenizer of letters. `^` begins every text, and `$` ends it."""

    def __init__(self, *, has_chat_template: bool) -> None:
        self.has_chat_template = has_chat_template

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [ord(letter) for letter in ("^" + text + "$" if add_special_tokens else text)]

    def apply_chat_template(self, messages: Sequence[Mapping[str, str]], **options: object) -> str:
        return "^" + "".join(f"<{message['content']}>" for message in messages)


def told(tokens: Sequence[int]) -> str:
    return "".join(map(chr, tokens))


def test_a_long_request_is_cut_behind_what_begins_every_text() -> None:
    text = Text("prose", [{"role": "user", "content": "a" * 100 + "b"}, {"role": "assistant", "content": "answer"}])
    found = passages([text], Letters(has_chat_template=True), 20)
    assert [told(passage.tokens[: passage.given]) for passage in found] == ["^" + "a" * 7 + "b>"]


def test_a_model_without_a_chat_template_has_a_plain_text_alone(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("A story.")
    found = passages(read_texts(tmp_path / "t.txt"), Letters(has_chat_template=False), 20)
    assert [(told(passage.tokens), passage.given) for passage in found] == [("^A story.", 1)]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "is empty"),
        ("[1]", "line 1: not a JSON object"),
        ('{"kind": "x"}', 'line 1: has neither "text" nor "messages"'),
        ('{"kind": 5, "text": "a"}', "line 1: kind and ask are strings"),
        ('{"ask": [], "text": "a"}', "line 1: kind and ask are strings"),
        (r'{"text": "\ud800"}', "line 1: holds half a character"),
        ('{"text": "ok"}\n\n{"messages": [{"role": "user", "content": "hi"}]}', "line 3: the last of two or more"),
    ],
)
def test_a_text_file_at_fault_is_named_with_its_line(content: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(content)
    with pytest.raises(SourceError, match=sentence):
        read_texts(tmp_path / "t.jsonl")


def test_a_text_may_hold_the_line_separators_of_unicode(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "one\u2028two"}\n', encoding="utf-8")
    [text] = read_texts(tmp_path / "t.jsonl")
    assert text.messages[-1]["content"] == "one\u2028two"


def write_questions(folder: Path) -> Path:
    file = folder / "number_theory_test.csv"
    file.write_text(ROW * 7)
    return file


def test_questions_are_read_from_both_forms(tmp_path: Path) -> None:
    [first, *_] = questions.read_questions(write_questions(tmp_path))
    assert first == questions.Question("number_theory", "Which is even?", ["1", "3", "4, of course", "5"], 2)
    line = {"subject": "number_theory", "question": first.question, "choices": first.choices, "answer": "C"}
    (tmp_path / "q.jsonl").write_text(json.dumps(line))
    assert questions.read_questions(tmp_path / "q.jsonl") == [first]


def test_a_question_may_go_over_several_lines(tmp_path: Path) -> None:
    (tmp_path / "history_test.csv").write_text('"Read this.\nIt goes on.\r\nWhich is even?",1,3,4,5,C\n')
    [found] = questions.read_questions(tmp_path / "history_test.csv")
    assert found.question.split("\n") == ["Read this.", "It goes on.", "Which is even?"]


@pytest.mark.parametrize(
    "row", ["a,b,C\n", "q,1,2,3,4,E\n", "q,1,2,3,4,\n", "", '"never closed,1,2,3,4,C\n', f"{'q' * 200_000},1,2,3,4,C\n"]
)
def test_questions_at_fault_are_a_sentence(row: str, tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text(row)
    with pytest.raises(SourceError, match=r"q\.csv"):
        questions.read_questions(tmp_path / "q.csv")


@pytest.mark.parametrize(
    "wrong",
    [
        {"answer": "AB"}, {"answer": ""}, {"answer": 1.7}, {"answer": True}, {"answer": 4}, {"answer": "1"},
        {"choices": "abcd"}, {"choices": ["a", "b", "c"]}, {"question": None}, {"subject": None},
    ],
    ids=str,
)  # fmt: skip
def test_a_question_in_json_is_taken_as_it_is_meant_or_not_at_all(wrong: dict[str, object], tmp_path: Path) -> None:
    line = {"question": "Which?", "choices": ["a", "b", "c", "d"], "answer": 0}
    (tmp_path / "q.jsonl").write_text(f"\n{json.dumps(line)}\n{json.dumps(line | wrong)}\n")
    with pytest.raises(SourceError, match=r"q\.jsonl, line 3: has no"):
        questions.read_questions(tmp_path / "q.jsonl")


@pytest.mark.parametrize(("likely", "right"), [("C", 2), ("A", 0)])
def test_by_letters_the_likeliest_letter_is_the_answer_after_five_examples(
    likely: str, right: int, tmp_path: Path
) -> None:
    prompts = []

    def logits(tokens: Sequence[int]) -> mx.array:
        prompts.append("".join(map(chr, tokens)))
        return mx.array([1.0 if chr(token) == likely else 0.0 for token in range(128)])

    asked = questions.read_questions(write_questions(tmp_path))
    score = mmlu.by_letters(asked, Letters(has_chat_template=False), logits)
    assert (score.right, score.asked) == (right, 2)
    assert prompts[0].count("Answer: C") == 5
    assert prompts[0].startswith("^The following")
    # Without what ends a text.
    assert prompts[0].endswith("D. 5\nAnswer:")


def test_in_chat_the_last_letter_named_is_the_answer(tmp_path: Path) -> None:
    asked = questions.read_questions(write_questions(tmp_path))
    assert mmlu.in_chat(asked, lambda messages, most: "Not A but\nAnswer: C").right == 7
    assert mmlu.in_chat(asked, lambda messages, most: "**Answer: C**. A closer look at D agrees.").right == 7
    assert mmlu.in_chat(asked, lambda messages, most: "The answer is A? No, the answer is (C)").right == 7
    assert mmlu.in_chat(asked, lambda messages, most: "I cannot say.").right == 0


def test_needles_are_put_where_they_are_said_to_be_and_counted_when_found() -> None:
    places = []

    def ask(messages: Sequence[Mapping[str, str]], most: int) -> str:
        text = messages[0]["content"]
        found = re.search(r"master's key is (\d+)", text)
        assert found
        places.append(found.start() / len(text))
        # Forgets what stands early in long texts.
        return found[1] if len(text) < 5000 or places[-1] > 0.5 else "no idea"

    cells = niah.run(ask, lambda text: len(text.split()), lengths=(200, 2000), depths=(0.1, 0.9), tries=2)
    assert [(cell.length, cell.depth, cell.found, cell.tries) for cell in cells] == [
        (200, 0.1, 2, 2), (200, 0.9, 2, 2), (2000, 0.1, 0, 2), (2000, 0.9, 2, 2),
    ]  # fmt: skip
    assert places[4] == pytest.approx(0.1, abs=0.05)
