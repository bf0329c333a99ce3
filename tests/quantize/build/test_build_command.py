"""`configi build` as people and programs call it: what it says, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.checkpoints import llama, write
from tests.support.commands import configi


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("source"), *llama())


def test_programs_read_json_lines_and_the_folder_at_the_end(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    *reports, last = map(json.loads, configi("build", str(source), str(output), "--json-progress").stdout.splitlines())
    assert last == {"folder": str(output)}
    assert all(report.keys() == {"phase", "done", "total", "text"} for report in reports)
    assert list(dict.fromkeys(report["phase"] for report in reports)) == ["building", "checking"]
    ends = {report["phase"]: (report["done"], report["total"]) for report in reports}
    assert all(done == total for done, total in ends.values())
    again = configi("build", str(source), str(output), "--json-progress").stdout
    assert json.loads(again) == {"folder": str(output)}


def test_programs_read_an_error_and_whether_to_try_again(tmp_path: Path) -> None:
    done = configi("build", str(tmp_path / "nothing"), str(tmp_path / "out"), "--json-progress", check=False)
    said = json.loads(done.stdout)
    assert said["error"]["retryable"] is False
    assert "is neither a folder" in said["error"]["message"]
    assert (done.returncode, done.stderr) == (1, f"configi: {said['error']['message']}\n")


def test_people_read_a_few_lines_where_there_is_no_terminal(source: Path, tmp_path: Path) -> None:
    done = configi("build", str(source), str(tmp_path / "out"), "--policy", "uniform-4")
    assert done.stdout == f"{tmp_path / 'out'}\n"
    assert done.stderr.startswith("building: shards to read: 3 0%\n")
    assert "checking: sha256 of the files" in done.stderr
