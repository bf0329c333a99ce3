"""What bench/ makes of its measurements: pure helpers, the client's clock, and the pictures of the docs."""

from __future__ import annotations

import asyncio
import importlib
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm.utils import load_model
from tokenizers import Tokenizer

from bench import benchy, models, prompts, servers, serving, soak, squeezed
from bench import peers as peers_module
from bench.flatness import Sample, growths
from bench.peers import PEERS
from bench.pictures import Bar, bars, lines, pictures, ratios, svg
from bench.reliability import Judged, brier, reliability
from bench.report import ASSETS
from bench.result import (
    Curve,
    Figure,
    Measured,
    Result,
    Row,
    Target,
    figures,
    median_of,
    read,
    results,
    same_answers,
    write,
)
from bench.scenario import Scenario, Side, on_windows
from bench.scenarios.long_prompt import longest_gap
from bench.setup import Setup
from bench.sse import Client, NoAnswer
from bench.tables import tables
from server.engine.device.pressure import Pressure
from server.settings.loading import load_settings
from tests.support.running import Running, serving_script
from tests.support.tiny_model import BOS_ID, END_ID, START_ID, write_tiny_model

SETUP = Setup("2026-11-24", "a machine", 2, "3.11", "0.32.4", "0.32.2", "0.1.0", "a BLAS")
ROWS = (Row("gap", "longest gap", "s", Target(0.1)), Row("share", "share", "", Target(0.9, True, absolute=True)))

# Stands in for llama-benchy: reads the book, writes a report.
BENCHY_SCRIPT = """
import json, sys, urllib.error, urllib.request
given = dict(zip(sys.argv, sys.argv[1:]))
try:
    book = urllib.request.urlopen(given["--book-url"]).read()
except urllib.error.HTTPError:
    sys.exit("the book is gone")
json.dump({"words": len(book.split())}, open(given["--save-result"], "w"))
"""


def result(**values: float) -> Result:
    reference = Measured({"gap": 10.0, "share": 0.5})
    return Result("running_stream", "A title", "mlx_lm.server", SETUP, figures(ROWS, reference, Measured(values)))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("bench")
    with serving_script(folder, write_tiny_model(folder / "model"), ["--interval", "0.02"]) as running:
        yield running


def test_a_ratio_is_configis_figure_by_the_others() -> None:
    assert Figure("", "s", 4.0, 1.0).ratio == 0.25
    assert Figure("", "s", None, 1.0).ratio is None


def test_a_target_holds_for_the_ratio_or_for_the_figure_itself() -> None:
    assert [figure.met for figure in result(gap=1.0, share=0.9).figures] == [True, True]
    assert [figure.met for figure in result(gap=1.1, share=0.8).figures] == [False, False]
    assert not result(gap=1.0, share=0.8).met


def test_a_figure_that_nobody_else_has_is_neither_met_nor_missed() -> None:
    assert Figure("", "s", None, 1.0, Target(0.1)).met is None


def test_the_ratio_is_to_the_best_of_the_others_whoever_that_is() -> None:
    gap = Figure("", "s", 4.0, 1.0, Target(0.8), {"Rapid-MLX": 1.0, "vllm-mlx": 0.0})
    rate = Figure("", "tok/s", 40.0, 50.0, Target(1.05, True), {"Rapid-MLX": 50.0}, more_is_better=True)
    assert [(f.best, f.ratio, f.met) for f in (gap, rate)] == [(1.0, 1.0, False), (50.0, 1.0, False)]


