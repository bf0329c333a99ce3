"""What was read of a model's files, over real text processes."""

from __future__ import annotations

import asyncio
import gc
import weakref
from pathlib import Path

import pytest

from server.chat.conversation import RawPrompt
from server.errors import ModelUnavailable
from server.models.opened import OpenedFiles, stamp_of
from server.settings.types import LimitSettings
from server.text.client import TextProcess
from tests.support.tiny_model import write_tiny_model


def test_a_text_process_that_was_replaced_takes_nothing_from_its_successor(tmp_path: Path) -> None:
    async def main() -> None:
        folder = write_tiny_model(tmp_path / "model")
        files = OpenedFiles(lambda: True)
        first, second = [await TextProcess.open(folder, None, LimitSettings()) for _ in range(2)]
        files.set(folder, first, stamp_of(folder))
        await first.close()
        files.set(folder, second, stamp_of(folder))
        with pytest.raises(ModelUnavailable):
            await first.tokenize(RawPrompt("Hello"), False, "")
        assert files.text is second and files.folder == folder
        assert (await second.tokenize(RawPrompt("Hello"), False, "")).count
        await files.close()

    asyncio.run(main())


def test_a_folder_is_another_one_when_a_file_of_it_was_written(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model")
    before = stamp_of(folder)
    assert stamp_of(folder) == before
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    assert stamp_of(folder) != before
    assert stamp_of(tmp_path / "none") == ()


def test_what_was_read_of_a_model_is_gone_when_it_is_closed(tmp_path: Path) -> None:
    """Without the garbage collector, which may not come for minutes."""

    async def main() -> None:
        folder = write_tiny_model(tmp_path / "model")
        files = OpenedFiles(lambda: True)
        files.set(folder, await TextProcess.open(folder, None, LimitSettings()), stamp_of(folder))
        assert files.text is not None
        vocabulary = weakref.ref(files.text.vocabulary)
        await files.text.tokenize(RawPrompt("Hello"), False, "")
        gc.disable()
        try:
            await files.close()
            assert vocabulary() is None
        finally:
            gc.enable()

    asyncio.run(main())
