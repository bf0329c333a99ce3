"""Tokenizers of all the files that a folder has, as transformers reads them; it is asked only where it has to be."""

from __future__ import annotations

import io
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from server.chat.conversation import Conversation, RawPrompt
from server.chat.parts import Message
from server.chat.prompt import encode_prompt
from server.chat.templates.template import ChatTemplate
from server.chat.tokenizers.conversion import Conversions
from server.chat.tokenizers.tokenizer import ChatTokenizer
from server.errors import ModelUnavailable
from tests.support.kinds_of_tokenizer import BOS, END, EOS, KINDS, write_tokenizer
from tests.support.tiny_model import tiny_tokenizer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import AutoTokenizer

CHATML = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONTENT = "Hello  world,\n the capital of <|im_end|>?"
NAMELESS = {"bos_token": None, "eos_token": None}


def _entry(text: str) -> dict[str, Any]:
    return {"content": text, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}


def _special_tokens_map(folder: Path) -> None:
    write_tokenizer(folder, KINDS["metaspace first"](), CHATML, NAMELESS)
    names = {"bos_token": BOS, "eos_token": _entry(EOS), "additional_special_tokens": [END]}
    (folder / "special_tokens_map.json").write_text(json.dumps(names))


def _class_defaults(folder: Path) -> None:
    write_tokenizer(folder, KINDS["metaspace first"](), CHATML, NAMELESS | {"tokenizer_class": "LlamaTokenizer"})


def _class_builds_anew(folder: Path) -> None:
    write_tokenizer(folder, KINDS["a space is prepended"](), CHATML, {"tokenizer_class": "LlamaTokenizerFast"})


def _added_tokens_decoder(folder: Path) -> None:
    backend = KINDS["metaspace first"]()
    size = backend.get_vocab_size()
    added = {str(size + i): _entry(text) | {"special": True} for i, text in enumerate(("<|im_start|>", "<|im_end|>"))}
    write_tokenizer(folder, backend, CHATML, {"eos_token": "<|im_end|>", "added_tokens_decoder": added})


def _added_tokens(folder: Path) -> None:
    backend = KINDS["no space of its own"]()
    size = backend.get_vocab_size()
    write_tokenizer(folder, backend, CHATML, {"eos_token": "<|im_end|>"})
    (folder / "added_tokens.json").write_text(json.dumps({"<|im_start|>": size, "<|im_end|>": size + 1}))


def _named_beside(folder: Path) -> None:
    more = {"eos_token": "<|im_end|>", "extra_special_tokens": {"start_token": "<|im_start|>"}}
    write_tokenizer(folder, KINDS["byte-level"](), CHATML, more)


def _vocabulary_and_merges(folder: Path) -> None:
    write_tokenizer(folder, tiny_tokenizer(), CHATML, {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|im_end|>"})
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]))
    (folder / "tokenizer.json").unlink()


def _sentencepiece(kind: str, tokenizer_class: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        write_tokenizer(folder, KINDS["metaspace first"](), CHATML, {"tokenizer_class": tokenizer_class})
        (folder / "tokenizer.json").unlink()
        model = io.BytesIO()
        text = "the capital of France is Paris. Hello world, what is the answer? 0 1 2 3 4 5 6 7 8 9 a b c d e f"
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter([text] * 20),
            model_writer=model,
            model_type=kind,
            vocab_size=320,
            byte_fallback=True,
            hard_vocab_limit=False,
            minloglevel=2,
        )
        (folder / "tokenizer.model").write_bytes(model.getvalue())

    return write


