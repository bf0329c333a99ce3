"""How many bytes of request bodies may be on their way in at once, of all clients together. HTTP process.

A body costs its bytes from their arrival until it has been parsed. Its first bytes cost nothing: as many are read ahead
of any check for each connection anyway, and so ordinary requests pass while somebody uploads as much as is allowed.
"""

from __future__ import annotations

from server.errors import Overloaded

# What uvicorn reads of a body before anybody has asked for it.
_FREE = 64 * 1024


class BodyBudget:
    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0

    def share(self) -> BodyShare:
        """For one request, which must give it back."""
        return BodyShare(self)

    def take(self, count: int) -> None:
        """Raises Overloaded when so many bytes are not left."""
        if self._held + count > self._limit:
            raise Overloaded("Too many large request bodies are on their way in at once; try again in a moment.")
        self._held += count

    def give_back(self, count: int) -> None:
        self._held -= count


class BodyShare:
    """What one request holds of the budget."""

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self._held = 0

    def grow(self, size: int) -> None:
        """`size` bytes of the body have come by now. Raises Overloaded when the budget has no room for them."""
        costs = max(0, size - _FREE)
        self._budget.take(costs - self._held)
        self._held = costs

    def give_back(self) -> None:
        self._budget.give_back(self._held)
        self._held = 0
