"""What can be wrong with the Hub, the network and the disk while a model is fetched: ridden out, or one sentence."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from quantize.hub.faults import explain
from tests.support.fetching import Bench
from tests.support.loopback_hub import (
    COMMIT,
    REPO,
    LoopbackHub,
    corrupt,
    cut,
    html,
    loopback_hub,
    model_files,
    safetensors,
    stall,
    status,
)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with loopback_hub(LoopbackHub()) as hub:
        yield Bench(hub, tmp_path / "home")


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


def test_a_repository_without_weights_or_config_is_refused(bench: Bench) -> None:
    bench.hub.files = {name: data for name, data in model_files().items() if name != "model.safetensors"}
    assert bench.fetch().message == "loopback/tiny has no MLX model (config.json and safetensors files)."


def test_a_cache_that_cannot_be_written_is_said_with_the_setting(bench: Bench) -> None:
    bench.home.parent.mkdir(exist_ok=True)
    bench.home.write_text("a file where the folder should be")
    result = bench.fetch()
    assert result.message == "The Hub's cache folder cannot be written; HF_HOME sets another."
    assert str(bench.home) in result.stderr


def test_a_shard_that_the_index_names_and_the_hub_lacks_is_said(bench: Bench) -> None:
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    bench.hub.files["model.safetensors.index.json"] = json.dumps(index).encode()
    bench.hub.files["model-1.safetensors"] = safetensors(10)
    assert bench.fetch().message == "The files of loopback/tiny are damaged or incomplete on the Hub."


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
