"""bench/hostile and what it is made of: what the generators give, what the meters read, what the verdict says."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from bench.hostile.attack import Shot, chat, fire
from bench.hostile.meters import Meter, Seen, read
from bench.hostile.rows import FULL, MAX_BODY, SHORT, plans
from bench.hostile.stage import KINDS
from bench.hostile.verdict import Quiet, Run, better, kept, summary, table
from bench.hostile.verdict import Seen as Row
from tests.support.hostile import bodies, folders, templates
from tests.support.loopback_hub import LoopbackHub
from tests.support.running import Running, serving_script
from tests.support.streams import until
from tests.support.tiny_model import write_tiny_model

NOT_JSON = {"depth never closed", "NaN", "-Infinity", "commas", "a list cut off", "a string cut off", "not UTF-8"}
QUIET = Quiet(health_s=0.03, token_s=0.02, usual_health_s=0.02, usual_token_s=0.002)
HELD = dict.fromkeys(KINDS, 100 * 2**20)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("sound") / "model")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, sound: Path) -> Iterator[Running]:
    with serving_script(tmp_path_factory.mktemp("served"), sound, ["--interval", "0.01"]) as running:
        yield running


# ---- what is sent


@pytest.mark.parametrize("name", bodies.SHAPES)
def test_a_shape_fills_the_size_and_no_more(name: str) -> None:
    for size in (1000, 100_000):
        assert size * 0.8 <= len(bodies.value(name, size)) <= size


@pytest.mark.parametrize("name", sorted(bodies.SHAPES.keys() - NOT_JSON))
def test_a_shape_is_json_unless_it_is_meant_not_to_be(name: str) -> None:
    assert "max_tokens" in json.loads(bodies.body("unknown", bodies.value(name, 900)))


@pytest.mark.parametrize("name", sorted(NOT_JSON - {"NaN", "-Infinity"}))
def test_what_is_not_json_is_not(name: str) -> None:
    with pytest.raises(ValueError):
        json.loads(bodies.value(name, 900))


@pytest.mark.parametrize("kind", templates.KINDS)
def test_the_same_seed_gives_the_same_templates_and_another_seed_others(kind: str) -> None:
    def made(seed: int) -> list[str]:
        draw = random.Random(seed)
        return [templates.template(kind, draw) for _ in range(20)]

    assert made(1) == made(1)
    assert len(set(made(1))) > 3
    assert made(1) != made(2)


def test_a_changed_folder_leaves_the_sound_one_alone(sound: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in sound.iterdir()}
    edit = folders.TOKENIZERS["doubling normalizers"]
    file = folders.edited(sound, "tokenizer.json", edit, random.Random(0))
    made = folders.changed(sound, tmp_path / "made", {"tokenizer.json": file})
    assert (made / "tokenizer.json").read_bytes() == file != before["tokenizer.json"]
    assert {path.name: path.read_bytes() for path in sound.iterdir()} == before


@pytest.mark.parametrize("case", folders.DESCRIPTIONS)
def test_a_description_is_another_than_the_hubs(case: str, tmp_path: Path) -> None:
    hub = LoopbackHub()
    assert folders.described(case, hub.info("a/b", hub.files), tmp_path) != hub.info("a/b", hub.files)


def test_every_row_has_a_name_of_its_own_and_no_body_is_refused_for_its_size_alone(tmp_path: Path) -> None:
    """A row that a 413 answers would prove nothing."""
    names: list[str] = []
    for plan in plans(tmp_path, SHORT, 0):
        names += [row.name for row in plan.rows]
        if plan.name == "texts":
            assert max(len(shot.body) for row in plan.rows for shot in row.shots()) <= MAX_BODY
    assert len(names) == len(set(names)) > 100
    most = MAX_BODY // 20
    assert max(len(bodies.body("unknown", bodies.value(name, most - 200))) for name in bodies.SHAPES) <= most


def test_the_full_run_has_200_templates() -> None:
    assert FULL.templates * len(templates.KINDS) == 200


# ---- what is seen


def test_the_longest_gap_counts_from_the_start_and_to_the_end_of_a_row() -> None:
    seen = Seen((0.0, 1.0, 1.5, 4.0))
    assert seen.longest(0.5, 2.0) == 0.5
    assert seen.longest(0.5, 3.5) == 2.0
    assert seen.longest(4.0, 9.0) == 5.0


def test_a_line_half_written_is_no_beat_and_the_end_of_a_stream_says_why(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("1.0\n2.0\n2.5")
    assert read(log) == Seen((1.0, 2.0))
    log.write_text("1.0\n2.0\n2.5 an error event\n")
    assert read(log) == Seen((1.0, 2.0), "an error event")


def test_the_meters_see_a_server_that_answers_and_one_that_is_gone(sound: Path, tmp_path: Path) -> None:
    with serving_script(tmp_path, sound, ["--interval", "0.01"]) as server:
        meters = [Meter(kind, server.port, tmp_path / kind) for kind in ("stream", "health")]
        try:
            until(lambda: all(len(meter.seen().beats) > 5 for meter in meters))
            assert [meter.seen().ended for meter in meters] == ["", ""]
            assert all(a < b for meter in meters for a, b in pairwise(meter.seen().beats))
            server.process.kill()
            until(lambda: bool(meters[0].seen().ended))
        finally:
            for meter in meters:
                meter.stop()


def test_what_a_shot_came_to_is_counted(server: Running) -> None:
    good = Shot("/v1/chat/completions", chat("tiny", "Hi"))
    bad = Shot("/v1/chat/completions", b"{")
    unfinished = Shot("/v1/chat/completions", chat("tiny", "Hi"), leave_s=0.05, withheld=5)
    endless = Shot("/v1/chat/completions", chat("tiny", "Hi", max_tokens=-1))
    assert fire(server.port, [good, bad, unfinished], 2, 60) == {"200": 1, "400": 1, "left": 1}
    assert fire(server.port, [endless, good], 1, 0.1) == {"late": 1, "unsent": 1}
    server.assert_still_serves()


def test_shots_are_shared_among_those_who_fire(server: Running) -> None:
    running: list[int] = []

    def shots() -> Iterator[Shot]:
        for _ in range(6):
            running.append(threading.get_ident())
            yield Shot("/tokenize", b'{"content": "a"}')

    assert fire(server.port, shots(), 3, 60) == {"200": 6}


# ---- what is said of it


def row(**fields: object) -> Row:
    return replace(Row("plan", "row", {"400": 1}, 0.05, (0.02, 0.03), (), 0.1, HELD, HELD, HELD), **fields)  # type: ignore[arg-type]


BROKEN: dict[str, tuple[dict[str, object], str]] = {
    "health": ({"health_s": 0.2}, "/health +170 ms"),
    "token": ({"token_s": (0.02, 0.4)}, "token +380 ms"),
    "ended": ({"ended": ["an error event"]}, "a stream ended: an error event"),
    "next": ({"next_s": None}, "the next request was not answered"),
    "workers": ({"workers": 2}, "2 workers left"),
    "killed": ({"killed": True}, "the server had to be killed"),
    "trespass": ({"trespass": "files of another folder were touched: a"}, "files of another folder were touched: a"),
    "kept": ({"after": HELD | {"engine": 2**27}}, "engine: 128 MiB, 100 before"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_promise_is_named(case: str) -> None:
    fields, said = BROKEN[case]
    run = Run(QUIET, 1.0, [row(), row(**fields)])
    assert run.broken == [f"row: {said}"]
    assert f"BROKEN  row: {said}" in table(run)
    assert not summary(run).met


def test_a_sound_run_is_met() -> None:
    run = Run(QUIET, 1.0, [row()])
    assert run.broken == []
    assert summary(run).met


def test_a_busy_machine_gets_longer_limits() -> None:
    assert row(health_s=0.2).broken(QUIET, 2.0) == []


def test_of_two_tries_the_one_counts_that_kept_more() -> None:
    tries = [row(health_s=0.2), row(health_s=0.02)]
    assert [seen.disturbed for seen in (row(others=0.01), row(others=1.2))] == [False, True]
    assert better(*tries, QUIET, 1.0) is better(*reversed(tries), QUIET, 1.0) is tries[1]


def test_memory_counts_only_where_there_was_a_process_before() -> None:
    assert kept(HELD | {"text processes": 0}, HELD | {"HTTP process": 109 * 2**20}) == []
