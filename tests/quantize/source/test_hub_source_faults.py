"""What can be wrong with the Hub while a build reads from it: ridden out, or one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from quantize.folder.safetensors_format import lay_out
from tests.support.hub_reading import FIRST, MIB, SECOND, SHARDS, Bench, header, source_files
from tests.support.loopback_hub import (
    COMMIT,
    REPO,
    Action,
    LoopbackHub,
    corrupt,
    cut,
    hold,
    html,
    loopback_hub,
    stall,
    status,
)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with loopback_hub(LoopbackHub(source_files())) as hub:
        yield Bench(hub, tmp_path)


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


def test_a_cache_that_cannot_be_written_is_said_with_the_setting(bench: Bench) -> None:
    (bench.folder / "home").write_text("a file where the folder should be")
    sentence = "The Hub's cache folder cannot be written; HF_HOME sets another."
    assert bench.read().last["error"] == sentence
