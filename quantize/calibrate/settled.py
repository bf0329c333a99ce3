"""Parts of a layer whose matrices are all solved: what they return is computed once a chunk, and kept.

A part is a child of the layer. Every later run of the layer over the same chunk is handed what the part returned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

import mlx.core as mx

from quantize.calibrate.given import rows_of
from quantize.calibrate.stages import Stage, child_of
from quantize.forward.hooks import Hook
from quantize.forward.store import Store


class SettledParts:
    """Of a layer with these `stages`; `store` keeps what is returned."""

    def __init__(self, stages: Sequence[Stage], store: Store) -> None:
        self._stages = stages
        self._store = store
        self._keys: set[str] = set()

    def hooks(
        self, number: int, chunk: int, modules: Mapping[str, Any], given: str, noted: Sequence[str]
    ) -> list[tuple[str, Hook]]:
        """For each part whose matrices are all of stages before `number`, except where a module in it is `noted`.

        given: the key, in the store, of the notes of the stage before `number`.
        """
        solved = {path: at < number for at, stage in enumerate(self._stages) for path in stage.paths}
        settled = [
            child
            for child in sorted({child_of(path) for path in solved} & modules.keys())
            if all(done for path, done in solved.items() if child_of(path) == child)
            and all(child_of(path) != child for path in noted)
        ]
        return [(child, self._kept(number, chunk, child, modules, given)) for child in settled]

    def drop(self) -> None:
        for key in self._keys:
            self._store.drop(key)

    def _kept(self, number: int, chunk: int, child: str, modules: Mapping[str, Any], given: str) -> Hook:
        calls = count()
        last = self._stages[number - 1]

        def run(call: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
            if last.ends != child:
                return call(x, *args, **kwargs)
            # What the last matrix of all in it was given is still there.
            rows = self._store.get(given)[rows_of(number - 1)]
            return modules[last.paths[0]](rows.reshape(*x.shape[:-1], -1))

        def keep(call: Any, *args: Any, **kwargs: Any) -> Any:
            key = f"settled-{child}-{chunk:05d}-{next(calls)}"
            if key in self._keys:
                return self._store.get(key)["0"]
            returned = run(call, *args, **kwargs)
            if isinstance(returned, mx.array) and number < len(self._stages):
                self._store.put(key, {"0": returned})
                self._keys.add(key)
            return returned

        return keep
