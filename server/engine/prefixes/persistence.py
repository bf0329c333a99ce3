"""Which prefixes go to disk, when, and which come back. Runs in the engine process.

A write wears an SSD, and the state of a model with sliding windows is 210 MB at a single token. So a segment is written
late: when it leaves memory, when the engine has been idle, at the end, and now and then while it works, or a crash
would lose a whole day. It is written once, and only where reading it back saves several times what reading it takes.
Of a conversation's states only the last one of the prompt and the system prompt's go to disk: what is before them is
needed for its keys and values alone.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator

from server.engine import kv
from server.engine.compat import Layers
from server.engine.prefixes.adopting import adopt
from server.engine.prefixes.disk_tier import DiskTier, StoredSegment
from server.engine.prefixes.disk_work import PrefixReader, PrefixWriter, Restore
from server.engine.prefixes.shelf import (
    CachedSegment,
    Path,
    SegmentNode,
    Shelf,
    is_resumable_at_end,
    path_to,
    tokens_to,
)

# Reading a segment back must save so many times the seconds that it takes, or it is not worth its wear.
_WORTH = 4
# A state at the end of an answer must save more: whoever wrote the history may have left the thoughts out of it, and
# the end of the message before, which is a state too, costs no more than the answer.
_WORTH_OF_ANSWERS = 8
# So little is written in any case.
_SMALL_BYTES = 2**22
# While the engine works, what it used is written this often.
_WHILE_BUSY_S = 300.0
# Of a step, to begin with that: there may be thousands of segments, and a stream waits meanwhile.
_BEGINNING_S = 0.005
# For memory that is needed and held by what is being written: a gigabyte takes a second or two.
_MOST_WAIT_S = 5.0


class Persistence:
    """`prefill_rate`: tokens per second, None before it is known. `settle` is called before something is written while
    the engine works, and raises when the device has failed: what one returned that has may be wrong."""

    def __init__(
        self,
        shelf: Shelf,
        disk: DiskTier,
        *,
        trimmable: bool,
        prefill_rate: Callable[[], float | None] = lambda: None,
        clock: Callable[[], float] | None = None,
        settle: Callable[[], None] = lambda: None,
    ) -> None:
        self._settle = settle
        self._shelf = shelf
        self._disk = disk
        self._trimmable = trimmable
        self._prefill_rate = prefill_rate
        self._writer = PrefixWriter(disk)
        self._reader = PrefixReader(disk)
        self._clock = clock or time.monotonic
        self._next_busy_write = self._clock() + _WHILE_BUSY_S
        # What is to be written and was not looked at yet; and whether that goes on while the engine works.
        self._to_write: Iterator[SegmentNode] = iter(())
        self._writes_while_busy = False
        for stored in disk.scan():
            self.delete(adopt(shelf, stored, trimmable=trimmable))

    # ---- reading

    def seconds_to_read(self, path: Path) -> float:
        files = {node.segment.stored for node in unloaded(path)}
        return self._disk.seconds_to_read(sum(stored.nbytes for stored in files if stored is not None))

    def restore(self, path: Path, saved_s: float) -> Restore:
        """Bring all of `path` into memory, which saves so much prefill."""
        segments = deque(dict.fromkeys(node.segment for node in unloaded(path)))
        restore = Restore(segments, saved_s / max(self.seconds_to_read(path), 1e-9))
        self._reader.submit(restore)
        return restore

    def cancel(self, restore: Restore) -> None:
        """Nobody waits for it any more."""
        restore.segments.clear()

    def wait_for_read(self, seconds: float) -> None:
        self._reader.wait(seconds)

    # ---- both

    @property
    def busy(self) -> bool:
        """Writing."""
        return self._writer.busy

    @property
    def leaving(self) -> int:
        """Bytes of memory that are held for no other reason than to be written."""
        return self._writer.leaving

    def tend(self) -> None:
        """Take what the threads have done."""
        if (read := self._reader.finished()) is not None:
            segment, layers = read
            if layers is None:
                self._lose(segment)
            elif self._shelf.is_shown(segment):
                self._shelf.hold(segment, layers)
            self._reader.go_on()
        if self._writer.busy:
            self._take_written()

    def tend_while_busy(self) -> None:
        self.tend()
        if self._clock() >= self._next_busy_write:
            self._to_write, self._writes_while_busy = self._in_order(), True
            self._next_busy_write = self._clock() + _WHILE_BUSY_S
        if self._writes_while_busy:
            self._settle()
            self._write_for(_BEGINNING_S)

    # ---- writing

    def write_one(self) -> bool:
        """Begin to write what was used last, when there is nothing else to do; False when all is written."""
        self.tend()
        self._next_busy_write = self._clock() + _WHILE_BUSY_S
        if self.busy or self._write_next():
            return True
        self._to_write, self._writes_while_busy = self._in_order(), False
        return self._write_next()

    def close(self, seconds: float) -> None:
        """Write what is worth it, for so long at most."""
        deadline = time.monotonic() + seconds
        while self.write_one() and (left := deadline - time.monotonic()) > 0:
            self._writer.wait(left)
        self._writer.close()
        self._reader.close()

    def save(self, node: SegmentNode) -> bool:
        """Write what leaves memory at `node`; False when it is not worth it, or too much."""
        if not (self._disk.enabled and self._is_end(node) and self.is_worth_writing(node)):
            return False
        self._settle()
        return self._write(node)

    def delete(self, files: list[StoredSegment]) -> None:
        for stored in files:
            self._disk.delete(stored)

    def let_go(self, room: int) -> None:
        """Wait until what is evicted and still to be written takes at most `room` bytes of memory: others need it. Not
        for longer than a disk that works takes."""
        deadline = time.monotonic() + _MOST_WAIT_S
        while self._writer.leaving > room and (left := deadline - time.monotonic()) > 0:
            self._writer.wait(left)
            self._take_written()

    def _write_next(self) -> bool:
        return any(map(self._write_if_wanted, self._to_write))

    def _write_for(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        for node in self._to_write:
            self._write_if_wanted(node)
            if time.monotonic() >= deadline:
                return
        self._writes_while_busy = False

    def _write_if_wanted(self, node: SegmentNode) -> bool:
        return self._is_wanted(node) and self.is_worth_writing(node) and self._write(node)

    def _in_order(self) -> Iterator[SegmentNode]:
        """Parents first among those used last: a segment is useless without them."""
        wanted = filter(self._is_wanted, self._shelf if self._disk.enabled else ())
        return iter(sorted(wanted, key=lambda node: (-node.segment.used, node.end)))

    def _is_wanted(self, node: SegmentNode) -> bool:
        """Whether it is an end in memory that a later prompt may well continue from, and not on disk."""
        segment = node.segment
        is_only_here = segment.layers is not None and segment.stored is None and not segment.writing
        return is_only_here and node.is_in_tree and self._is_end(node)

    def _is_end(self, node: SegmentNode) -> bool:
        if self._trimmable:
            return _last_view(node, node.segment) is node
        is_system = node.segment.kind == "system"
        return is_resumable_at_end(node, disk=False) and (is_system or not _is_superseded(node))

    def is_worth_writing(self, node: SegmentNode) -> bool:
        """Whether reading it back, with what is missing before it, would save enough."""
        path = path_to(node)
        nbytes = node.segment.nbytes + sum(
            kv.nbytes(kv.trimmable_only(segment.layers or [])) for segment in _unwritten(path[:-1])
        )
        rate = self._prefill_rate()
        if nbytes <= _SMALL_BYTES or rate is None:
            return True
        resumable = [step.end for step in path[:-1] if step.segment.stored is not None and self._resumes(step)]
        saved_s = (node.end - max(resumable, default=0)) / rate
        is_answer = not self._trimmable and node.segment.kind == "assistant"
        return saved_s > (_WORTH_OF_ANSWERS if is_answer else _WORTH) * self._disk.seconds_to_read(nbytes)

    def _resumes(self, node: SegmentNode) -> bool:
        """From disk."""
        stored = node.segment.stored
        return stored is not None and (self._trimmable or (stored.resumable and node.stop == node.segment.length))

    def _write(self, node: SegmentNode) -> bool:
        """The node's segment, and before it those that it is useless without."""
        for segment in _unwritten(path_to(node)):
            last = _last_view(node, segment)
            layers = segment.layers or []
            if last.stop < segment.length:
                # The rest of it was forgotten.
                layers = kv.extract(kv.trimmable_only(layers), 0, last.stop)
            elif segment is not node.segment and segment.kind != "system":
                layers = kv.trimmable_only(layers)
            if not self._submit(segment, last, layers):
                return False
        return True

    def _submit(self, segment: CachedSegment, last: SegmentNode, layers: Layers) -> bool:
        segment.writing = self._writer.submit(segment, tokens_to(last), last.end - last.stop, layers)
        return segment.writing

    def _take_written(self) -> None:
        finished = list(self._writer.finished())
        if not finished:
            return
        for segment, stored in finished:
            segment.writing = False
            if stored is not None and not self._shelf.is_shown(segment):
                self._disk.delete(stored)
            else:
                segment.stored = stored
        removed = set() if self._writer.busy else self._disk.take_removed()
        if not removed and all(stored is not None for _, stored in finished):
            return
        lost = set()
        for node in self._shelf:
            segment = node.segment
            if segment.stored is not None and segment.stored.path in removed:
                segment.stored = None
            if not segment.is_available(disk=True) and not segment.writing:
                lost.add(node)
        for node in lost:
            if node.parent not in lost:
                self.delete(self._shelf.forget(node))

    def _lose(self, segment: CachedSegment) -> None:
        """Its file is gone or damaged, and what is below it of no use."""
        if segment.stored is not None:
            self._disk.delete(segment.stored)
            segment.stored = None
        node = next((node for node in self._shelf if node.segment is segment), None)
        if node is not None and segment.layers is None:
            self.delete(self._shelf.forget(node))


