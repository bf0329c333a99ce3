"""A repository of the Hub as a checkpoint: the real huggingface_hub in a process of its own, on a Hub on loopback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantize.folder.safetensors_format import lay_out
from tests.support.loopback_hub import (
    COMMIT,
    REPO,
    Action,
    Files,
    LoopbackHub,
    corrupt,
    cut,
    elsewhere,
    hold,
    html,
    hub_environment,
    loopback_hub,
    stall,
    status,
)

ROWS, COLUMNS = 1000, 256
MIB = 2**20
SHARDS = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
FIRST = f"GET /{REPO}/resolve/{COMMIT}/{SHARDS[0]}"
SECOND = f"GET /{REPO}/resolve/{COMMIT}/{SHARDS[1]}"


def header(handler: Any) -> None:
    """The honest answer: the first request for a shard is for its header."""
    handler.honest(handler.path)


def source_files(rows: int = ROWS) -> Files:
    files: Files = {
        "config.json": b'{"model_type": "llama"}',
        "tokenizer.json": b"{}",
        "LICENSE": b"free",
        "modeling_evil.py": b"raise SystemExit",
        "model.safetensors.index.json": json.dumps(
            {"weight_map": {f"t{number}": shard for number, shard in enumerate(SHARDS)}}
        ).encode(),
    }
    for number, shard in enumerate(SHARDS):
        start, _ = lay_out([(f"t{number}", "U8", (rows, COLUMNS))])
        files[shard] = start + np.random.default_rng(number).bytes(rows * COLUMNS)
    return files


@dataclass
class Result:
    code: int
    lines: list[dict[str, Any]]
    stderr: str

    @property
    def last(self) -> dict[str, Any]:
        return self.lines[-1]


@dataclass
class Bench:
    hub: LoopbackHub
    folder: Path

    @property
    def scratch(self) -> Path:
        return self.folder / "scratch"

    @property
    def storage(self) -> Path:
        return self.folder / "home" / "hub" / f"models--{REPO.replace('/', '--')}"

    def command(self, *options: str, source: str = REPO) -> list[str]:
        return [sys.executable, "-m", "tests.support.read_checkpoint", source, *options]

    def environment(self, **changes: str) -> dict[str, str]:
        return {**os.environ, **hub_environment(self.hub, self.folder / "home"), **changes}

    def read(self, *options: str, source: str = REPO, **environment: str) -> Result:
        done = subprocess.run(
            self.command(*options, source=source),
            env=self.environment(**environment),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert lines, done.stderr
        return Result(done.returncode, lines, done.stderr)

    def discarding(self, *options: str) -> Result:
        return self.read("--scratch", str(self.scratch), *options)

    @contextmanager
    def held(self, action: Action, *options: str, line: str = FIRST) -> Iterator[subprocess.Popen[str]]:
        """A reader whose transfer hangs; killed at the end."""
        self.hub.fault(line, action, times=1)
        command = self.command("--timeout", "60", *options)
        with subprocess.Popen(command, env=self.environment(), stdout=subprocess.PIPE, text=True) as reader:
            assert self.hub.stalled.wait(20)
            yield reader
            reader.kill()

    def from_folder(self) -> str:
        folder = self.folder / "copy"
        folder.mkdir()
        for name, data in self.hub.files.items():
            (folder / name).write_bytes(bytes(data[:]))
        return str(self.read(source=str(folder)).last["sha256"])


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with loopback_hub(LoopbackHub(source_files())) as hub:
        yield Bench(hub, tmp_path)


def test_the_rows_are_those_of_a_folder_whether_the_shards_are_kept_or_not(bench: Bench) -> None:
    kept = bench.read()
    discarded = bench.discarding()
    assert kept.last["sha256"] == discarded.last["sha256"] == bench.from_folder()
    assert kept.last["auxiliary_files"] == ["LICENSE", "tokenizer.json"]
    assert kept.lines[0]["revision"] == COMMIT
    assert "modeling_evil.py" not in " ".join(bench.hub.requests)


def test_headers_are_read_by_ranges_and_no_weights(tmp_path: Path) -> None:
    with loopback_hub(LoopbackHub(source_files(rows=100_000))) as hub:
        bench = Bench(hub, tmp_path)
        read = bench.read("--headers-only")
    assert read.last["tensors"] == {f"t{number}": [100_000, COLUMNS] for number in range(3)}
    assert read.last["scratch_bytes"] == sum(len(hub.files[shard]) for shard in SHARDS)
    # 100 kB of each shard of 25 MB, and what the sockets held when the client had enough.
    assert hub.served < 10_000_000
    assert all(COMMIT in line for line in hub.requests if "/resolve/" in line)


def test_a_server_that_knows_no_ranges_is_cut_off_after_the_header(tmp_path: Path) -> None:
    def whole(handler: Any) -> None:
        handler.answer(200, handler.named()[1], {})

    with loopback_hub(LoopbackHub(source_files(rows=100_000))) as hub:
        hub.fault("GET /loopback/tiny/resolve", whole)
        assert Bench(hub, tmp_path).read("--headers-only").code == 0
    assert hub.served < 10_000_000


def test_shards_that_are_not_kept_are_at_most_two_and_gone_at_the_end(bench: Bench) -> None:
    read = bench.discarding()
    opened = {line["shard"]: line["files"] for line in read.lines if "shard" in line}
    assert list(opened) == SHARDS
    for shard, files in opened.items():
        following = SHARDS[SHARDS.index(shard) + 1 :][:1]
        assert {name.removesuffix(".part") for name in files} <= {shard, *following}
    assert read.lines[0]["scratch_bytes"] == len(bench.hub.files[SHARDS[0]]) * 2
    assert list(bench.scratch.iterdir()) == []
    assert list(bench.storage.glob("snapshots/*/model-*")) == []


def test_shards_that_are_kept_are_found_by_the_hubs_own_tools_and_not_fetched_again(bench: Bench) -> None:
    first = bench.read()
    assert {path.name for path in (bench.storage / "snapshots" / COMMIT).iterdir()} >= {"config.json", *SHARDS}
    assert (bench.storage / "refs" / "main").read_text() == COMMIT
    bench.hub.requests.clear()
    again = bench.discarding()
    assert again.last == first.last
    assert again.lines[0]["scratch_bytes"] == 0
    assert bench.hub.requests.count(SECOND) == 1, "only the header is read from the Hub again"
    bench.hub.requests.clear()
    assert bench.read("--offline").last["sha256"] == first.last["sha256"]
    assert bench.hub.requests == []


@pytest.mark.parametrize("keep", [True, False])
def test_a_shard_half_fetched_when_the_process_was_killed_goes_on_from_its_bytes(tmp_path: Path, keep: bool) -> None:
    with loopback_hub(LoopbackHub(source_files(rows=20_000))) as hub:
        bench, half = Bench(hub, tmp_path), 3_000_000
        options = [] if keep else ["--scratch", str(bench.scratch)]
        hub.fault(FIRST, header, times=1)
        with bench.held(hold(half), *options) as reader:
            assert reader.stdout is not None
            next(line for line in map(json.loads, reader.stdout) if "waiting" in line and line["waiting"][1] >= 2 * MIB)
        hub.served = 0
        again = bench.read(*options)
        assert again.last["sha256"] == bench.from_folder()
        if keep:
            # The disk is asked only for what is still to come.
            assert again.lines[0]["scratch_bytes"] <= sum(len(hub.files[shard]) for shard in SHARDS) - 2 * MIB
        whole = sum(len(data) for data in hub.files.values())
        headers = 3 * 100_000
        assert hub.served <= whole - 2 * MIB + headers + 10_000


def test_the_next_shard_is_fetched_while_one_is_used(bench: Bench) -> None:
    bench.hub.fault(SECOND, header, times=1)
    with bench.held(hold(1000), line=SECOND) as reader:
        assert reader.stdout is not None
        opened = next(line for line in map(json.loads, reader.stdout) if "shard" in line)
    assert opened["shard"] == SHARDS[0]


def test_a_build_that_waits_for_a_shard_is_told_how_far_it_is(bench: Bench) -> None:
    told = [line["waiting"] for line in bench.read().lines if "waiting" in line]
    assert told[-1][0] in SHARDS
    assert any(name == SHARDS[0] and here == size == len(bench.hub.files[name]) for name, here, size in told)


GATED = (
    "loopback/tiny is gated: accept its licence at huggingface.co/loopback/tiny, "
    "then set HF_TOKEN to a token of that account."
)
PORTAL = "The answer is not the Hub's: a login page or proxy of this network seems to be in between."


@pytest.mark.parametrize(
    ("line", "action", "sentence", "retryable"),
    [
        pytest.param("/api/", status(401), "The Hub rejected the token; HF_TOKEN is set.", False, id="401"),
        pytest.param("/api/", status(403, X_Error_Code="GatedRepo"), GATED, False, id="gated"),
        pytest.param(FIRST, status(403, X_Error_Code="GatedRepo"), GATED, False, id="gated shard"),
        pytest.param(FIRST, status(403), "The Hub answered 403.", True, id="403 on a shard"),
        pytest.param(
            FIRST,
            status(404, X_Error_Code="EntryNotFound"),
            "A file that loopback/tiny lists is not on the Hub.",
            False,
            id="404 on a shard",
        ),
        pytest.param(
            FIRST,
            status(429, Retry_After="3600"),
            "The Hub asks to wait 3600 s before the next request.",
            True,
            id="429 with a long wait",
        ),
        pytest.param(FIRST, status(500), "The Hub answered 500.", True, id="5xx for ever"),
        pytest.param("/api/", html, PORTAL, True, id="captive portal"),
        pytest.param(FIRST, html, f"{SHARDS[0]} is not a safetensors file.", False, id="captive portal on a shard"),
        pytest.param(FIRST, stall, "The Hub stopped answering.", True, id="stalled header"),
    ],
)
def test_a_fault_of_the_hub_is_one_sentence(
    bench: Bench, line: str, action: Action, sentence: str, retryable: bool
) -> None:
    bench.hub.fault(line, action)
    result = bench.discarding("--timeout", "0.5")
    assert (result.code, result.last) == (1, {"error": sentence, "retryable": retryable})
    assert "hf_of_the_test" not in result.stderr


def test_a_repository_that_does_not_exist_or_is_no_model_is_one_sentence(bench: Bench) -> None:
    missing = "The Hub has no repository loopback/none, or it is private and needs HF_TOKEN."
    assert bench.read(source="loopback/none").last["error"] == missing
    assert bench.read(source=f"{REPO}@v9").last["error"] == "The Hub has loopback/tiny, but not the revision asked for."
    del bench.hub.files[SHARDS[1]]
    assert bench.read().last["error"] == f"The source lacks the shard {SHARDS[1]}."
    del bench.hub.files["config.json"]
    assert bench.read().last["error"] == "loopback/tiny has no config.json, so it is not a model."


def test_an_unreachable_hub_is_one_sentence_and_the_whole_cache_serves_without_it(bench: Bench) -> None:
    away = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    assert bench.read(**away).last == {"error": "The Hub cannot be reached.", "retryable": True}
    switched_off = "loopback/tiny is not on this machine, and downloads are switched off."
    assert bench.read("--offline").last["error"] == switched_off
    read = bench.read()
    without = bench.read(**away)
    assert without.last == read.last | {"auxiliary_files": without.last["auxiliary_files"]}
    assert without.lines[0]["revision"] == COMMIT
    assert "The copy on this machine is used." in without.stderr


def test_passing_faults_of_a_transfer_are_ridden_out_and_it_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    with loopback_hub(LoopbackHub(source_files(rows=20_000))) as hub:
        hub.fault(FIRST, header, times=1)
        for action in (cut(3_000_000), status(500), status(403), status(429, Retry_After="0")):
            hub.fault(FIRST, action, times=1)
        bench = Bench(hub, tmp_path)
        assert bench.discarding().last["sha256"] == bench.from_folder()
        # What was cut off in the middle of a megabyte comes twice.
        assert hub.served < sum(len(data) for data in hub.files.values()) + MIB + 3 * 100_000 + 10_000


@pytest.mark.slow
def test_a_transfer_that_stalls_or_is_cut_for_ever_ends_in_a_sentence(tmp_path: Path) -> None:
    def run(name: str, action: Action) -> Any:
        with loopback_hub(LoopbackHub(source_files())) as hub:
            hub.fault(FIRST, header, times=1)
            hub.fault(FIRST, action)
            return Bench(hub, tmp_path / name).discarding("--timeout", "0.5").last

    with ThreadPoolExecutor() as pool:
        stalled, broken = pool.submit(run, "stalled", hold(1000)), pool.submit(run, "cut", cut(0))
    assert stalled.result() == {"error": "The Hub stopped answering.", "retryable": True}
    assert broken.result() == {"error": "The connection to the Hub was cut repeatedly.", "retryable": True}


@pytest.mark.parametrize("keep", [True, False])
def test_a_flipped_bit_is_noticed_and_fetched_again(bench: Bench, keep: bool) -> None:
    bench.hub.fault(SECOND, header, times=1)
    bench.hub.fault(SECOND, corrupt, times=1)
    read = bench.read() if keep else bench.discarding()
    assert read.last["sha256"] == bench.from_folder()


def test_bits_flipped_for_ever_are_one_sentence_and_nothing_corrupt_is_left(bench: Bench) -> None:
    bench.hub.fault(SECOND, header, times=1)
    bench.hub.fault(SECOND, corrupt)
    sentence = f"{SHARDS[1]} arrives corrupt (its sha256 is not the Hub's)."
    assert bench.discarding().last == {"error": sentence, "retryable": True}
    assert [path for path in bench.scratch.rglob(f"{SHARDS[1]}*")] == []


def test_a_shard_damaged_in_the_cache_is_fetched_again(bench: Bench) -> None:
    digest = bench.read().last["sha256"]
    blob = (bench.storage / "snapshots" / COMMIT / SHARDS[1]).resolve()
    blob.write_bytes(b"x" * blob.stat().st_size)
    assert bench.read().last["sha256"] == digest
    blob.write_bytes(b"x")
    assert bench.read().last["sha256"] == digest


def test_a_shard_cut_short_on_the_hub_is_noticed_before_any_weights_are_fetched(bench: Bench) -> None:
    data = bench.hub.files[SHARDS[1]]
    bench.hub.files[SHARDS[1]] = bytes(data[:-1])
    sentence = f"{SHARDS[1]} has {len(data) - 1} bytes on the Hub; its header says {len(data)}: it is cut short."
    assert bench.read().last["error"] == sentence
    assert list(bench.storage.glob("blobs/*.part")) == []


def test_a_shard_larger_than_the_disk_is_refused_before_it_is_fetched(bench: Bench) -> None:
    bench.hub.files[SHARDS[0]] = bytes(lay_out([("t0", "U8", (10**9, 10**4))])[0])
    bench.hub.claimed[SHARDS[0]] = len(bench.hub.files[SHARDS[0]]) + 10**13
    message = bench.discarding().last["error"]
    assert message.startswith(f"{SHARDS[0]} needs 10000.0 GB of disk space, ")


@pytest.mark.parametrize("name", ["../../evil.json", "/etc/evil.json", "a/../../evil.json", "..\\evil.json"])
def test_a_hostile_list_of_files_is_refused(bench: Bench, name: str) -> None:
    bench.hub.files[name] = b"{}"
    assert bench.read().last["error"] == "loopback/tiny lists files outside of its own folder; refused."
    assert not any("/resolve/" in line for line in bench.hub.requests)


def test_the_token_goes_to_the_hub_and_to_no_other_host(bench: Bench) -> None:
    with loopback_hub(LoopbackHub(bench.hub.files)) as storage:
        bench.hub.fault("GET /loopback/tiny/resolve", elsewhere(storage.url))
        assert bench.discarding().code == 0
    assert set(bench.hub.tokens) == {"Bearer hf_of_the_test"}
    assert len(storage.requests) >= len(SHARDS) * 2
    assert set(storage.tokens) == {None}


def test_two_processes_fetch_a_shard_once(bench: Bench) -> None:
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(lambda _: bench.read(), range(2)))
    assert results[0].last == results[1].last
    # A header for each of the two, and one transfer.
    assert bench.hub.requests.count(FIRST) == 3


def test_a_cache_that_cannot_be_written_is_said_with_the_setting(bench: Bench) -> None:
    (bench.folder / "home").write_text("a file where the folder should be")
    sentence = "The Hub's cache folder cannot be written; HF_HOME sets another."
    assert bench.read().last["error"] == sentence


def test_a_partial_of_a_shard_that_is_no_longer_wanted_is_swept(bench: Bench) -> None:
    blobs = bench.storage / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{'0' * 64}.part").write_bytes(b"half")
    assert bench.read().code == 0
    assert list(blobs.glob("*.part")) == []
    shutil.rmtree(bench.storage)
