"""A tiny Gemma 4 mixture of experts with real damage: trained until rounding its weights visibly costs something.

Random weights cannot tell a good quantizer from a bad one. This model has 6 layers (of which 2 + 2 are a boundary), 8
experts of which 2 are chosen, sliding and full attention, and was trained on the standard library's own text,
docstrings (prose) and sources (code). It ships as a file of bfloat16 in the Hub's names: a source to build from.

`python -m tests.support.trained` trains it again (half an hour on two busy cores) and writes the file; tests call
`write_trained_model` and `stdlib_text`. The file that ships has 2.9 nats a token on text that it has not seen.
"""

from __future__ import annotations

import ast
import json
import lzma
import sysconfig
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx import optimizers
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models import gemma4
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.support.checkpoints import Gemma4Sizes
from tests.support.checkpoints import gemma4 as gemma4_layout
from tests.support.tiny_model import BOS, CHAT_TEMPLATE, END, START

DATA = Path(__file__).parent / "data"
WEIGHTS, TOKENIZER = DATA / "trained.safetensors.xz", DATA / "trained.tokenizer.json"
VOCABULARY, WINDOW = 512, 64
SIZES = Gemma4Sizes(
    hidden=128, layers=6, heads=4, kv_heads=1, head_dim=32, full_kv_heads=1, full_head_dim=32, experts=8, top_k=2,
    expert_width=64, mlp_width=64, vocabulary=VOCABULARY, full_every=3, vision_layers=0,
)  # fmt: skip
# Not in the training text: tests judge on these.
HELD_OUT = ("argparse", "dataclasses", "fractions", "statistics", "textwrap", "zipfile")
TRAINING = (
    "abc", "asyncio.base_events", "bdb", "calendar", "cmd", "codecs", "collections", "configparser", "contextlib",
    "copy", "csv", "datetime", "decimal", "difflib", "doctest", "email.message", "enum", "filecmp", "fileinput",
    "fnmatch",
    "ftplib", "functools", "getpass", "gettext", "glob", "gzip", "heapq", "html.parser", "http.client", "http.server",
    "imaplib", "inspect", "ipaddress", "json.decoder", "json.encoder", "linecache", "locale", "logging", "mailbox",
    "mimetypes", "netrc", "nntplib", "numbers", "optparse", "os", "pathlib", "pdb", "pickle", "pickletools", "platform",
    "plistlib", "poplib", "posixpath", "pprint", "profile", "pydoc", "queue", "quopri", "random", "reprlib", "sched",
    "selectors", "shelve", "shlex", "shutil", "smtplib", "socket", "socketserver", "ssl", "string", "subprocess",
    "tarfile", "tempfile", "threading", "timeit", "tokenize", "trace", "traceback", "turtle", "types", "typing",
    "unittest.case", "unittest.mock", "urllib.parse", "urllib.request", "uuid", "warnings", "weakref",
)  # fmt: skip
STEPS, BATCH, LENGTH, RATE = 900, 8, 128, 3e-3


