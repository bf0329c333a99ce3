"""Whatever happens to a build, the next one goes on, and its files are those of a build that nothing happened to."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from quantize.build.build import build
from quantize.build.output_folder import OutputFolder
from quantize.errors import OutputError, SourceError
from quantize.folder.verify import verify
from quantize.plan.plan import make_plan
from quantize.source.checkpoint import HubOptions
from quantize.source.sources import open_checkpoint
from tests.support.checkpoints import GEMMA4_26B_A4B, gemma4, llama, write
from tests.support.gguf import TOKENS, reference, write_gguf
from tests.support.running import ROOT
from tests.support.tiny_model import VOCAB_SIZE


def hashes(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def start(source: Path, output: Path, call: int, how: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.support.killed_build", str(source), str(output), "config-i", str(call), how]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def build_whole(source: Path, output: Path, progress: Callable[..., None] = lambda *_: None) -> Path:
    checkpoint = open_checkpoint(str(source), HubOptions())
    return build(checkpoint, make_plan(checkpoint, "config-i"), output, memory_limit=260_000_000, progress=progress)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("source"), *gemma4())


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], int]:
    """The hashes of a build that nothing happened to, and how often it reports its progress."""
    calls = itertools.count()
    output = build_whole(source, tmp_path_factory.mktemp("whole") / "out", lambda *_: next(calls))
    return hashes(output), next(calls)


def test_killed_at_ten_random_moments_the_files_are_those_of_an_uninterrupted_build(
    source: Path, whole: tuple[dict[str, str], int], tmp_path: Path
) -> None:
    """Two outputs beside each other, each killed at five moments or more."""
    with ThreadPoolExecutor(2) as both:
        for output in both.map(lambda name: killed(5, source, whole, tmp_path / name), ("left", "right")):
            build_whole(source, output)
            assert hashes(output) == whole[0]
            assert verify(output) == []
            assert not OutputFolder(output).work.exists()


def killed(times: int, source: Path, whole: tuple[dict[str, str], int], output: Path) -> Path:
    expected, calls = whole
    draw = random.Random()
    before = set[int]()
    while times:
        process = start(source, output, draw.randint(1, calls // 5), "kill")
        _, said = process.communicate(timeout=120)
        if process.returncode == 0:
            # It was done before its moment came: the next round begins anew.
            assert hashes(output) == expected
            shutil.rmtree(output)
            before.clear()
            continue
        assert process.returncode == -signal.SIGKILL, said
        assert not output.exists()
        times -= 1
        assert finished(output) >= before, "a tensor that was finished is to be made again"
        before = finished(output)
    return output


def finished(output: Path) -> set[int]:
    journal = OutputFolder(output).journal
    lines = journal.read_text().splitlines() if journal.exists() else []
    return {int(line.split()[1]) for line in lines if line.startswith("done ")}


def test_a_build_goes_on_where_it_was(source: Path, whole: tuple[dict[str, str], int], tmp_path: Path) -> None:
    start(source, tmp_path / "out", whole[1] // 2, "kill").communicate(timeout=120)
    reports: list[tuple[str, int]] = []
    build_whole(source, tmp_path / "out", lambda phase, done, total, text: reports.append((phase, done)))
    assert reports[0][0] == "building"
    assert reports[0][1] > 0


def test_what_a_kill_at_the_very_end_leaves_is_no_part_of_the_model(
    source: Path, whole: tuple[dict[str, str], int], tmp_path: Path
) -> None:
    start(source, tmp_path / "out", whole[1] - 1, "kill").communicate(timeout=120)
    for name in ("configi.json", "another.txt"):
        (OutputFolder(tmp_path / "out").model / name).write_text("{}")
    build_whole(source, tmp_path / "out")
    assert hashes(tmp_path / "out") == whole[0]


def test_a_snapshot_in_the_hubs_cache_is_known_by_its_commit(source: Path, tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = shutil.copytree(source, tmp_path / "models--owner--name" / "snapshots" / commit)
    build_whole(snapshot, tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "configi.json").read_text())
    assert manifest["source"] == {
        "label": "owner/name", "repository": "owner/name", "revision": commit, "identity": f"owner/name@{commit}"
    }  # fmt: skip
    assert "base_model: owner/name" in (tmp_path / "out" / "README.md").read_text()


def test_two_at_once_make_one_model(source: Path, whole: tuple[dict[str, str], int], tmp_path: Path) -> None:
    """In two processes: ours has begun when the other starts, and ends when the other is seen to wait."""
    command = [sys.executable, "-m", "quantize", "build", str(source), str(tmp_path / "out"), "--json-progress"]
    waits = threading.Event()
    others: list[subprocess.Popen[str]] = []

    def first_report(*_: object) -> None:
        if not others:
            others.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True))
            stdout = others[0].stdout
            assert stdout is not None
            if json.loads(stdout.readline())["phase"] == "waiting":
                waits.set()

    build_whole(source, tmp_path / "out", first_report)
    said, _ = others[0].communicate(timeout=120)
    assert waits.is_set()
    assert others[0].returncode == 0
    assert [json.loads(line) for line in said.splitlines()] == [{"folder": str(tmp_path / "out")}]
    assert hashes(tmp_path / "out") == whole[0]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_ctrl_c_while_waiting_for_another_is_a_sentence(source: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "server.cli", "build", str(source), str(tmp_path / "out")]
    others: list[subprocess.Popen[str]] = []

    def first_report(*_: object) -> None:
        if not others:
            others.append(subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True))
            stderr = others[0].stderr
            assert stderr is not None
            assert stderr.readline().startswith("waiting: another process is building this model")
            others[0].send_signal(signal.SIGINT)
            others[0].wait(60)

    build_whole(source, tmp_path / "out", first_report)
    _, said = others[0].communicate()
    assert others[0].returncode == 130
    assert said == "Interrupted. Finished work is kept; run the same command to resume.\n"


def test_ctrl_c_while_building_ends_it_in_order(
    source: Path, whole: tuple[dict[str, str], int], tmp_path: Path
) -> None:
    process = start(source, tmp_path / "out", whole[1] // 2, "interrupt")
    _, said = process.communicate(timeout=120)
    assert (process.returncode, said) == (1, "interrupted\n")
    assert finished(tmp_path / "out")
    build_whole(source, tmp_path / "out")
    assert hashes(tmp_path / "out") == whole[0]


def test_another_plan_for_the_same_output_starts_anew(
    source: Path, whole: tuple[dict[str, str], int], tmp_path: Path
) -> None:
    other = write(tmp_path / "other", *llama())
    start(other, tmp_path / "out", 30, "kill").communicate(timeout=120)
    assert finished(tmp_path / "out")
    build_whole(source, tmp_path / "out")
    assert hashes(tmp_path / "out") == whole[0]


def test_a_file_that_was_taken_from_an_unfinished_build_is_made_again(
    source: Path, whole: tuple[dict[str, str], int], tmp_path: Path
) -> None:
    start(source, tmp_path / "out", whole[1] // 2, "kill").communicate(timeout=120)
    (OutputFolder(tmp_path / "out").model / "model.safetensors").unlink()
    build_whole(source, tmp_path / "out")
    assert hashes(tmp_path / "out") == whole[0]


def test_a_source_that_changed_meanwhile_is_not_mixed_with_what_it_was(source: Path, tmp_path: Path) -> None:
    changing = write(tmp_path / "source", *gemma4(), seed=1)
    start(changing, tmp_path / "out", 60, "kill").communicate(timeout=120)
    write(tmp_path / "source", *gemma4(), seed=2)
    build_whole(changing, tmp_path / "out")
    build_whole(changing, tmp_path / "again")
    assert hashes(tmp_path / "out") == hashes(tmp_path / "again")


def test_a_shard_cut_short_while_building_is_named_and_the_rest_is_kept(source: Path, tmp_path: Path) -> None:
    copy = write(tmp_path / "source", *gemma4())
    shard = copy / "model-00002-of-00003.safetensors"
    full = shard.read_bytes()

    def cut(phase: str, done: int, total: int | None, text: str) -> None:
        if shard.stat().st_size == len(full):
            os.truncate(shard, len(full) // 2)

    with pytest.raises(SourceError, match=r"model-00002-of-00003\.safetensors has \d+ bytes; its header says \d+"):
        build_whole(copy, tmp_path / "out", cut)
    assert finished(tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    """A file system of 66 MB: the spare room that a build asks for, and little more."""
    return mounted(tmp_path / "disk", "size=66m")


def mounted(folder: Path, options: str) -> Path:
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode != 0:
        pytest.skip("a file system of a given size needs Linux and root")
    return folder


@pytest.fixture(autouse=True)
def unmount(tmp_path: Path) -> object:
    yield
    if (tmp_path / "disk").is_mount():
        subprocess.run(["umount", "-l", str(tmp_path / "disk")], check=True)
    return None


def test_a_full_disk_is_a_sentence_and_the_same_call_goes_on(
    source: Path, whole: tuple[dict[str, str], int], small_disk: Path
) -> None:
    process = start(source, small_disk / "out", 40, "fill")
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    resume = "Finished work is kept; run the same command to resume."
    assert said.strip() == f"Writing the model failed: the disk is full. {resume}"
    kept = finished(small_disk / "out")
    assert kept
    (small_disk / "filler").unlink()
    build_whole(source, small_disk / "out")
    assert hashes(small_disk / "out") == whole[0]


def test_a_disk_that_is_too_small_is_refused_up_front(source: Path, small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(bytes(6_000_000))
    with pytest.raises(OutputError, match=r"The build needs 0\.1 GB of disk, 0\.1 GB is free at .*disk"):
        build_whole(source, small_disk / "out")
    assert [path.name for path in small_disk.iterdir()] == ["filler"]


def test_a_folder_that_cannot_be_written_to_is_a_sentence(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"Making .*file/out failed: part of the path is not a folder"):
        build_whole(source, tmp_path / "file" / "out")
    disk = mounted(tmp_path / "disk", "ro")
    with pytest.raises(OutputError, match=r"Making .*disk/out failed: the disk is read-only"):
        build_whole(source, disk / "out")


def test_memory_stays_below_the_limit(tmp_path: Path) -> None:
    """120 MB of source, tensors of 34 MB among them."""
    assert peak_memory(write(tmp_path / "source", *llama(layers=1, hidden=2048, width=8192)), tmp_path) < LIMIT


def test_memory_stays_below_the_limit_for_a_gguf(tmp_path: Path) -> None:
    """123 MB in one tensor."""
    tokens = [*TOKENS, *(f"token{number}" for number in range(30_000))]
    keys = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": [1] * len(tokens)}
    _, weights = reference(vocab_size=len(tokens), hidden_size=1024, head_dim=256)
    source = write_gguf(tmp_path / "m.gguf", weights, **keys, **{"llama.embedding_length": 1024})
    assert peak_memory(source, tmp_path) < LIMIT


@pytest.mark.slow
def test_memory_stays_below_the_same_limit_for_seventy_times_as_much(tmp_path: Path) -> None:
    """8 GB, tensors of 1 GB among them; zeros, which no disk holds."""
    config, shapes = gemma4(replace(GEMMA4_26B_A4B, layers=5, vocabulary=VOCAB_SIZE, vision_layers=0))
    assert peak_memory(write(tmp_path / "source", config, shapes, holes=True), tmp_path) < LIMIT


LIMIT = 260_000_000
# Through a small process: on Linux the peak of a process counts what it was forked from, and that is all of pytest.
PEAK = """\
import resource, subprocess, sys
subprocess.run([sys.executable, *sys.argv[1:]], stdout=subprocess.DEVNULL, check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
"""


def peak_memory(source: Path, folder: Path) -> int:
    """Of a building process with that limit, all of it."""
    build_it = ["-m", "quantize", "build", str(source), str(folder / "out"), "--policy", "uniform-2"]
    command = [sys.executable, "-c", PEAK, *build_it, "--memory-limit", f"{LIMIT}B"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)
