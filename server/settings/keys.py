"""API keys as settings: which ones can be sent, and the digests by which they are told apart. Pure functions."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from pydantic import SecretStr

# What `server.api_key`, which has no name of its own, is called where clients have names.
DEFAULT = "default"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HASHED = "sha256:"
_HASH = re.compile(r"[0-9a-f]{64}")


def check_key(key: SecretStr) -> None:
    """An empty key, as an unset variable of a script gives, must not open the server to others.

    Raises:
        ValueError: no client could send it.
    """
    text = key.get_secret_value()
    if not text or not text.isprintable() or text != text.strip():
        raise ValueError("a key has at least one character, no space around it and no control characters")


def check_named(keys: Mapping[str, SecretStr]) -> None:
    """Raises ValueError for a name that is none, or a key that no client could send."""
    for name, key in keys.items():
        if not _NAME.fullmatch(name) or name == DEFAULT:
            raise ValueError(f"a name has 1 to 64 letters, digits, dots, dashes or underscores, and is not '{DEFAULT}'")
        check_key(key)
        text = key.get_secret_value()
        if text.startswith(_HASHED) and not _HASH.fullmatch(text.removeprefix(_HASHED)):
            raise ValueError(f"the hash of '{name}' is not sha256: and 64 lower-case hex digits")


def digests(single: SecretStr | None, named: Mapping[str, SecretStr]) -> dict[str, bytes]:
    """The sha256 of each key by the name of its client."""
    by_name = {} if single is None else {DEFAULT: digest(single.get_secret_value().encode())}
    for name, key in named.items():
        text = key.get_secret_value()
        hashed = text.startswith(_HASHED)
        by_name[name] = bytes.fromhex(text.removeprefix(_HASHED)) if hashed else digest(text.encode())
    return by_name


def digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def sendable(single: SecretStr | None, named: Mapping[str, SecretStr]) -> str | None:
    """A key that this machine's own `configi` can send; of a hashed one only its client knows the text."""
    if single is not None:
        return single.get_secret_value()
    texts = (key.get_secret_value() for key in named.values())
    return next((text for text in texts if not text.startswith(_HASHED)), None)
