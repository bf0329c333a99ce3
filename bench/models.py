"""The models that all servers serve, made once and kept in a cache folder.

`smollm2`: SmolLM2-135M-Instruct in float32, from the embedded GGUF. Float32 because greedy answers of two servers can
then be compared word for word, and because bf16 has no fast matrix product on MLX's CPU backend.

`sliding`: a tiny gemma3_text with random weights, four of six layers on a sliding window, and a chat template that,
like Gemma 4's, opens a reply with an empty thought and drops it from history.

`one_in_six`: random weights in the proportions of a large Gemma, where one layer in six looks at everything and what a
token costs hardly depends on the length of the text; with the tokenizer of `smollm2`.

`windows`: random weights in the shape of Gemma 3 270M, most of it a vocabulary of 262,144, five of six layers on a
window of 512; with the tokenizer of `smollm2` and the template of `sliding`. Only whole words are ever likeliest: each
token is text that a client sees, and no answer ends by itself.

`gemma`: Gemma 3 270M, if the packages that carry it are installed (`gemma.py`).

`endless`: `smollm2` that never ends an answer, for streams that must outlast what they are measured against. The
weights forbid it, since no field of a request does that on every server.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import platformdirs

from bench.gemma import NAME, write_gemma
from quantize.worker import JsonLines
from server.models.embedded import EMBEDDED, prepare
from tests.support.tiny_model import BOS, END, VOCAB_SIZE, tiny_tokenizer

_EMBEDDED = "smollm2-135m-instruct"
WINDOW = 256
_THINK, _END_THINK = "<think>", "</think>"
# As byte-level BPE writes a word behind a space.
_WORD = re.compile("Ġ[A-Za-z]+")
_TEMPLATE = """\
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' }}
{%- endif %}
"""


def cache_folder() -> Path:
    """`CONFIGI_BENCH_CACHE`, else the user's cache folder."""
    return Path(os.environ.get("CONFIGI_BENCH_CACHE") or platformdirs.user_cache_dir("configi-bench"))


def embedded(cache: Path) -> Path:
    """SmolLM2-135M-Instruct in bfloat16, as the demo serves it."""
    return prepare(_EMBEDDED, EMBEDDED[_EMBEDDED], cache, JsonLines(sys.stderr))


def smollm2(cache: Path) -> Path:
    return _made_once(cache / f"{_EMBEDDED}-float32", lambda folder: _as_float32(embedded(cache), folder))


def sliding(cache: Path) -> Path:
    return _made_once(cache / "sliding-window", _write_sliding)


def one_in_six(cache: Path) -> Path:
    return _made_once(cache / "one-in-six", lambda folder: _write_one_in_six(embedded(cache), folder))


def windows(cache: Path) -> Path:
    return _made_once(cache / "windows-of-words", lambda folder: write_windows(embedded(cache), folder))


def gemma(cache: Path) -> Path:
    """Raises QuantizeError: the packages are not installed."""
    return _made_once(cache / NAME, write_gemma)


def endless(cache: Path) -> Path:
    return _made_once(cache / f"{_EMBEDDED}-endless", lambda folder: write_endless(smollm2(cache), folder))


MODELS: dict[str, Callable[[Path], Path]] = {
    "smollm2": smollm2,
    "sliding": sliding,
    "one_in_six": one_in_six,
    "windows": windows,
    "gemma": gemma,
    "endless": endless,
}


def with_room(model: Path, folder: Path, tokens: int) -> Path:
    """`model` in `folder`, which is made, with a context of `tokens` at least, whatever it says there."""
    folder.mkdir()
    # configi.json would tell that these are not the files that were built.
    for file in (file for file in model.iterdir() if file.name != "configi.json"):
        (folder / file.name).symlink_to(file)
    for name, key in (("config.json", "max_position_embeddings"), ("tokenizer_config.json", "model_max_length")):
        config = json.loads((model / name).read_text())
        (folder / name).unlink()
        _write_json(folder / name, config | {key: max(tokens, config.get(key) or 0)})
    return folder


