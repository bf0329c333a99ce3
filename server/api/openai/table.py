"""What each field of a chat and of a text completion does here, as data; read by `fields.screen` and the docs.

A value of an otherwise refused field that asks for nothing is listed with its refusal (`unless`).
"""

from __future__ import annotations

from server.api.fields import Fields, Refusal
from server.api.other_servers import (
    ACCEPTED,
    INSIDE,
    REFUSED,
    REFUSED_IN_CHAT,
    REFUSED_IN_COMPLETIONS,
    SAMPLING_ALIASES,
)
from server.api.shared_fields import SAMPLING, SHAPE

_TOOLS = {
    "tools": "Functions that the model may call.",
    "tool_choice": "none, auto, required, a function, or allowed_tools. All but auto are enforced.",
    "parallel_tool_calls": "false: one call at most.",
    "functions": "The former form of tools; the answer then has function_call.",
    "function_call": "The former form of tool_choice: none, auto or a function.",
}

SWITCHES = "Variables of the chat template: see [Reasoning](reasoning.md#switches-of-the-template)."

_REASONING = {
    "reasoning_effort": "none, minimal, low, medium, high, xhigh or max; all but none turn reasoning on.",
    "reasoning": "An object with enabled, effort, max_tokens and exclude; or on, off, or an effort.",
    "thinking": "An object with type (enabled, adaptive, disabled) and budget_tokens; or true or false.",
    "enable_thinking": "true or false.",
    "think": "true, false or an effort.",
    "thinking_token_budget": "Longest reasoning in tokens; then it is closed, and the answer begins. -1 is no bound.",
    "include_reasoning": "false leaves the reasoning out of the answer.",
    "chat_template_kwargs": f"{SWITCHES} They win over the fields above.",
}

_LABELS = {
    "user": "A label; nothing is stored.",
    "metadata": "A label; nothing is stored.",
    "store": "Nothing is stored, whatever it says.",
    "service_tier": "There is one tier.",
    "safety_identifier": "A label; nothing is stored.",
    "prompt_cache_key": "Prefixes are found by their tokens; no key is needed.",
    "prompt_cache_retention": "Prefixes are kept as the settings say.",
    "prompt_cache_options": "Prefixes are kept as the settings say.",
}

_ALIASES = {
    **dict.fromkeys(("n_predict", "num_predict", "max_new_tokens", "max_output_tokens"), "max_tokens"),
    **SAMPLING_ALIASES,
}
_BUDGETS = ("thinking_budget", "thinking_budget_tokens", "reasoning_budget", "reasoning_budget_tokens")
_CHAT_ALIASES = {**_ALIASES, **dict.fromkeys(_BUDGETS, "thinking_token_budget")}


CHAT = Fields(
    works={
        "messages": "A conversation: see [Messages](#messages).",
        **SAMPLING,
        "max_completion_tokens": "As max_tokens, and wins over it.",
        "logprobs": "true adds the log-probability of every token of the content.",
        "top_logprobs": "Number of alternatives for every token; needs logprobs.",
        **_TOOLS,
        **SHAPE,
        **_REASONING,
        "continue_final_message": "Must be true, or absent, when the last message is the assistant's, else false.",
        "add_generation_prompt": "Must be false, or absent, when the last message is the assistant's, else true.",
    },
    accepted={
        **_LABELS,
        "prediction": "A hint for speed; the answer is the same.",
        "verbosity": "A hint to models that were trained with it; the ones served here were not.",
        "moderation": "There is no moderation.",
        **ACCEPTED,
    },
    refused={
        "modalities": Refusal("answers are text", (["text"], [])),
        "audio": Refusal("answers are text", ({},)),
        "web_search_options": Refusal("the server does not search the web", ({},)),
        **REFUSED,
        **REFUSED_IN_CHAT,
    },
    aliases=_CHAT_ALIASES,
    inside=INSIDE,
)

_TEXT = {
    "prompt": "A string, a list of strings, token ids, or a list of lists of token ids.",
    **SAMPLING,
    "max_tokens": "Longest answer in tokens, 16 by default as at OpenAI; -1 is up to the context, 0 reads the "
    "prompt alone (and scores it, with echo and logprobs).",
    **SHAPE,
    "logprobs": "0 to 5: the log-probability of every token, with that many alternatives.",
    "echo": "true puts the prompt before the answer, with its log-probabilities when logprobs is given.",
    "best_of": "Up to n; more is refused, because answers are not ranked.",
    "suffix": "The text behind the answer, for models that fill in the middle: see [Editors](editors.md#completion).",
}
_TEXT_REFUSED = {**REFUSED, **REFUSED_IN_COMPLETIONS}
TEXT_ALIASES = {**_ALIASES, "max_completion_tokens": "max_tokens"}
# What belongs to a conversation, with the values that ask for nothing.
_TRUE_ANYWAY = ("parallel_tool_calls", "include_reasoning", "add_generation_prompt")
_CHAT_ONLY = {
    name: CHAT.refused.get(name)
    or Refusal("use /v1/chat/completions", (True,) if name in _TRUE_ANYWAY else (False, "none", "auto", "", [], {}))
    for name in (*CHAT.works, *CHAT.aliases, *CHAT.refused)
    if name not in {*_TEXT, *_TEXT_REFUSED, *TEXT_ALIASES}
}

COMPLETIONS = Fields(
    works=_TEXT,
    accepted={**CHAT.accepted},
    refused={**_TEXT_REFUSED, **_CHAT_ONLY},
    aliases=TEXT_ALIASES,
    inside=INSIDE,
)