@pytest.fixture
def peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where peers are looked for: Rapid-MLX is installed, vllm-mlx is not."""
    monkeypatch.setenv("CONFIGI_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CONFIGI_BENCH_PEERS", str(tmp_path / "peers"))
    programs = tmp_path / "peers" / "rapid-mlx" / "bin"
    programs.mkdir(parents=True)
    (programs / "rapid-mlx").touch()
    (programs / "python").write_text("#!/bin/sh\necho 0.16.10 0.31.2 0.31.3\n")
    (programs / "python").chmod(0o755)
    return programs


def measured_as(values: dict[str, float]) -> Scenario:
    def measure(side: Side) -> Measured:
        if side.kind not in values:
            raise NoAnswer("it said no")
        return Measured({"gap": values[side.kind], "share": 1.0}, ("a",))

    return Scenario("made_up", "Made up", ROWS, measure, model="sliding")


@pytest.mark.usefixtures("peers")
def test_a_peer_that_is_not_there_or_fails_is_left_out_and_named(tmp_path: Path) -> None:
    made = serving.measured(measured_as({"mlx_lm.server": 4.0, "Rapid-MLX": 2.0, "configi": 1.0}), 1)
    assert made.figures[0].peers == {"Rapid-MLX": 2.0}
    assert made.notes[0] == "Rapid-MLX 0.16.10 (mlx 0.31.2, mlx-lm 0.31.3)."
    assert made.notes[1].startswith("vllm-mlx is left out: not installed")
    assert "| longest gap | 4 s | 2 s | 1 s | 0.50x |" in tables({"running_stream": made})["bench-serving"]
    failing = serving.measured(measured_as({"mlx_lm.server": 4.0, "configi": 1.0}), 2)
    assert "Rapid-MLX is left out: it said no." in failing.notes
    assert failing.figures[0].ratio == 0.25


@pytest.mark.usefixtures("peers")
@pytest.mark.parametrize(("said", "recorded"), [("", True), ("40 % of the processors were taken by others", False)])
def test_nothing_is_recorded_on_a_machine_that_does_something_else(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    said: str,
    recorded: bool,
) -> None:
    monkeypatch.setattr(serving, "disturbance", lambda: said)
    scenario = measured_as({"mlx_lm.server": 4.0, "configi": 1.0})
    assert serving.run(scenario, 1, tmp_path / "results") is recorded
    assert (tmp_path / "results" / "made_up.json").exists() is recorded
    assert ("NOT RECORDED: 40 %" in capsys.readouterr().out) is not recorded


def test_a_scenario_on_windows_has_a_name_of_its_own() -> None:
    scenario = on_windows(measured_as({}))
    assert (scenario.name, scenario.title, scenario.model) == ("sliding_made_up", "Sliding window: made up", "windows")


def test_a_peer_keeps_its_caches_where_the_repetition_ends(tmp_path: Path) -> None:
    environment = peers_module.environment(tmp_path / "home")
    assert (environment["HOME"], environment["DO_NOT_TRACK"]) == (str(tmp_path / "home"), "1")
    assert PEERS["vllm-mlx"].command(tmp_path, 7)[-1] == "--continuous-batching"


def test_repetitions_count_by_their_median() -> None:
    turns = [Measured({"x": x}, (str(x),), {"curve": ((1, x), (2, x))}) for x in (3.0, 1.0, 2.0)]
    assert median_of(turns) == Measured({"x": 2.0}, ("3.0", "1.0", "2.0"), {"curve": ((1, 2.0), (2, 2.0))})


def test_answers_that_differ_are_counted() -> None:
    assert same_answers(Measured({}, ("a", "b")), Measured({}, ("a", "c"))) == 1


def test_a_space_before_the_first_word_is_no_difference() -> None:
    # mlx-lm's streams drop it, whatever the tokenizer says.
    assert same_answers(Measured({}, ("a b", "a b")), Measured({}, (" a b", "a  b"))) == 1


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    curves = (Curve("stall", "t", "x", "y", {"configi": ((0.0, 1.0), (1.5, 2.0))}),)
    made = Result("one", "A title", "", SETUP, result(gap=1.0, share=1.0).figures, ("a note",), curves)
    assert read(write(made, tmp_path)) == made


def test_the_longest_gap_starts_with_the_last_token_before_the_long_prompt() -> None:
    assert longest_gap(((-9.0, 1), (-1.0, 2), (3.0, 3), (4.0, 4))) == 4.0


def samples(*rss: int, files: int = 10) -> list[Sample]:
    return [Sample(at, mib * 2**20, files, 5) for at, mib in enumerate(rss)]


def test_memory_that_settles_is_flat_and_memory_that_keeps_growing_is_not() -> None:
    settled, growing = growths(samples(50, 70, 100, 101, 102, 101)), growths(samples(50, 70, 100, 120, 140, 160))
    assert [growth.flat for growth in settled] == [True, True, True]
    assert [growth.flat for growth in growing] == [False, True, True]


def test_one_more_open_file_is_a_leak() -> None:
    leaking = samples(100, 100, 100, 100) + samples(100, 100, files=11)
    assert [growth.what for growth in growths(leaking) if not growth.flat] == ["open files"]


def test_too_few_samples_are_no_verdict() -> None:
    with pytest.raises(ValueError, match="5 samples are too few"):
        growths(samples(1, 2, 3, 4, 5))


def test_a_table_shows_both_sides_the_ratio_and_what_was_missed() -> None:
    table = tables({"running_stream": result(gap=2.0, share=0.95)})["bench-serving"]
    assert "| longest gap | 10 s | 2 s | 0.20x | ≤ 0.1x | **no** |" in table
    assert "| share | 0.5 | 0.95 |  | ≥ 0.9 | yes |" in table
    assert SETUP.line() in table


def test_sure_and_right_scores_nothing_and_sure_and_wrong_scores_one() -> None:
    assert brier([Judged((1.0, 0.0), 0), Judged((0.0, 1.0), 1)]) == 0
    assert brier([Judged((1.0, 0.0), 1)]) == 1
    assert brier([Judged((0.5, 0.5), 0), Judged((0.25, 0.25, 0.25, 0.25), 0)]) == pytest.approx(
        (0.25 + 0.75**2 + 3 * 0.25**2) / 5
    )


def test_a_point_of_reliability_is_what_was_said_and_how_often_it_was_so() -> None:
    said = [Judged((0.62, 0.38), 0)] * 9 + [Judged((0.68, 0.32), 1)] * 3 + [Judged((0.1, 0.9), 1)]
    [(probability, so)] = reliability(said)
    assert (probability, so) == (pytest.approx((9 * 0.62 + 3 * 0.68) / 12), 0.75)


def test_what_was_not_measured_says_so() -> None:
    assert set(tables({}).values()) == {"Not measured yet.\n"}


def test_the_pictures_of_the_docs_are_those_of_the_results() -> None:
    made = pictures(results())
    assert made
    on_disk = {path.name: path.read_text(encoding="utf-8") for path in ASSETS.glob("bench-*.svg")}
    assert on_disk == made, "run `python -m bench.report`"
    for text in made.values():
        ElementTree.fromstring(text)


def test_a_curve_is_drawn_point_by_point_from_zero() -> None:
    curve = Curve("c", "t", "x", "y", {"configi": ((0.0, 3.0), (1.5, 2.0)), "other": ((1.0, 9.0),)})
    [axes] = lines(curve).axes
    drawn = {line.get_label(): tuple(zip(*line.get_data(), strict=True)) for line in axes.get_lines()}
    assert (drawn, axes.get_ylim()[0]) == (curve.sides, 0)


def test_a_bar_goes_from_1_to_its_ratio_and_more_is_better() -> None:
    rows = (*ROWS, Row("speed", "speed", "tok/s", Target(0.97, True)))
    sides = Measured({"gap": 10.0, "share": 0.5, "speed": 4.0}), Measured({"gap": 2.5, "share": 0.9, "speed": 2.0})
    compared = list(ratios({"one_stream": Result("one_stream", "t", "", SETUP, figures(rows, *sides))}))
    # What is judged by itself alone, as the share, has no ratio to show.
    assert compared == [Bar("one stream: longest gap", 4.0, 10.0), Bar("one stream: speed", 0.5, 0.97)]
    [axes] = bars("t", compared).axes
    assert [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches] == [(1, 4.0), (1, 0.5)]
    assert [list(line.get_xdata()) for line in axes.get_lines()] == [[10.0, 10.0], [0.97, 0.97]]


def test_a_very_bad_ratio_is_not_cut_off_and_a_side_without_points_is_no_error() -> None:
    [axes] = bars("t", [Bar("bad", 0.01, 20.0)]).axes
    assert axes.get_xlim()[0] < 0.01 < 20.0 < axes.get_xlim()[1]
    assert svg(lines(Curve("c", "t", "x", "y", {"configi": ()})))


def test_a_picture_has_colors_for_a_dark_page_and_loads_nothing() -> None:
    picture = svg(bars("t", [Bar("one", 2.0, 1.0)]))
    assert "prefers-color-scheme: dark" in picture
    assert not re.search(r"""(?:href|src)="(?!#)|url\((?!#)|@import""", picture)


