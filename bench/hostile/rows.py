"""What is sent, row by row, and the models that it needs: values made from tests/support/hostile and one seed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from bench.hostile.attack import Shot, chat
from tests.support.hostile import bodies, folders, templates
from tests.support.loopback_hub import LoopbackHub
from tests.support.tiny_model import VOCAB_SIZE, write_tiny_model

MAX_BODY = 8 * 10**6
# Below what is parsed beside the event loop, where small bodies are fast.
_SMALL = 64_000
# So long that texts of megabytes are not refused for their length alone.
CONTEXT = 200_000
_CHAT, _TOKENIZE, _DETOKENIZE = "/v1/chat/completions", "/tokenize", "/detokenize"
# Clients of a model that waits for the streams of another leave after so long.
_LEAVE_S = 1.5


@dataclass(frozen=True, slots=True)
class Row:
    """`shots` makes the requests, before anything is measured. `trespass` says what it reached that is not its own."""

    name: str
    shots: Callable[[], Sequence[Shot]]
    at_once: int = 1
    limit_s: float = 4.0
    trespass: Callable[[], str] = str


@dataclass(frozen=True, slots=True)
class Plan:
    """One server: its innocent model, the models of others beside it (settings of [[models]]), its rows."""

    name: str
    innocent: Path
    rows: Sequence[Row]
    hostile: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    hub: LoopbackHub | None = None


@dataclass(frozen=True, slots=True)
class Extent:
    """How much of it is run. `templates`: of each kind."""

    templates: int
    sizes: Sequence[int]
    fields: Sequence[str]
    # Sent in small bodies, eight at a time.
    small: Sequence[str]


# Of each reason why a parser is slow, one.
_SLOW = ("2e-320", "1e308", "[[[]]]", '{"":{}}', "short strings", "different keys", r"\u escapes", "deep lists")
SHORT = Extent(templates=4, sizes=(MAX_BODY - 200,), fields=("unknown",), small=_SLOW)
FULL = Extent(
    templates=20,
    sizes=(MAX_BODY - 200, 2**20),
    fields=("unknown", "messages", "logit_bias", "stop"),
    small=tuple(bodies.SHAPES),
)


def plans(folder: Path, extent: Extent, seed: int) -> Iterator[Plan]:
    """One after the other; each makes its model folders in `folder` when its turn comes."""
    innocent = write_tiny_model(folder / "innocent", context=CONTEXT)
    yield Plan("bodies", innocent, [*_bodies(extent), *_crowds()])
    yield _texts(folder, innocent)
    yield _tokenizers(folder, innocent, seed)
    kinds = [*templates.KINDS]
    for start in range(0, len(kinds), 2):
        yield _templates(folder, innocent, kinds[start : start + 2], extent.templates, seed)
    yield _weights(folder, innocent, seed)
    yield _configs(folder, innocent, seed)
    yield _repositories(folder, innocent)
    yield _claim(folder)


# ---- requests


def _bodies(extent: Extent) -> Iterator[Row]:
    for shape in bodies.SHAPES:
        for size in extent.sizes:
            for name in extent.fields:
                yield Row(f"{_size(size)} of {shape} in {name}", partial(_body_shots, name, shape, size, 1))
    for shape in extent.small:
        yield Row(f"8 at once, 64 kB of {shape}", partial(_body_shots, "messages", shape, _SMALL, 16), 8)
    for shape in ("2e-320", "[[[]]]", "short strings", "different keys"):
        yield Row(f"8 at once, 8 MB of {shape}", partial(_body_shots, "unknown", shape, MAX_BODY - 200, 8), 8)


def _body_shots(name: str, shape: str, size: int, count: int) -> list[Shot]:
    return [Shot(_CHAT, bodies.body(name, bodies.value(shape, size)))] * count


def _crowds() -> Iterator[Row]:
    """Many clients, none of which does anything that is wrong in itself."""
    text = bodies.body("unknown", bodies.value("emoji", MAX_BODY - 200))
    held = Shot(_CHAT, text, leave_s=3.0, withheld=4096)
    yield Row("100 connections with bodies in flight", lambda: [held] * 100, at_once=100, limit_s=10)
    yield Row("100 bodies of 8 MB at once", lambda: [Shot(_CHAT, text)] * 100, at_once=100, limit_s=10)
    slow = Shot(_CHAT, text[:20_000], trickle_s=0.2)
    yield Row("50 slow bodies", lambda: [slow] * 50, at_once=50, limit_s=5)


_TEXTS = {
    "<|": "<|",
    "spaces": " ",
    "one character": "a",
    "emoji": "😀",
    "newlines": "\n",
    "control tokens": "<|im_end|>",
}
_CODECS: dict[str, folders.Edit] = {
    "special": folders.many_specials,
    "quadratic": folders.quadratic_split,
    "multiplying": folders.multiplying_replace,
}


def _texts(folder: Path, innocent: Path) -> Plan:
    draw = random.Random(0)
    hostile = {}
    for name, edit in _CODECS.items():
        file = folders.edited(innocent, "tokenizer.json", edit, draw)
        hostile[name] = _local(folders.changed(innocent, folder / name, {"tokenizer.json": file}))
    rows = [
        Row(f"texts of {text}, tokenizer {model}", partial(_text_shots, model, piece), limit_s=6)
        for text, piece in _TEXTS.items()
        for model in ("bench", *hostile)
    ]
    return Plan("texts", innocent, [*rows, *_operations()], hostile)


def _text_shots(model: str, piece: str) -> list[Shot]:
    shots = []
    for size in (1_300_000, MAX_BODY - 500):
        # As it stands in JSON: a newline takes two bytes.
        text = piece * (size // len(json.dumps(piece, ensure_ascii=False).encode()[1:-1]))
        shots.append(Shot(_CHAT, chat(model, text)))
        shots.append(Shot(_TOKENIZE, json.dumps({"model": model, "content": text}, ensure_ascii=False).encode()))
    return shots


def _operations() -> Iterator[Row]:
    spaces = json.dumps({"content": " " * 1_300_000}).encode()
    ids = json.dumps({"tokens": [VOCAB_SIZE - 1] * (MAX_BODY // 4 - 100)}, separators=(",", ":")).encode()
    gone = 0.05
    yield Row("20 abandoned /tokenize of 1.3 MB", lambda: [Shot(_TOKENIZE, spaces, leave_s=gone)] * 20, at_once=20)
    quadratic = json.dumps({"model": "quadratic", "content": " " * 10**6 + "a"}).encode()
    yield Row("6 quadratic /tokenize of 1 MB", lambda: [Shot(_TOKENIZE, quadratic, leave_s=2)] * 6, at_once=6)
    yield Row("8 MB of ids to /detokenize", lambda: [Shot(_DETOKENIZE, ids)] * 2)
    yield Row("8 abandoned /detokenize of 8 MB", lambda: [Shot(_DETOKENIZE, ids, leave_s=gone)] * 8, at_once=8)
    prompts = json.dumps({"prompt": [VOCAB_SIZE - 1] * (MAX_BODY // 4 - 100), "max_tokens": 1}).encode()
    yield Row("8 MB of ids as a prompt", lambda: [Shot("/v1/completions", prompts[:MAX_BODY])])


# ---- model folders


def _tokenizers(folder: Path, innocent: Path, seed: int) -> Plan:
    hostile, rows = {}, []
    for number, (name, edit) in enumerate(folders.TOKENIZERS.items()):
        file = folders.edited(innocent, "tokenizer.json", edit, random.Random(f"{seed} {name}"))
        model = f"tokenizer-{number}"
        hostile[model] = _local(folders.changed(innocent, folder / model, {"tokenizer.json": file}))
        text = "e a <| " * 100 + "a" * 5000
        body = json.dumps({"model": model, "content": text}).encode()
        shots = [Shot(_TOKENIZE, body), Shot(_DETOKENIZE, json.dumps({"model": model, "tokens": [72] * 5000}).encode())]
        rows.append(Row(f"tokenizer: {name}", partial(list, shots)))
    return Plan("tokenizers", innocent, rows, hostile)


def _templates(folder: Path, innocent: Path, kinds: Sequence[str], count: int, seed: int) -> Plan:
    hostile, rows = {}, []
    for kind in kinds:
        draw = random.Random(f"{seed} {kind}")
        names = [f"template-{kind}-{number}" for number in range(count)]
        for name in names:
            source = templates.template(kind, draw).encode()
            hostile[name] = _local(folders.changed(innocent, folder / name, {"chat_template.jinja": source}))
        shots = [Shot(_TOKENIZE, _conversation(name)) for name in names]
        rows.append(Row(f"{count} templates: {kind}", partial(list, shots), at_once=2, limit_s=max(12, 2 * count)))
    return Plan(f"templates: {' and '.join(kinds)}", innocent, rows, hostile)


def _conversation(model: str) -> bytes:
    turns = [{"role": role, "content": "Hello"} for role in ("user", "assistant", "user")]
    return json.dumps({"model": model, "messages": turns}).encode()


def _weights(folder: Path, innocent: Path, seed: int) -> Plan:
    hostile, rows = {}, []
    for number, (name, make) in enumerate(folders.SAFETENSORS.items()):
        model = f"weights-{number}"
        file = make(random.Random(f"{seed} {name}"))
        hostile[model] = _local(folders.changed(innocent, folder / model, {"model.safetensors": file}))
        shot = Shot(_CHAT, chat(model, "Hi"), leave_s=_LEAVE_S)
        rows.append(Row(f"safetensors: {name}", partial(list, [shot]), limit_s=8))
    return Plan("weights", innocent, rows, hostile)


def _configs(folder: Path, innocent: Path, seed: int) -> Plan:
    files = dict(folders.RAW_CONFIGS)
    for name, edit in folders.CONFIGS.items():
        files[name] = folders.edited(innocent, "config.json", edit, random.Random(f"{seed} {name}"))
    hostile = {
        f"config-{number}": _local(folders.changed(innocent, folder / f"config-{number}", {"config.json": file}))
        for number, file in enumerate(files.values())
    }
    shots = [Shot(_CHAT, chat(model, "Hi"), leave_s=_LEAVE_S) for model in hostile]
    rows = [
        Row(f"config.json: {number} to {number + len(part) - 1}", partial(list, part), limit_s=15)
        for number, part in _parts(shots, 7)
    ]
    return Plan("configs", innocent, rows, hostile)


def _claim(folder: Path) -> Plan:
    """The innocent clients use the very model whose config.json claims a vocabulary that its weights have not."""
    sound = write_tiny_model(folder / "unclaimed", context=CONTEXT)
    config = folders.edited(sound, "config.json", folders.claimed_vocabulary, random.Random(0))
    model = folders.changed(sound, folder / "claims", {"config.json": config})

    def shots() -> list[Shot]:
        prompts = [json.dumps({"prompt": [t], "max_tokens": 1}).encode() for t in (VOCAB_SIZE, 4_000_000, 49_999_999)]
        biased = chat("bench", "Hi", logit_bias={"40000000": 5})
        return [*(Shot("/v1/completions", prompt) for prompt in prompts), Shot(_CHAT, biased)]

    return Plan("claims", model, [Row("ids beyond the weights, within what config.json claims", shots)])


def _repositories(folder: Path, innocent: Path) -> Plan:
    victim = folder / "victim"
    victim.mkdir()
    sound = {"config.json": b"{}", "tokenizer.json": b"somebody's", "a.safetensors": b"theirs"}
    for name, data in sound.items():
        (victim / name).write_bytes(data)

    def trespass() -> str:
        found = {path.name: path.read_bytes() for path in victim.iterdir()}
        touched = sorted(name for name in {*found, *sound} if found.get(name) != sound.get(name))
        return f"files of another folder were touched: {', '.join(touched)}" if touched else ""

    repos = {f"loopback/r{number}": case for number, case in enumerate(folders.DESCRIPTIONS)}

    class Hub(LoopbackHub):
        def info(self, repo: str, files: Mapping[str, object]) -> dict[str, object]:
            return folders.described(repos[repo], super().info(repo, files), victim)  # type: ignore[arg-type]

    hub = Hub()
    hub.others = {repo: dict(hub.files) for repo in repos}
    hostile = {f"hub-{number}": {"acquire": "fetch", "fetch": repo} for number, repo in enumerate(repos)}
    shots = [Shot(_CHAT, chat(model, "Hi"), leave_s=10) for model in hostile]
    rows = [
        Row(f"repositories: {number} to {number + len(part) - 1}", partial(list, part), 2, 25, trespass)
        for number, part in _parts(shots, 4)
    ]
    return Plan("repositories", innocent, rows, hostile, hub)


def _parts(shots: Sequence[Shot], size: int) -> Iterator[tuple[int, Sequence[Shot]]]:
    """Rows short enough for the streams to be like those of the quiet seconds; each with the number of its first."""
    return ((start, shots[start : start + size]) for start in range(0, len(shots), size))


def _local(folder: Path) -> dict[str, str]:
    return {"acquire": "local", "path": str(folder)}


def _size(size: int) -> str:
    return f"{size / 10**6:.0f} MB"
