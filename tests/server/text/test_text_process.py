"""The text process of a model: what it says is what the model's files say, and whoever asks comes in turn."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import psutil
import pytest

from server.chat.conversation import RawPrompt
from server.errors import ContextLengthExceeded, InvalidRequest
from server.text.client import TextProcess
from tests.support.streams import until
from tests.support.text_process import GOOD, PATIENT, children, model, opened, run

# A text process that keeps 64 MB of each command.
KEEPING = """
import server.text.process as process
answer, kept = process._answer, []
process._answer = lambda *given: (kept.append(b"x" * 64_000_000), answer(*given))[1]
process.main()
"""


def test_what_it_says_is_what_the_tokenizer_says(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(model(tmp_path)) as text:
            encoded = await text.encode_prompt(GOOD, "a")
            assert encoded.text == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
            assert await text.decode(encoded.ids, "a") == encoded.text
            hello = [token for token in encoded.ids if text.vocabulary.token(token)[1] in b"Hello"]
            tokens = await text.tokenize(RawPrompt("Hello"), False, "a")
            assert (json.loads(tokens.json), tokens.count) == (hello, len(hello))
            assert json.loads((await text.tokenize(GOOD, False, "a")).json) == encoded.ids
            stream = text.vocabulary.stream()
            # Control tokens are no text of an answer.
            assert "".join(map(stream.push, encoded.ids)) + stream.flush() == "user\nHello\nassistant\n"
            with pytest.raises(ContextLengthExceeded):
                await text.encode_prompt(RawPrompt("word " * 10_000), "a")

    run(main)


def test_a_model_without_a_tokenizer_json_is_converted_once(tmp_path: Path) -> None:
    async def main() -> None:
        folder, kept = model(tmp_path / "model"), tmp_path / "tokenizers"
        bpe = json.loads((folder / "tokenizer.json").read_text())["model"]
        (folder / "vocab.json").write_text(json.dumps(bpe["vocab"]))
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, bpe["merges"])]))
        (folder / "tokenizer.json").unlink()
        config = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "GPT2Tokenizer"}))
        ids = []
        for _ in range(2):
            text = await TextProcess.open(folder, None, PATIENT, kept)
            try:
                ids.append((await text.encode_prompt(GOOD, "a")).ids)
                [place] = kept.iterdir()
            finally:
                await text.close()
        assert ids[0] == ids[1] and (place / "tokenizer.json").is_file()


def test_clients_are_served_in_turn(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(model(tmp_path)) as text:
            order: list[str] = []

            async def ask(client: str) -> None:
                await text.tokenize(RawPrompt("Hello"), False, client)
                order.append(client)

            await asyncio.gather(*(ask("many") for _ in range(20)), ask("one"))
            assert order.index("one") <= 2

    run(main)


def test_who_leaves_gives_up_its_place_and_the_next_answer_is_the_next_ones(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(model(tmp_path)) as text:
            leaving = [asyncio.create_task(text.tokenize(RawPrompt("leaving " * 500), False, "a")) for _ in range(20)]
            await asyncio.sleep(0)
            for task in leaving:
                task.cancel()
            tokens = await text.tokenize(RawPrompt("Hello"), False, "a")
            assert await text.decode(json.loads(tokens.json), "a") == "Hello"
            assert all(result is not None for result in await asyncio.gather(*leaving, return_exceptions=True))

    run(main)


def test_a_killed_process_is_started_again_by_the_next_request(tmp_path: Path) -> None:
    async def main() -> None:
        before = children()
        async with opened(model(tmp_path)) as text:
            [pid] = children() - before
            psutil.Process(pid).kill()
            with pytest.raises(InvalidRequest, match="ended the process"):
                await text.tokenize(RawPrompt("Hello"), False, "a")
            assert (await text.tokenize(RawPrompt("Hello"), False, "a")).count
        assert children() == before

    run(main)


def test_a_process_that_has_grown_makes_room_for_another_without_being_asked(tmp_path: Path) -> None:
    async def main() -> None:
        before = children()
        command = (sys.executable, "-c", KEEPING)
        text = await TextProcess.open(model(tmp_path), None, PATIENT, command=command)
        try:
            [first] = children() - before
            assert (await text.tokenize(RawPrompt("Hello"), False, "a")).count
            await asyncio.to_thread(until, lambda: children() - before - {first})
            assert (await text.tokenize(RawPrompt("Hello"), False, "a")).count
        finally:
            await text.close()

    run(main)
