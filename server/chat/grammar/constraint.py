"""What a request asks of its answer, as the engine takes it: what the text process makes and `generation` sends on."""

from __future__ import annotations

import msgspec

from server.engine_client.protocol import Grammar


class Constraint(msgspec.Struct, frozen=True):
    """`banned`: token sequences that must not be written. `closing`: tokens that end a thought. `notes`: a line for
    each keyword of the request's schemas that is not enforced."""

    grammar: Grammar | None = None
    banned: list[list[int]] = []
    closing: list[int] = []
    notes: list[str] = []


FREE = Constraint()
