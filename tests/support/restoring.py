"""What is on disk, brought back as an engine does that has nothing else to do."""

from __future__ import annotations

from server.engine.prefixes.disk_work import Restore
from server.engine.prefixes.prefix_cache import Hit, PrefixCache

# Many times what any test needs.
_MOST_LOOKS = 20_000


def wait_for(cache: PrefixCache, *restores: Restore) -> None:
    for _ in range(_MOST_LOOKS):
        if all(restore.done for restore in restores):
            return
        cache.disk.wait_for_read(60)
        cache.disk.tend()
    raise AssertionError("what is on disk does not come back")


def restored(cache: PrefixCache, tokens: list[int], salt: str = "") -> Hit:
    """What is found once all that is worth it is back from disk."""
    wait_for(cache, cache.restore(tokens, salt))
    return cache.find(tokens, salt)
