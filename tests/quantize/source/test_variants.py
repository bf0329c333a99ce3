"""The same weights in other files beside the model: plain names are read, an index decides, a tie is a sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from quantize.build.build import build
from quantize.errors import SourceError
from quantize.folder.model_files import weight_files
from quantize.plan.plan import make_plan
from quantize.source.checkpoint import HubOptions
from quantize.source.sources import open_checkpoint
from tests.support.checkpoints import llama, write, write_tokenizer
from tests.support.packed import write_stored

INDEX = "model.safetensors.index.json"
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def built(source: Path, output: Path) -> bytes:
    checkpoint = open_checkpoint(str(source), HubOptions())
    return (build(checkpoint, make_plan(checkpoint, "source"), output) / "model.safetensors").read_bytes()


def single(folder: Path, *, seed: int = 0) -> Path:
    """One file, no index."""
    write(folder, *llama(), shards=1, seed=seed)
    (folder / "model-00001-of-00001.safetensors").rename(folder / "model.safetensors")
    (folder / INDEX).unlink()
    return folder


def in_fp16(folder: Path) -> Path:
    """Other numbers in another precision, as one file."""
    config, shapes = llama()
    draw = np.random.default_rng(1)
    stored = {name: ("F16", draw.normal(0, 0.02, shape).astype(np.float16)) for name, shape in shapes.items()}
    return write_stored(folder, config, [stored]) / "model-00001-of-00001.safetensors"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return single(tmp_path / "source")


@pytest.mark.parametrize(
    "name",
    [
        "model.fp16.safetensors",
        "model.bf16-00001-of-00001.safetensors",
        "model-00001-of-00001.fp32.safetensors",
        "consolidated.safetensors",
        "consolidated-00001-of-00001.safetensors",
        "pytorch_model.bin",
    ],
)
def test_a_duplicate_beside_the_model_is_not_read(name: str, source: Path, tmp_path: Path) -> None:
    expected = built(source, tmp_path / "alone")
    shutil.copy(in_fp16(tmp_path / "other"), source / name)
    assert built(source, tmp_path / "beside") == expected


def test_a_variant_alone_is_the_model(tmp_path: Path) -> None:
    file = in_fp16(tmp_path / "other")
    expected = built(tmp_path / "other", tmp_path / "plain")
    (tmp_path / "other" / INDEX).unlink()
    write_tokenizer(tmp_path / "other")
    file.rename(tmp_path / "other" / "model.fp16.safetensors")
    assert built(tmp_path / "other", tmp_path / "variant") == expected


def test_the_index_decides_between_a_whole_and_its_shards(source: Path, tmp_path: Path) -> None:
    sharded = write(tmp_path / "sharded", *llama(), shards=2, seed=1)
    expected = built(sharded, tmp_path / "shards")
    shutil.copy(source / "model.safetensors", sharded)
    shutil.copy(source / "model.safetensors", sharded / "model.fp16.safetensors")
    assert built(sharded, tmp_path / "beside") == expected


def test_two_forms_of_the_model_and_nothing_that_tells_are_one_sentence(source: Path, tmp_path: Path) -> None:
    sharded = write(tmp_path / "sharded", *llama(), shards=2)
    (sharded / INDEX).unlink()
    shutil.copy(source / "model.safetensors", sharded)
    with pytest.raises(SourceError, match=r"^The tensor .* is in .* and in .*, and no index tells which counts\.$"):
        open_checkpoint(str(sharded), HubOptions())
    (source / "model.safetensors").rename(source / "model.fp16.safetensors")
    shutil.copy(source / "model.fp16.safetensors", source / "model.fp32.safetensors")
    with pytest.raises(SourceError, match=r"is in model\.fp16\.safetensors and in model\.fp32\.safetensors, and no"):
        open_checkpoint(str(source), HubOptions())


def test_more_of_the_model_is_no_variant_of_it() -> None:
    for more in ("model.mtp.safetensors", "model-vision.safetensors", "model_extra.safetensors"):
        assert weight_files(["model.safetensors", more, "model.fp16.safetensors"], None) == sorted(
            ["model.safetensors", more]
        )


def test_an_index_left_over_from_shards_that_are_gone_does_not_count(source: Path, tmp_path: Path) -> None:
    expected = built(source, tmp_path / "alone")
    names = list(llama()[1])
    (source / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, SHARDS[0])}))
    shutil.copy(in_fp16(tmp_path / "other"), source / "model.fp16.safetensors")
    assert built(source, tmp_path / "beside") == expected
