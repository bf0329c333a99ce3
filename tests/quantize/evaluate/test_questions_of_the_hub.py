"""MMLU from the Hub: the real client against a Hub on loopback, in the layouts of cais/mmlu, and what is amiss."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from quantize.errors import QuantizeError
from quantize.evaluate.tasks import mmlu
from quantize.evaluate.tasks.questions import Question, chosen_files, read_questions
from tests.support.commands import configi
from tests.support.loopback_hub import Files, LoopbackHub, cut, hub_environment, loopback_hub, status
from tests.support.tiny_model import write_tiny_model

SUBJECTS = ("abstract_algebra", "anatomy")
# As the Hub's viewer describes the columns of cais/mmlu.
FEATURES = {
    "info": {
        "features": {
            "question": {"dtype": "string", "_type": "Value"},
            "subject": {"dtype": "string", "_type": "Value"},
            "choices": {"feature": {"dtype": "string", "_type": "Value"}, "_type": "Sequence"},
            "answer": {"names": ["A", "B", "C", "D"], "_type": "ClassLabel"},
        }
    }
}


def rows(split: str, subjects: tuple[str, ...] = SUBJECTS, count: int = 5) -> list[dict[str, Any]]:
    return [
        {
            "question": f"{split} {number} of {subject}: which is «{number}»?",
            "subject": subject,
            "choices": [str(number + step) for step in (1, 0, 2, 3)],
            "answer": 1,
        }
        for subject in subjects
        for number in range(count)
    ]


def in_parquet(found: list[dict[str, Any]]) -> bytes:
    columns = {"question": pa.string(), "subject": pa.string(), "choices": pa.list_(pa.string()), "answer": pa.int64()}
    schema = pa.schema(columns.items(), metadata={"huggingface": json.dumps(FEATURES)})
    into = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(found, schema), into)
    return into.getvalue()


def cais_mmlu(*, whole: bool = True) -> Files:
    """Its files: all subjects together, each by itself, and the training split that nobody asks."""
    files = Files({"README.md": b"---\n---\n", "dataset_infos.json": b"{}", ".gitattributes": b""})
    files["auxiliary_train/train-00000-of-00001.parquet"] = in_parquet(rows("train"))
    for subject in SUBJECTS:
        for split, count in (("dev", 5), ("test", 3), ("validation", 2)):
            name = f"{subject}/{split}-00000-of-00001.parquet"
            files[name] = in_parquet(rows(split, (subject,), count))
    if whole:
        for split, count in (("auxiliary_train", 1), ("dev", 5), ("test", 3), ("validation", 2)):
            files[f"all/{split}-00000-of-00001.parquet"] = in_parquet(rows(split, count=count))
    return files


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with loopback_hub(LoopbackHub()) as served:
        yield served


# The server answers B to everything, so that what is asked is what is right.
ASK = """\
import sys
from quantize.errors import QuantizeError
from quantize.evaluate.tasks import mmlu
from quantize.evaluate.tasks.questions import read_all
from quantize.outcome import run
asked = []
def ask(messages, most):
    asked.append(messages[0]["content"])
    return "Answer: B"
class Letters:
    def encode(self, text, **options):
        return [ord(letter) for letter in text]
def main():
    found = read_all([sys.argv[1]], offline="--offline" in sys.argv)
    mmlu.check_questions(found)
    score = mmlu.in_chat(found, ask)
    print(score.right, score.asked, *sorted(score.subjects), sum(one.example for one in found))
    assert all(question.startswith("test ") for question in asked), asked
    shown = []
    mmlu.by_letters(found, Letters(), lambda tokens: shown.append("".join(map(chr, tokens))) or [0.0] * 128)
    assert shown[0].count("dev ") == 5 and shown[0].count("test ") == 1, shown[0]
