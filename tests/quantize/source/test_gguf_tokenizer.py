"""The tokenizers made from a GGUF's metadata give the ids of the libraries that the models were trained with."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
import sentencepiece
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import GPT2Tokenizer, Qwen2Tokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter

from quantize.source.gguf_tokenizer import tokenizer_of

CORPUS = [
    "The quick brown fox jumps over the lazy dog. It's 1234 and we're   done!\n\nSo they'LL say: \"yes\" -- no.",
    "def f(a, b):\n    return a[1:2] + {'k': 3.14159}[b]  # comment\n\n\n\tx += 1\r\n",
    "naïve café, Überraschung, мир и война, 日本語のテキスト, 한국어, العربية",
]
HARD = [
    "", " ", "  ", "   three   spaces   ", "\t\ttabs\n\n\nnewlines \n trailing ", "a\r\nb", "12345 3.14159 1,000,000",
    "don't can't we'll I'm THEY'RE", "def f(a, *b):\n    return {k: v for k, v in c.items()}", "😀😀 👩‍👩‍👧‍👦 ✈️",
    "日本語のテキスト、中文文本。한국어", "naïve café ﬁ Ω≈ç√", "мир العربية עברית", "e\u0301 vs é",
    "\u200b\u00a0\u3000|", "½ ² Ⅳ ٣", "\x00\x01\x7f", "ＡＢＣ１２３", "<0x0A>", "▁under▁",
]  # fmt: skip


def metadata(vocabulary: dict[str, int], merges: list[str], split: str) -> dict[str, Any]:
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": split,
        "tokenizer.ggml.tokens": [*tokens, "<|begin|>"],
        "tokenizer.ggml.token_type": [1] * len(tokens) + [3],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": len(tokens),
    }


@pytest.fixture(scope="module")
def trained() -> tuple[dict[str, int], list[str]]:
    """Merges that reach across words, so that a wrong split gives other ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False, max_token_length=6)
    tokenizer.train_from_iterator([*CORPUS, *HARD] * 3, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [" ".join(merge) for merge in model["merges"]]


@pytest.mark.parametrize(("split", "library"), [("gpt-2", GPT2Tokenizer), ("qwen2", Qwen2Tokenizer)])
def test_the_ids_are_those_of_transformers(trained: Any, split: str, library: Any) -> None:
    vocabulary, merges = trained
    expected = library(vocab=vocabulary, merges=[tuple(merge.split(" ")) for merge in merges], unk_token=None)
    made = tokenizer_of(metadata(vocabulary, merges, split))
    for text in [*CORPUS, *HARD]:
        assert made.encode(text).ids == expected(text, add_special_tokens=False)["input_ids"], repr(text)


def test_llama_3_splits_as_transformers_has_it_and_takes_whole_words_first(trained: Any) -> None:
    vocabulary, merges = trained
    made = tokenizer_of(metadata(vocabulary, merges, "llama-bpe"))
    expected = tokenizer_of(metadata(vocabulary, merges, "gpt-2") | {"tokenizer.ggml.add_bos_token": True})
    expected.model.ignore_merges = True
    expected.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(TikTokenConverter().pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    for text in [*CORPUS, *HARD]:
        assert made.encode(text).ids == expected.encode(text).ids, repr(text)
    whole = tokenizer_of(metadata({**vocabulary, "unmergeable": len(vocabulary)}, merges, "llama-bpe"))
    assert whole.encode("unmergeable", add_special_tokens=False).ids == [len(vocabulary)]


def test_the_beginning_of_sequence_is_there_where_the_model_has_it(trained: Any) -> None:
    vocabulary, merges = trained
    bos = len(vocabulary)
    read = metadata(vocabulary, merges, "llama-bpe")
    assert tokenizer_of(read).encode("a").ids[0] == bos
    assert tokenizer_of(read | {"tokenizer.ggml.add_bos_token": False}).encode("a").ids[0] != bos
    assert tokenizer_of(metadata(vocabulary, merges, "qwen2")).encode("a").ids[0] != bos


@pytest.mark.parametrize("prefixed", [True, False])
def test_a_sentencepiece_vocabulary_gives_the_ids_of_sentencepiece(prefixed: bool) -> None:
    """Trained as Llama 2's was."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 5), model_writer=model, vocab_size=550, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=prefixed,
        split_digits=True, allow_whitespace_only_pieces=True, minloglevel=2,
    )  # fmt: skip
    library = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ids = range(library.get_piece_size())
    types = [2 if library.IsUnknown(i) else 3 if library.IsControl(i) else 6 if library.IsByte(i) else 1 for i in ids]
    made = tokenizer_of(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": [library.IdToPiece(id) for id in ids],
            "tokenizer.ggml.scores": [library.GetScore(id) for id in ids],
            "tokenizer.ggml.token_type": types,
            "tokenizer.ggml.add_space_prefix": prefixed,
            "tokenizer.ggml.unknown_token_id": library.unk_id(),
            "tokenizer.ggml.bos_token_id": library.bos_id(),
        }
    )
    for text in [*CORPUS, *HARD]:
        found = made.encode(text).ids
        assert found == [library.bos_id(), *library.EncodeAsIds(text)], repr(text)
        assert made.decode(found) == library.DecodeIds(found[1:]), repr(text)
