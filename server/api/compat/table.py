"""The fields of requests that only other servers have, as data."""

from __future__ import annotations

from server.api.fields import Fields, Refusal

INFILL_WORKS = {
    "input_prefix": "The text before the gap, up to the line that is being written.",
    "prompt": "The beginning of that line: it follows input_prefix.",
    "input_suffix": "The text behind the gap.",
    "input_extra": "Other files, or pieces of some: objects with filename and text.",
    "max_tokens": "Longest answer in tokens; -1, the default, is up to the context, and 0 only reads the prompt.",
    "n_indent": "The answer ends before a line, but its first, that begins with fewer spaces and tabs; 0 is off.",
    "t_max_predict_ms": "Milliseconds, after which the answer ends with its line; 0 is off.",
    "samplers": "Those that run, in an order that is fixed; what is not in the list is off, and no list is all. "
    "infill takes the likeliest token, unless temperature is in the list too.",
    "response_fields": "What the answer is to hold; the parts of timings as timings/prompt_n.",
}
INFILL_ACCEPTED = {
    "t_max_prompt_ms": "Prompts are read whole, as in llama-server; a client that leaves ends the reading.",
    "stream_options": "The counts are in the last event.",
}
_ONE = "there is one answer to a gap"
_TEXT = "answers are text"
INFILL_REFUSED = {
    "n": Refusal(_ONE, (1,)),
    "n_cmpl": Refusal(_ONE, (1,)),
    "best_of": Refusal(_ONE, (1,)),
    "suffix": Refusal("the text behind the gap is input_suffix", ("",)),
    "echo": Refusal(_TEXT, (False,)),
    "logprobs": Refusal(_TEXT),
    "n_probs": Refusal(_TEXT, (0,)),
    "return_tokens": Refusal(_TEXT, (False,)),
    "return_token_ids": Refusal(_TEXT, (False,)),
}

SHOW = Fields(
    works={"model": "The model's id or an alias."},
    accepted={
        "verbose": "The answer is the same.",
        "system": "What is shown is the model's own.",
        "template": "What is shown is the model's own.",
        "options": "What is shown is the model's own.",
    },
    refused={},
    aliases={"name": "model"},
)
