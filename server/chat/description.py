"""What a model's folder says of the model, for clients that ask before they use it. Made in the text process."""

from __future__ import annotations

import msgspec


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """`architecture`: its `model_type`. `weight_bytes`: the size of its files; `bits`: of most of its weights, None
    where they are not quantized, and `dtype` of the others. `tools`: its chat template declares them itself.
    `reasoning`: it knows thoughts. `infill`: its vocabulary has tokens for filling in the middle.

    `special`: bos_token, eos_token and so on, by these names. `template`: the source of its chat template, None without
    one. `digest`: sha256 of its config.json, which was `modified` at so many seconds since 1970.
    """

    architecture: str = "unknown"
    weight_bytes: int = 0
    bits: int | None = None
    dtype: str = ""
    tools: bool = False
    reasoning: bool = False
    infill: bool = False
    special: dict[str, str] = {}
    template: str | None = None
    digest: str = ""
    modified: float = 0.0
