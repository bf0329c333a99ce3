"""What each field of the requests that other servers brought does here, as data."""

from __future__ import annotations

from server.api.fields import Fields, Refusal
from server.api.openai.table import CHAT, COMPLETIONS, SWITCHES, TEXT_ALIASES
from server.api.other_servers import INSIDE
from server.api.shared_fields import SAMPLING, SHAPE

_INFILL_WORKS = {
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
_INFILL_ACCEPTED = {
    "t_max_prompt_ms": "Prompts are read whole, as in llama-server; a client that leaves ends the reading.",
    "stream_options": "The counts are in the last event.",
}
_ONE = "there is one answer to a gap"
_TEXT = "answers are text"
_INFILL_REFUSED = {
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

_INFILLS_OWN = {*_INFILL_WORKS, *_INFILL_ACCEPTED, *_INFILL_REFUSED}
INFILL = Fields(
    works=_INFILL_WORKS | {name: what for name, what in {**SAMPLING, **SHAPE}.items() if name not in _INFILLS_OWN},
    accepted={**CHAT.accepted, **_INFILL_ACCEPTED},
    refused={**{name: why for name, why in COMPLETIONS.refused.items() if name not in _INFILLS_OWN}, **_INFILL_REFUSED},
    aliases={name: meant for name, meant in TEXT_ALIASES.items() if meant not in _INFILL_REFUSED},
    inside=INSIDE,
)

TOKENIZE = Fields(
    works={
        "model": SAMPLING["model"],
        "content": "The text, as llama-server calls it.",
        "prompt": "The text, as vLLM calls it.",
        "messages": "A conversation, rendered by the chat template, instead of a text.",
        "tools": "The tools of the conversation.",
        "chat_template_kwargs": SWITCHES,
        "add_generation_prompt": "false: the conversation as it stands, without the beginning of an answer.",
        "continue_final_message": "Whether a last message of the assistant is left open; true by default.",
        "add_special": "Add the tokens that start a text; false by default with content, true with prompt.",
    },
    accepted={},
    refused={
        "with_pieces": Refusal("only ids are returned", (False,)),
        "return_token_strs": Refusal("only ids are returned", (False,)),
        "parse_special": Refusal("special tokens in a text are always read as such", (True,)),
        "chat_template": Refusal("the template is the model's own"),
        "mm_processor_kwargs": Refusal("messages are text", ({},)),
    },
    aliases={"add_special_tokens": "add_special"},
)

DETOKENIZE = Fields(
    works={"model": SAMPLING["model"], "tokens": "Token ids."},
    accepted={},
    refused={},
)

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
