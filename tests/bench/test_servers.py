"""The servers that are measured: their settings, and an engine that is told to be short of memory."""

from __future__ import annotations

import asyncio
import os
from functools import partial
from pathlib import Path
from unittest import mock

import pytest

from bench import prompts, servers, setup, soak, squeezed
from bench.sse import Client
from server.engine.device.pressure import Pressure
from server.settings.loading import load_settings
from tests.support.tiny_model import write_tiny_model


def test_configi_reads_the_settings_that_it_is_measured_with(tmp_path: Path) -> None:
    path = servers.configuration(tmp_path, tmp_path / "model", {"lifecycle": {"idle_unload_s": 4}})
    settings = load_settings(path, {})
    assert (settings.lifecycle.idle_unload_s, settings.lifecycle.load_at_start) == (4, True)
    assert settings.storage.cache_dir == tmp_path / "cache"


def test_the_settings_of_the_bench_are_not_given_to_the_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """configi does not start with a variable that it does not know."""
    monkeypatch.setenv("CONFIGI_BENCH_CACHE", str(tmp_path))
    monkeypatch.setenv("CONFIGI_SERVER__PORT", "4000")
    path = servers.configuration(tmp_path, tmp_path / "model", {})
    with mock.patch.dict(os.environ, setup.environment(), clear=True):
        assert load_settings(path, {}).server.port == 4000


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
