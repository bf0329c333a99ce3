"""What each field of POST /v1/responses does here, as data; read by `fields.screen` and the docs."""

from __future__ import annotations

from server.api.adopted import adopted
from server.api.fields import Fields, Refusal
from server.api.other_servers import CACHE_SALT, KEEP_ALIVE, RETURN_PROGRESS

_OWN = Fields(
    works={
        "model": "The model's id or an alias; absent, blank or `default` means the default model.",
        "input": "A string, or a list of items; an empty one only warms the model up with what stands before it.",
        "instructions": "A system message before everything else; not carried over by previous_response_id.",
        "stream": "Send the answer as server-sent events, each with its sequence number.",
        "stream_options": "Nothing in it changes an answer here.",
        "tools": "Functions, custom tools and namespaces of them; those that only OpenAI runs are left out and named.",
        "tool_choice": "none, auto, required, one function or custom tool, or allowed_tools.",
        "parallel_tool_calls": "false allows one call at most.",
        "max_output_tokens": "Longest answer, with reasoning; up to the context at most; 0 only reads the prompt.",
        "temperature": "0 to 2; 0 always takes the likeliest token.",
        "top_p": "0 to 1.",
        "top_k": "0 and -1 are off.",
        "min_p": "0 to 1; 0 is off.",
        "repetition_penalty": "Above 0, to 10; 1 is off.",
        "presence_penalty": "-2 to 2.",
        "frequency_penalty": "-2 to 2.",
        "seed": "Any signed 64-bit integer; it fixes the random draws of this request, whatever else runs.",
        "stop": "A string or a list of strings; the answer's text ends before the first of them.",
        "top_logprobs": "Number of alternatives for every token of the text; adds logprobs to the answer.",
        "include": "message.output_text.logprobs and reasoning.encrypted_content; others ask for nothing that is here.",
        "text": "format: text, json_object or json_schema. verbosity is a hint to models that were trained with it.",
        "reasoning": "effort, and max_tokens to bound it; with summary all of it stands there, not in the content.",
        "store": "true by default: the answer can be asked for by its id, and continued, until the server stops.",
        "previous_response_id": "Continue a stored answer: its input and output stand before this input.",
        "truncation": "auto leaves out the oldest items when the context is too short; disabled is an error then.",
        "metadata": "Returned with the answer.",
        "max_tool_calls": "Counts tools that OpenAI runs, of which there are none; returned with the answer.",
        "cache_salt": CACHE_SALT,
        "keep_alive": KEEP_ALIVE,
        "return_progress": RETURN_PROGRESS,
    },
    accepted={
        "user": "A label; returned with nothing.",
        "client_metadata": "A label.",
        "safety_identifier": "A label.",
        "service_tier": "There is one tier.",
        "prompt_cache_key": "Prefixes are found by their tokens; no key is needed.",
        "prompt_cache_retention": "Prefixes are kept as the settings say.",
        "prompt_cache_options": "Prefixes are kept as the settings say.",
        "context_management": "Nothing is compacted unasked; /v1/responses/compact does it.",
        "moderation": "There is no moderation.",
        "background_options": "Answers are not made in the background.",
        "access_programs": "There are none.",
        "image": "Images are not read.",
    },
    refused={
        "background": Refusal("an answer is made while its client waits", (False,)),
        "conversation": Refusal("conversations are the client's; use previous_response_id"),
        "prompt": Refusal("there are no stored prompts; use instructions and input"),
        "n": Refusal("a response is one answer", (1,)),
        "messages": Refusal("this endpoint takes input"),
        "max_tokens": Refusal("use max_output_tokens"),
    },
)

RESPONSES = adopted(
    _OWN,
    length="max_output_tokens",
    thoughts="reasoning",
    shape="text.format",
    instead={
        "logprobs": Refusal("use include, with message.output_text.logprobs", (False,)),
        "system": Refusal("use instructions", ("",)),
        "system_prompt": Refusal("use instructions", ("",)),
    },
)
