"""What a model's state is told to the log."""

from __future__ import annotations

import logging
from typing import Any
from unittest.mock import Mock

import pytest

from server.models import resident
from server.models.resident import Resident
from server.settings.types import LifecycleSettings, ModelSettings


@pytest.mark.parametrize(("every_s", "lines"), [(0, ["layer 1", "layer 2", "layer 3"]), (3600, ["layer 1"])])
def test_the_log_says_from_time_to_time_how_far_a_long_build_is(
    every_s: float, lines: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "_LOGGED_EVERY_S", every_s)
    entry = ModelSettings(id="tiny", acquire="build", build_from="org/tiny")
    nobody: Any = Mock()
    model = Resident(entry, LifecycleSettings(), nobody, nobody, nobody, nobody, nobody)
    with caplog.at_level(logging.INFO):
        for layer in (1, 2, 3):
            model.set("building", f"layer {layer}", layer, 4)
        model.set("absent", "on disk")
        model.set("absent", "on disk")
    assert [record.getMessage() for record in caplog.records] == [
        *(f"model tiny: building ({line})" for line in lines),
        "model tiny: absent (on disk)",
    ]
