"""Headers and descriptions that cost more than they weigh: each is one sentence, in `plan`, `verify` and `build`."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantize.errors import HubError, SourceError, native_errors
from quantize.folder.safetensors_format import parse_header
from quantize.hub.client import hub_errors
from quantize.source.gguf_file import GgufFile
from tests.support.commands import configi
from tests.support.tiny_model import write_tiny_model

BIG = b"9" * 4200


def entry(shape: bytes, end: bytes = b"0") -> bytes:
    return b'{"dtype":"U8","shape":[' + shape + b'],"data_offsets":[0,' + end + b"]}"


# Made by the test that reads them, not by every process that collects tests.
HEADERS: dict[str, Callable[[], bytes]] = {
    # 11 s and 90 s in math.prod.
    "sizes of thousands of digits": lambda: b'{"x":' + entry(b",".join([BIG] * 800)) + b"}",
    "many axes": lambda: b'{"x":' + entry(b",".join([b"9" * 18] * 200_000)) + b"}",
    # 31 s.
    "a million empty tensors": lambda: b"{" + b",".join(b'"%d":%s' % (n, entry(b"0")) for n in range(1_000_000)) + b"}",
    "nested": lambda: b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "negative": lambda: b'{"x":' + entry(b"-1,-1", b"1") + b"}",
    "beyond 64 bits": lambda: b'{"x":' + entry(b"9223372036854775807,9223372036854775807") + b"}",
    "true": lambda: b'{"x":' + entry(b"true", b"1") + b"}",
    "a shape that is text": lambda: b'{"x":{"dtype":"U8","shape":"11","data_offsets":[0,1]}}',
    "an escape sequence": lambda: b'{"\\u001b]0;X\\u0007":{"dtype":"U8","shape":[1],"data_offsets":[0,9]}}',
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_hostile_header_is_one_sentence_at_once(name: str) -> None:
    header = HEADERS[name]()
    start = time.process_time()
    with pytest.raises(SourceError, match=r"^The header of m\.safetensors [^\x00-\x1f]+\.$"):
        parse_header("m.safetensors", header, 8)
    # Only against a hang.
    assert time.process_time() - start < 10


def nested_header(folder: Path) -> None:
    text = HEADERS["nested"]()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)


def nested_config(folder: Path) -> None:
    (folder / "config.json").write_bytes(b'{"model_type": "llama", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")


def nested_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_bytes(b'{"weight_map": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")


def index_elsewhere(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../model.safetensors"}}))


def test_an_index_that_cannot_be_read_is_a_warning_to_verify(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    nested_index(model)
    done = configi("verify", str(model))
    assert done.stderr == "Warning: The source's model.safetensors.index.json is damaged.\n"
    assert done.stdout == f"{model} is intact.\n"


def escape_in_config(folder: Path) -> None:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "\x1b]0;X\x07[/x]"}))


@pytest.mark.parametrize(
    ("command", "change"),
    [
        (command, change)
        for change in (nested_header, nested_config, nested_index, index_elsewhere)
        for command in ("plan", "verify", "build")
        # mlx-lm reads no index: one that cannot be read is a warning there.
        if (command, change) != ("verify", nested_index)
    ],
)
def test_a_hostile_folder_is_one_sentence_in_every_command(
    command: str, change: Callable[[Path], None], tmp_path: Path
) -> None:
    folder = write_tiny_model(tmp_path / "model")
    change(folder)
    output = [str(tmp_path / "out")] if command == "build" else []
    done = configi(command, str(folder), *output, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


@pytest.mark.parametrize("command", ["plan", "build"])
def test_a_configs_escape_sequences_reach_no_terminal(command: str, tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model")
    escape_in_config(folder)
    output = [str(tmp_path / "out")] if command == "build" else []
    done = configi(command, str(folder), *output, check=False)
    assert done.returncode == 1
    assert (done.stdout + done.stderr).replace("\n", "").isprintable()


class Panic(BaseException):
    """As pyo3 raises it: no Exception."""


def test_a_panic_of_native_code_is_one_sentence() -> None:
    sentence = "The tokenizer is damaged"
    with pytest.raises(SourceError, match=rf"^{sentence} \(Panic: out of bounds\)\.$"), native_errors(sentence):
        raise Panic("out of bounds")
    with pytest.raises(HubError, match=r"^Fetching org/model failed \(Panic\)\.$"), hub_errors("org/model"):
        raise Panic
    with pytest.raises(KeyboardInterrupt), native_errors(sentence):
        raise KeyboardInterrupt


def gguf(tensors: int, values: int, rest: bytes) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, values) + rest


GGUFS: dict[str, Callable[[], bytes]] = {
    "a million empty tensors": lambda: gguf(1_000_000, 0, struct.pack("<QIIQ", 0, 0, 0, 0) * 1_000_000),
    "a million values": lambda: gguf(0, 1_000_000, struct.pack("<QII", 0, 4, 0) * 1_000_000),
    "many axes": lambda: gguf(1, 0, struct.pack("<QI", 0, 100_000) + b"\xff" * 800_000),
    "a long array": lambda: gguf(0, 1, struct.pack("<QIIQ", 0, 9, 8, 5_000_000) + bytes(40_000_000)),
    "no alignment": lambda: gguf(0, 1, struct.pack("<Q", 17) + b"general.alignment" + struct.pack("<II", 4, 0)),
}


@pytest.mark.parametrize("name", GGUFS)
def test_a_hostile_gguf_is_one_sentence_at_once(name: str, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(GGUFS[name]())
    start = time.process_time()
    with pytest.raises(SourceError, match=r"^m\.gguf .*\.$"):
        GgufFile(file)
    # Only against a hang.
    assert time.process_time() - start < 10
