"""A model folder's tokenizer, of all the files that say something about it. Text process.

Published folders keep it in tokenizer.json, or in the older files that transformers makes one of; and what
tokenizer_config.json, special_tokens_map.json and added_tokens.json say comes on top. mlx-lm and transformers agree on
what all of them mean together, so wherever tokenizer.json does not say everything, transformers is asked
(`conversion.py`). Where it does, nothing needs the second and the memory that transformers takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from server.chat.model_files import read_object, special_texts
from server.chat.tokenizers.conversion import Conversions, NotConverted
from server.errors import ModelUnavailable

# Classes of transformers that take tokenizer.json as it is. Others bring defaults, and build the tokenizer anew.
_TAKE_THE_FILE = {"PreTrainedTokenizerFast", "PreTrainedTokenizer", "TokenizersBackend"}
_OLDER_FILES = ("*.model", "*.tiktoken", "vocab.json", "vocab.txt", "tekken.json")


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """`special` has the texts of bos_token, eos_token and so on, as chat templates name them."""

    backend: Tokenizer
    special: dict[str, str]


def read_tokenizer(folder: Path, conversions: Conversions) -> TokenizerFiles:
    """Raises ModelUnavailable when there is none that can be read."""
    config = read_object(folder, "tokenizer_config.json")
    if config.get("tokenizer_class") in _TAKE_THE_FILE and (folder / "tokenizer.json").is_file():
        # A list of added tokens makes the older file say nothing.
        names = {} if "added_tokens_decoder" in config else read_object(folder, "special_tokens_map.json")
        backend = _backend(folder)
        if _says_everything(backend, config | names, read_object(folder, "added_tokens.json")):
            return TokenizerFiles(backend, special_texts(config | names))
    return _converted(folder, config, conversions)


def _converted(folder: Path, config: dict[str, Any], conversions: Conversions) -> TokenizerFiles:
    has_file = (folder / "tokenizer.json").is_file()
    if not has_file:
        if not any(any(folder.glob(pattern)) for pattern in _OLDER_FILES):
            raise ModelUnavailable("The model's folder has no tokenizer.json, and no older file of a tokenizer.")
        if "auto_map" in config:
            raise ModelUnavailable(
                "The model's folder has no tokenizer.json; its tokenizer is its own Python code, which is not run here."
            )
    try:
        return TokenizerFiles(*conversions.convert(folder))
    except NotConverted as error:
        if has_file:
            _backend(folder)
        without = "" if has_file else ", which has no tokenizer.json"
        raise ModelUnavailable(f"transformers cannot read the model's tokenizer{without}: {error.reason}") from error


def _backend(folder: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # tokenizers raises bare Exception
        raise ModelUnavailable("The model's tokenizer.json is broken.") from error


def _says_everything(backend: Tokenizer, config: dict[str, Any], added: dict[str, Any]) -> bool:
    """Whether tokenizer.json has every token that the other files name, as they name it."""
    known: dict[str, tuple[int, AddedToken]] = {
        token.content: (number, token) for number, token in backend.get_added_tokens_decoder().items()
    }
    listed = dict(_listed(config.get("added_tokens_decoder"))) | {str(text): number for text, number in added.items()}
    special = set(_named(config))
    return all(text in known and known[text][0] == number for text, number in listed.items()) and all(
        text in known and known[text][1].special for text in special
    )


def _listed(decoder: object) -> Iterator[tuple[str, int]]:
    """Text and number of each token of an added_tokens_decoder."""
    if isinstance(decoder, dict):
        for number, token in decoder.items():
            if isinstance(token, dict) and str(number).isdigit():
                yield str(token.get("content")), int(number)


def _named(config: dict[str, Any]) -> Iterator[str]:
    """The special tokens by name, and those without one."""
    yield from special_texts(config).values()
    for name in ("additional_special_tokens", "extra_special_tokens"):
        more = config.get(name) or ()
        for token in more.values() if isinstance(more, dict) else more:
            yield token["content"] if isinstance(token, dict) and "content" in token else str(token)
