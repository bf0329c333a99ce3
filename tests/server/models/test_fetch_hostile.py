"""A Hub and a cache that name files which are none of the model's: the fetch worker touches none of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fetching import Bench
from tests.support.loopback_hub import (
    COMMIT,
    LoopbackHub,
    loopback_hub,
)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with loopback_hub(LoopbackHub()) as hub:
        yield Bench(hub, tmp_path / "home")


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A model that is none of the Hub's business, with files of other sizes than the repository's."""
    folder = tmp_path / "foreign"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text("mine")
    return folder


@pytest.mark.parametrize("name", ["../../evil.json", "/etc/evil.json", "a/../../evil.json", "..\\evil.json"])
def test_a_hostile_list_of_files_is_refused(bench: Bench, name: str) -> None:
    bench.hub.files[name] = b"{}"
    assert bench.fetch().message == "loopback/tiny lists files outside of its own folder; refused."
    assert not any("/resolve/" in line for line in bench.hub.requests)


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


def test_more_files_than_a_model_can_have_are_refused(bench: Bench) -> None:
    bench.hub.files |= {f"{number}.json": b"" for number in range(5000)}
    assert bench.fetch().message == "loopback/tiny lists more than 5,000 files of a model; refused."
    assert not any("/resolve/" in line for line in bench.hub.requests)


@pytest.mark.parametrize("size", [-1, 2**70])
def test_a_size_that_no_file_can_have_is_refused(bench: Bench, size: int) -> None:
    bench.hub.claimed["model.safetensors"] = size
    assert bench.fetch().message == "loopback/tiny lists a file of a size that no file can have; refused."
