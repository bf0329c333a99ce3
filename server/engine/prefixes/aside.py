"""What a prompt is kept by that takes too much to be kept while it is answered. Runs in the engine process."""

from __future__ import annotations

from dataclasses import dataclass

from server.engine import kv
from server.engine.compat import Layers
from server.engine_client.protocol import Kind


@dataclass(frozen=True, slots=True)
class Aside:
    """The state of the non-trimmable layers after `end` tokens, None in place of the others: these hold those tokens
    until the answer ends, and then all is kept."""

    end: int
    kind: Kind
    layers: Layers

    @property
    def nbytes(self) -> int:
        return kv.nbytes(self.layers)
