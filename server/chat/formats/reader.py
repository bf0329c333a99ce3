"""What every parser of calls has: where it reads, where it puts them, and which tools are offered. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from server.chat.formats.inlet import Broken, Inlet, Steps
from server.chat.formats.outlet import Outlet
from server.chat.formats.schema import offered
from server.chat.tools import Tool


class CallReader(Protocol):
    """`openings` begin calls, as symbols; so does `bare`, if it has one, where the text begins."""

    @property
    def openings(self) -> tuple[str, ...]: ...

    @property
    def bare(self) -> str: ...

    def calls(self, opening: str) -> Steps[None]:
        """Read what `opening`, which was taken, begins: one call or several, with the marker that closes them.

        Raises:
            Broken: what comes is no call of an offered tool.
            Cut: the answer ends in the middle of one, for want of tokens.
        """
        ...


class Calls:
    """The calls of one answer: what a reader needs for them."""

    def __init__(self, source: Inlet, out: Outlet, tools: Sequence[Tool]) -> None:
        self.source = source
        self.out = out
        self.tools = tools

    def tool(self, name: str) -> Tool:
        """The offered tool of that name, with which a call may begin. Raises Broken when there is none."""
        tool = offered(name, self.tools)
        if tool is None:
            raise Broken
        return tool
