"""Text to tokens and back: byte-level and sentencepiece vocabularies, split characters, broken model folders."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from server.chat.model_files import CONTEXT_WHEN_UNSAID, SamplingDefaults
from server.chat.tokenizers.tokenizer import ChatTokenizer
from server.errors import ConfigiError, ContextLengthExceeded, InvalidRequest, ModelUnavailable
from tests.support.tiny_model import BOS_ID, END, END_ID, VOCAB_SIZE, tiny_tokenizer, write_tiny_model
from tests.support.vocabulary import vocabulary_of

HARD = (
    "",
    "  two  spaces, a tab\t and the end  ",
    "1234567890 3.14159",
    "naïve Ωmega ßtraße",
    "日本語のテキスト 中文 한국어",
    "👩‍👩‍👧‍👦 🏳️‍🌈 é",
    "def f(x):\n    return {'a': [1, 2]}\r\n\n\n",
    "\x00\x01\x7f\ufffd\ufeff",
    "<|im_end|> is spelled here",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> ChatTokenizer:
    return ChatTokenizer.load(folder)


@pytest.fixture(scope="module")
def sentencepiece(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    """As Llama 2 and Mistral spell: `▁` for spaces, `<0x0A>` for bytes, the first space added."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"ehlowrd", "he", "▁he"]
    backend = Tokenizer(
        models.BPE(
            {p: i for i, p in enumerate(pieces)}, [("h", "e"), ("▁", "he")], byte_fallback=True, unk_token="<unk>"
        )
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<s>", "</s>"])
    backend.add_tokens([AddedToken("▁▁", normalized=False), AddedToken("<|call>", normalized=False)])
    return ChatTokenizer.load(
        _changed(folder, tmp_path_factory.mktemp("sp"), {"config.json": {"vocab_size": 300}}, backend)
    )


def _changed(folder: Path, target: Path, files: dict[str, dict[str, Any]], backend: Tokenizer | None = None) -> Path:
    """A copy of the model's small files, some keys replaced (None removes one)."""
    for name in ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"):
        value = json.loads((folder / name).read_text()) | files.get(name, {})
        (target / name).write_text(json.dumps({key: v for key, v in value.items() if v is not None}))
    if backend is not None:
        backend.save(str(target / "tokenizer.json"))
    return target


@pytest.mark.parametrize("text", HARD)
def test_hard_strings_survive_the_way_to_tokens_and_back(tokenizer: ChatTokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, False)) == text


@pytest.mark.parametrize("text", HARD[:-1])
def test_a_stream_of_tokens_gives_the_same_text_as_decoding_them_together(tokenizer: ChatTokenizer, text: str) -> None:
    stream = vocabulary_of(tokenizer).stream()
    assert "".join(map(stream.push, tokenizer.encode(text, False))) + stream.flush() == text


def test_a_character_split_over_tokens_comes_out_whole_with_its_last_token(tokenizer: ChatTokenizer) -> None:
    ids = tokenizer.encode("👋", False)
    stream = vocabulary_of(tokenizer).stream()
    assert len(ids) == 4
    assert [stream.push(token) for token in ids] == ["", "", "", "👋"]
    assert stream.flush() == ""


def test_an_incomplete_character_at_the_end_becomes_the_replacement_character(tokenizer: ChatTokenizer) -> None:
    stream = vocabulary_of(tokenizer).stream()
    assert [stream.push(token) for token in tokenizer.encode("日", False)[:2]] == ["", ""]
    assert stream.flush() == "\ufffd"


def test_random_bytes_stream_as_python_decodes_them(tokenizer: ChatTokenizer) -> None:
    single = {
        vocabulary_of(tokenizer).token(token)[1]: token
        for token in range(VOCAB_SIZE)
        if len(vocabulary_of(tokenizer).token(token)[1]) == 1
    }
    rng = random.Random(7)
    for _ in range(200):
        raw = bytes(rng.choice(b"a \x80\xa5\xbf\xc3\xe6\x97\xf0\x9f\x98\xff") for _ in range(rng.randrange(12)))
        ids = [single[bytes([byte])] for byte in raw]
        stream = vocabulary_of(tokenizer).stream()
        assert (
            "".join(map(stream.push, ids)) + stream.flush() == raw.decode("utf-8", "replace") == tokenizer.decode(ids)
        )


