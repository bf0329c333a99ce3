"""Answers that can be asked for again, and continued, by their id: in memory, bounded in bytes and in time.

Each belongs to who asked for it, the key that the guard accepted; without keys all on this machine are one. Nothing is
written to disk: a conversation is nobody's business after the server has ended. HTTP process; thread-safe, because
large requests are read in a thread.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from server.errors import NotFound


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """`body` is the response as its client got it, `items` its whole input. `size` in bytes of JSON."""

    owner: str
    body: dict[str, Any]
    items: list[Any]
    size: int
    at: float


class ResponseStore:
    def __init__(self, max_bytes: int, max_age_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._clock = clock
        self._lock = threading.Lock()
        self._bytes = 0
        self._by_id: OrderedDict[str, StoredResponse] = OrderedDict()

    def put(self, owner: str, body: dict[str, Any], items: list[Any]) -> None:
        """The oldest make room; one that is larger than all of the store is not kept."""
        size = len(msgspec.json.encode(body)) + len(msgspec.json.encode(items))
        if size > self._max_bytes:
            return
        with self._lock:
            self._by_id[body["id"]] = StoredResponse(owner, body, items, size, self._clock())
            self._bytes += size
            self._make_room()

    def get(self, owner: str, id: str) -> StoredResponse:
        """Raises NotFound, also for a response of somebody else."""
        with self._lock:
            self._make_room()
            stored = self._by_id.get(id)
        if stored is None or stored.owner != owner:
            raise NotFound("There is no stored response with this id.", param="response_id")
        return stored

    def delete(self, owner: str, id: str) -> None:
        self.get(owner, id)
        with self._lock:
            if id in self._by_id:
                self._forget(id)

    def item(self, owner: str, id: str) -> dict[str, Any] | None:
        """The output or input item with this id in any stored response of `owner`, the latest first."""
        with self._lock:
            self._make_room()
            latest_first = list(reversed(self._by_id.values()))
        for stored in latest_first:
            if stored.owner == owner:
                for item in (*stored.body["output"], *stored.items):
                    if isinstance(item, dict) and item.get("id") == id:
                        return item
        return None

    def _make_room(self) -> None:
        oldest_allowed = self._clock() - self._max_age_s
        while self._by_id:
            id, oldest = next(iter(self._by_id.items()))
            if self._bytes <= self._max_bytes and oldest.at >= oldest_allowed:
                return
            self._forget(id)

    def _forget(self, id: str) -> None:
        self._bytes -= self._by_id.pop(id).size
