"""Model folders that mean harm: a sound folder with one file changed. Seeded; nothing here is ever run as code.

Each dict has the name of a case and what makes the bytes of the changed file.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Edit = Callable[[dict[str, Any], random.Random], None]


def changed(sound: Path, target: Path, files: Mapping[str, bytes]) -> Path:
    """`target`, made as `sound` is but for `files`. What is the same is linked."""
    shutil.copytree(sound, target, copy_function=os.link)
    for name, data in files.items():
        (target / name).unlink(missing_ok=True)
        (target / name).write_bytes(data)
    return target


def edited(sound: Path, name: str, edit: Edit, draw: random.Random) -> bytes:
    value = json.loads((sound / name).read_bytes())
    edit(value, draw)
    return json.dumps(value).encode()


# ---- tokenizer.json


def _special(content: str, number: int) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, "special": True, **flags}


def many_specials(tokenizer: dict[str, Any], draw: random.Random) -> None:
    """256 control tokens that begin alike, as many a model has."""
    first = max(tokenizer["model"]["vocab"].values()) + 1
    tokenizer["added_tokens"] += [_special(f"<|reserved_{i}|>", first + i) for i in range(256)]


def quadratic_split(tokenizer: dict[str, Any], draw: random.Random) -> None:
    """A split whose expression looks at all that follows, at each place anew."""
    split = {"type": "Split", "pattern": {"Regex": r"\s+$"}, "behavior": "Isolated", "invert": False}
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, tokenizer["pre_tokenizer"]]}


def _replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


def multiplying_replace(tokenizer: dict[str, Any], draw: random.Random) -> None:
    """Every space becomes a megabyte."""
    tokenizer["normalizer"] = _replace(" ", "a" * 2**20)


def _doubling_replace(tokenizer: dict[str, Any], draw: random.Random) -> None:
    steps = [_replace("a", "aa") for _ in range(draw.randint(30, 60))]
    tokenizer["normalizer"] = {"type": "Sequence", "normalizers": steps}


def _prepend(tokenizer: dict[str, Any], draw: random.Random) -> None:
    tokenizer["normalizer"] = {"type": "Prepend", "prepend": "a" * 10**7}


def _backtracking(tokenizer: dict[str, Any], draw: random.Random) -> None:
    pattern = draw.choice((r"(a+)+$", r"(\w|\w\w)+!", r"(.*)*x", r"(?:a?){40}a{40}"))
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, tokenizer["pre_tokenizer"]]}


def _far_ids(tokenizer: dict[str, Any], draw: random.Random) -> None:
    vocab = tokenizer["model"]["vocab"]
    vocab["far"] = draw.choice((2**31, 2**32 - 1))


def _thousands_of_specials(tokenizer: dict[str, Any], draw: random.Random) -> None:
    first = max(tokenizer["model"]["vocab"].values()) + 1
    tokenizer["added_tokens"] += [_special("<" * (i % 500 + 2) + str(i), first + i) for i in range(50_000)]


def _long_special(tokenizer: dict[str, Any], draw: random.Random) -> None:
    first = max(tokenizer["model"]["vocab"].values()) + 1
    tokenizer["added_tokens"].append(_special("<|" * 10**6, first))


def _padding(tokenizer: dict[str, Any], draw: random.Random) -> None:
    tokenizer["padding"] = {
        "strategy": {"Fixed": 2**31}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>",
    }  # fmt: skip


def _post_processor(tokenizer: dict[str, Any], draw: random.Random) -> None:
    token = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    both = [token] * 10**6 + [{"Sequence": {"id": "A", "type_id": 0}}]
    known = {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing", "single": both, "pair": both, "special_tokens": known
    }  # fmt: skip


def _decoder(tokenizer: dict[str, Any], draw: random.Random) -> None:
    tokenizer["decoder"] = {"type": "Sequence", "decoders": [_replace("e", "e" * 10**5), tokenizer["decoder"]]}


def _merges(tokenizer: dict[str, Any], draw: random.Random) -> None:
    tokenizer["model"]["merges"] = [["no", "such"]] * 10**5


def _word_pieces(tokenizer: dict[str, Any], draw: random.Random) -> None:
    vocab = tokenizer["model"]["vocab"]
    tokenizer["model"] = {
        "type": "WordPiece", "unk_token": "<|endoftext|>", "continuing_subword_prefix": "",
        "max_input_chars_per_word": 2**62, "vocab": vocab,
    }  # fmt: skip
    tokenizer["pre_tokenizer"] = None


TOKENIZERS: dict[str, Edit] = {
    "doubling normalizers": _doubling_replace,
    "ten megabytes before each text": _prepend,
    "backtracking split": _backtracking,
    "ids far beyond the vocabulary": _far_ids,
    "50,000 control tokens": _thousands_of_specials,
    "a control token of 2 MB": _long_special,
    "padding to 2**31": _padding,
    "a million tokens around each text": _post_processor,
    "a decoder that multiplies": _decoder,
    "merges of unknown tokens": _merges,
    "words without a bound": _word_pieces,
}


# ---- model.safetensors


def _file(header: bytes, data: bytes = b"\0" * 4, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def _tensor(shape: str, end: str = "4") -> bytes:
    return f'{{"w":{{"dtype":"F32","shape":{shape},"data_offsets":[0,{end}]}}}}'.encode()


def _empty(count: int) -> bytes:
    one = '"t{}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
    return ("{" + ",".join(one.format(number) for number in range(count)) + "}").encode()


SAFETENSORS: dict[str, Callable[[random.Random], bytes]] = {
    "dimensions of 4,000 digits": lambda draw: _file(_tensor("[" + ",".join(["9" * 4000] * 800) + "]")),
    "one dimension of 3 MB": lambda draw: _file(_tensor("[" + "9" * 3 * 10**6 + "]")),
    "a rank of a million": lambda draw: _file(_tensor("[" + ",".join(["1"] * 10**6) + "]")),
    "a rank of a million, by 2**62": lambda draw: _file(_tensor("[" + ",".join([str(2**62)] * 10**6) + "]")),
    "a million empty tensors": lambda draw: _file(_empty(10**6), b""),
    "deep lists": lambda draw: _file(b"[" * 10**6),
    "a deep shape": lambda draw: _file(_tensor("[" * 10**5 + "1" + "]" * 10**5)),
    "floats as dimensions": lambda draw: _file(_tensor("[1e308,2e-320]")),
    "2e-320 a million times": lambda draw: _file(_tensor("[" + ",".join(["2e-320"] * 10**6) + "]")),
    "infinite": lambda draw: _file(_tensor("[Infinity]")),
    "nothing by everything": lambda draw: _file(_tensor(f"[0,{2**63},{2**63}]", "0"), b""),
    "negative": lambda draw: _file(_tensor("[-1,-1]")),
    "offsets beyond 64 bits": lambda draw: _file(_tensor("[1]", str(2**64 + 4))),
    "a name of 20 MB": lambda draw: _file(_tensor("[1]").replace(b'"w"', b'"' + b"w" * 20 * 10**6 + b'"')),
    "a length of 2**63": lambda draw: _file(b"{}", length=2**63),
    "a length of 100 MB without them": lambda draw: _file(b"{}", length=99_999_999),
    "80 MB of spaces": lambda draw: _file(_tensor("[1]") + b" " * 80 * 10**6),
    "noise": lambda draw: _file(draw.randbytes(10**6)),
}


# ---- config.json


def _with(**fields: Any) -> Edit:
    return lambda config, draw: config.update(fields)


def claimed_vocabulary(config: dict[str, Any], draw: random.Random) -> None:
    """A model that loads, since mlx-lm reads the inner sizes, and whose outer ones say something else."""
    inner = dict(config)
    config.update(model_type="mistral3", text_config=inner, vocab_size=50_000_000)


CONFIGS: dict[str, Edit] = {
    "a vocabulary of 5 billion": _with(vocab_size=5 * 10**9),
    "a context of 10**400": _with(max_position_embeddings=10**400),
    "a context of 1e308": _with(max_position_embeddings=1e308),
    "a billion layers": _with(num_hidden_layers=10**9),
    "layers by name": _with(num_hidden_layers="many", hidden_size=[1]),
    "negative sizes": _with(hidden_size=-64, num_attention_heads=-4),
    "no heads": _with(num_attention_heads=0),
    "rope of escape sequences": _with(rope_scaling={"rope_type": "\x1b]0;X\x07"}),
    "rope of markup": _with(rope_scaling={"rope_type": "[/x]", "factor": 1e308}),
    "a module as model_type": _with(model_type="../../os"),
    "a model_type of 1 MB": _with(model_type="llama" * 200_000),
    "code": _with(model_file="planted.py", auto_map={"AutoModel": "planted.Model"}),
    "quantized by 0 bits": _with(quantization={"group_size": 0, "bits": 0}),
    "quantized a million times": _with(quantization={f"l{i}": {"group_size": 64, "bits": 4} for i in range(10**5)}),
    "text_config of text_config": _with(text_config={"text_config": {"vocab_size": "x"}}),
    "end tokens without end": _with(eos_token_id=list(range(10**6))),
}
# As they stand: no json.dumps would write them.
RAW_CONFIGS: dict[str, bytes] = {
    "100,000 levels": b'{"a":' * 10**5 + b"1" + b"}" * 10**5,
    "a million lists": b'{"model_type": "llama", "a": [' + b"[[[]]]," * 10**6 + b"0]}",
    "a million small numbers": b'{"model_type": "llama", "a": [' + b"2e-320," * 10**6 + b"0]}",
    "an integer of a million digits": b'{"model_type": "llama", "vocab_size": ' + b"9" * 10**6 + b"}",
    "not UTF-8": b'{"model_type": "\xff\xfe"}',
}


# ---- what the Hub says of a repository


def described(case: str, info: dict[str, Any], victim: Path) -> dict[str, Any]:
    """A repository's description, changed so as to reach `victim`, a folder of somebody else."""
    files = info["siblings"]
    weights = next(file for file in files if file["rfilename"].endswith(".safetensors"))
    above = "../" * 12 + str(victim).lstrip("/")
    match case:
        case "sha is an absolute path":
            info["sha"] = str(victim)
        case "sha leads above":
            info["sha"] = above
        case "sha256 is an absolute path":
            weights["lfs"]["sha256"] = str(victim / "planted")
        case "sha256 leads above":
            weights["lfs"]["sha256"] = f"{above}/planted"
        case "sha256 is a file of somebody":
            weights["lfs"]["sha256"] = str(victim / "config.json")
        case "names lead above":
            files.append({"rfilename": f"{above}/planted.json", "size": 1, "blobId": "0" * 40})
        case "names with backslashes and dots":
            files += [{"rfilename": n, "size": 1, "blobId": "0" * 40} for n in ("..\\x.json", "./a/../b.json", "a//b")]
        case "names that fold to one":
            files += [{"rfilename": n, "size": 1, "blobId": "0" * 40} for n in ("CONFIG.JSON", "Config.json")]
        case "100,000 files":
            files += [{"rfilename": f"{n}.json", "size": 1, "blobId": "0" * 40} for n in range(10**5)]
        case "negative and endless sizes":
            weights["size"] = -1
            weights["lfs"]["size"] = 2**70
        case "deep":
            deep: Any = 0
            for _ in range(500):
                deep = [deep]
            info["config"] = deep
        case "a name of a megabyte":
            files.append({"rfilename": "a" * 2**20 + ".json", "size": 1, "blobId": "0" * 40})
        case _:
            raise KeyError(case)
    return info


DESCRIPTIONS = (
    "sha is an absolute path",
    "sha leads above",
    "sha256 is an absolute path",
    "sha256 leads above",
    "sha256 is a file of somebody",
    "names lead above",
    "names with backslashes and dots",
    "names that fold to one",
    "100,000 files",
    "negative and endless sizes",
    "deep",
    "a name of a megabyte",
)
