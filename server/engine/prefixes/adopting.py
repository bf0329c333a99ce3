"""The files of earlier processes take their places in the tree. Runs in the engine process."""

from __future__ import annotations

from server.engine.prefixes.disk_tier import StoredSegment
from server.engine.prefixes.shelf import CachedSegment, Shelf, is_resumable_at_end


def adopt(shelf: Shelf, stored: StoredSegment, *, trimmable: bool) -> list[StoredSegment]:
    """`stored` can be found in `shelf` from now on; those of what is before its segment came first. Returns the files
    that nothing needs any more: perhaps this one. `trimmable`: whether all layers of the model are."""
    tokens = list(stored.tokens)
    match = shelf.match(tokens, stored.salt)
    adds_a_state = not trimmable and stored.resumable
    if match.length == len(tokens) and adds_a_state:
        last = match.path[-1]
        adds_a_state = not (last.end == match.length and is_resumable_at_end(last, disk=True))
    if match.length < stored.start or (match.length == len(tokens) and not adds_a_state):
        return [stored]
    segment = CachedSegment(stored.kind, len(tokens) - stored.start, 0, stored.salt, stored=stored)
    if match.length < len(tokens):
        shelf.extend(match, tokens[match.length :], segment, match.length - stored.start)
        return []
    # Its tokens lie in another segment, whose state is that of its own end.
    if stored.start > 0:
        shelf.cut(shelf.match(tokens[: stored.start], stored.salt))
    node = shelf.cut(shelf.match(tokens, stored.salt))
    return shelf.replace(node, segment, node.end - len(node.label) - stored.start)
