"""What each field of POST /v1/decisions does here, as data; read by `fields.screen` and the docs."""

from __future__ import annotations

from server.api.fields import Fields, Refusal
from server.api.other_servers import CACHE_SALT, KEEP_ALIVE

_NOTHING_IS_WRITTEN = "nothing is written: the options of a question are its answers"

DECISIONS = Fields(
    works={
        "model": "The model's id or an alias; absent, blank or `default` means the default model.",
        "input": "A string, or a list of messages, calls and outputs of tools.",
        "questions": "1 to 400 of the types predicate, choice and score: see [Decisions](decisions.md).",
        "cache_salt": CACHE_SALT,
        "keep_alive": KEEP_ALIVE,
    },
    accepted={
        "safety_identifier": "A label; nothing is stored.",
        "user": "A label; nothing is stored.",
        "metadata": "A label; nothing is stored.",
        "service_tier": "There is one tier.",
        "prompt_cache_key": "Prefixes are found by their tokens; no key is needed.",
        "prompt_cache_retention": "Prefixes are kept as the settings say.",
        "prompt_cache_options": "Prefixes are kept as the settings say.",
    },
    refused={
        "stream": Refusal("all answers come at once", (False,)),
        "instructions": Refusal(
            "each question has its own; what holds for all of them is a message of the input", ("",)
        ),
        "messages": Refusal("this endpoint takes input"),
        "tools": Refusal(_NOTHING_IS_WRITTEN, ([],)),
        "temperature": Refusal("nothing is drawn", (1,)),
        "max_output_tokens": Refusal(_NOTHING_IS_WRITTEN),
        "reasoning": Refusal("the model answers without thinking first", ({},)),
    },
)
