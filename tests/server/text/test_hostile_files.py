"""Templates and tokenizers that take all they can get: each costs its own request, and nobody else's."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from server.chat.conversation import RawPrompt
from server.errors import InvalidRequest, ModelUnavailable
from server.settings.types import LimitSettings
from tests.support.text_process import BAD, GOOD, children, model, opened, run

# Rendering takes a millisecond here; a template that never ends takes all of it.
HASTY = LimitSettings(text_timeout_s=0.5)


@pytest.mark.parametrize(
    ("on_trigger", "reason"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "took longer than 0.5 s"),
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
                with pytest.raises(InvalidRequest, match=r"took longer than 0\.5 s"):
                    await text.encode_prompt(GOOD, "a")
            assert (await text.tokenize(RawPrompt("Hello"), False, "a")).count

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
            assert wakes > 16

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
            large = asyncio.create_task(text.tokenize(RawPrompt(" " * 1_000_000 + "x"), False, "mallory"))
            for _ in range(5):
                assert (await text.encode_prompt(GOOD, "alice")).ids
            assert not large.done()
            with pytest.raises(InvalidRequest, match=r"took longer than 0\.5 s"):
                await large

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
                await text.tokenize(RawPrompt("lll" * 1000), False, "a")

    before = children()
    run(main)
    assert children() == before
