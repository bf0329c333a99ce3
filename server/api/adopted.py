"""The fields of chat completions and of other servers, in a dialect that has words of its own for some of them. Pure.

How tokens are drawn and what form an answer has means the same everywhere, and works. What the dialect says otherwise
is refused with its own word for it, so that nothing that changes an answer is merely ignored. HTTP process.
"""

from __future__ import annotations

from collections.abc import Mapping

from server.api.fields import Fields, Refusal
from server.api.other_servers import ACCEPTED, INSIDE, REFUSED, REFUSED_IN_CHAT, SAMPLING_ALIASES
from server.api.shared_fields import SAMPLING, SHAPE

# Of what means the same everywhere, what a dialect says by itself: the model, streams, lengths, choices, the form.
_OWN_WORDS = ("model", "stream", "stream_options", "max_tokens", "n", "return_token_ids", "response_format")
_WORKS = {name: what for name, what in {**SAMPLING, **SHAPE}.items() if name not in _OWN_WORDS}

_WITHOUT_EFFECT = {
    **ACCEPTED,
    **dict.fromkeys(("user", "store", "safety_identifier", "metadata"), "A label; nothing is stored."),
    "service_tier": "There is one tier.",
    **dict.fromkeys(
        ("prompt_cache_key", "prompt_cache_retention", "prompt_cache_options"), "Prefixes are found by their tokens."
    ),
    "prediction": "A hint for speed; the answer is the same.",
    "verbosity": "A hint to models that were trained with it; the ones served here were not.",
    "moderation": "There is no moderation.",
}

_LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict", "num_predict", "max_new_tokens")
_THOUGHTS = (
    "reasoning_effort", "reasoning", "thinking", "enable_thinking", "think", "thinking_token_budget",
    "thinking_budget", "thinking_budget_tokens", "reasoning_budget", "reasoning_budget_tokens",
)  # fmt: skip
_TOKEN_IDS = ("return_token_ids", "return_tokens", "return_prompt_token_ids", "return_tokens_as_token_ids")
_CHAT = "use /v1/chat/completions"
_ENDS = "a last message of the assistant is continued, any other is answered"


def adopted(own: Fields, *, length: str, thoughts: str, shape: str, instead: Mapping[str, Refusal]) -> Fields:
    """`own`, and in one of its tables every field that chat completions and other servers have beside it.

    `length`, `thoughts`, `shape`: the dialect's own fields for those. `instead`: what else it says otherwise.
    """
    refused = {
        **REFUSED,
        **REFUSED_IN_CHAT,
        **dict.fromkeys(_LENGTHS, Refusal(f"use {length}")),
        **dict.fromkeys(_THOUGHTS, Refusal(f"use {thoughts}")),
        "t_max_predict_ms": Refusal(f"use {length}", (0,)),
        "include_reasoning": Refusal(f"use {thoughts}", (True,)),
        "chat_template_kwargs": Refusal(f"use {thoughts}", ({},)),
        "response_format": Refusal(f"use {shape}", ({"type": "text"},)),
        "guided_json_object": Refusal(f"use {shape}", (False,)),
        "n": Refusal("there is one answer", (1,)),
        "n_cmpl": Refusal("there is one answer", (1,)),
        **dict.fromkeys((*_TOKEN_IDS, "logprobs"), Refusal(_CHAT, (False,))),
        "top_logprobs": Refusal(_CHAT, (0,)),
        "n_probs": Refusal(_CHAT, (0,)),
        "messages": Refusal(_CHAT),
        "functions": Refusal("use tools", ([],)),
        "function_call": Refusal("use tool_choice", ("none", "auto")),
        "parallel_tool_calls": Refusal(_CHAT, (True,)),
        "continue_final_message": Refusal(_ENDS),
        "add_generation_prompt": Refusal(_ENDS, (True,)),
        "modalities": Refusal("answers are text", (["text"], [])),
        "audio": Refusal("answers are text", ({},)),
        "web_search_options": Refusal("the server does not search the web", ({},)),
        **instead,
    }
    aliases = {**SAMPLING_ALIASES, **own.aliases}
    aliases = {name: meant for name, meant in aliases.items() if meant in own.works or meant in _WORKS}
    decided = {*own.works, *own.accepted, *own.refused}
    works = {name: what for name, what in _WORKS.items() if name not in {*decided, *aliases}}
    accepted = {name: why for name, why in _WITHOUT_EFFECT.items() if name not in {*decided, *works, *aliases}}
    left = {*decided, *works, *accepted, *aliases}
    return Fields(
        works={**own.works, **works},
        accepted={**own.accepted, **accepted},
        refused={**own.refused, **{name: why for name, why in refused.items() if name not in left}},
        aliases=aliases,
        inside={**INSIDE, **own.inside},
    )
