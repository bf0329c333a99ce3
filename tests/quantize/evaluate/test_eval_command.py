"""`configi eval` on tiny models: its figures against a whole-model pass, its report, its sentences."""

from __future__ import annotations

import gc
import json
import queue
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from filelock import FileLock
from mlx_lm import convert
from mlx_lm.utils import load, load_tokenizer

from quantize.__main__ import cli
from quantize.errors import QuantizeError, SourceError
from quantize.evaluate.evaluate import Wishes, evaluate
from quantize.evaluate.plots import draw
from quantize.evaluate.report import card_section
from quantize.evaluate.tasks.questions import Question
from quantize.evaluate.texts import OWN, passages, read_texts
from quantize.evaluate.written import put_into_card
from quantize.source.checkpoint import HubOptions
from tests.support.commands import configi
from tests.support.families import write_family
from tests.support.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("eval")
    source = write_tiny_model(folder / "source")
    convert(str(source), str(folder / "quantized"), quantize=True, q_bits=3, q_group_size=64)
    return folder / "quantized", source


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two kinds, one of them uncovered."""
    file = tmp_path_factory.mktemp("text") / "few.jsonl"
    lines = OWN.read_text(encoding="utf-8").splitlines()
    file.write_text("\n".join(line for line in lines if json.loads(line)["kind"] in ("reasoning", "drama")))
    return file


def test_figures_are_those_of_the_whole_models(models: tuple[Path, Path], text: Path) -> None:
    quantized, source = models
    found = evaluate(quantized, str(source), Wishes(texts=[text], length=128, float32=False))
    expected = []
    (candidate, tokenizer), (reference, _) = load(str(quantized))[:2], load(str(source))[:2]
    for passage in passages(read_texts(text), tokenizer, 128):
        tokens = mx.array([passage.tokens])
        p, q = (model(tokens)[0, passage.given - 1 : -1] for model in (reference, candidate))
        p, q = (logits - mx.logsumexp(logits, -1, keepdims=True) for logits in (p, q))
        expected.append(np.array((mx.exp(p) * (p - q)).sum(-1)))
    every = np.concatenate(expected)
    assert found.groups["all"].tokens == len(every)
    assert found.groups["all"].kl.value == pytest.approx(every.mean(), rel=1e-4)
    assert found.groups["all"].kl_max == pytest.approx(every.max(), rel=1e-4)
    assert set(found.kinds) == {"reasoning", "drama"}
    assert found.groups["uncovered"] == found.kinds["drama"]


def test_the_command_reports_in_json_markdown_and_pictures(
    models: tuple[Path, Path], text: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    folder, reference = map(str, models)
    call = ["eval", folder, "--reference", reference, "--text", str(text), "--length", "128"]
    call += ["--states", str(tmp_path / "states")]
    first = configi(*call, "--generate", "80", "--json", "--report", str(tmp_path / "report"), "--plots")
    read = json.loads(first.stdout)
    assert read == json.loads((tmp_path / "report" / "report.json").read_text())
    assert {one["tokens"] for one in read["generated"]} <= set(range(81))
    report = (tmp_path / "report" / "report.md").read_text()
    assert "## Quality" in report
    assert "| **uncovered** |" in report
    for name in ("kl-by-kind.svg", "kl-of-tokens.svg"):
        assert f"]({name})" in report
        assert (tmp_path / "report" / name).read_text().startswith("<?xml")
    # The reference's hidden states are kept; with them the figures are the same.
    assert list((tmp_path / "states").iterdir())
    assert json.loads(configi(*call, "--generate", "0", "--json").stdout)["groups"] == read["groups"]


def test_peak_memory_of_a_reply_is_that_of_the_model_alone(models: tuple[Path, Path], text: Path) -> None:
    folder, reference = models
    wishes = Wishes(texts=[text], length=128, generate=4, needles=1, needle_lengths=[64], reference_needles=True)
    gc.collect()
    before = mx.get_active_memory()
    (first, _) = evaluate(folder, str(reference), wishes).generated or ()
    # Some 400 kB; the reference has 500, and its hidden states more.
    assert first.speed.peak_memory - before < 700_000


def test_who_waits_is_told_of_every_question(models: tuple[Path, Path], text: Path) -> None:
    questions = [Question("sums", "1 + 1?", ["1", "2", "3", "4"], 1)] * 8
    told: dict[str, list[tuple[int, int]]] = {}
    wishes = Wishes(texts=[text], length=128, most_passages=2, questions=questions, most_questions=2)
    wishes = replace(wishes, needles=1, needle_lengths=[32])
    evaluate(models[0], str(models[1]), wishes, lambda what, *done: told.setdefault(what, []).append(done))
    asked = {what: done for what, done in told.items() if what.startswith(("asking", "looking"))}
    assert asked == {
        "asking for letters": [(1, 2), (2, 2)],
        "asking in conversation": [(1, 2), (2, 2)],
        "looking for needles": [(1, 3), (2, 3), (3, 3)],
    }


def test_two_evaluations_with_the_same_states_do_not_meet(
    models: tuple[Path, Path], text: Path, tmp_path: Path
) -> None:
    """Each would drop what the other still needs."""
    folder, reference = models
    wishes = Wishes(texts=[text], length=128, most_passages=2, states=tmp_path)
    first = evaluate(folder, str(reference), wishes)
    (kept,) = tmp_path.iterdir()
    told: queue.Queue[str] = queue.Queue()
    with ThreadPoolExecutor(1) as pool:
        with FileLock(kept / "lock"):
            second = pool.submit(evaluate, folder, str(reference), wishes, lambda what, *_: told.put(what))
            assert told.get(timeout=60) == "waiting for another evaluation with these states"
        assert second.result(60).groups == first.groups


def test_no_figure_of_the_model_itself(models: tuple[Path, Path], text: Path) -> None:
    _, source = models
    found = evaluate(source, str(source), Wishes(texts=[text], length=128))
    assert found.groups["all"].kl_max == 0
    assert found.groups["all"].same_top.value == 1
    assert "| **all** |" in card_section(found)


def test_a_folder_whose_config_names_no_type_is_told_what_is_missing(
    models: tuple[Path, Path], text: Path, tmp_path: Path
) -> None:
    shutil.copytree(models[0], tmp_path / "typeless")
    config = tmp_path / "typeless" / "config.json"
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "model_type"}))
    with pytest.raises(SourceError, match="mlx-lm cannot load typeless: model_type is missing"):
        evaluate(tmp_path / "typeless", str(models[1]), Wishes(texts=[text]))


def test_another_vocabulary_is_refused_in_a_sentence(models: tuple[Path, Path], text: Path, tmp_path: Path) -> None:
    done = configi(
        "eval", str(models[0]), "--reference", str(write_family(tmp_path, "llama")), "--text", str(text), check=False
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "vocabular" in done.stderr


def test_another_tokenizer_of_as_many_tokens_is_refused(models: tuple[Path, Path], text: Path, tmp_path: Path) -> None:
    """The figures would be of one text against another."""
    quantized, source = models
    other = tmp_path / "other"
    shutil.copytree(source, other)
    read = json.loads((other / "tokenizer.json").read_text())
    vocabulary = read["model"]["vocab"]
    numbers = sorted(vocabulary.values())
    read["model"]["vocab"] = dict(zip(vocabulary, [*numbers[7:], *numbers[:7]], strict=True))
    (other / "tokenizer.json").write_text(json.dumps(read))
    with pytest.raises(SourceError, match=r"have different tokenizers: of the \d+ tokens in the text, \d+ are"):
        evaluate(quantized, str(other), Wishes(texts=[text], length=128))
    # Without one it is taken at its word.
    for file in other.glob("*token*"):
        file.unlink()
    assert evaluate(quantized, str(other), Wishes(texts=[text], length=128, most_passages=1)).groups["all"].tokens


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        ({"questions": [Question("anatomy", "?", ["a", "b", "c", "d"], 0)] * 5}, "the first 5 are examples"),
        ({"reference_needles": True, "needles": 1}, "need the reference as a folder"),
    ],
)
def test_what_would_fail_at_the_end_is_said_before_the_work(
    wish: dict[str, Any], sentence: str, models: tuple[Path, Path]
) -> None:
    # No Hub has the reference: nothing was asked of one yet.
    with pytest.raises(SourceError, match=sentence):
        evaluate(models[0], "owner/name", Wishes(hub=HubOptions(offline=True), **wish))


def test_a_tokenizer_that_transformers_panics_over_is_a_sentence(
    models: tuple[Path, Path], text: Path, tmp_path: Path
) -> None:
    """Its checks of config.json raise errors of a class of their own."""
    broken = tmp_path / "broken"
    shutil.copytree(models[0], broken)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"layer_types": ["no such layer"]}))
    (broken / "tokenizer_config.json").unlink()
    with pytest.raises(SourceError, match=r"The tokenizer of broken cannot be loaded: .*layer_types"):
        evaluate(broken, str(models[1]), Wishes(texts=[text], length=128))


def test_a_long_text_is_judged_without_a_warning(models: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("The keeper of the lighthouse counted the waves. " * 400)
    call = ["eval", str(models[0]), "--reference", str(models[1]), "--text", str(tmp_path / "long.txt")]
    assert configi(*call, "--passages", "1", "--generate", "0", "--json").stderr == ""


def test_a_report_that_fails_at_the_end_costs_no_figure(models: tuple[Path, Path], text: Path, tmp_path: Path) -> None:
    (tmp_path / "report.json").mkdir()
    call = ["eval", str(models[0]), "--reference", str(models[1]), "--text", str(text), "--passages", "2"]
    done = configi(*call, "--generate", "0", "--json", "--report", str(tmp_path), check=False)
    assert done.returncode == 1
    assert "The report cannot be written: " in done.stderr
    assert json.loads(done.stdout)["groups"]["all"]["tokens"] > 0


@pytest.mark.parametrize("missing", ["folder", "reference", "text", "mmlu"])
def test_what_is_not_there_is_one_sentence(missing: str, models: tuple[Path, Path], text: Path) -> None:
    given = {"folder": str(models[0]), "reference": str(models[1]), "text": str(text)}
    given[missing] = "./not-there"
    folder = given.pop("folder")
    options = [part for name, value in given.items() for part in (f"--{name}", value)]
    done = configi("eval", folder, *options, check=False)
    assert done.returncode == 1
    assert "not-there" in done.stderr
    assert done.stderr.count("\n") == 1


def test_what_was_mistyped_is_said_before_mlx_lm_is_imported(
    models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlx_lm.utils", None)
    with pytest.raises(SourceError, match=r"no config\.json"):
        evaluate(Path("not-there"), str(models[1]), Wishes())
    with pytest.raises(SourceError, match="neither a folder"):
        evaluate(models[0], "./not-there", Wishes())


def test_without_matplotlib_the_plots_are_refused_in_a_sentence(
    models: tuple[Path, Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = evaluate(models[1], str(models[1]), Wishes(texts=[text], length=128, most_passages=2))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(QuantizeError, match="pip install matplotlib"):
        draw(found, tmp_path)
    # And before the work: no such reference is looked for.
    call = ["eval", str(models[0]), "--reference", "./not-there", "--report", str(tmp_path), "--plots"]
    with pytest.raises(QuantizeError, match="pip install matplotlib"):
        cli(call, standalone_mode=False)


def test_as_many_passages_of_each_kind_where_there_are_too_many(models: tuple[Path, Path], text: Path) -> None:
    found = evaluate(models[1], str(models[1]), Wishes(texts=[text], length=64, most_passages=4))
    assert {kind: figures.passages for kind, figures in found.kinds.items()} == {"reasoning": 2, "drama": 2}
    assert load_tokenizer(models[1]).has_chat_template


@pytest.mark.parametrize(
    ("content", "wish", "sentence"),
    [
        ('{"text": "a"}', {}, "no answer that is long enough"),
        ('{"kind": "prose", "text": "hello"}', {"covered": ["prsoe"]}, "No text is of the kind prsoe; there are prose"),
        ('{"text": "hello"}', {"calibrated_on": OWN}, "was not calibrated"),
        ('{"text": "hello"}', {"states": OWN}, "not a folder"),
    ],
)
def test_what_would_measure_nothing_is_a_sentence(
    content: str, wish: dict[str, Any], sentence: str, models: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "t.jsonl").write_text(content.replace("hello", "Hello, and tell them a story about the sea."))
    with pytest.raises(QuantizeError, match=sentence):
        evaluate(models[0], str(models[1]), Wishes(texts=[tmp_path / "t.jsonl"], **wish))


def test_a_report_that_cannot_be_written_is_said_before_the_work(models: tuple[Path, Path], text: Path) -> None:
    # No such reference: it would be found missing if it were looked for first.
    call = ["eval", str(models[0]), "--reference", "./not-there", "--report", str(text)]
    done = configi(*call, check=False)
    assert done.returncode == 1
    assert "The report cannot be written: what is there is not a folder." in done.stderr
    done = configi("eval", str(models[0]), "--reference", str(models[1]), "--reference-needles", check=False)
    assert done.returncode == 2
    assert "--needles" in done.stderr


def test_the_result_goes_into_the_model_card_once(models: tuple[Path, Path], text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "built"
    configi("build", str(models[1]), str(folder), "--policy", "uniform-4")
    before = (folder / "README.md").read_text()
    call = ["eval", str(folder), "--reference", str(models[1]), "--text", str(text), "--generate", "0", "--card"]
    for length in ("64", "128"):
        configi(*call, "--length", length)
    card = (folder / "README.md").read_text()
    assert card.startswith(before)
    assert card.count("## Quality") == 1
    assert "passages of at most 128 tokens" in card
    # The manifest knows it.
    configi("verify", str(folder))


@pytest.mark.parametrize("heading", ["# Licence", "## Licence"])
def test_what_stands_behind_an_earlier_result_stays_in_the_card(heading: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"# M\n\n## Quality\n\nold\n\n{heading}\n\nMine.\n")
    put_into_card(tmp_path, "## Quality\n\nnew\n")
    assert (tmp_path / "README.md").read_text() == f"# M\n\n{heading}\n\nMine.\n\n## Quality\n\nnew\n"
