"""A Hub on loopback with google/gemma-4-26b-a4b-it in its real shapes; the bytes are made up as they are read.

    python -m bench.made_up_hub [--layers 30] [--experts 128] [--shard-bytes 5e9] [--digests FILE]

No disk holds the 51.6 GB: each weight is drawn from one block of normal numbers, by its place in the file. The sha256
of each shard, which the Hub tells of every large file, is computed once, at the speed of the hash, and kept in FILE.
Prints its address, and ends with its stdin.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from quantize.folder.safetensors_format import lay_out
from tests.support.checkpoints import GEMMA4_26B_A4B, Shapes, gemma4
from tests.support.loopback_hub import Content, Files, LoopbackHub, loopback_hub
from tests.support.tiny_model import CHAT_TEMPLATE, tiny_tokenizer

REPO = "made-up/gemma-4-26b-a4b-it"
# A prime number of weights, so that no two rows or tensors are alike.
_BLOCK = 33_554_467
_PIECE = 2**20
_VISION = 1152


class MadeUpShard:
    """`start` is the header; what follows is the block of weights, again and again, from `phase` on."""

    def __init__(self, start: bytes, size: int, phase: int) -> None:
        self._start = start
        self._size = size
        self._phase = phase
        self.sha256 = ""

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes | memoryview:
        """At most a piece at once."""
        begin, end, _ = part.indices(self._size)
        if begin < len(self._start):
            head = self._start[begin:end]
            return head if end <= len(self._start) else head + bytes(self[len(self._start) : end])
        weights = _weights()
        at = (begin - len(self._start) + self._phase) % (_BLOCK * 2)
        return weights[at : at + end - begin]

    def hashed(self) -> str:
        found = hashlib.sha256()
        for position in range(0, self._size, _PIECE):
            found.update(self[position : min(position + _PIECE, self._size)])
        return found.hexdigest()


@functools.cache
def _weights() -> memoryview:
    """The block as bfloat16, and so much of its start again that every piece of it lies in one run."""
    drawn = np.random.default_rng(0).standard_normal(_BLOCK, dtype=np.float32) * np.float32(0.02)
    block = (drawn.view(np.uint32) >> 16).astype("<u2").tobytes()
    return memoryview(block + block[: _PIECE + 2])


def shapes_of(layers: int, experts: int) -> tuple[dict[str, Any], Shapes]:
    """config.json and every tensor, the 27 layers of the vision tower with them: 51,611,872,412 bytes at full scale."""
    config, shapes = gemma4(replace(GEMMA4_26B_A4B, layers=layers, experts=experts, vision_layers=0))
    vision: Shapes = {
        "patch_embedder.input_proj.weight": (_VISION, 768),
        "patch_embedder.position_embedding_table": (2, 10240, _VISION),
        "std_bias": (_VISION,),
        "std_scale": (_VISION,),
    }
    for layer in range(27):
        prefix = f"encoder.layers.{layer}."
        vision |= {f"{prefix}self_attn.{name}_proj.linear.weight": (_VISION, _VISION) for name in "qkvo"}
        vision |= {f"{prefix}self_attn.{name}_norm.weight": (72,) for name in "qk"}
        vision |= {f"{prefix}mlp.{name}_proj.linear.weight": (4304, _VISION) for name in ("gate", "up")}
        vision[f"{prefix}mlp.down_proj.linear.weight"] = (_VISION, 4304)
        norms = ("input", "post_attention", "pre_feedforward", "post_feedforward")
        vision |= {f"{prefix}{name}_layernorm.weight": (_VISION,) for name in norms}
    return config, shapes | {f"model.vision_tower.{name}": shape for name, shape in vision.items()}


def repository(layers: int, experts: int, shard_bytes: int) -> dict[str, bytes | Content]:
    config, shapes = shapes_of(layers, experts)
    groups: list[list[str]] = [[]]
    filled = 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        if groups[-1] and filled + size > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    files: Files = {
        "config.json": json.dumps(config).encode(),
        "tokenizer.json": tiny_tokenizer().to_str().encode(),
        "tokenizer_config.json": b'{"tokenizer_class": "PreTrainedTokenizerFast"}',
        "chat_template.jinja": CHAT_TEMPLATE.encode(),
    }
    weight_map: dict[str, str] = {}
    for number, group in enumerate(groups, start=1):
        name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        start, header = lay_out([(tensor, "BF16", shapes[tensor]) for tensor in group])
        files[name] = MadeUpShard(start, header.size, phase=2 * number * 1_000_003)
        weight_map |= dict.fromkeys(group, name)
    files["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    return files


def add_digests(files: Files, kept: Path | None) -> None:
    """The digests that were computed for the same files before, or new ones."""
    shards = {name: file for name, file in files.items() if isinstance(file, MadeUpShard)}
    key = hashlib.sha256(json.dumps([[name, len(file)] for name, file in shards.items()]).encode()).hexdigest()
    known = json.loads(kept.read_text()) if kept is not None and kept.is_file() else {}
    if key not in known:
        with ThreadPoolExecutor() as pool:
            known[key] = dict(zip(shards, pool.map(MadeUpShard.hashed, shards.values()), strict=True))
        if kept is not None:
            kept.write_text(json.dumps(known))
    for name, shard in shards.items():
        shard.sha256 = known[key][name]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.made_up_hub")
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--shard-bytes", type=float, default=5e9)
    parser.add_argument("--digests", type=Path)
    args = parser.parse_args()
    files = repository(args.layers, args.experts, int(args.shard_bytes))
    add_digests(files, args.digests)
    # Before the first request, and in one thread.
    _weights()
    with loopback_hub(LoopbackHub(others={REPO: files})) as hub:
        print(hub.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
