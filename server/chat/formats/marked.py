"""The channels of a model that puts markers around its thoughts and its calls. Pure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable

from server.chat.channels import Piece
from server.chat.formats.format import ThoughtMarkers
from server.chat.formats.inlet import SPACE, Broken, Cut, Inlet, Steps, Stops
from server.chat.formats.outlet import Outlet
from server.chat.formats.reader import CallReader


class Steered(ABC):
    """Channels that a parser, which reads from `source` and writes to `out`, is driven by."""

    def __init__(self, source: Inlet, out: Outlet) -> None:
        self.source = source
        self.out = out
        self.reasoning = False
        self._steps: Generator[None, None, None] | None = None

    @abstractmethod
    def answer(self) -> Steps[None]:
        """Read the whole answer."""

    def push(self, token: int, text: str) -> Iterable[Piece]:
        return self._go_on(self.source.symbols.read(token, text))

    def finish(self, text: str, cut: bool = False) -> Iterable[Piece]:
        self.source.ended, self.source.cut = True, cut
        return self._go_on(text)

    def _go_on(self, symbols: str) -> Iterable[Piece]:
        if symbols:
            self.source.feed(symbols)
        if symbols or self.source.ended:
            self._steps = self._steps or self.answer()
            next(self._steps, None)
        return self.out.ready()


class MarkedChannels(Steered):
    """`thought` as symbols; `begun`: the prompt has opened one. `held`: see `WireFormat.channels`. `markers` never
    stand in a text, each with what stands there for it."""

    def __init__(
        self,
        source: Inlet,
        out: Outlet,
        thought: ThoughtMarkers | None,
        calls: CallReader | None,
        *,
        begun: bool,
        held: bool,
        markers: dict[str, str],
    ) -> None:
        super().__init__(source, out)
        self.reasoning = begun
        self._passed = False
        # Space that begins the answer; and space behind a thought or a call, which matters between two texts only.
        self._lead = self._gap = ""
        self._calls = calls
        self._held = held
        self._begin, self._end = (thought.begin.rstrip(), thought.end) if thought else ("", "")
        openings = calls.openings if calls else ()
        self._markers = markers
        self._stops = Stops(self._begin, self._end, *openings, *markers)
        # A call may end a thought, but not words about one: there only a marker that is a token counts.
        tokens = [text for text in (*openings, *markers) if len(text) == 1]
        self._thought_stops = Stops(self._begin, self._end, *tokens)

    def answer(self) -> Steps[None]:
        source, out = self.source, self.out
        if self.reasoning:
            yield from self._thought()
        # Space is dropped beside markers, so it waits for what is behind it.
        hold = SPACE if self._begin or self._calls else ""
        while True:
            if self._calls and self._calls.bare and not self._passed and out.calls == 0:
                self._lead = yield from source.skip()
                if (yield from source.peek()) == self._calls.bare:
                    lead, self._lead = self._lead, ""
                    yield from self._call("", lead, self._text)
                    continue
            space, stop = yield from source.until(self._stops, self._text, hold)
            source.take(len(stop))
            if not stop:
                out.text(self._lead + space)
                return
            if self._calls and stop in self._calls.openings:
                yield from self._call(stop, self._lead + space, self._text)
            elif stop == self._begin:
                if self._passed:
                    out.text(space)
                yield from self._thought()
            elif space or self._markers.get(stop):
                self._text(space + self._markers.get(stop, ""))
            self._lead = ""

    def _text(self, text: str) -> None:
        """Called with some text at least."""
        self.out.text(self._lead + (self._gap if self._passed else "") + text)
        self._passed = True
        self._lead = self._gap = ""

    def _thought(self) -> Steps[None]:
        source, out = self.source, self.out
        self.reasoning = True
        yield from source.skip()
        while True:
            space, stop = yield from source.until(self._thought_stops, out.reasoning, SPACE)
            source.take(len(stop))
            if not stop:
                out.reasoning(space)
                return
            if stop == self._end:
                break
            if self._calls and stop in self._calls.openings:
                if (yield from self._call(stop, space, out.reasoning)):
                    break
            else:
                out.reasoning(space)
        self.reasoning = False
        self._gap = yield from source.skip()

    def _plain(self, call: str) -> str:
        """What was no call, without the markers that would have made it one."""
        for marker, text in self._markers.items():
            call = call.replace(marker, text)
        return call

    def _call(self, opening: str, space: str, back: Callable[[str], None]) -> Steps[bool]:
        """Whether calls were found; what is none goes `back` to where it stood."""
        assert self._calls is not None
        before = self.out.calls
        # What no marker began, no grammar has looked at.
        wait = not self._held or self.reasoning or not opening
        self.out.attempt(space + self._plain(opening), wait)
        try:
            yield from self._calls.calls(opening)
            self.source.recorded()
        except (Broken, Cut) as failure:
            if text := self._plain(self.out.cut() if isinstance(failure, Cut) else self.out.give_up()):
                back(text)
        if self.out.calls == before:
            return False
        self._gap = yield from self.source.skip()
        return True