def write_trained_model(folder: Path) -> Path:
    """The model as a source checkpoint in `folder`: mlx-lm loads it, and `configi build` builds from it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(lzma.decompress(WEIGHTS.read_bytes()))
    (folder / "tokenizer.json").write_bytes(TOKENIZER.read_bytes())
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps(config(), indent=2))
    return folder


def config() -> dict[str, Any]:
    made, _ = gemma4_layout(SIZES)
    made["text_config"] |= {"sliding_window": WINDOW, "sliding_window_pattern": SIZES.full_every}
    return {key: value for key, value in made.items() if not key.startswith(("vision", "image"))}


def stdlib_text(names: tuple[str, ...], kind: str) -> str:
    """`kind` is prose (docstrings, which are about code) or code (sources). Modules this Python lacks are left out."""
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for name in names:
        path = root / Path(*name.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if file.is_file():
            source = file.read_text(encoding="utf-8")
            found.append(source if kind == "code" else _docstrings(source))
    return "\n\n".join(found)


def _docstrings(source: str) -> str:
    nodes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = (ast.get_docstring(node) for node in ast.walk(ast.parse(source)) if isinstance(node, nodes))
    return "\n".join(text for text in found if text)


# ---- training


def main() -> None:
    began = time.monotonic()
    texts = [stdlib_text(TRAINING, kind) for kind in ("prose", "code")]
    tokenizer = _tokenizer(texts)
    tokens = [np.array(tokenizer.encode(text).ids, np.int32) for text in texts]
    held_out = [np.array(tokenizer.encode(stdlib_text(HELD_OUT, kind)).ids, np.int32) for kind in ("prose", "code")]
    print(f"{[len(kind) for kind in tokens]} tokens of prose and code", flush=True)
    mx.random.seed(0)
    model = gemma4.Model(gemma4.ModelArgs.from_dict(config()))
    mx.eval(model.parameters())
    print(f"{sum(value.size for _, value in tree_flatten(model.parameters())):,} parameters", flush=True)
    _train(model, tokens, np.random.default_rng(0), began)
    for kind, ids in zip(("prose", "code"), held_out, strict=True):
        rows = mx.array(ids[: 32 * (LENGTH + 1)].reshape(32, LENGTH + 1))
        print(f"held out {kind}: {_loss(model, rows).item():.3f} nats a token", flush=True)
    DATA.mkdir(exist_ok=True)
    tokenizer.save(str(TOKENIZER))
    file = DATA / "trained.safetensors"
    mx.save_safetensors(str(file), _as_source(model), metadata={"format": "pt"})
    WEIGHTS.write_bytes(lzma.compress(file.read_bytes(), preset=9))
    file.unlink()
    print(f"{WEIGHTS.stat().st_size:,} bytes, {time.monotonic() - began:.0f} s", flush=True)


def _train(model: nn.Module, tokens: list[np.ndarray], draw: np.random.Generator, began: float) -> None:
    decay = optimizers.cosine_decay(RATE, STEPS - 50, RATE / 30)
    rate = optimizers.join_schedules([optimizers.linear_schedule(0, RATE, 50), decay], [50])
    optimizer = optimizers.AdamW(rate, betas=(0.9, 0.98), weight_decay=0.05)
    gemma4.gemma4_text.Experts.__call__ = _every_expert

    def step(rows: mx.array) -> mx.array:
        loss, gradients = nn.value_and_grad(model, lambda rows: _loss(model, rows))(rows)
        gradients, _ = optimizers.clip_grad_norm(gradients, 1.0)
        optimizer.update(model, gradients)
        return loss  # type: ignore[no-any-return]

    for number in range(STEPS):
        kinds = [tokens[row % 2] for row in range(BATCH)]
        starts = [draw.integers(len(ids) - LENGTH - 1) for ids in kinds]
        rows = np.stack([ids[at : at + LENGTH + 1] for ids, at in zip(kinds, starts, strict=True)])
        loss = step(mx.array(rows))
        mx.eval(model.parameters(), optimizer.state)
        if number % 20 == 0 or number == STEPS - 1:
            print(f"step {number}: {loss.item():.3f} nats a token, {time.monotonic() - began:.0f} s", flush=True)


def _loss(model: nn.Module, rows: mx.array) -> mx.array:
    loss: mx.array = nn.losses.cross_entropy(model(rows[:, :-1]), rows[:, 1:], reduction="mean")
    return loss


def _every_expert(self: Any, x: mx.array, indices: mx.array, weights: mx.array) -> mx.array:
    """What `Experts` computes, as three batched products: on a CPU that is far faster than a gather a token."""
    glu = self.switch_glu
    tokens = x.reshape(1, -1, x.shape[-1])
    gate, up = (tokens @ layer.weight.swapaxes(-1, -2) for layer in (glu.gate_proj, glu.up_proj))
    each = (nn.gelu_approx(gate) * up) @ glu.down_proj.weight.swapaxes(-1, -2)
    chosen = (indices[..., None] == mx.arange(SIZES.experts)).astype(x.dtype)
    share = (chosen * weights[..., None]).sum(-2).reshape(-1, SIZES.experts)
    return mx.einsum("etd,te->td", each, share).reshape(x.shape)


def _as_source(model: nn.Module) -> dict[str, mx.array]:
    """The Hub's names: gate and up of all experts in one tensor, `model.language_model.` in front."""
    weights = dict(tree_flatten(tree_map(lambda value: value.astype(mx.bfloat16), model.parameters())))
    made = {}
    for name, value in weights.items():
        name = name.replace("language_model.model.", "model.language_model.")
        if name.endswith("switch_glu.gate_proj.weight"):
            up = weights[f"language_model.model.{name.split('language_model.')[1]}".replace("gate_proj", "up_proj")]
            made[name.replace("switch_glu.gate_proj.weight", "gate_up_proj")] = mx.concatenate([value, up], axis=-2)
        elif name.endswith("switch_glu.down_proj.weight"):
            made[name.replace("switch_glu.down_proj.weight", "down_proj")] = value
        elif not name.endswith("switch_glu.up_proj.weight"):
            made[name] = value
    return made


def _tokenizer(texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(text, special=True, normalized=False) for text in (BOS, START, END)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


if __name__ == "__main__":
    main()