def test_a_stream_shows_no_control_tokens_and_survives_ids_beyond_the_vocabulary(tokenizer: ChatTokenizer) -> None:
    stream = vocabulary_of(tokenizer).stream()
    assert [stream.push(token) for token in (BOS_ID, END_ID, VOCAB_SIZE, 10**6, *tokenizer.encode("a", False))][
        -1
    ] == "a"


def test_a_long_run_of_bytes_without_meaning_is_shown_byte_by_byte_and_never_held_back(
    tokenizer: ChatTokenizer,
) -> None:
    stray = next(token for token in range(VOCAB_SIZE) if vocabulary_of(tokenizer).token(token)[1] == b"\x80")
    stream = vocabulary_of(tokenizer).stream()
    assert {stream.push(stray) for _ in range(20_000)} == {"\ufffd"}
    assert stream.flush() == ""


def test_tokens_show_their_bytes_where_their_text_is_lossy(tokenizer: ChatTokenizer) -> None:
    ids = tokenizer.encode(" é", False)
    assert b"".join(vocabulary_of(tokenizer).token(token)[1] for token in ids) == " é".encode()
    assert vocabulary_of(tokenizer).token(ids[-1]) == ("\ufffd", b"\xa9")
    assert vocabulary_of(tokenizer).token(END_ID) == (END, END.encode())


@pytest.mark.parametrize("bad", [-1, VOCAB_SIZE, 2**40])
def test_ids_out_of_range_are_the_requests_fault(tokenizer: ChatTokenizer, bad: int) -> None:
    with pytest.raises(InvalidRequest, match="0 to 447"):
        tokenizer.decode([3, bad])


def test_a_lone_surrogate_is_the_requests_fault(tokenizer: ChatTokenizer) -> None:
    with pytest.raises(InvalidRequest, match="lone surrogate"):
        tokenizer.encode("a\ud800b", False)


def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenized(tokenizer: ChatTokenizer) -> None:
    # From its length alone: `encode` by itself would make tokens of it and know no limit.
    with pytest.raises(ContextLengthExceeded, match="maximum context length is 2048 tokens"):
        tokenizer.encode("a" * 10_000_000, False)


def test_sentencepiece_spelling_is_undone(sentencepiece: ChatTokenizer) -> None:
    text = "he world\n日"
    ids = sentencepiece.encode(text, False)
    assert sentencepiece.decode(ids) == text
    assert b"".join(vocabulary_of(sentencepiece).token(token)[1] for token in ids) == (" " + text).encode()
    stream = vocabulary_of(sentencepiece).stream()
    assert "".join(map(stream.push, ids)) + stream.flush() == text


def test_added_tokens_that_are_not_control_tokens_show_as_decoding_shows_them(sentencepiece: ChatTokenizer) -> None:
    ids = [*sentencepiece.encode("he<|call>", False), sentencepiece.encode("▁▁", False)[-1]]
    stream = vocabulary_of(sentencepiece).stream()
    assert "".join(map(stream.push, ids)) == sentencepiece.decode(ids) == "he<|call>  "


def test_eos_ids_unite_generation_config_and_tokenizer(folder: Path, tmp_path: Path) -> None:
    assert ChatTokenizer.load(folder).eos_ids == {END_ID, BOS_ID}
    only_config = _changed(
        folder, tmp_path, {"generation_config.json": {"eos_token_id": None}, "config.json": {"eos_token_id": [5, 6]}}
    )
    assert ChatTokenizer.load(only_config).eos_ids == {5, 6, END_ID}


