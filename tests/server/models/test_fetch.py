"""The fetch worker as a process, on a Hub on loopback, with the real huggingface_hub."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from quantize.hub.faults import explain
from quantize.worker import JsonLines
from tests.support.loopback_hub import (
    COMMIT,
    REPO,
    LoopbackHub,
    corrupt,
    cut,
    hold,
    html,
    hub_environment,
    loopback_hub,
    model_files,
    safetensors,
    stall,
    status,
)

WANTED = {"config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"}


@dataclass
class Result:
    code: int
    progress: list[dict[str, Any]]
    last: dict[str, Any]
    stderr: str

    @property
    def message(self) -> str:
        return str(self.last["error"]["message"])


@dataclass
class Bench:
    hub: LoopbackHub
    home: Path

    @property
    def storage(self) -> Path:
        return self.home / "hub" / f"models--{REPO.replace('/', '--')}"

    def fetch(self, source: str = REPO, *options: str, **environment: str) -> Result:
        done = subprocess.run(
            [sys.executable, "-m", "server.models.fetch", source, "--timeout", "5", "--backoff", "0.05", *options],
            env={**os.environ, **hub_environment(self.hub, self.home), **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert lines, done.stderr
        return Result(done.returncode, lines[:-1], lines[-1], done.stderr)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with loopback_hub(LoopbackHub()) as hub:
        yield Bench(hub, tmp_path / "home")


def test_a_model_is_fetched_once_pinned_to_its_commit_and_only_its_data_files(bench: Bench) -> None:
    first = bench.fetch()
    assert (first.code, first.last) == (0, {"folder": str(bench.storage / "snapshots" / COMMIT)})
    folder = Path(first.last["folder"])
    assert {path.name for path in folder.iterdir()} == WANTED
    assert (folder / "model.safetensors").read_bytes() == bench.hub.files["model.safetensors"]
    assert all(COMMIT in line for line in bench.hub.requests if "/resolve/" in line)
    total = sum(len(bench.hub.files[name]) for name in WANTED)
    assert first.progress[-1]["done"] == first.progress[-1]["total"] == total
    assert {line["phase"] for line in first.progress} == {"fetching"}
    requests = len(bench.hub.requests)
    assert bench.fetch("loopback/tiny@main", "--offline").last == first.last
    assert len(bench.hub.requests) == requests


def test_offline_and_not_in_the_cache_is_said_without_a_request(bench: Bench) -> None:
    result = bench.fetch(REPO, "--offline")
    assert result.code == 1
    assert result.message == "loopback/tiny is not on this machine, and downloads are switched off."
    assert "the Hub is switched off here" in bench.fetch(HF_HUB_OFFLINE="1").message
    assert bench.hub.requests == []


@pytest.mark.parametrize(
    ("fragment", "action", "sentence", "retryable"),
    [
        pytest.param(
            "/api/",
            status(401, X_Error_Message="Invalid credentials in Authorization header"),
            "The Hub rejected the token; HF_TOKEN is set.",
            False,
            id="bad token",
        ),
        pytest.param(
            "/api/",
            status(403, X_Error_Code="GatedRepo"),
            "loopback/tiny is gated: accept its licence at huggingface.co/loopback/tiny, "
            "then set HF_TOKEN to a token of that account.",
            False,
            id="gated",
        ),
        pytest.param(
            "HEAD",
            status(403, X_Error_Code="GatedRepo"),
            "loopback/tiny is gated: accept its licence at huggingface.co/loopback/tiny, "
            "then set HF_TOKEN to a token of that account.",
            False,
            id="gated files",
        ),
        pytest.param("/api/", status(503), "The Hub answered 503.", True, id="5xx for ever"),
        pytest.param(
            "/api/", status(429), "The Hub is limiting requests (429); try again later.", True, id="429 for ever"
        ),
        pytest.param(
            "/api/",
            status(429, Retry_After="3600"),
            "The Hub asks to wait 3600 s before the next request.",
            True,
            id="429 with a long wait",
        ),
        pytest.param("GET /loopback/tiny/resolve", status(500), "The Hub answered 500.", True, id="5xx on a file"),
        pytest.param("/api/", stall, "The Hub stopped answering.", True, id="stalled description"),
        pytest.param(
            "/tree/", stall, "The Hub stopped answering.", True, id="stalled list of files", marks=pytest.mark.slow
        ),
        pytest.param(
            "/api/",
            html,
            "The answer is not the Hub's: a login page or proxy of this network seems to be in between.",
            True,
            id="captive portal",
        ),
        pytest.param(
            "HEAD",
            html,
            "The answer is not the Hub's: a login page or proxy of this network seems to be in between.",
            True,
            id="captive portal on files",
        ),
    ],
)
def test_a_fault_of_the_hub_is_one_sentence(
    bench: Bench, fragment: str, action: Any, sentence: str, retryable: bool
) -> None:
    bench.hub.fault(fragment, action)
    result = bench.fetch(REPO, "--timeout", "0.3")
    assert (result.code, result.last) == (1, {"error": {"message": sentence, "retryable": retryable}})
    assert "hf_of_the_test" not in result.stderr


def test_a_repository_or_revision_that_does_not_exist_is_not_tried_again(bench: Bench) -> None:
    assert bench.fetch("loopback/none").message == (
        "The Hub has no repository loopback/none, or it is private and needs HF_TOKEN."
    )
    assert bench.fetch(f"{REPO}@v9").message == "The Hub has loopback/tiny, but not the revision asked for."
    assert "is not the name of a Hub repository" in bench.fetch("../../etc/passwd").message
    assert len(bench.hub.requests) == 2


def test_passing_faults_are_ridden_out(bench: Bench) -> None:
    weights = f"GET /{REPO}/resolve/{COMMIT}/model.safetensors"
    bench.hub.fault("GET /api/", status(502), times=2)
    bench.hub.fault(weights, cut(300), times=1)
    bench.hub.fault(weights, status(500), times=1)
    bench.hub.fault(weights, status(403), times=1)
    bench.hub.fault(weights, status(429, Retry_After="0"), times=1)
    result = bench.fetch()
    assert result.code == 0, result.message
    assert (Path(result.last["folder"]) / "model.safetensors").read_bytes() == bench.hub.files["model.safetensors"]
    assert bench.hub.requests.count(weights) == 5


def test_a_flipped_bit_is_noticed_and_fetched_again(bench: Bench) -> None:
    bench.hub.fault(f"GET /{REPO}/resolve/{COMMIT}/model.safetensors", corrupt, times=1)
    folder = Path(bench.fetch().last["folder"])
    assert (folder / "model.safetensors").read_bytes() == bench.hub.files["model.safetensors"]


def test_bits_flipped_for_ever_are_one_sentence_and_leave_no_model(bench: Bench) -> None:
    bench.hub.fault(f"GET /{REPO}/resolve/{COMMIT}/model.safetensors", corrupt)
    assert bench.fetch().message == "model.safetensors arrives corrupt (its sha256 is not the Hub's)."
    assert bench.fetch(REPO, "--offline").code == 1


def test_two_processes_fetch_a_model_once(bench: Bench) -> None:
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(lambda _: bench.fetch(), range(2)))
    assert [result.code for result in results] == [0, 0]
    assert bench.hub.requests.count(f"GET /{REPO}/resolve/{COMMIT}/model.safetensors") == 1


@pytest.mark.slow
def test_a_file_that_stalls_or_is_cut_for_ever_ends_in_a_sentence(tmp_path: Path) -> None:
    def run(name: str, action: Any) -> str:
        with loopback_hub(LoopbackHub()) as hub:
            hub.fault("GET /loopback/tiny/resolve/" + COMMIT + "/model.safetensors", action)
            return Bench(hub, tmp_path / name).fetch(REPO, "--timeout", "0.3").message

    with ThreadPoolExecutor() as pool:
        stalled = pool.submit(run, "stalled", stall)
        broken = pool.submit(run, "cut", cut(0))
    assert stalled.result() == "The Hub stopped answering."
    assert broken.result() == "The connection to the Hub was cut repeatedly."


def test_an_unreachable_hub_is_one_sentence(bench: Bench) -> None:
    assert bench.fetch(HF_ENDPOINT="http://127.0.0.1:9").message == "The Hub cannot be reached."


def test_a_model_larger_than_the_disk_is_refused_before_any_file(bench: Bench) -> None:
    bench.hub.claimed["model.safetensors"] = 10**15
    result = bench.fetch()
    assert result.message.startswith("loopback/tiny needs 1000000.0 GB of disk space, ")
    assert result.message.endswith(" GB is free.")
    assert not any("/resolve/" in line for line in bench.hub.requests)


@pytest.mark.parametrize("name", ["../../evil.json", "/etc/evil.json", "a/../../evil.json", "..\\evil.json"])
def test_a_hostile_list_of_files_is_refused(bench: Bench, name: str) -> None:
    bench.hub.files[name] = b"{}"
    assert bench.fetch().message == "loopback/tiny lists files outside of its own folder; refused."
    assert not any("/resolve/" in line for line in bench.hub.requests)


def test_more_files_than_a_model_can_have_are_refused(bench: Bench) -> None:
    bench.hub.files |= {f"{number}.json": b"" for number in range(5000)}
    assert bench.fetch().message == "loopback/tiny lists more than 5,000 files of a model; refused."
    assert not any("/resolve/" in line for line in bench.hub.requests)


@pytest.mark.parametrize("size", [-1, 2**70])
def test_a_size_that_no_file_can_have_is_refused(bench: Bench, size: int) -> None:
    bench.hub.claimed["model.safetensors"] = size
    assert bench.fetch().message == "loopback/tiny lists a file of a size that no file can have; refused."


def test_a_repository_without_weights_or_config_is_refused(bench: Bench) -> None:
    bench.hub.files = {name: data for name, data in model_files().items() if name != "model.safetensors"}
    assert bench.fetch().message == "loopback/tiny has no MLX model (config.json and safetensors files)."


def test_a_cache_that_cannot_be_written_is_said_with_the_setting(bench: Bench) -> None:
    bench.home.parent.mkdir(exist_ok=True)
    bench.home.write_text("a file where the folder should be")
    result = bench.fetch()
    assert result.message == "The Hub's cache folder cannot be written; HF_HOME sets another."
    assert str(bench.home) in result.stderr


def test_a_shard_cut_short_in_the_cache_is_fetched_again(bench: Bench) -> None:
    folder = Path(bench.fetch().last["folder"])
    blob = (folder / "model.safetensors").resolve()
    blob.write_bytes(blob.read_bytes()[:-1])
    assert bench.fetch(REPO, "--offline").code == 1
    assert bench.fetch().code == 0
    assert (folder / "model.safetensors").read_bytes() == bench.hub.files["model.safetensors"]


def test_a_missing_file_of_any_kind_makes_the_cache_incomplete(bench: Bench) -> None:
    folder = Path(bench.fetch().last["folder"])
    for name in WANTED:
        (folder / name).unlink()
        assert bench.fetch(REPO, "--offline").code == 1, name
        assert bench.fetch().code == 0, name


def test_a_shard_that_the_index_names_and_the_hub_lacks_is_said(bench: Bench) -> None:
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    bench.hub.files["model.safetensors.index.json"] = json.dumps(index).encode()
    bench.hub.files["model-1.safetensors"] = safetensors(10)
    assert bench.fetch().message == "The files of loopback/tiny are damaged or incomplete on the Hub."


def test_partial_files_of_a_killed_download_are_swept_and_those_of_a_live_one_kept(bench: Bench) -> None:
    blobs, locks = bench.storage / "blobs", bench.home / "hub" / ".locks" / bench.storage.name
    blobs.mkdir(parents=True)
    locks.mkdir(parents=True)
    (blobs / "abc.12345678.incomplete").write_bytes(b"half")
    (blobs / "def.12345678.incomplete").write_bytes(b"half")
    with FileLock(locks / "def.lock"):
        assert bench.fetch().code == 0
    assert [path.name for path in blobs.glob("*.incomplete")] == ["def.12345678.incomplete"]


def test_a_download_that_was_killed_continues_with_the_files_that_are_whole(bench: Bench) -> None:
    bench.hub.fault(f"GET /{REPO}/resolve/{COMMIT}/model.safetensors", stall, times=1)
    command = [sys.executable, "-m", "server.models.fetch", REPO, "--timeout", "60"]
    environment = {**os.environ, **hub_environment(bench.hub, bench.home)}
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as worker:
        assert bench.hub.stalled.wait(20)
        worker.kill()
    here = {path.name for path in bench.storage.glob("snapshots/*/*")}
    bench.hub.requests.clear()
    assert bench.fetch().code == 0
    fetched = {line.rpartition("/")[2] for line in bench.hub.requests if line.startswith(f"GET /{REPO}/resolve")}
    # Less when the kill came between a file and its place in the snapshot: it is whole all the same.
    assert {"model.safetensors"} <= fetched <= WANTED - here
    assert list(bench.storage.glob("blobs/*.incomplete")) == []


def test_a_file_half_fetched_when_the_process_was_killed_goes_on_from_its_bytes(bench: Bench) -> None:
    bench.hub.files["model.safetensors"] = weights = safetensors(4_000_000)
    bench.hub.fault(f"GET /{REPO}/resolve/{COMMIT}/model.safetensors", hold(3_000_000), times=1)
    command = [sys.executable, "-m", "server.models.fetch", REPO, "--timeout", "60"]
    environment = {**os.environ, **hub_environment(bench.hub, bench.home)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        next(line for line in map(json.loads, worker.stdout) if line["done"] > 2 * 2**20)
        worker.kill()
    bench.hub.served = 0
    folder = Path(bench.fetch().last["folder"])
    assert (folder / "model.safetensors").read_bytes() == weights
    assert bench.hub.served < len(weights) - 2 * 2**20 + 10_000


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (errno.ENOSPC, "The disk became full while fetching."),
        (errno.EROFS, "The Hub's cache folder cannot be written; HF_HOME sets another."),
        (errno.EIO, "Fetching org/repo failed (RuntimeError)."),
    ],
)
def test_a_fault_of_the_disk_is_one_sentence_without_the_path(code: int, sentence: str) -> None:
    error = RuntimeError("wrapped")
    error.__cause__ = OSError(code, os.strerror(code), "/a/path")
    assert explain(error, "org/repo").message == sentence


def test_the_worker_ends_when_its_parent_does(bench: Bench) -> None:
    bench.hub.fault("/api/", stall)
    command = [sys.executable, "-m", "server.models.fetch", REPO, "--timeout", "60", "--watch-stdin"]
    environment = {**os.environ, **hub_environment(bench.hub, bench.home)}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as worker:
        assert bench.hub.stalled.wait(20)
        assert worker.stdin is not None
        worker.stdin.close()
        assert worker.wait(10) == 1


def test_a_report_is_a_few_lines_a_second_and_the_last_one_is_never_left_out() -> None:
    out = io.StringIO()
    report = JsonLines(out)
    for done in range(1001):
        report("fetching", done, 1000, "")
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert lines[0]["done"] == 0
    assert lines[-1]["done"] == 1000
    assert len(lines) < 10


def test_a_report_that_was_held_back_is_told_when_nothing_newer_comes() -> None:
    read, write = os.pipe()
    with os.fdopen(read) as lines, os.fdopen(write, "w") as out:
        report = JsonLines(out)
        for done in (1, 2, 3):
            report("fetching", done, 1000, "")
        assert [json.loads(lines.readline())["done"] for _ in range(2)] == [1, 3]


def test_a_report_quotes_no_more_than_a_line_holds() -> None:
    out = io.StringIO()
    report = JsonLines(out)
    report("fetching", 0, None, "a" * 3 * 10**6)
    report.error("é" * 3 * 10**6, retryable=False)
    assert all(len(line) < 2**16 for line in out.getvalue().splitlines())


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A model that is none of the Hub's business, with files of other sizes than the repository's."""
    folder = tmp_path / "foreign"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text("mine")
    return folder


