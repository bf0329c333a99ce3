"""What each field of POST /v1/messages does here, as data; read by `fields.screen` and the docs."""

from __future__ import annotations

from server.api.adopted import adopted
from server.api.fields import Fields, Refusal
from server.api.other_servers import CACHE_SALT, KEEP_ALIVE, RETURN_PROGRESS

_OWN = Fields(
    works={
        "model": "The model's id or an alias; absent, blank or `default` means the default model.",
        "messages": "user, assistant and system; content is a string or blocks. A last assistant message is continued.",
        "system": "A string or text blocks.",
        "max_tokens": "Longest answer in tokens, with thinking; absent is up to the context, 0 only reads the prompt.",
        "stream": "Send the answer as server-sent events.",
        "temperature": "0 to 1 at Anthropic, 0 to 2 here; 0 always takes the likeliest token.",
        "top_p": "0 to 1.",
        "top_k": "0 and -1 are off.",
        "stop_sequences": "The answer's text ends before the first of them, and stop_sequence says which.",
        "tools": "Tools with an input_schema; those that Anthropic defines or runs are left out and named.",
        "tool_choice": "auto, any, tool or none, with disable_parallel_tool_use.",
        "thinking": "enabled with budget_tokens, adaptive, or disabled, as when absent; display omitted hides it.",
        "output_config": "effort, and format with a json_schema.",
        "cache_salt": CACHE_SALT,
        "keep_alive": KEEP_ALIVE,
        "return_progress": RETURN_PROGRESS,
    },
    accepted={
        "metadata": "A label; nothing is stored.",
        "cache_control": "Prefixes are kept without being asked for.",
        "context_management": "Nothing is removed from a conversation unasked.",
        "service_tier": "There is one tier.",
        "speed": "There is one speed.",
        "inference_geo": "It runs on this machine.",
        "diagnostics": "The log has them.",
        "user_profile_id": "A label.",
        "workspace_id": "A label.",
        "betas": "Each field says here what it does.",
    },
    refused={
        "container": Refusal("the server runs no code"),
        "mcp_servers": Refusal("the server calls no other servers", ([],)),
        "output_format": Refusal("use output_config.format"),
        "max_tokens_to_sample": Refusal("use max_tokens"),
        "prompt": Refusal("this endpoint takes messages"),
    },
    aliases={"stop": "stop_sequences"},
)

MESSAGES = adopted(
    _OWN,
    length="max_tokens",
    thoughts="thinking",
    shape="output_config.format",
    instead={
        "reasoning_effort": Refusal("use thinking, and output_config.effort"),
        "parallel_tool_calls": Refusal("use tool_choice.disable_parallel_tool_use", (True,)),
        "stream_options": Refusal("every stream tells its usage", ({}, {"include_usage": True})),
        "system_prompt": Refusal("use system", ("",)),
    },
)