def test_values_one_level_down_in_text_config_count(folder: Path, tmp_path: Path) -> None:
    nested = {"max_position_embeddings": 99, "vocab_size": 1000, "eos_token_id": 7}
    changed = _changed(folder, tmp_path, {"generation_config.json": {"eos_token_id": None}})
    # Multimodal configs spell some of these as null beside text_config.
    (changed / "config.json").write_text(json.dumps({"text_config": nested, "vocab_size": None, "eos_token_id": None}))
    tokenizer = ChatTokenizer.load(changed)
    assert (tokenizer.context_length, tokenizer.vocab_size, tokenizer.eos_ids) == (99, 1000, frozenset({7, END_ID}))


def test_a_model_that_names_no_context_gets_the_documented_one(folder: Path, tmp_path: Path) -> None:
    files: dict[str, dict[str, Any]] = {
        "config.json": {"max_position_embeddings": None},
        "tokenizer_config.json": {"model_max_length": 1e30},
    }
    assert ChatTokenizer.load(_changed(folder, tmp_path, files)).context_length == CONTEXT_WHEN_UNSAID


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        ({}, SamplingDefaults()),
        ({"temperature": 0.6, "top_p": 0.95, "top_k": 64}, SamplingDefaults(temperature=0.6, top_p=0.95, top_k=64)),
        ({"do_sample": True, "repetition_penalty": 1.1}, SamplingDefaults(repetition_penalty=1.1)),
        ({"do_sample": False, "temperature": 0.6}, SamplingDefaults(temperature=0.0)),
    ],
)
def test_sampling_defaults_are_the_models_own(
    folder: Path, tmp_path: Path, generation: dict[str, Any], expected: SamplingDefaults
) -> None:
    tokenizer = ChatTokenizer.load(_changed(folder, tmp_path, {"generation_config.json": generation}))
    assert vocabulary_of(tokenizer).defaults == expected


def test_truncation_left_over_from_training_does_not_cut_prompts(folder: Path, tmp_path: Path) -> None:
    backend = tiny_tokenizer()
    backend.enable_truncation(4)
    backend.enable_padding(length=4)
    tokenizer = ChatTokenizer.load(_changed(folder, tmp_path, {}, backend))
    assert tokenizer.decode(tokenizer.encode("a long enough text", False)) == "a long enough text"


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("tokenizer.json", None, "has no tokenizer.json"),
        ("tokenizer.json", "{}", "tokenizer.json is broken"),
        ("tokenizer.json", "{", "tokenizer.json is broken"),
        ("config.json", None, "has no config.json"),
        ("config.json", "[]", "config.json is not a JSON object"),
        ("config.json", "{", "config.json is not valid JSON"),
        ("config.json", '{"deep": ' + "[" * 99 + "]" * 99 + "}", "config.json is not valid JSON"),
        ("generation_config.json", '{"temperature": NaN}', "temperature that cannot be used"),
        ("generation_config.json", '{"top_k": "many"}', "top_k that cannot be used"),
    ],
)
def test_a_broken_folder_is_one_sentence_without_a_path(
    folder: Path, tmp_path: Path, name: str, content: str | None, sentence: str
) -> None:
    changed = _changed(folder, tmp_path, {})
    (changed / name).unlink()
    if content is not None:
        (changed / name).write_text(content)
    with pytest.raises(ModelUnavailable, match=sentence) as error:
        ChatTokenizer.load(changed)
    assert str(tmp_path) not in error.value.message and "\n" not in error.value.message
    assert isinstance(error.value, ConfigiError)


def test_a_decoder_of_an_unknown_kind_is_refused(folder: Path, tmp_path: Path) -> None:
    backend = tiny_tokenizer()
    backend.decoder = decoders.WordPiece()
    with pytest.raises(ModelUnavailable, match="cannot turn back into text"):
        ChatTokenizer.load(_changed(folder, tmp_path, {}, backend))
