"""What leaves memory for the disk holds its memory until it is written: it is counted, and nobody waits for it who has
enough beside it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from server.engine.admission import Admission
from server.engine.cost_model import measure
from server.engine.prefixes.disk_tier import DiskTier, StoredSegment
from server.engine.prefixes.disk_work import PrefixWriter
from server.engine_client.protocol import Finished
from tests.support.little_memory import Little, cold, engine_with, words
from tests.support.stepped import finish
from tests.support.talks import Model, generate


class BlockedDisk(DiskTier):
    """Nothing is written before it is let."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "model", 10**9)
        self.let = threading.Event()

    def write(self, *arguments: Any) -> StoredSegment | None:
        assert self.let.wait(60)
        return super().write(*arguments)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BlockedDisk:
    """It is let when somebody waits for it."""
    blocked = BlockedDisk(tmp_path)
    real = PrefixWriter.wait

    def wait(writer: PrefixWriter, seconds: float) -> None:
        blocked.let.set()
        real(writer, seconds)

    monkeypatch.setattr(PrefixWriter, "wait", wait)
    return blocked


def test_a_prompt_is_not_copied_beside_what_is_being_written(deep: Model, disk: BlockedDisk) -> None:
    """There is memory for the first one, the caches of the second and no copy of these."""
    little = Little(deep, disk=disk)
    little.ask(words(740, 1))
    prompt = words(506, 2)
    answer = little.ask(prompt).answer
    again = little.ask([*prompt, *words(20, 3)])
    disk.let.set()
    assert little.engine.stats().peak_bytes <= little.ceiling
    assert again.found >= len(prompt) - 3
    assert answer == cold(deep, prompt)


def test_nobody_waits_for_the_disk_while_there_is_memory(deep: Model, disk: BlockedDisk) -> None:
    """Prefixes take all that they may."""
    cost, used = measure(deep.raw), mx.get_active_memory()
    engine = engine_with(deep, Admission(used + 10**9, used, cost), cost.kv_bytes(400), disk=disk)
    for id in range(4):
        engine.handle(generate(words(300, id), id=id, max_tokens=2))
        events = finish(engine)
        assert isinstance(events[-1], Finished)
    assert engine._prefixes.disk.busy
    assert not disk.let.is_set()
    disk.let.set()
