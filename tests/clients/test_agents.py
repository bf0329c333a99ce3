"""Coding agents, installed and run without a person against a running server whose engine speaks by script.

Each is asked for two commands: the model calls the agent's tool, the agent runs it and sends back what it said, twice,
and the model tells it. Its home is a folder that is thrown away, and so are its packages: they are large.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support import agent_shapes, client_results
from tests.support.agents import AGENTS, Agent, run
from tests.support.client_environments import Environment, installed, remove
from tests.support.recorded import exchanges
from tests.support.running import Running, serving_script
from tests.support.speaking import CITY, COMMANDS, TASK, TOLD
from tests.support.tool_model import write_tool_model

pytestmark = pytest.mark.clients
KEY = "key-of-the-suite"
# Agents begin with tens of kilobytes.
CONTEXT = 200_000
CAPITAL = "What is the capital of France? Answer in one word."


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tool_model(tmp_path_factory.mktemp("agents-model"), context=CONTEXT)


@pytest.fixture(scope="module", params=AGENTS, ids=[f"{agent.name} {agent.api}" for agent in AGENTS])
def agent(request: pytest.FixtureRequest) -> Agent:
    given: Agent = request.param
    return given


@pytest.fixture(scope="module")
def environment(agent: Agent, request: pytest.FixtureRequest) -> Iterator[Environment]:
    made = installed(f"agent-{agent.packages[0].rpartition('/')[2]}", agent.packages, python=agent.python)
    yield made
    # Another may be in the same packages; and whoever looks for a fault runs it again.
    last = [other for other in AGENTS if other.packages == agent.packages][-1]
    if request.config.getoption("--record") and agent == last:
        remove(made)


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """Where the server writes down what it is asked."""
    return tmp_path / "asked.jsonl"


@pytest.fixture
def server(agent: Agent, model: Path, tmp_path: Path, asked: Path) -> Iterator[Running]:
    locked = {"api_key": KEY} if agent.sends_key else {}
    with serving_script(tmp_path, model, ["--speaks", "--record", str(asked)], server=locked) as running:
        yield running


def test_an_agent_answers_runs_commands_and_tells_what_they_said(
    agent: Agent, environment: Environment, server: Running, asked: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    access = {"base": server.url, "key": KEY, "model": "tiny"}
    first = run(agent, environment, access, tmp_path / "first", CAPITAL)
    outcome = {"plain": "yes" if CITY in first else f"failed: {first[-2000:]}"}
    if agent.has_tools:
        text = run(agent, environment, access, tmp_path / "second", TASK)
        sent_back = all(output in exchanges(asked)[-1]["asked"] for output in COMMANDS.values())
        told = TOLD in " ".join(text.split())
        outcome["tools"] = "yes" if sent_back and told else f"failed: sent back: {sent_back}; {text[-2000:]}"
    if request.config.getoption("--record"):
        version = environment.version(agent.packages[0])
        client_results.record("agent", agent.name, agent.api, version, _short(outcome))
        # One without a key asks the same as with one.
        if agent.has_tools and agent.sends_key:
            agent_shapes.record(agent.name, agent.api, version, exchanges(asked), TASK)
    refused = [
        f"{e['status']} {e['method']} {e['path']}: {e['told'][:300]}" for e in exchanges(asked) if e["status"] >= 400
    ]
    assert set(outcome.values()) == {"yes"}, "\n".join([*outcome.values(), *refused])


def _short(outcome: Mapping[str, str]) -> dict[str, str]:
    return {feature: why.partition(":")[0] for feature, why in outcome.items()}
