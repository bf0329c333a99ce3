"""The path that a client means, of the one that it asks for: base URLs are pasted as people find them. Pure.

A slash at the end, /v1 before that of the client itself, the address of one endpoint whole: an SDK appends its own path
to any of them, and nobody else's path looks like what comes of it. HTTP process.
"""

from __future__ import annotations

import re

_PASTED = "chat/completions|completions|responses|messages|embeddings|decisions"
# What clients append to a base URL.
_ENDPOINTS = f"{_PASTED}|models"
_DOUBLED_VERSION = re.compile("^(/v1)+(?=/(v1|api)(/|$))")
# Not /models: any id can stand behind it. Those of responses are the server's own.
_PASTED_ENDPOINT = re.compile(f"^(/v1)?/({_PASTED})(?=(/v1)?/({_ENDPOINTS})(/|$))")
_WHOLE = re.compile("^https?://(?P<authority>[^/]*)(?P<path>/.*)?$", re.IGNORECASE | re.DOTALL)
_ENDPOINT_BELOW = re.compile(f"^/.+?/({_ENDPOINTS})$")


def without_authority(path: str) -> tuple[str | None, str]:
    """The host of a whole URL and its path: what is sent to a proxy may be sent to any server. None where it is a path
    alone, as usual."""
    whole = _WHOLE.match(path)
    return (whole["authority"], whole["path"] or "/") if whole else (None, path)


def tidied(path: str) -> str:
    one = re.sub("/{2,}", "/", path).rstrip("/")
    one = _DOUBLED_VERSION.sub("", one)
    return _PASTED_ENDPOINT.sub("", one) or "/"


def endpoint_below(path: str) -> str | None:
    """The endpoint that an unknown `path` ends in, as it is served here: its client has another server's base URL."""
    found = _ENDPOINT_BELOW.match(path)
    return f"/v1/{found.group(1)}" if found else None
