"""Waiting for a model to be there: what a stream is told meanwhile, and when others give up. HTTP process."""

from __future__ import annotations

import asyncio
from typing import Any

from server.chat.deltas import ModelPending
from server.errors import ModelLoading
from server.generation.places import Place
from server.models.residency import Residency
from server.models.status import ModelStatus
from server.settings.types import ModelSettings

_COMING_UP = ("fetching", "building", "loading", "unloading")


def _not_ready(status: ModelStatus) -> str:
    # A model may be in memory and its text process not.
    missing = f"{status.state}, {status.text}" if status.state in _COMING_UP else "its tokenizer is being read"
    return f"Model '{status.id}' is not ready yet: {missing}."


def _pending(status: ModelStatus) -> ModelPending:
    return ModelPending(
        f"{status.state}: {status.line}",
        status.state,
        status.id,
        None,
        status.done,
        status.total,
        status.rate,
        status.seconds_left,
    )


class ModelWait:
    """The wait of one request: one deadline, `limit_s` from now, for all that it waits for. None has no deadline."""

    def __init__(self, residency: Residency, entry: ModelSettings, place: Place, limit_s: float | None = None) -> None:
        self._residency = residency
        self._entry = entry
        self._place = place
        self._limit_s = limit_s
        self._deadline = None if limit_s is None else asyncio.get_running_loop().time() + limit_s
        self._shown: ModelStatus | None = None

    def anew(self) -> ModelWait:
        """As long a wait, from now on."""
        return ModelWait(self._residency, self._entry, self._place, self._limit_s)

    async def news(self, future: asyncio.Future[Any]) -> ModelPending | None:
        """What has become of the model since the last call; None when `future` is done. Without a deadline only.

        `future` is left alone, whatever happens to the caller.

        Raises:
            ModelLoading: the deadline has passed.
            ConfigiError: the request's place was ended.
        """
        while not future.done():
            status = self._residency.status(self._entry)
            if self._deadline is None and status.state in _COMING_UP and status != self._shown:
                self._shown = status
                return _pending(status)
            awaited = {future, self._residency.changes.next(), self._place.failed}
            await asyncio.wait(awaited, timeout=self._left(), return_when=asyncio.FIRST_COMPLETED)
            self._place.check()
            if self._left() == 0 and not future.done():
                raise ModelLoading(_not_ready(self._residency.status(self._entry)))
        # Also when there was nothing to wait for: what begins now would have nobody to end it.
        self._place.check()
        return None

    async def files(self, opening: asyncio.Future[Any]) -> ModelPending | None:
        """`news` of the model's files. Who gives up finds the model further on when it tries again."""
        try:
            return await self.news(opening)
        except ModelLoading:
            self._residency.preload(self._entry)
            raise

    def _left(self) -> float | None:
        """Seconds until the deadline, which may have passed."""
        return None if self._deadline is None else max(0.0, self._deadline - asyncio.get_running_loop().time())