def test_the_same_number_asks_the_same_and_another_one_shares_nothing(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    assert prompts.text(model, 100, 1) == prompts.text(model, 100, 1)
    assert prompts.text(model, 100, 1)[:12] != prompts.text(model, 100, 2)[:12]


def test_configi_reads_the_settings_that_it_is_measured_with(tmp_path: Path) -> None:
    path = servers.configuration(tmp_path, tmp_path / "model", {"lifecycle": {"idle_unload_s": 4}})
    settings = load_settings(path, {})
    assert (settings.lifecycle.idle_unload_s, settings.lifecycle.load_at_start) == (4, True)
    assert settings.storage.cache_dir == tmp_path / "cache"


@pytest.mark.parametrize("stream", [True, False])
def test_the_client_counts_the_tokens_that_came(server: Running, stream: bool) -> None:
    answer = asyncio.run(Client(server.url).ask(prompts.chat("Hello", max_tokens=5, stream=stream)))
    assert (answer.completion_tokens, answer.finish_reason, len(answer.text)) == (5, "length", 5)
    # Neither the first chunk with the role nor the last with the usage is a token.
    assert len(answer.times) == (5 if stream else 0)
    assert answer.times == sorted(answer.times)


def test_the_client_tells_an_error_from_an_answer_that_is_lost(server: Running) -> None:
    refused = asyncio.run(Client(server.url).attempt({"messages": []}))
    assert (refused.status, refused.whole, refused.lost) == (400, False, "")
    nobody = asyncio.run(Client("http://127.0.0.1:9").attempt(prompts.chat("Hello", max_tokens=1)))
    assert (nobody.status, nobody.whole) == (0, False)
    assert nobody.lost
    with pytest.raises(NoAnswer, match="Status 400"):
        asyncio.run(Client(server.url).ask({"messages": []}))


def test_a_client_that_leaves_has_no_answer(server: Running) -> None:
    assert asyncio.run(Client(server.url).leave(prompts.chat("Hello", max_tokens=1000), 0.1)) is None
    server.assert_still_serves()


def greedy(folder: Path, tokens: int) -> tuple[list[int], mx.array]:
    """What the model in `folder` answers to a few tokens, and the logits of all it reads."""
    model = load_model(folder)[0]
    read = [5, 6, 7]
    for _ in range(tokens):
        logits = model(mx.array([read]))[0]
        read.append(int(mx.argmax(logits[-1])))
    return read[3:], logits


def test_the_model_with_windows_says_nothing_but_words(tmp_path: Path) -> None:
    tiny = write_tiny_model(tmp_path / "tiny")
    made = tmp_path / "windows"
    made.mkdir()
    models.write_windows(tiny, made, vocab_size=512, hidden_size=64, intermediate_size=64, head_dim=16)
    said, _ = greedy(made, 24)
    tokenizer = Tokenizer.from_file(str(made / "tokenizer.json"))
    assert all(re.fullmatch(" [A-Za-z]+", tokenizer.decode([token])) for token in said)
    assert len(set(said)) > 4


def test_an_endless_model_can_draw_no_special_token_and_any_other(tmp_path: Path) -> None:
    made = tmp_path / "endless"
    made.mkdir()
    models.write_endless(write_tiny_model(tmp_path / "tiny"), made)
    _, logits = greedy(made, 1)
    zeros = {token for token in range(logits.shape[-1]) if not mx.any(logits[:, token])}
    assert zeros == {BOS_ID, START_ID, END_ID}


def test_llama_benchy_gets_a_book_and_its_report_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "peers" / "llama-benchy" / "bin" / "llama-benchy"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!{sys.executable}\n{BENCHY_SCRIPT}")
    program.chmod(0o755)
    monkeypatch.setenv("CONFIGI_BENCH_PEERS", str(tmp_path / "peers"))
    side = Side("configi", write_tiny_model(tmp_path / "model"), tmp_path)
    with benchy.book(side) as address:
        assert benchy.asked(side, ["--book-url", address])["words"] > 1000
        with pytest.raises(NoAnswer, match="the book is gone"):
            benchy.asked(side, ["--book-url", f"{address}/none"])


def test_what_llama_benchy_measures_has_a_row_each() -> None:
    labels = [row.label for row in benchy.scenario(2048, 128, [0, 4096]).rows]
    assert labels[::2] == [
        "alone: time to first token",
        "reading 4,096 tokens ahead: time to first token",
        "behind 4,096 tokens: time to first token",
    ]


def test_an_engine_can_be_told_that_the_machine_is_short_of_memory(tmp_path: Path) -> None:
    level = tmp_path / "level"
    soak.say(level, Pressure.CRITICAL)
    program = partial(squeezed.program, said=level)
    with servers.running("configi", write_tiny_model(tmp_path / "model"), tmp_path, program) as server:
        [engine] = server.engines()
        assert "bench.squeezed" in engine.cmdline()
        for _ in range(100):
            asyncio.run(Client(server.url).ask(prompts.chat("Hello", max_tokens=1)))
            if "short of memory (critical)" in server.log.read_text():
                break
        else:
            pytest.fail("the engine did not notice")


def test_a_soak_in_which_the_disk_was_never_full_has_missed_its_purpose() -> None:
    log = soak.Log(waits=[0.1])
    log.said |= dict.fromkeys(log.said, 1)
    assert soak.result(log, "gemma", 30).met
    log.said["are not kept on disk"] = 0
    assert not soak.result(log, "gemma", 30).met


@pytest.mark.parametrize("path", sorted(Path("bench").rglob("*.py")), ids=str)
def test_every_measurement_can_be_started(path: Path) -> None:
    importlib.import_module(".".join(path.with_suffix("").parts))
