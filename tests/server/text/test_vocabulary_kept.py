"""The vocabulary that streams are decoded with: told once by the text process, and small in the HTTP process."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from server.chat.conversation import RawPrompt
from server.errors import ContextLengthExceeded
from server.text.client import TextProcess
from tests.support.text_process import PATIENT, model, opened, run

# Says how many of the answers had a vocabulary, on stderr.
TELLING = """
import sys
import server.text.process as process
opened = process.Opened
process.Opened = lambda table: (print(table is not None, file=sys.stderr, flush=True), opened(table))[1]
process.main()
"""


def test_the_vocabulary_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        text = await TextProcess.open(model(tmp_path), None, PATIENT, command=(sys.executable, "-c", TELLING))
        await text.rest()
        assert (await text.tokenize(RawPrompt("Hello"), False, "a")).count
        with pytest.raises(ContextLengthExceeded):
            await text.tokenize(RawPrompt("word " * 20_000), False, "a")
        await text.close()

    run(main)
    assert [record.getMessage().rpartition(" ")[2] for record in caplog.records] == ["True", "False", "False"]


def test_what_the_http_process_keeps_of_a_vocabulary_does_not_grow_with_the_count_of_its_objects(
    tmp_path: Path,
) -> None:
    """50,000 strings, their dictionary and sets are tens of megabytes, which the allocator then keeps."""
    folder = model(tmp_path)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    first = max(tokenizer["model"]["vocab"].values()) + 1
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer["added_tokens"] += [
        {"id": first + i, "content": f"<|reserved {i} Ω|>", "special": i % 2 == 0, **flags} for i in range(20_000)
    ]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))

    async def main() -> None:
        before = sys.getallocatedblocks()
        async with opened(folder) as text:
            assert sys.getallocatedblocks() - before < 10_000
            vocabulary = text.vocabulary
            for i in (0, 1, 777, 19_999):
                spelled = f"<|reserved {i} Ω|>"
                assert vocabulary.marker(spelled) == first + i
                assert vocabulary.token(first + i)[0] == spelled
                assert vocabulary.is_hidden(first + i) == (i % 2 == 0)
            assert vocabulary.marker("<|reserved 20000 Ω|>") is None and vocabulary.marker("") is None
            assert len(vocabulary.token_table().markers) > 20_000

    run(main)
