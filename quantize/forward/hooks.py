"""Standing in for the call of single modules of an mlx-lm model, without a change to the model's tree.

A hook gets the module's own call and its arguments, and answers in its place: record, replace, or call and pass on.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

# hook(call, *args, **kwargs) -> what the module gives; `call(*args, **kwargs)` is the module itself.
Hook = Callable[..., Any]


@contextlib.contextmanager
def hooked(hooks: Iterable[tuple[Any, Hook]]) -> Iterator[None]:
    """While open, calling a module of `hooks` calls its hook. A module is named once."""
    own = []
    try:
        for module, hook in hooks:
            own.append((module, type(module)))
            _set_class(module, _subclass(type(module), hook))
        yield
    finally:
        for module, cls in own:
            made = type(module)
            _set_class(module, cls)
            # A class refers to itself, and would hold what its hook does, a layer's weights say, until Python looks for
            # cycles.
            del made.__call__


def _subclass(cls: type[Any], hook: Hook) -> type:
    # Python looks __call__ up on the class. A subclass keeps attributes, paths and isinstance as they are.
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return hook(functools.partial(cls.__call__, self), *args, **kwargs)

    return type(cls.__name__, (cls,), {"__call__": call})


def _set_class(module: Any, cls: type) -> None:
    # Not through nn.Module's own __setattr__, which keeps a module's parameters.
    object.__setattr__(module, "__class__", cls)


def joined(modules: Mapping[str, Any], hooks: Iterable[tuple[str, Hook]]) -> list[tuple[Any, Hook]]:
    """For `hooked`: one hook a module of `modules`, that does what all of its hooks do; the first is the outermost."""
    by_path: dict[str, list[Hook]] = {}
    for path, hook in hooks:
        by_path.setdefault(path, []).append(hook)
    return [(modules[path], _chained(chain)) for path, chain in by_path.items()]


def _chained(chain: Sequence[Hook]) -> Hook:
    if len(chain) == 1:
        return chain[0]
    first, *rest = chain

    def both(call: Any, *args: Any, **kwargs: Any) -> Any:
        return first(lambda *a, **k: _chained(rest)(call, *a, **k), *args, **kwargs)

    return both