FOLDERS: dict[str, Callable[[Path], None]] = {
    "special_tokens_map.json": _special_tokens_map,
    "a class's defaults": _class_defaults,
    "a class that builds anew": _class_builds_anew,
    "added_tokens_decoder": _added_tokens_decoder,
    "added_tokens.json": _added_tokens,
    "tokens named beside the file": _named_beside,
    "vocab.json and merges.txt": _vocabulary_and_merges,
    "sentencepiece, BPE": _sentencepiece("bpe", "LlamaTokenizer"),
    "sentencepiece, Gemma": _sentencepiece("bpe", "GemmaTokenizer"),
    "sentencepiece, unigram": _sentencepiece("unigram", "T5Tokenizer"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_is_read_as_transformers_reads_it(tmp_path: Path, name: str) -> None:
    FOLDERS[name](tmp_path)
    oracle = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    tokenizer = ChatTokenizer.load(tmp_path)
    template = ChatTemplate.load(tmp_path, tokenizer.special)
    # Padded, as the weights of a model are: the added tokens are within it.
    tokenizer.vocab_size = 10_000
    for text in ("Hello world", "  two  spaces\n", f"{EOS} 日本 é 👋", ""):
        for add_special in (True, False):
            assert tokenizer.encode(text, add_special) == oracle.encode(text, add_special_tokens=add_special)
        assert tokenizer.decode(oracle.encode(text)) == oracle.decode(oracle.encode(text))
    assert oracle.eos_token_id in tokenizer.eos_ids and tokenizer.bos_id == oracle.bos_token_id
    assert tokenizer.special == oracle.special_tokens_map
    messages = [{"role": "user", "content": "Hello world"}]
    text = oracle.apply_chat_template(messages, chat_template=CHATML, tokenize=False, add_generation_prompt=True)
    asked = encode_prompt(tokenizer, template, Conversation((Message.plain("user", "Hello world"),)), 4096)
    assert asked.text == text
    assert asked.ids == oracle.encode(text, add_special_tokens=False)
    spelled = encode_prompt(tokenizer, template, Conversation((Message.plain("user", CONTENT),)), 4096)
    ends = [oracle.convert_tokens_to_ids(token) for token in ("<|im_start|>", "<|im_end|>")]
    if oracle.eos_token == "<|im_end|>":
        assert [spelled.ids.count(token) for token in ends] == [asked.ids.count(token) for token in ends]


def test_what_transformers_made_is_kept_and_opened_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, kept = tmp_path / "model", Conversions(tmp_path / "cache" / "tokenizers")
    _vocabulary_and_merges(model)
    first = ChatTokenizer.load(model, kept)
    monkeypatch.setitem(sys.modules, "transformers", None)
    again = ChatTokenizer.load(model, kept)
    assert again.encode("Hello world", True) == first.encode("Hello world", True)
    assert (again.special, again.eos_ids) == (first.special, first.eos_ids)
    [place] = (tmp_path / "cache" / "tokenizers").iterdir()
    (place / "tokenizer.json").write_text("{")
    with pytest.raises(ModelUnavailable):  # spoiled, and so made again; which needs transformers
        ChatTokenizer.load(model, kept)


def test_another_file_makes_another_tokenizer(tmp_path: Path) -> None:
    model, kept = tmp_path / "model", Conversions(tmp_path / "kept")
    _added_tokens(model)
    assert ChatTokenizer.load(model, kept).special["eos_token"] == "<|im_end|>"
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": "<|im_start|>"}))
    assert ChatTokenizer.load(model, kept).special["eos_token"] == "<|im_start|>"


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    _vocabulary_and_merges(tmp_path / "model")
    (tmp_path / "file").write_text("")
    tokenizer = ChatTokenizer.load(tmp_path / "model", Conversions(tmp_path / "file" / "tokenizers"))
    assert tokenizer.decode(tokenizer.encode("Hello", False)) == "Hello"


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_says_everything_needs_no_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    write_tokenizer(tmp_path, KINDS[kind](), CHATML, {"additional_special_tokens": [END], "pad_token": _entry(END)})
    names = {"bos_token": BOS, "eos_token": _entry(EOS)}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(names))
    tokenizer = ChatTokenizer.load(tmp_path)
    assert tokenizer.special == {"bos_token": BOS, "eos_token": EOS, "pad_token": END}
    assert encode_prompt(tokenizer, ChatTemplate(None, {}), RawPrompt("Hello"), 99).ids[0] == tokenizer.bos_id


@pytest.mark.parametrize(
    ("file", "config", "sentence"),
    [
        (None, {}, "has no tokenizer.json, and no older file"),
        ("tiktoken.model", {"auto_map": {"AutoTokenizer": ["code.Tokenizer", None]}}, "its own Python code"),
        ("tokenizer.model", {"tokenizer_class": "LlamaTokenizer"}, "transformers cannot read .* no tokenizer.json: "),
        ("tekken.json", {"tokenizer_class": "LlamaTokenizer"}, "transformers cannot read"),
    ],
)
def test_what_cannot_be_read_is_one_sentence_without_a_path(
    tmp_path: Path, file: str | None, config: dict[str, Any], sentence: str
) -> None:
    write_tokenizer(tmp_path, KINDS["unigram"](), CHATML, config)
    (tmp_path / "tokenizer.json").unlink()
    if file is not None:
        (tmp_path / file).write_bytes(b'{"config": {}, "vocab": [], "special_tokens": []}')
    with pytest.raises(ModelUnavailable, match=sentence) as error:
        ChatTokenizer.load(tmp_path)
    assert str(tmp_path) not in error.value.message and "\n" not in error.value.message
