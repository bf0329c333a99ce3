"""Who sends a request: the key that was accepted tells, never how its header is spelled. HTTP process."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from starlette.datastructures import Headers


class Clients:
    """`digests`: the sha256 of each key by the name of its client; with none, everybody is served."""

    def __init__(self, digests: Mapping[str, bytes]) -> None:
        self._digests = digests

    @property
    def named(self) -> bool:
        return bool(self._digests)

    def of(self, headers: Headers) -> str | None:
        """The name that goes with the key in `headers`; None when it is nobody's."""
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = bearer if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        # Header values are latin-1; digests compare in constant time whatever the header holds.
        digest = hashlib.sha256(given.strip().encode("latin-1")).digest()
        matching = [name for name, known in self._digests.items() if hmac.compare_digest(digest, known)]
        return matching[0] if matching else None