@pytest.mark.parametrize("spelling", ["{absolute}", "../../../../foreign"])
def test_a_commit_that_is_a_path_reaches_no_file_of_another_folder(bench: Bench, foreign: Path, spelling: str) -> None:
    bench.hub.commit = spelling.format(absolute=foreign)
    assert "is not a commit; refused." in bench.fetch().message
    assert {path.name: path.read_text() for path in foreign.iterdir()} == dict.fromkeys(
        ("config.json", "tokenizer.json", "model.safetensors"), "mine"
    )


@pytest.mark.parametrize("sha256", ["{absolute}/evil", "../../../../foreign/evil", "A" * 64, "", "f" * 63])
def test_a_sha256_that_is_a_path_leaves_no_file_anywhere(bench: Bench, foreign: Path, sha256: str) -> None:
    bench.hub.sha256["model.safetensors"] = sha256.format(absolute=foreign)
    assert "is not a sha256; refused." in bench.fetch().message
    assert len(list(foreign.iterdir())) == 3
    assert not list(foreign.parent.rglob("*.part"))


@pytest.mark.parametrize("header", ["ETag", "X-Repo-Commit", "X-Linked-Etag"])
def test_a_header_that_is_a_path_names_no_file(bench: Bench, foreign: Path, header: str) -> None:
    """huggingface_hub names files of the cache after them."""
    bench.hub.headers[header] = f"{foreign}/evil"
    result = bench.fetch()
    assert (result.code, result.message.endswith("; refused.")) == (1, True), result.message
    assert len(list(foreign.iterdir())) == 3


def test_names_that_are_one_file_on_a_mac_are_refused(bench: Bench) -> None:
    bench.hub.files["Config.json"] = b"{}"
    assert "are one file on many file systems; refused." in bench.fetch().message


def test_a_planted_link_in_the_cache_costs_no_file_outside_of_it(bench: Bench, foreign: Path) -> None:
    snapshot = bench.storage / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").symlink_to(foreign / "config.json")
    assert bench.fetch().code == 0
    assert (foreign / "config.json").read_text() == "mine"
    assert (snapshot / "config.json").read_bytes() == bench.hub.files["config.json"]