run("ask", main, (QuantizeError,))
"""


def ask(hub: LoopbackHub, home: Path, *arguments: str) -> Any:
    environment = os.environ | hub_environment(hub, home)
    command = [sys.executable, "-c", ASK, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("whole", [True, False], ids=["all subjects in one folder", "a folder a subject"])
def test_the_questions_of_cais_mmlu(whole: bool, hub: LoopbackHub, tmp_path: Path) -> None:
    hub.others["datasets/cais/mmlu"] = cais_mmlu(whole=whole)
    done = ask(hub, tmp_path, "cais/mmlu")
    assert done.returncode == 0, done.stderr
    # Three of each subject are asked, none of `dev`, `validation` or the training split.
    assert done.stdout.split() == ["6", "6", *SUBJECTS, "10"]
    fetched = {line.rpartition("/resolve/")[2].partition("/")[2] for line in hub.requests if "/resolve/" in line}
    assert fetched == {f"{folder}/{split}-00000-of-00001.parquet"
                       for folder in (["all"] if whole else SUBJECTS) for split in ("dev", "test")}  # fmt: skip
    # It is in the Hub's cache now.
    hub.fault("", status(500))
    again = ask(hub, tmp_path, "cais/mmlu", "--offline")
    assert again.stdout == done.stdout, again.stderr


def test_the_command_measures_a_model_on_them(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.others["datasets/cais/mmlu"] = cais_mmlu()
    model = write_tiny_model(tmp_path / "model")
    (tmp_path / "t.txt").write_text("A story of a lighthouse, a letter and the sea, told by its keeper.")
    call = ["eval", str(model), "--reference", str(model), "--text", str(tmp_path / "t.txt"), "--generate", "0"]
    call += ["--mmlu", "cais/mmlu@main", "--mmlu-limit", "1", "--json"]
    done = configi(*call, **hub_environment(hub, tmp_path / "home"))
    told = json.loads(done.stdout)
    assert told["mmlu_letters"]["asked"] == told["mmlu_chat"]["asked"] == 2
    assert set(told["mmlu_letters"]["subjects"]) == set(SUBJECTS)


def test_a_cut_is_tried_again_and_the_token_is_sent(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.others["datasets/cais/mmlu"] = cais_mmlu()
    hub.fault("GET /datasets/cais/mmlu/resolve", status(503), times=1)
    hub.fault("GET /datasets/cais/mmlu/resolve", cut(100), times=1)
    done = ask(hub, tmp_path, "cais/mmlu")
    assert done.returncode == 0, done.stderr
    assert set(hub.tokens) == {"Bearer hf_of_the_test"}


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (None, "The Hub has no repository cais/mmlu"),
        ({"README.md": b"", "data.tar": b""}, "has no split `test`"),
        ({"all/test-00000-of-00001.parquet": b"PAR1 and no more"}, "is not a Parquet file that can be read"),
        ({"all/test-00000-of-00001.parquet": in_parquet([])}, "holds no questions"),
        # MMLU-Pro has ten.
        ({"data/test-0.parquet": in_parquet([rows("test")[0] | {"choices": list("abcdefghij")}])}, "row 1: has no"),
        ({"data/test-0.parquet": in_parquet(rows("test", count=3))}, "has 3 questions; the first 5 are examples"),
        ({"../../test-0.parquet": in_parquet(rows("test"))}, "cannot be the name of a file"),
    ],
)  # fmt: skip
def test_what_is_no_such_data_set_is_one_sentence(
    files: Mapping[str, bytes] | None, sentence: str, hub: LoopbackHub, tmp_path: Path
) -> None:
    if files is not None:
        hub.others["datasets/cais/mmlu"] = Files(files)
    done = ask(hub, tmp_path, "cais/mmlu")
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_what_was_not_fetched_is_not_there_offline(hub: LoopbackHub, tmp_path: Path) -> None:
    done = ask(hub, tmp_path, "cais/mmlu", "--offline")
    assert done.returncode == 1
    assert "cais/mmlu is not on this machine, and downloads are switched off." in done.stderr
    assert hub.requests == []


@pytest.mark.parametrize(
    ("names", "dev", "test"),
    [
        # As the benchmark was published, and as a split of the Hub's is in several files.
        (["data/dev/anatomy_dev.csv", "data/test/anatomy_test.csv", "data/val/anatomy_val.csv"], 1, 1),
        (["all/test-00000-of-00002.parquet", "all/test-00001-of-00002.parquet", "all/dev-0.parquet"], 1, 2),
        (["test.jsonl", "latest.jsonl", "developers/test-0.parquet", "README.md"], 0, 2),
        (["all/dev-0.parquet", "anatomy/dev-0.parquet", "anatomy/test-0.parquet"], 2, 1),
    ],
)
def test_the_splits_are_told_from_the_names(names: list[str], dev: int, test: int) -> None:
    assert tuple(map(len, chosen_files(names))) == (dev, test)


def test_a_file_in_parquet_is_read_like_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "q.parquet"
    file.write_bytes(in_parquet(rows("test", ("anatomy",), 6)))
    found = read_questions(file)
    assert found[5] == Question("anatomy", "test 5 of anatomy: which is «5»?", ["6", "5", "7", "8"], 1)
    assert mmlu.in_chat(found, lambda messages, most: "B", 2).asked == 2
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(QuantizeError, match="need pyarrow: pip install pyarrow"):
        read_questions(file)
