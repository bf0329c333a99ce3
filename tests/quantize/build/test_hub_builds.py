"""`configi plan` and `configi build` from a repository: the real commands on a Hub on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.checkpoints import gemma4, write
from tests.support.commands import configi
from tests.support.loopback_hub import COMMIT, REPO, LoopbackHub, corrupt, hold, hub_environment, loopback_hub, status

SECOND = f"GET /{REPO}/resolve/{COMMIT}/model-00002-of-00003.safetensors"


@dataclass
class Bench:
    hub: LoopbackHub
    folder: Path

    @property
    def source(self) -> Path:
        return self.folder / "source"

    def command(self, *arguments: str | Path) -> list[str]:
        return [sys.executable, "-m", "server.cli", *map(str, arguments)]

    @property
    def environment(self) -> dict[str, str]:
        return hub_environment(self.hub, self.folder / "home")

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return configi(*map(str, arguments), check=False, **self.environment)

    def build(self, source: str | Path, output: str, *options: str) -> dict[str, bytes]:
        """The files that were made, but for the two that name the source."""
        done = self.run("build", source, self.folder / output, *options)
        assert done.returncode == 0, done.stderr
        return self.files(output)

    def files(self, output: str) -> dict[str, bytes]:
        folder = self.folder / output
        paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        return {name: path.read_bytes() for name, path in paths.items() if name not in ("configi.json", "README.md")}

    def manifest(self, output: str) -> Any:
        return json.loads((self.folder / output / "configi.json").read_text())


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    source = write(tmp_path / "source", *gemma4())
    files = {path.name: path.read_bytes() for path in source.iterdir()}
    with loopback_hub(LoopbackHub(dict(files))) as hub:
        yield Bench(hub, tmp_path)


def test_a_model_built_from_the_hub_is_that_built_from_a_folder_byte_for_byte(bench: Bench) -> None:
    expected = bench.build(bench.source, "folder")
    assert bench.build(f"{REPO}@main", "discarded", "--discard-source") == expected
    assert list((bench.folder / "home").rglob("model-*.safetensors")) == []
    assert bench.build(REPO, "kept") == expected
    assert bench.manifest("kept")["source"]["revision"] == COMMIT
    # The third holds the vision tower only.
    kept = {path.name for path in (bench.folder / "home").rglob("model-*.safetensors")}
    assert kept == {"model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors"}


def test_a_calibration_is_planned_with_the_source_in_the_cache_where_it_stays(bench: Bench) -> None:
    def disk(*options: str) -> int:
        done = bench.run("plan", REPO, "--json", *options)
        assert done.returncode == 0, done.stderr
        return int(json.loads(done.stdout)["build"]["peak_disk_bytes"])

    assert disk("--discard-source") < disk()
    assert disk("--discard-source", "--calibrate") == disk("--calibrate") == disk()


def test_the_chat_templates_beside_the_default_one_come_along(bench: Bench) -> None:
    templates = {
        f"additional_chat_templates/{name}.jinja": f"{name}: {{{{ x }}}}\n".encode() for name in ("rag", "tool_use")
    }
    others = {"additional_chat_templates/notes.txt": b"no", "additional_chat_templates/old/rag.jinja": b"no"}
    for name, content in (templates | others).items():
        path = bench.source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    bench.hub.files |= templates | others
    # Of an earlier build that was killed.
    left = bench.folder / ".folder.building" / "model" / "additional_chat_templates" / "stale.jinja"
    left.parent.mkdir(parents=True)
    left.write_text("no")
    made = bench.build(bench.source, "folder")
    assert {name: content for name, content in made.items() if "/" in name} == templates
    assert bench.build(REPO, "kept") == made
    assert templates.keys() <= bench.manifest("kept")["files"].keys()
    assert bench.run("verify", bench.folder / "kept").returncode == 0
    (bench.folder / "kept" / "additional_chat_templates" / "rag.jinja").write_text("rag: {{ y }}\n")
    damaged = bench.run("verify", bench.folder / "kept")
    assert damaged.returncode == 1
    assert (
        "additional_chat_templates/rag.jinja is damaged: its sha256 is not the one" in damaged.stdout + damaged.stderr
    )
    (bench.folder / "kept" / "additional_chat_templates" / "rag.jinja").unlink()
    assert "rag.jinja is missing" in (said := bench.run("verify", bench.folder / "kept")).stdout + said.stderr


def test_a_variant_of_the_weights_is_neither_read_nor_downloaded(bench: Bench) -> None:
    expected = bench.build(REPO, "alone")
    # Without an index nothing but the name tells.
    del bench.hub.files["model.safetensors.index.json"]
    bench.hub.files["model-00001-of-00003.fp16.safetensors"] = bench.hub.files["model-00001-of-00003.safetensors"]
    assert bench.build(REPO, "beside") == expected
    assert not any("fp16" in request for request in bench.hub.requests)


def test_what_was_kept_is_built_from_again_without_the_hub(bench: Bench) -> None:
    source = write(bench.folder / "other", *gemma4(), shards=2)
    bench.hub.files = {path.name: path.read_bytes() for path in source.iterdir()}
    made = bench.build(REPO, "kept")
    bench.hub.requests.clear()
    assert bench.build(REPO, "offline", "--offline") == made
    assert bench.hub.requests == []
    assert bench.manifest("kept")["plan"] == bench.manifest("offline")["plan"]


def test_a_build_killed_in_a_transfer_goes_on_from_there(bench: Bench) -> None:
    bench.hub.fault(SECOND, lambda handler: handler.honest(handler.path), times=1)
    bench.hub.fault(SECOND, hold(1000), times=1)
    command = bench.command("build", REPO, bench.folder / "model", "--discard-source", "--json-progress")
    with subprocess.Popen(command, env=os.environ | bench.environment, stdout=subprocess.PIPE, text=True) as build:
        assert build.stdout is not None
        line = next(line for line in map(json.loads, build.stdout) if "waiting for model-00002" in line["text"])
        assert line["done"] > 0
        build.kill()
    assert not (bench.folder / "model").exists()
    bench.hub.requests.clear()
    made = bench.build(REPO, "model", "--discard-source")
    first = SECOND.replace("00002", "00001", 1)
    assert bench.hub.requests.count(first) == 1, "of the shard that was used only the header is read again"
    assert made == bench.build(bench.source, "folder")


def test_a_shard_that_stays_corrupt_is_a_sentence_and_the_build_goes_on_later(bench: Bench) -> None:
    bench.hub.fault(SECOND, lambda handler: handler.honest(handler.path), times=1)
    bench.hub.fault(SECOND, corrupt, times=2)
    failed = bench.run("build", REPO, bench.folder / "model", "--discard-source")
    assert failed.returncode == 1
    last = failed.stderr.splitlines()[-1]
    assert last == "configi: model-00002-of-00003.safetensors arrives corrupt (its sha256 is not the Hub's)."
    assert "Traceback" not in failed.stderr
    assert bench.build(REPO, "model", "--discard-source") == bench.build(bench.source, "folder")


def test_a_plan_reads_headers_only_and_says_what_the_source_takes_of_the_disk(tmp_path: Path) -> None:
    source = write(tmp_path / "source", *gemma4(), shards=3)
    files = {path.name: path.read_bytes() for path in source.iterdir()}
    shards = sum(len(data) for name, data in files.items() if name.startswith("model-"))
    with loopback_hub(LoopbackHub(dict(files))) as hub:
        done = Bench(hub, tmp_path).run("plan", REPO, "--json")
    plan = json.loads(done.stdout)
    assert plan["revision"] == COMMIT
    assert plan["parameters"] > 0
    assert hub.served < shards
    assert not any("tokenizer" in line for line in hub.requests)


def test_a_source_that_cannot_be_had_is_one_sentence_for_plan_and_build(bench: Bench) -> None:
    bench.hub.fault("/api/", status(403, X_Error_Code="GatedRepo"))
    sentence = (
        f"configi: {REPO} is gated: accept its licence at huggingface.co/{REPO}, "
        "then set HF_TOKEN to a token of that account."
    )
    for arguments in (["plan", REPO], ["build", REPO, str(bench.folder / "model")]):
        done = bench.run(*arguments)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1] == sentence
    assert not (bench.folder / "model").exists()
