"""The text process of a model: real processes, hostile templates and tokenizers, clients in turn."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from server.chat.conversation import Conversation, RawPrompt
from server.chat.grammar.constraint import Constraint
from server.chat.parts import Message
from server.chat.shapes import JsonSchema
from server.chat.tools import Tool
from server.errors import ContextLengthExceeded, InvalidRequest, ModelUnavailable
from server.settings.types import LimitSettings
from server.text.client import TextProcess
from server.text.protocol import Constrain
from tests.support.streams import until
from tests.support.tiny_model import CHAT_TEMPLATE, write_tiny_model

PATIENT = LimitSettings()
# Rendering takes a millisecond here; a template that never ends takes all of it.
HASTY = LimitSettings(text_timeout_s=1.5)
GOOD = Conversation((Message.plain("user", "Hello"),))
# What `trigger` in a message makes of a template that is otherwise a good one.
ON_TRIGGER = "{%% if messages[-1]['content'] == 'trigger' %%}%s{%% endif %%}" + CHAT_TEMPLATE.replace("%", "%%")
BAD = Conversation((Message.plain("user", "trigger"),))


def model(folder: Path, on_trigger: str = "") -> Path:
    write_tiny_model(folder)
    (folder / "chat_template.jinja").write_text(ON_TRIGGER % on_trigger)
    return folder


@asynccontextmanager
async def opened(folder: Path, limits: LimitSettings = PATIENT) -> AsyncIterator[TextProcess]:
    text = await TextProcess.open(folder, None, limits)
    try:
        yield text
    finally:
        await text.close()


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await main()

    asyncio.run(bounded())


def test_what_it_says_is_what_the_tokenizer_says(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(model(tmp_path)) as text:
            encoded = await text.encode_prompt(GOOD, "a")
            assert encoded.text == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
            assert await text.decode(encoded.ids, "a") == encoded.text
            assert await text.encode("Hello", False, "a") == [
                token for token in encoded.ids if text.vocabulary.token(token)[1] in b"Hello"
            ]
            stream = text.vocabulary.stream()
            # Control tokens are no text of an answer.
            assert "".join(map(stream.push, encoded.ids)) + stream.flush() == "user\nHello\nassistant\n"
            with pytest.raises(ContextLengthExceeded):
                await text.encode_prompt(RawPrompt("word " * 10_000), "a")

    run(main)


@pytest.mark.parametrize(
    ("on_trigger", "reason"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "took longer than 1.5 s"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "cannot render"),
        ("{{ 'a' * 3000000000 }}", "is too large"),
        ("{{ ('a' * 100000) | center(3000000000) }}", "is too large"),
        ("{{ ('a\\n' * 100000) | indent(100000) }}", "more memory|took"),
        ("{{ [1] | tojson(indent=3000000000) }}", "is too large"),
        ("{{ 7 ** (7 ** 9) }}", "is too large"),
    ],
)
def test_a_hostile_template_costs_its_own_request_and_nobody_elses(
    tmp_path: Path, on_trigger: str, reason: str
) -> None:
    async def main() -> None:
        async with opened(model(tmp_path, on_trigger), HASTY) as text:
            bad = asyncio.create_task(text.encode_prompt(BAD, "mallory"))
            good = [asyncio.create_task(text.encode_prompt(GOOD, f"client {i}")) for i in range(3)]
            with pytest.raises(InvalidRequest, match=reason):
                await bad
            assert all(encoded.ids for encoded in await asyncio.gather(*good))

    run(main)


def test_a_template_that_is_always_hostile_costs_its_requests_and_not_the_opening(tmp_path: Path) -> None:
    async def main() -> None:
        folder = model(tmp_path)
        endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
        (folder / "chat_template.jinja").write_text(endless)
        async with opened(folder, HASTY) as text:
            for _ in range(2):
                with pytest.raises(InvalidRequest, match=r"took longer than 1\.5 s"):
                    await text.encode_prompt(GOOD, "a")
            assert await text.encode("Hello", False, "a")

    run(main)


def test_the_loop_is_awake_while_a_template_is_not(tmp_path: Path) -> None:
    async def main() -> None:
        endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
        async with opened(model(tmp_path, endless), HASTY) as text:
            bad = asyncio.create_task(text.encode_prompt(BAD, "a"))
            wakes = 0
            while not bad.done():
                await asyncio.sleep(0.01)
                wakes += 1
            assert isinstance(bad.exception(), InvalidRequest)
            assert wakes > 50

    run(main)


def test_a_large_text_does_not_hold_up_a_small_one(tmp_path: Path) -> None:
    async def main() -> None:
        folder = model(tmp_path)
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        # Quadratic in a run of spaces, as published tokenizers have it.
        split = {"type": "Split", "pattern": {"Regex": r"\s+$"}, "behavior": "Isolated", "invert": False}
        tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, tokenizer["pre_tokenizer"]]}
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        config = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": 1_000_000}
        (folder / "config.json").write_text(json.dumps(config))
        async with opened(folder, HASTY) as text:
            large = asyncio.create_task(text.encode(" " * 1_000_000 + "x", False, "mallory"))
            for _ in range(5):
                assert (await text.encode_prompt(GOOD, "alice")).ids
            assert not large.done()
            with pytest.raises(InvalidRequest, match=r"took longer than 1\.5 s"):
                await large

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


def schema_of(text: TextProcess, schema: dict[str, Any]) -> Coroutine[Any, Any, Constraint]:
    return text.constrain(Constrain(shape=JsonSchema(schema)), "a")


def test_a_grammar_is_made_once_for_those_that_ask_the_same(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(model(tmp_path)) as text:
            before = children()
            first = await schema_of(text, {"type": "integer"})
            assert first.grammar is not None
            assert len(children() - before) == 1, "a process of its own"
            await text.rest()
            assert await schema_of(text, {"type": "integer"}) == first
            assert not children() - before
            assert await schema_of(text, {"type": "string"}) != first
            with pytest.raises(InvalidRequest, match='"if" at /'):
                await schema_of(text, {"if": {}})

    run(main)


def test_a_schema_may_hold_numbers_of_any_size(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(model(tmp_path)) as text:
            schema = {"type": "number", "description": "x", "default": -(10**400)}
            assert (await schema_of(text, schema)).grammar is not None
            tools = (Tool("count", parameters=schema),)
            assert (await text.encode_prompt(Conversation(GOOD.messages, tools=tools), "a")).ids

    run(main)


def test_a_grammar_that_takes_too_long_costs_its_own_request_and_nobody_elses(tmp_path: Path) -> None:
    """That of strings that all of these match takes minutes."""
    patterns = [{"type": "string", "pattern": f"a.{{{i}}}b"} for i in range(1, 60)]

    async def main() -> None:
        async with opened(model(tmp_path), LimitSettings(grammar_timeout_s=1.5)) as text:
            bad = asyncio.create_task(schema_of(text, {"allOf": patterns}))
            for _ in range(5):
                assert (await text.encode_prompt(GOOD, "alice")).ids
            assert not bad.done()
            with pytest.raises(InvalidRequest, match=r"grammar .* took longer than 1\.5 s"):
                await bad
            assert (await schema_of(text, {"type": "integer"})).grammar is not None

    run(main)


def test_bad_words_are_banned_at_the_start_of_a_text_and_within(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(model(tmp_path)) as text:
            made = await text.constrain(Constrain(bad_words=("the", "zebra"), closing=" so."), "a")
            assert made.grammar is None
            spelled = [await text.decode(tokens, "a") for tokens in made.banned]
            assert spelled == ["the", " the", "zebra", " zebra"]
            assert await text.decode(made.closing, "a") == " so."

    run(main)


def test_clients_are_served_in_turn(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(model(tmp_path)) as text:
            order: list[str] = []

            async def ask(client: str) -> None:
                await text.encode("Hello", False, client)
                order.append(client)

            await asyncio.gather(*(ask("many") for _ in range(20)), ask("one"))
            assert order.index("one") <= 2

    run(main)


def test_who_leaves_gives_up_its_place_and_the_next_answer_is_the_next_ones(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(model(tmp_path)) as text:
            leaving = [asyncio.create_task(text.encode("leaving " * 500, False, "a")) for _ in range(20)]
            await asyncio.sleep(0)
            for task in leaving:
                task.cancel()
            assert await text.decode(await text.encode("Hello", False, "a"), "a") == "Hello"
            assert all(result is not None for result in await asyncio.gather(*leaving, return_exceptions=True))

    run(main)


def test_a_killed_process_is_started_again_by_the_next_request(tmp_path: Path) -> None:
    async def main() -> None:
        before = children()
        async with opened(model(tmp_path)) as text:
            [pid] = children() - before
            psutil.Process(pid).kill()
            with pytest.raises(InvalidRequest, match="ended the process"):
                await text.encode("Hello", False, "a")
            assert await text.encode("Hello", False, "a")
        assert children() == before

    run(main)


# A text process that keeps 64 MB of each command.
KEEPING = """
import server.text.process as process
answer, kept = process._answer, []
process._answer = lambda *given: (kept.append(b"x" * 64_000_000), answer(*given))[1]
process.main()
"""


def test_a_process_that_has_grown_makes_room_for_another_without_being_asked(tmp_path: Path) -> None:
    async def main() -> None:
        before = children()
        command = (sys.executable, "-c", KEEPING)
        text = await TextProcess.open(model(tmp_path), None, PATIENT, command=command)
        try:
            [first] = children() - before
            assert await text.encode("Hello", False, "a")
            await asyncio.to_thread(until, lambda: children() - before - {first})
            assert await text.encode("Hello", False, "a")
        finally:
            await text.close()

    run(main)


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
        assert await text.encode("Hello", False, "a")
        with pytest.raises(ContextLengthExceeded):
            await text.encode("word " * 20_000, False, "a")
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


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"normalizer": {"type": "Replace", "pattern": {"String": "l"}, "content": "l" * 50_000_000}},
            "memory|ended|longer",
        ),
        ({"model": None}, "broken"),
    ],
)
def test_a_hostile_tokenizer_is_a_sentence(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    async def main() -> None:
        folder = model(tmp_path)
        tokenizer = json.loads((folder / "tokenizer.json").read_text()) | change
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        limits = LimitSettings(text_timeout_s=5, text_memory_limit=700_000_000)
        with pytest.raises((ModelUnavailable, InvalidRequest), match=sentence):
            async with opened(folder, limits) as text:
                await text.encode("lll" * 1000, False, "a")

    before = children()
    run(main)
    assert children() == before
