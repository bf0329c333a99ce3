"""What an answer owes to the prefix cache, as headers: the first thing to look at when a conversation is read anew.

Only for an answer that is whole: the headers of a stream leave before anything is known. HTTP process.
"""

from __future__ import annotations

from collections.abc import Sequence

from server.chat.deltas import Usage


def cache_headers(usages: Sequence[Usage]) -> dict[str, str]:
    """Of all prompts together; where one differed, only when there is one."""
    headers = {"x-configi-cached-tokens": str(sum(usage.cached_tokens for usage in usages))}
    if len(usages) == 1 and (diverged := usages[0].divergence) is not None:
        headers["x-configi-cache-diverged-at"] = str(diverged.at)
        if diverged.part is not None:
            headers["x-configi-cache-diverged-in"] = diverged.part
    return headers
