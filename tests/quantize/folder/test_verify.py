"""`configi verify`: a whole folder is whole; whatever was done to one is said in a sentence."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from quantize.build.build import build
from quantize.folder.verify import check, examine, is_unchanged, verify, verify_and_stamp
from quantize.plan.plan import make_plan
from quantize.source.checkpoint import HubOptions
from quantize.source.sources import open_checkpoint
from tests.support.checkpoints import gemma4, write
from tests.support.commands import configi
from tests.support.tiny_model import write_tiny_model

DOWN = "language_model.model.layers.2.experts.switch_glu.down_proj"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    checkpoint = open_checkpoint(str(write(folder / "source", *gemma4())), HubOptions())
    return build(checkpoint, make_plan(checkpoint, "config-i", shard_bytes=700_000), folder / "model")


@pytest.fixture
def model(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "model"))


def edit(file: Path, change: Callable[[Any], None]) -> None:
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def both(config: dict[str, Any], change: Callable[[dict[str, Any]], Any]) -> None:
    change(config["quantization"])
    change(config["quantization_config"])


def without_manifest(model: Path) -> Path:
    (model / "configi.json").unlink()
    return model


def shard_of(model: Path, tensor: str) -> Path:
    return model / json.loads((model / "model.safetensors.index.json").read_text())["weight_map"][tensor]


def rewritten(model: Path, change: Callable[[dict[str, mx.array]], None], tensor: str = f"{DOWN}.weight") -> None:
    shard = shard_of(model, tensor)
    tensors: Any = mx.load(str(shard))
    change(tensors)
    mx.eval(tensors)
    mx.save_safetensors(str(shard), tensors, {"format": "mlx"})


def test_what_was_built_is_whole_with_and_without_its_manifest(model: Path) -> None:
    assert verify(model) == check(model) == []
    assert verify(without_manifest(model)) == check(model) == []


def test_the_command_says_so_in_words_and_in_json(model: Path) -> None:
    assert configi("verify", str(model)).stdout == f"{model} is intact.\n"
    (model / "tokenizer.json").unlink()
    done = configi("verify", str(model), "--json", check=False)
    assert done.returncode == 1
    assert json.loads(done.stdout) == {"folder": str(model), "ok": False, "problems": ["tokenizer.json is missing."],
                                       "warnings": []}  # fmt: skip


def test_one_flipped_bit_is_found_by_hashes_and_by_nothing_else(model: Path) -> None:
    shard = shard_of(model, f"{DOWN}.weight")
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    shard.write_bytes(raw)
    assert check(model) == []
    assert verify(model) == [f"{shard.name} is damaged: its sha256 is not the one in configi.json."]


def test_a_shard_of_another_model_beside_the_right_ones_is_found(model: Path) -> None:
    shutil.copy(model / "model-00001-of-00003.safetensors", model / "model-00001-of-00002.safetensors")
    sentence = "model-00001-of-00002.safetensors does not belong to the model"
    assert [problem.partition(";")[0] for problem in check(model)] == [sentence]


def test_a_stray_shard_counts_in_others_models_only_if_it_says_something_else(model: Path) -> None:
    """mlx-lm reads them all, in any order: what is the same twice does no harm."""
    stray = model / "model-00001-of-00002.safetensors"
    shutil.copy(model / "model-00001-of-00003.safetensors", stray)
    assert warnings(without_manifest(model))[0] == "A tensor is in two files."
    raw = bytearray(stray.read_bytes())
    raw[-1] ^= 1
    stray.write_bytes(raw)
    (problem,) = check(model)
    assert problem.endswith(
        "is one thing in model-00001-of-00003.safetensors and another in model-00001-of-00002.safetensors: "
        "mlx-lm takes either."
    )


def test_a_shard_that_is_missing_or_cut_is_found(model: Path) -> None:
    shard = model / "model-00002-of-00003.safetensors"
    size = shard.stat().st_size
    os.truncate(shard, size - 1)
    assert check(model)[0] == f"{shard.name} has {size - 1} bytes; configi.json says {size}."
    shard.unlink()
    assert f"{shard.name} is missing." in check(model)
    assert check(without_manifest(model)) == [f"{shard.name} is missing."]


def warnings(model: Path) -> list[str]:
    """Of a model of others, which has no problems."""
    found = examine(model, thorough=False)
    assert found.problems == []
    return found.warnings


def nothing(tensors: dict[str, mx.array]) -> None:
    pass


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: both(c, lambda q: q[DOWN].update(bits=4)), f"{DOWN}.weight has the shape"),
        (
            lambda c: both(c, lambda q: q[DOWN].update(bits=3.0)),
            f"{DOWN} is neither a setting nor a module",
        ),
        (lambda c: both(c, lambda q: q.update(made_by="me")), "quantization.made_by is neither a setting nor a module"),
        (lambda c: both(c, lambda q: q.pop(DOWN)), f"has no entry for {DOWN}"),
        (lambda c: both(c, lambda q: q.update({DOWN: False})), f"{DOWN} is quantized, but config.json says it is not"),
        (lambda c: both(c, lambda q: q.update({"a.b": q[DOWN]})), "names a.b, which the model does not have"),
        (lambda c: both(c, lambda q: q.pop("bits")), "lacks an integer group_size or bits"),
        (lambda c: c["quantization_config"].pop(DOWN), "quantization_config differs from quantization"),
        (lambda c: c.pop("quantization"), "has quantization_config and no quantization"),
    ],
)
def test_a_config_that_some_reader_would_misread_is_found(
    model: Path, change: Callable[[Any], None], sentence: str
) -> None:
    edit(model / "config.json", change)
    assert any(sentence in problem for problem in check(model)), check(model)


def test_experts_that_a_converter_left_out_are_found(model: Path) -> None:
    def unquantize(tensors: dict[str, mx.array]) -> None:
        packed, scales, biases = (tensors.pop(f"{DOWN}.{suffix}") for suffix in ("weight", "scales", "biases"))
        tensors[f"{DOWN}.weight"] = mx.dequantize(packed, scales, biases, group_size=64, bits=3)

    rewritten(without_manifest(model), unquantize)
    (model / "model.safetensors.index.json").unlink()
    assert f"config.json says that {DOWN} is 3-bit gs64, but it is not quantized." in warnings(model)
    edit(model / "config.json", lambda config: both(config, lambda table: table.pop(DOWN)))
    assert warnings(model) == [f"The experts in {DOWN}.weight are not quantized."]


def test_scales_that_are_not_finite_are_found(model: Path) -> None:
    def poison(tensors: dict[str, mx.array]) -> None:
        tensors[f"{DOWN}.scales"][3, 5, 0] = float("inf")

    rewritten(model, poison)
    assert f"{DOWN}.scales holds values that are not finite." in verify(without_manifest(model))


def test_norms_that_are_not_finite_are_found(model: Path) -> None:
    name = "language_model.model.norm.weight"

    def poison(tensors: dict[str, mx.array]) -> None:
        tensors[name][7] = float("nan")

    rewritten(without_manifest(model), poison, name)
    assert verify(model) == [f"{name} holds values that are not finite."]


def test_an_index_that_differs_from_the_files_is_found(model: Path) -> None:
    edit(model / "model.safetensors.index.json", lambda index: index["weight_map"].pop(f"{DOWN}.biases"))
    sentence = f"the files differ about {DOWN}.biases"
    assert any(sentence in problem for problem in check(model))
    assert any(sentence in warning for warning in warnings(without_manifest(model)))


@pytest.mark.parametrize("content", ["", "[]", "{", '{"format": 1}'])
def test_a_damaged_manifest_or_config_is_a_sentence(model: Path, content: str) -> None:
    (model / "configi.json").write_text(content)
    assert len(check(model)) == 1
    assert check(model)[0].startswith("configi.json cannot be read")
    (model / "config.json").write_text(content[:1])
    assert check(without_manifest(model)) in (["config.json is not valid JSON."], ["config.json is no JSON object."])


def test_a_manifest_cannot_point_out_of_its_folder(model: Path) -> None:
    (model.parent / "secret").write_text("x")
    edit(model / "configi.json", lambda m: m["files"].update({"../secret": {"sha256": "", "size": 1}}))
    assert check(model) == ["'../secret' cannot be the name of a file; refused."]


def test_a_stamp_holds_until_a_file_changes(model: Path, tmp_path: Path) -> None:
    stamp = tmp_path / "cache" / "stamp"
    assert not is_unchanged(model, stamp)
    assert verify_and_stamp(model, stamp) == []
    assert is_unchanged(model, stamp)
    shard = model / "model-00001-of-00003.safetensors"
    raw = shard.read_bytes()
    shard.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    assert not is_unchanged(model, stamp)
    assert verify_and_stamp(model, stamp) == [f"{shard.name} is damaged: its sha256 is not the one in configi.json."]
    assert not is_unchanged(model, stamp)


def test_other_makers_models_are_checked_for_what_they_say_of_themselves(tmp_path: Path) -> None:
    """Unquantized; quantized all alike, with one width for all; in a mode that is mlx-lm's business."""
    model = write_tiny_model(tmp_path / "model")
    assert verify(model) == []
    tensors: Any = mx.load(str(model / "model.safetensors"))
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        tensors |= dict(
            zip(
                (name, name.replace("weight", "scales"), name.replace("weight", "biases")),
                mx.quantize(tensors[name], group_size=64, bits=4),
                strict=True,
            )
        )
    mx.save_safetensors(str(model / "model.safetensors"), tensors)
    assert warnings(model) == ["The tensors are quantized, but config.json has no quantization table."]
    edit(model / "config.json", lambda config: config.update(quantization={"group_size": 64, "bits": 4}))
    assert verify(model) == []
    edit(model / "config.json", lambda config: config["quantization"].update(bits=8))
    assert len(warnings(model)) == 14
    edit(model / "config.json", lambda config: config["quantization"].update(mode="mxfp4"))
    assert verify(model) == []


def test_no_folder_and_an_empty_folder_are_a_sentence(tmp_path: Path) -> None:
    assert verify(tmp_path / "nothing") == [f"{tmp_path / 'nothing'} is not a folder."]
    assert verify(tmp_path) == ["The folder has no config.json."]
    (tmp_path / "config.json").write_text("{}")
    assert verify(tmp_path) == ["The source lacks weights (model.safetensors)."]
