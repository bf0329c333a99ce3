"""What is kept of a prompt while it is read, for later requests, and what time it takes. In the engine process."""

from __future__ import annotations

import time

from server.engine import kv
from server.engine.checkpoints import checkpoints, checkpoints_behind, kind_at
from server.engine.linear_cost import LinearCost
from server.engine.prefill import Prefill
from server.engine.prefixes.prefix_cache import PrefixCache
from server.engine_client.protocol import Kind

# At which a prompt is kept, before that was measured.
_ASSUMED_BYTES_PER_S = 1e9


class CheckpointKeeping:
    """`trimmable`: whether all layers of the model are; then any prefix can be cut out of a cache that is read."""

    def __init__(self, prefixes: PrefixCache, *, trimmable: bool) -> None:
        self._prefixes = prefixes
        self._trimmable = trimmable
        # Seconds to keep a prompt, by the bytes of its caches.
        self._cost = LinearCost()

    def passed(self, prefill: Prefill, before: int) -> None:
        """What of the prompt was read since the first `before` tokens: the checkpoints there, where there is no other
        moment."""
        if not self._trimmable:
            for end in checkpoints_behind(prefill.found, prefill.request):
                if before < end <= prefill.done:
                    self._keep(prefill, end)

    def completed(self, prefill: Prefill) -> None:
        if self._trimmable:
            self._keep(prefill, checkpoints(prefill.request)[-1])

    def closing_s(self, prefill: Prefill, beside: int) -> float:
        """What follows the last layer of its pass before tokens are drawn again: it is kept, and when it is read it
        joins those that decode, whose caches are then made anew, each as long as its own."""
        assert prefill.under_way is not None
        end, is_last = prefill.done + prefill.under_way.tokens, prefill.under_way.tokens == prefill.unread
        kept = (
            is_last
            if self._trimmable
            else sum(prefill.done < at <= end for at in checkpoints_behind(prefill.found, prefill.request))
        )
        copies = kept + (1 + beside if is_last else 0)
        nbytes = kv.nbytes(prefill.layers)
        return copies * (self._cost.seconds(nbytes) if self._cost.known else nbytes / _ASSUMED_BYTES_PER_S)

    def _keep(self, prefill: Prefill, end: int) -> None:
        request = prefill.request
        kind, begun = kind_at(request, end), time.monotonic()
        kept = self._prefixes.store(request.prompt[:end], prefill.layers, request.boundaries, kind, request.cache_salt)
        if kept:
            self._drop_aside(prefill)
        elif not self._trimmable:
            self._set_aside(prefill, end, kind)
        if nbytes := kv.nbytes(prefill.layers):
            self._cost.record(nbytes, time.monotonic() - begun)

    def _set_aside(self, prefill: Prefill, end: int, kind: Kind) -> None:
        """Only the last one: it is where the next turn goes on."""
        self._drop_aside(prefill)
        prefill.aside = self._prefixes.set_aside(prefill.layers, end, kind)

    def _drop_aside(self, prefill: Prefill) -> None:
        if prefill.aside is not None:
            self._prefixes.drop_aside(prefill.aside)
            prefill.aside = None
