"""The three tables of every endpoint, as data: what each request field does here. Read by `fields.screen` and the docs.

A value of an otherwise refused field that asks for nothing is listed with its refusal (`unless`).
"""

from __future__ import annotations

from server.api.anthropic.table import MESSAGES
from server.api.fields import Fields, Refusal
from server.api.openai.responses.table import RESPONSES

_SAMPLING = {
    "model": "The model's id or an alias; absent, empty or blank means the default model.",
    "stream": "Send the answer as server-sent events.",
    "stream_options": "include_usage adds a last chunk with the usage; only with stream.",
    "max_tokens": "Longest answer in tokens; -1 is up to the context, and more than the context is clamped to it.",
    "temperature": "0 to 2; 0 always takes the likeliest token.",
    "top_p": "Above 0, to 1.",
    "top_k": "0 is off.",
    "min_p": "0 to 1; 0 is off.",
    "repetition_penalty": "Above 0, to 10; 1 is off.",
    "presence_penalty": "-2 to 2.",
    "frequency_penalty": "-2 to 2.",
    "logit_bias": "Token id to a bias of -100 to 100.",
    "seed": "Any signed 64-bit integer; it fixes the random draws of this request, whatever else runs.",
    "stop": "A string or a list of strings; the answer ends before the first of them.",
    "n": "Number of choices.",
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
    "cache_prompt": "Prefixes are always reused; the answer is the same.",
    "id_slot": "The scheduler chooses the slot.",
    "keep_alive": "Unloading is a setting of the server.",
    "draft_model": "Speculative decoding changes speed, not the answer.",
}

_LATER_SAMPLING = {
    "min_tokens": Refusal("the model decides where an answer ends", (0,)),
    "ignore_eos": Refusal("the model decides where an answer ends", (False,)),
    "stop_token_ids": Refusal("use stop, with strings", ([],)),
    "repeat_penalty": Refusal("use repetition_penalty", (1, 1.0)),
    "typical_p": Refusal("this sampler is not built in", (1, 1.0)),
    "mirostat": Refusal("this sampler is not built in", (0,)),
    "length_penalty": Refusal("there is no beam search", (1, 1.0)),
    "use_beam_search": Refusal("there is no beam search", (False,)),
    "grammar": Refusal("constrained output is not built yet", ("",)),
    "json_schema": Refusal("constrained output is not built yet", ({},)),
    "guided_json": Refusal("constrained output is not built yet"),
    "guided_regex": Refusal("constrained output is not built yet", ("",)),
    "guided_choice": Refusal("constrained output is not built yet", ([],)),
    "guided_grammar": Refusal("constrained output is not built yet", ("",)),
    "structured_outputs": Refusal("constrained output is not built yet", ({},)),
    "lora": Refusal("adapters are not built in", ([],)),
    "options": Refusal("give sampling fields at the top level", ({},)),
}

_NO_TOOLS = "tools are not built yet"
_NO_REASONING = "reasoning is not built yet; only values that turn it off are accepted"

CHAT = Fields(
    works={
        "messages": "system, developer (read as system), user, assistant and tool; content as a string or text parts.",
        **_SAMPLING,
        "max_completion_tokens": "As max_tokens, and wins over it.",
        "logprobs": "true adds the log-probability of every token.",
        "top_logprobs": "Number of alternatives for every token; needs logprobs.",
        "chat_template_kwargs": "Only enable_thinking: false.",
        "continue_final_message": "Must be true, or absent, when the last message is the assistant's, else false.",
        "add_generation_prompt": "Must be false, or absent, when the last message is the assistant's, else true.",
    },
    accepted={
        **_LABELS,
        "prediction": "A hint for speed; the answer is the same.",
        "verbosity": "A hint to models that were trained with it; the ones served here were not.",
        "moderation": "There is no moderation.",
        "include_reasoning": "There is no separate reasoning to include or leave out.",
        "parallel_tool_calls": "There are no tools to call.",
    },
    refused={
        "tools": Refusal(_NO_TOOLS, ([],)),
        "tool_choice": Refusal(_NO_TOOLS, ("none", "auto")),
        "functions": Refusal(_NO_TOOLS, ([],)),
        "function_call": Refusal(_NO_TOOLS, ("none", "auto")),
        "response_format": Refusal("constrained output is not built yet", ({"type": "text"},)),
        "modalities": Refusal("answers are text", (["text"], [])),
        "audio": Refusal("answers are text", ({},)),
        "web_search_options": Refusal("the server does not search the web", ({},)),
        "plugins": Refusal("there are no plugins", ([],)),
        "chat_template": Refusal("the template is the model's own"),
        "reasoning_effort": Refusal(_NO_REASONING, ("none",)),
        "reasoning": Refusal(_NO_REASONING, ({}, {"enabled": False}, {"effort": "none"})),
        "thinking": Refusal(_NO_REASONING, ({"type": "disabled"},)),
        "enable_thinking": Refusal(_NO_REASONING, (False,)),
        **_LATER_SAMPLING,
    },
)

# Given with a value that `refused` lets through, other than {}, these turn thinking off in the chat template.
THINKING_SWITCHES = ("reasoning_effort", "reasoning", "thinking", "enable_thinking")

COMPLETIONS = Fields(
    works={
        "prompt": "A string, a list of strings, token ids, or a list of lists of token ids.",
        **_SAMPLING,
        "max_tokens": "Longest answer in tokens, 16 by default as at OpenAI; -1 is up to the context, 0 reads the "
        "prompt alone (and scores it, with echo and logprobs).",
        "logprobs": "0 to 5: the log-probability of every token, with that many alternatives.",
        "echo": "true puts the prompt before the answer, with its log-probabilities when logprobs is given.",
        "best_of": "Up to n; more is refused, because answers are not ranked.",
    },
    accepted={**_LABELS, "prompt_cache_options": "Prefixes are kept as the settings say."},
    refused={
        "suffix": Refusal("fill-in-the-middle is not built yet", ("",)),
        "response_format": Refusal("constrained output is not built yet", ({"type": "text"},)),
        "prompt_logprobs": Refusal("use echo with logprobs", (False,)),
        "max_completion_tokens": Refusal("use max_tokens"),
        **_LATER_SAMPLING,
    },
)

TOKENIZE = Fields(
    works={
        "model": _SAMPLING["model"],
        "content": "The text, as llama-server calls it.",
        "prompt": "The text, as vLLM calls it.",
        "messages": "A conversation, rendered by the chat template, instead of a text.",
        "add_special": "Add the tokens that start a text; false by default with content, true with prompt.",
        "add_special_tokens": "vLLM's name for add_special.",
    },
    accepted={},
    refused={
        "with_pieces": Refusal("only ids are returned", (False,)),
        "return_token_strs": Refusal("only ids are returned", (False,)),
        "parse_special": Refusal("special tokens in a text are always read as such", (True,)),
        "add_generation_prompt": Refusal("the conversation is rendered as for an answer", (True,)),
        "continue_final_message": Refusal("a last assistant message is continued, any other answered"),
        "tools": Refusal(_NO_TOOLS, ([],)),
        "chat_template": Refusal("the template is the model's own"),
        "chat_template_kwargs": Refusal("the template is rendered as it is", ({},)),
    },
)

DETOKENIZE = Fields(
    works={"model": _SAMPLING["model"], "tokens": "Token ids."},
    accepted={},
    refused={},
)

ENDPOINTS = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETIONS,
    "/v1/responses": RESPONSES,
    "/v1/messages": MESSAGES,
    "/tokenize": TOKENIZE,
    "/detokenize": DETOKENIZE,
}
