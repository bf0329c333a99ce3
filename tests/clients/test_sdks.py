"""Clients' SDKs, driven against a running server whose engine speaks by script: what each of them makes of it.

Each driver of `drivers/` is run once for each protocol that it has; every feature is a test. Those whose packages the
tests have anyway run in every run of the tests, in the versions that are locked.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from tests.support.client_drivers import Driver, drivers, run
from tests.support.client_environments import OWN, installed
from tests.support.client_results import FEATURES, record
from tests.support.running import serving_script
from tests.support.speaking import CITY, DEGREES, JSON_VALUE, THOUGHT
from tests.support.tool_model import write_tool_model

KEY = "key-of-the-suite"
_LIGHT = {"openai_chat.py", "openai_responses.py", "anthropic.py"}
RUNS = [
    pytest.param(
        driver, api, id=f"{driver.path.name}-{api}", marks=[] if driver.path.name in _LIGHT else pytest.mark.clients
    )
    for driver in drivers()
    for api in driver.apis
]
Drive = Callable[[Driver, str], Mapping[str, Any]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tool_model(tmp_path_factory.mktemp("clients-model"))


@pytest.fixture(scope="module")
def drive(model: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Drive]:
    """Runs a driver once; what came of each feature, "yes" or why not."""
    newest = bool(request.config.getoption("--record"))
    folder = tmp_path_factory.mktemp("clients")
    with serving_script(folder, model, ["--speaks"], server={"api_key": KEY}) as server:
        access = {"BASE": server.url, "KEY": KEY, "MODEL": "tiny"}

        @functools.cache
        def driven(driver: Driver, api: str) -> Mapping[str, Any]:
            own = driver.path.name in _LIGHT and not newest
            environment = OWN if own else installed(driver.path.name, driver.packages, python=driver.python)
            lines = run(driver, environment, api, access, tmp_path_factory.mktemp("home"))
            outcomes = {line["feature"]: _outcome(line, model) for line in lines}
            if newest:
                record("sdk", driver.client, api, environment.version(driver.packages[0]), outcomes)
            return outcomes

        yield driven


@pytest.mark.parametrize("feature", FEATURES["sdk"])
@pytest.mark.parametrize(("driver", "api"), RUNS)
def test_a_client_gets_what_it_asks_for(drive: Drive, driver: Driver, api: str, feature: str) -> None:
    outcome = drive(driver, api).get(feature)
    if outcome is None:
        pytest.skip("its SDK has nothing of the kind")
    if outcome.startswith("lacks: "):
        pytest.skip(outcome)
    assert outcome == "yes"


def _outcome(line: Mapping[str, Any], model: Path) -> str:
    if "lacks" in line:
        return f"lacks: {line['lacks']}"
    if "failed" in line:
        return f"failed: {line['failed'].strip()}"
    value = line["value"]
    return "yes" if _CHECKS[line["feature"]](value, model) else f"failed: {value!r}"


def _plain(value: Any, _: Path) -> bool:
    return bool(value == CITY)


def _stream(value: Any, _: Path) -> bool:
    """Some SDKs give pieces of text, others an object that fills up."""
    if isinstance(value, dict):
        return bool(value == JSON_VALUE)
    pieces = [piece for piece in value if piece]
    return "".join(pieces) == CITY and len(pieces) > 1


def _tools(value: Any, _: Path) -> bool:
    return bool(value["calls"] == [["weather", {"city": "Paris"}]] and DEGREES in value["text"])


def _usage(value: Any, model: Path) -> bool:
    """Of the question alone where the client adds nothing to it; what the script counts as cached is half of it."""
    prompt, completion, cached = value
    least = len(Tokenizer.from_file(str(model / "tokenizer.json")).encode(CITY).ids)
    return prompt > 5 and completion >= least and cached in (None, prompt // 2)


_CHECKS: Mapping[str, Callable[[Any, Path], bool]] = {
    "plain": _plain,
    "stream": _stream,
    "tools": _tools,
    "forced": lambda value, _: value == ["weather", {"city": "Paris"}],
    "structured": lambda value, _: value == JSON_VALUE,
    "reasoning": lambda value, _: [part.strip() for part in value] == [THOUGHT, CITY],
    "usage": _usage,
    # The person reads the server's own sentence.
    "overflow": lambda value, _: "tokens" in value["message"] and "4096" in value["message"],
    "unknown_model": lambda value, _: "nobody" in value["message"],
    "wrong_key": lambda value, _: "key" in value["message"].lower(),
}
