"""The tools of a conversation, and what the model may do with them, free of any wire protocol."""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class Tool(msgspec.Struct, frozen=True):
    """A function that the model may call. `parameters` is its JSON Schema; None takes no arguments or any.

    `strict`: the arguments must satisfy the schema, and a keyword that cannot be enforced is an error.
    """

    name: str
    description: str = ""
    parameters: dict[str, Any] | None = None
    strict: bool = False


class ToolChoice(msgspec.Struct, frozen=True):
    """`required`: the answer is one call or more. `names`: those that may be called, all when empty.

    `parallel` false: one call at most.
    """

    mode: Literal["none", "auto", "required"] = "auto"
    names: tuple[str, ...] = ()
    parallel: bool = True

    def allowed(self, tools: tuple[Tool, ...]) -> tuple[Tool, ...]:
        return tuple(tool for tool in tools if not self.names or tool.name in self.names)


# The model calls what it likes, or nothing.
FREE = ToolChoice()