def unloaded(path: Path) -> Path:
    """Of a path to resume, what must be read: the last node with all layers, the others for their trimmable ones."""
    return [n for n in path if n.segment.layers is None or (n is path[-1] and not kv.is_resumable(n.segment.layers))]


def _unwritten(path: Path) -> list[CachedSegment]:
    segments = dict.fromkeys(node.segment for node in path)
    return [s for s in segments if s.layers is not None and s.stored is None and not s.writing]


def _last_view(node: SegmentNode, segment: CachedSegment) -> SegmentNode:
    """Where `segment`, which is on the path to `node`, ends in the tree: perhaps beside that path, and perhaps below a
    part that another segment took over."""
    last = node
    while last.segment is not segment:
        assert last.parent is not None
        last = last.parent
    end = last.end - last.stop + segment.length
    below = list(last.children.values())
    while below:
        child = below.pop()
        if child.segment is segment and child.end > last.end:
            last = child
        if child.end < end:
            below.extend(child.children.values())
    return last


def _is_superseded(node: SegmentNode) -> bool:
    """Whether every later prompt that could continue from here can continue from the end of a later message as well."""
    while len(node.children) == 1:
        [node] = node.children.values()
        if node.segment.kind != "assistant" and is_resumable_at_end(node, disk=True):
            return True
    return False
