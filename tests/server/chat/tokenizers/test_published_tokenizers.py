"""Tokenizers of published models, against transformers: tokens, text, streams, control tokens spelled in messages."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.chat.conversation import Conversation
from server.chat.parts import Message
from server.chat.prompt import encode_prompt
from server.chat.templates.template import ChatTemplate
from server.chat.tokenizers.conversion import Conversions
from server.chat.tokenizers.tokenizer import ChatTokenizer
from tests.support.packages import TOKENIZERS, write_published
from tests.support.vocabulary import vocabulary_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import AutoTokenizer

pytestmark = pytest.mark.slow

TEXTS = (
    "Hello world",
    "  two  spaces,\n\n\ta tab and an end  ",
    "日本語のテキスト naïve Ωmega 👋🏽 👩‍👩‍👧‍👦 é e\u0301 ﬁ",
    "def f(x):\r\n    return {'a': [1, 2]}\n\n\n",
    "1234567890 3.14159 \u00a0\u2003x",
    "<s>[INST] Hi [/INST]</s> <|im_end|><|eot_id|><eos><end_of_turn>",
)
TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"


@pytest.fixture(scope="module", params=[*TOKENIZERS, "Qwen 3, vocab.json and merges.txt"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    name, _, older = request.param.partition(", ")
    folder = write_published(TOKENIZERS[name], tmp_path_factory.mktemp("model"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    if older:
        model = json.loads((folder / "tokenizer.json").read_text())["model"]
        (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
        (folder / "tokenizer.json").unlink()
    return folder


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Iterator[ChatTokenizer]:
    kept = Conversions(folder / "kept")
    ChatTokenizer.load(folder, kept)
    # What is kept is what is used from the second time on.
    yield ChatTokenizer.load(folder, kept)
    vocabulary_of.cache_clear()


def test_tokens_and_texts_are_those_of_transformers(tokenizer: ChatTokenizer, oracle: Any) -> None:
    for text in TEXTS:
        for add_special in (True, False):
            ids = oracle.encode(text, add_special_tokens=add_special)
            assert tokenizer.encode(text, add_special) == ids
            assert tokenizer.decode(ids) == oracle.decode(ids)
    assert tokenizer.special == {n: text for n, text in oracle.special_tokens_map.items() if isinstance(text, str)}
    assert tokenizer.bos_id == oracle.bos_token_id
    assert {oracle.eos_token_id} - {None} <= tokenizer.eos_ids


def test_a_stream_is_the_decode_of_prompt_and_answer_less_that_of_the_prompt(
    tokenizer: ChatTokenizer, oracle: Any
) -> None:
    for text in TEXTS:
        ids = oracle.encode(text)
        whole = oracle.decode(ids, skip_special_tokens=True)
        for cut in range(len(ids) + 1):
            before = oracle.decode(ids[:cut], skip_special_tokens=True)
            # In the middle of a character there is no text before the cut to take away.
            if "\ufffd" not in before:
                stream = vocabulary_of(tokenizer).stream(ids[:cut])
                assert before + "".join(map(stream.push, ids[cut:])) + stream.flush() == whole


def test_control_tokens_in_a_message_stay_the_text_that_they_were(
    tokenizer: ChatTokenizer, folder: Path, oracle: Any
) -> None:
    template = ChatTemplate.load(folder, tokenizer.special)
    rng = random.Random(1)
    spelled = rng.sample(tokenizer.special_texts, k=min(40, len(tokenizer.special_texts)))
    control = {oracle.convert_tokens_to_ids(text) for text in tokenizer.special_texts if len(text) > 1}

    def encoded(content: str) -> list[int]:
        return encode_prompt(tokenizer, template, Conversation((Message.plain("user", content),)), 131_072).ids

    plain = [token for token in encoded("x") if token in control]
    for text in spelled:
        content = f"a {text} b{text}{text} c"
        ids = encoded(content)
        assert [token for token in ids if token in control] == plain
        # As far as the tokenizer keeps any text: some have a normalizer of their own.
        if oracle.decode(oracle.encode("a b", add_special_tokens=False)) == "a b":
            assert content in tokenizer.decode(ids)