def _made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder`, which appears by one rename."""
    if not folder.is_dir():
        staging = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        make(staging)
        staging.rename(folder)
    return folder


def _as_float32(source: Path, folder: Path) -> None:
    # Only who makes a model needs MLX; it takes a second to import.
    import mlx.core as mx

    # Without the sums of files that are not these.
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("configi.json"), dirs_exist_ok=True)
    weights: dict[str, mx.array] = mx.load(str(source / "model.safetensors"))  # type: ignore[assignment]
    converted = {name: tensor.astype(mx.float32) for name, tensor in weights.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), converted, {"format": "mlx"})
    config = json.loads((source / "config.json").read_text())
    _write_json(folder / "config.json", config | {"torch_dtype": "float32"})


def _write_sliding(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    # In the vocabulary: that is how mlx-lm sees that the model thinks.
    tokenizer.add_tokens([_THINK, _END_THINK])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(_TEMPLATE)
    end = tokenizer.token_to_id(END)
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": END}
    _write_json(folder / "tokenizer_config.json", names | {"clean_up_tokenization_spaces": False})
    _write_json(folder / "generation_config.json", {"eos_token_id": [end]})
    config = {
        "model_type": "gemma3_text",
        "hidden_size": 64,
        "num_hidden_layers": 6,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "vocab_size": VOCAB_SIZE + 2,
        "sliding_window": WINDOW,
        "sliding_window_pattern": 3,
        "max_position_embeddings": 8192,
    }
    _write_gemma3(folder, config, end)


def _write_one_in_six(tokenizer: Path, folder: Path) -> None:
    source = _copy_tokenizer(tokenizer, folder)
    config = {
        "model_type": "gemma3_text",
        "hidden_size": 768,
        "num_hidden_layers": 6,
        "intermediate_size": 3072,
        "num_attention_heads": 6,
        "num_key_value_heads": 1,
        "head_dim": 128,
        "query_pre_attn_scalar": 128,
        "vocab_size": source["vocab_size"],
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "max_position_embeddings": 32_768,
    }
    _write_gemma3(folder, config, source["eos_token_id"])


def write_windows(tokenizer: Path, folder: Path, **shape: Any) -> None:
    """`tokenizer`: the model whose tokenizer it gets. `shape`: another one, for tests."""
    source = _copy_tokenizer(tokenizer, folder)
    (folder / "chat_template.jinja").write_text(_TEMPLATE)
    config = {
        "model_type": "gemma3_text",
        "hidden_size": 640,
        "num_hidden_layers": 18,
        "intermediate_size": 2048,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "vocab_size": 262_144,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "max_position_embeddings": 32_768,
    } | shape
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    words = [token for text, token in vocabulary.items() if _WORD.fullmatch(text)]
    _write_gemma3(folder, config, source["eos_token_id"], speaks=words)


def write_endless(model: Path, folder: Path) -> None:
    """`model`, whose embeddings are tied, with a head of its own in which special tokens have logits of zero."""
    import mlx.core as mx

    config = _copy_tokenizer(model, folder)
    _write_json(folder / "config.json", config | {"tie_word_embeddings": False})
    weights = mx.load(str(model / "model.safetensors"))
    assert isinstance(weights, dict)
    special = [token["id"] for token in json.loads((model / "tokenizer.json").read_text())["added_tokens"]]
    head = mx.array(weights["model.embed_tokens.weight"])
    head[mx.array(special)] = 0
    mx.save_safetensors(str(folder / "model.safetensors"), weights | {"lm_head.weight": head}, {"format": "mlx"})


def _copy_tokenizer(model: Path, folder: Path) -> dict[str, Any]:
    """With its template; returns the config of `model`."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copy(model / name, folder / name)
    config: dict[str, Any] = json.loads((model / "config.json").read_text())
    return config


def _write_gemma3(folder: Path, config: dict[str, object], ends: object, speaks: list[int] | None = None) -> None:
    """With random weights. `speaks`: all other tokens have logits of zero, and the greatest logit is above that."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.models.gemma3_text import Model, ModelArgs

    _write_json(folder / "config.json", config | {"eos_token_id": ends, "torch_dtype": "float32"})
    mx.random.seed(0)
    weights = tree_flatten(Model(ModelArgs.from_dict(config)).parameters())
    # The default initialisation is so small that every token is as likely as the next.
    loud = {name: 8.0 * tensor if tensor.ndim == 2 else tensor for name, tensor in weights}
    if speaks is not None:
        head = loud["lm_head.weight"]
        spoken = mx.zeros((head.shape[0], 1))
        spoken[mx.array(speaks)] = 1
        loud["lm_head.weight"] = head * spoken
    mx.save_safetensors(str(folder / "model.safetensors"), loud, {"format": "mlx"})


def _write_json(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
