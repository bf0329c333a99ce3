"""The door of printable.py for what is laid out on a terminal: tables, bars, text that streams."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import ProgressColumn, Task
from rich.segment import Segment
from rich.text import Text

from quantize.printable import printable


def console(*, stderr: bool = False) -> DoorConsole:
    return DoorConsole(stderr=stderr)


class DoorConsole(Console):
    """Strings are text, never markup. What is laid out is cleaned once more as it leaves, whatever it was made of."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(
            printable(text, lines=True), **{**options, "markup": False, "emoji": False, "highlight": False}
        )

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield segment._replace(text=printable(segment.text, limit=len(segment.text), lines=True))


class DescriptionColumn(ProgressColumn):
    """What a bar is for. Rich's own column reads markup in it: a bracket in a model's files would end the display."""

    _LONGEST = 200

    def render(self, task: Task) -> Text:
        return Text(printable(task.description, limit=self._LONGEST))
