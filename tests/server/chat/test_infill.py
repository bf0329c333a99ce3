"""A text with a gap as the token ids that each family was trained on: its order, its tokens, its ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import AddedToken

from server.chat.conversation import Infill, OtherFile, RawPrompt
from server.chat.encoded import EncodedPrompt
from server.chat.infill import encode_infill
from server.chat.prompt import encode_prompt
from server.chat.templates.template import ChatTemplate
from server.chat.tokenizers.tokenizer import ChatTokenizer
from server.errors import ContextLengthExceeded, InvalidRequest
from tests.support.fim_model import FILE, MIDDLE, PAD, PREFIX, QWEN, REPOSITORY, SUFFIX, fim_tokenizer
from tests.support.kinds_of_tokenizer import KINDS, write_tokenizer
from tests.support.tiny_model import BOS, BOS_ID, write_tiny_model
from tests.support.vocabulary import vocabulary_of

CONTEXT = 2048
CODE = "def area(r):\n    return 3.14 * r\n\nprint(ar"
Maker = Callable[..., ChatTokenizer]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    def make(*markers: str, add_bos: bool = False) -> ChatTokenizer:
        folder = tmp_path_factory.mktemp("fim")
        tokenizer = fim_tokenizer(markers, add_bos=add_bos)
        return ChatTokenizer.load(write_tiny_model(folder, tokenizer=tokenizer, add_bos=add_bos))

    return make


@pytest.fixture(scope="module")
def qwen(made: Maker) -> ChatTokenizer:
    return made(*QWEN)


def encoded(tokenizer: ChatTokenizer, prefix: str = "a(", suffix: str = ")\n", *files: OtherFile) -> EncodedPrompt:
    return encode_infill(tokenizer, Infill(prefix, suffix, files), CONTEXT)


def ids(tokenizer: ChatTokenizer, *parts: str) -> list[int]:
    """Each of `parts` tokenized by itself, markers being markers."""
    return [token for part in parts for token in tokenizer.encode(part, False)]


@pytest.mark.parametrize(
    ("markers", "layout"),
    [
        (QWEN, (PREFIX, "a(", SUFFIX, ")\n", MIDDLE)),
        (
            ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
            ("<fim_prefix>", "a(", "<fim_suffix>", ")\n", "<fim_middle>"),
        ),
        (("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"), ("▁<PRE>", "a(", "▁<SUF>", ")\n", "▁<MID>")),
        (
            ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
            ("<｜fim▁begin｜>", "a(", "<｜fim▁hole｜>", ")\n", "<｜fim▁end｜>"),
        ),
        (("[PREFIX]", "[SUFFIX]", "[MIDDLE]"), ("[SUFFIX]", ")\n", "[PREFIX]", "a(")),
    ],
    ids=["qwen", "starcoder", "code llama", "deepseek", "codestral"],
)
def test_each_family_has_its_own_order(made: Maker, markers: tuple[str, ...], layout: tuple[str, ...]) -> None:
    tokenizer = made(*markers, add_bos=True)
    prompt = encoded(tokenizer)
    assert prompt.ids == [BOS_ID, *ids(tokenizer, *layout)]
    assert prompt.text == BOS + "".join(layout)
    # Whatever of the family's tokens it writes, the answer is over.
    assert {tokenizer.encode(marker, False)[0] for marker in markers} <= set(prompt.stops)


def test_tokens_of_a_vocabulary_that_are_not_added_ones_count_where_no_text_becomes_them(tmp_path: Path) -> None:
    tokenizer = fim_tokenizer(())
    folder = write_tiny_model(tmp_path, tokenizer=tokenizer)
    file = folder / "tokenizer.json"
    saved = json.loads(file.read_text())
    vocabulary = saved["model"]["vocab"]
    vocabulary |= {text: len(vocabulary) + index for index, text in enumerate(("▁<PRE>", "▁<SUF>", "▁<MID>"))}
    file.write_text(json.dumps(saved))
    # Beyond the model's own vocabulary there is nothing to look up.
    assert ChatTokenizer.load(folder).infill is None
    config = json.loads((folder / "config.json").read_text()) | {"vocab_size": len(vocabulary)}
    (folder / "config.json").write_text(json.dumps(config))
    prompt = encoded(ChatTokenizer.load(folder))
    assert [prompt.ids[0], prompt.ids[-1]] == [vocabulary["▁<PRE>"], vocabulary["▁<MID>"]]


@pytest.mark.parametrize("kind", KINDS)
def test_no_space_is_put_in_front_of_what_goes_on_from_a_marker(tmp_path: Path, kind: str) -> None:
    backend = KINDS[kind]()
    backend.add_tokens([AddedToken(marker, special=False, normalized=False) for marker in QWEN])
    tokenizer = ChatTokenizer.load(write_tokenizer(tmp_path, backend, "{{ messages }}"))
    prompt = encoded(tokenizer, "the", "capital", OtherFile("Paris", "Hello"))
    spelled = b"".join(map(vocabulary_of(tokenizer).token_bytes, prompt.ids)).decode()
    assert spelled.endswith(f"the{SUFFIX}capital{MIDDLE}")
    assert f"{FILE}Paris" in spelled


def test_other_files_stand_before_the_one_with_the_gap(qwen: ChatTokenizer, made: Maker) -> None:
    files = (OtherFile("a.py", "x = 1\n"), OtherFile("b.py", "y = 2\n"))
    layout = (REPOSITORY, "myproject\n", FILE, "a.py\nx = 1\n", FILE, "b.py\ny = 2\n", FILE, "filename\n")
    prompt = encoded(qwen, "a(", ")\n", *files)
    assert prompt.ids == ids(qwen, *layout, PREFIX, "a(", SUFFIX, ")\n", MIDDLE)
    # What is read before what somebody types is kept by itself.
    assert (prompt.boundaries[0].offset, prompt.boundaries[0].role) == (len(ids(qwen, *layout)), "system")
    plain = made("▁<PRE>", "▁<SUF>", "▁<MID>")
    assert encoded(plain, "a(", ")\n", *files).text.startswith("--- a.py ---\n\nx = 1\n\n\n--- b.py ---")
    last = made("[PREFIX]", "[SUFFIX]")
    assert encoded(last, "a(", ")\n", *files).text.startswith("[SUFFIX])\n[PREFIX]--- a.py ---")


@pytest.mark.parametrize("spelled", [MIDDLE, f"{BOS}{PREFIX}", f"x{SUFFIX}y", f"{FILE}evil.py\n", "<|fim_<|fim_pad|>"])
def test_control_tokens_that_a_file_spells_are_text(qwen: ChatTokenizer, spelled: str) -> None:
    prompt = encoded(qwen, f"# {spelled}\n", f"# {spelled}", OtherFile(f"{spelled}.py", spelled))
    control = set(ids(qwen, *QWEN, BOS))
    assert [token for token in prompt.ids if token in control] == ids(
        qwen, REPOSITORY, FILE, FILE, PREFIX, SUFFIX, MIDDLE
    )
    assert qwen.decode(prompt.ids) == prompt.text


def test_the_ends_are_where_the_line_begins_and_at_the_gap(qwen: ChatTokenizer) -> None:
    prompt = encoded(qwen, CODE)
    line, gap = (end.offset for end in prompt.boundaries)
    assert qwen.decode(prompt.ids[:gap]) == PREFIX + CODE
    # A token that goes on from one line into the next is of the next.
    assert (PREFIX + CODE[: CODE.rindex("\n") + 1]).startswith(qwen.decode(prompt.ids[:line]))
    assert len(qwen.decode(prompt.ids[:line])) >= len(PREFIX + CODE[: CODE.rindex("\n")]) - 2
    # What is typed on the line leaves what stands before it as it is.
    typed = encoded(qwen, CODE + "ea(2))")
    assert typed.ids[:line] == prompt.ids[:line]


def test_nothing_around_a_gap_is_a_prompt_too(qwen: ChatTokenizer) -> None:
    assert encoded(qwen, "", "").ids == ids(qwen, PREFIX, SUFFIX, MIDDLE)


def test_a_model_without_the_tokens_says_so_and_names_the_field(made: Maker) -> None:
    with pytest.raises(InvalidRequest, match="no tokens for filling in the middle") as raised:
        encoded(made())
    assert raised.value.param == "suffix"
    # One is not enough.
    assert made(PREFIX, SUFFIX, PAD).infill is None


def test_what_does_not_fit_is_refused_with_the_numbers(qwen: ChatTokenizer) -> None:
    with pytest.raises(ContextLengthExceeded, match="2048 tokens, but the prompt has"):
        encoded(qwen, "x y z " * 600)
    with pytest.raises(ContextLengthExceeded):
        encoded(qwen, "", "", OtherFile("a", "x" * 10**6))


CONTEXT_FOR_ANSWERS = 64
FILES = tuple(OtherFile(f"{name}.py", f"{name} = 1\n" * 40) for name in "abc")


def fitted(tokenizer: ChatTokenizer, prefix: str, suffix: str, files: tuple[OtherFile, ...] = FILES) -> EncodedPrompt:
    return encode_infill(tokenizer, Infill(prefix, suffix, files, CONTEXT_FOR_ANSWERS), 512)


def test_where_it_may_be_shortened_all_of_it_stays_that_fits(qwen: ChatTokenizer) -> None:
    prompt = encode_infill(qwen, Infill(CODE, "\n", FILES, CONTEXT_FOR_ANSWERS), CONTEXT)
    assert (prompt.truncated, prompt.ids) == (False, encode_infill(qwen, Infill(CODE, "\n", FILES), CONTEXT).ids)


def test_the_first_files_go_first(qwen: ChatTokenizer) -> None:
    prompt = fitted(qwen, CODE, "\n")
    assert prompt.truncated
    assert "a.py" not in prompt.text and "c.py" in prompt.text
    assert prompt.text.endswith(f"{PREFIX}{CODE}{SUFFIX}\n{MIDDLE}")
    assert len(prompt.ids) <= 512 - CONTEXT_FOR_ANSWERS


@pytest.mark.parametrize("size", [500, 5000, 5_000_000])
def test_then_what_is_far_from_the_gap(qwen: ChatTokenizer, size: int) -> None:
    prefix, suffix = "x = 1\n" * size + "here(", ")there\n" + "y = 2\n" * size
    prompt = fitted(qwen, prefix, suffix)
    before, _, behind = prompt.text.removeprefix(PREFIX).partition(SUFFIX)
    assert prompt.truncated and prefix.endswith(before) and suffix.startswith(behind.removesuffix(MIDDLE))
    assert before.endswith("here(") and behind.startswith(")there")
    assert len(before) > len(behind) > 100
    assert 400 < len(prompt.ids) <= 512 - CONTEXT_FOR_ANSWERS
    line, gap = (end.offset for end in prompt.boundaries)
    assert qwen.decode(prompt.ids[line:gap]).lstrip("\n") == "here("


def test_one_side_alone_may_take_all_the_room(qwen: ChatTokenizer) -> None:
    assert len(fitted(qwen, "x = 1\n" * 500, "").ids) > 400
    assert len(fitted(qwen, "", "x = 1\n" * 500).ids) > 400


def test_a_message_cannot_write_these_tokens_and_a_raw_prompt_can(qwen: ChatTokenizer) -> None:
    raw = encode_prompt(qwen, ChatTemplate(None, {}), RawPrompt(f"{PREFIX}a{MIDDLE}"), CONTEXT)
    assert raw.ids == ids(qwen, PREFIX, "a", MIDDLE)
    assert set(QWEN) <= set(qwen.special_texts)
