"""What agents asked, three requests of one task each, asked again of real weights: what need not be read again.

The words are made up, the shapes are those of `shapes/`. The model has sliding windows, whose caches cannot go back,
and a template that keeps the thoughts of the turns behind the last question. `make test-slow` runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.agent_shapes import Shape, shapes
from tests.support.client_results import record_replay
from tests.support.loop_templates import THOUGHTS
from tests.support.running import Running, serving
from tests.support.sliding_model import write_sliding_model

pytestmark = pytest.mark.slow
LEAST = 0.98
# Of the prompt: the tokens, and those that were not read again.
Counts = tuple[int, int]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_sliding_model(tmp_path_factory.mktemp("replay-model"), context=65_536)
    (folder / "chat_template.jinja").write_text(THOUGHTS)
    return folder


@pytest.fixture(scope="module", params=["one server", "restarted"])
def counts(
    request: pytest.FixtureRequest, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, list[Counts]]]:
    """By the name of each agent, what its three requests cost; `restarted`: between them the server was."""
    kept = tmp_path_factory.mktemp("replay-kept")
    asked = {_name(shape): list(shape.asked()) for shape in shapes()}
    found: dict[str, list[Counts]] = {name: [] for name in asked}

    def ask(server: Running, step: int) -> None:
        for shape in shapes():
            found[_name(shape)].append(_counts(server, shape, asked[_name(shape)][step]))

    if request.param == "one server":
        with _serving(model, kept, tmp_path_factory) as server:
            for step in range(3):
                ask(server, step)
    else:
        for step in range(3):
            with _serving(model, kept, tmp_path_factory) as server:
                ask(server, step)
                server.stop()
    if request.config.getoption("--record"):
        for shape in shapes():
            record_replay(shape.client, shape.api, request.param, found[_name(shape)])
    yield found


def _serving(model: Path, kept: Path, folders: pytest.TempPathFactory) -> Any:
    return serving(
        folders.mktemp("replay"),
        model,
        storage={"cache_dir": str(kept)},
        cache={"disk_limit": 10**10},
    )


def _name(shape: Shape) -> str:
    return f"{shape.client} {shape.api}"


def _counts(server: Running, shape: Shape, body: dict[str, Any]) -> Counts:
    limit = {"chat": "max_tokens", "messages": "max_tokens", "responses": "max_output_tokens"}[shape.api]
    status, answer = server.post(shape.path, body | {"model": "tiny", limit: 1})
    assert status == 200, answer
    return _USAGE[shape.api](answer["usage"])


_USAGE: dict[str, Callable[[dict[str, Any]], Counts]] = {
    "chat": lambda used: (used["prompt_tokens"], used["prompt_tokens_details"]["cached_tokens"]),
    "responses": lambda used: (used["input_tokens"], used["input_tokens_details"]["cached_tokens"]),
    "messages": lambda used: (
        used["input_tokens"] + used["cache_read_input_tokens"],
        used["cache_read_input_tokens"],
    ),
}


@pytest.mark.parametrize("shape", shapes(), ids=_name)
def test_what_was_read_for_one_request_is_not_read_for_the_next(counts: dict[str, list[Counts]], shape: Shape) -> None:
    (first, _), (second, of_first), (_, of_second) = counts[_name(shape)]
    assert of_first / first >= LEAST, counts[_name(shape)]
    assert of_second / second >= LEAST, counts[_name(shape)]
