"""Fields that mean the same wherever they are sent: how tokens are drawn, and what form an answer has. Data."""

from __future__ import annotations

from server.api.other_servers import CACHE_SALT, KEEP_ALIVE, RETURN_PROGRESS

SAMPLING = {
    "model": "The model's id or an alias; absent, blank or `default` means the default model.",
    "stream": "Send the answer as server-sent events.",
    "stream_options": "include_usage adds a last chunk with the usage; only with stream.",
    "max_tokens": "Longest answer in tokens; -1 is up to the context, as is more than that, 0 only reads the prompt.",
    "min_tokens": "Shortest answer in tokens: before that, the model cannot end it.",
    "ignore_eos": "true: the model cannot end the answer at all.",
    "temperature": "0 to 2; 0 always takes the likeliest token.",
    "top_p": "0 to 1; 1 is off, 0 leaves the likeliest token.",
    "top_k": "0 and -1 are off.",
    "min_p": "0 to 1; 0 is off.",
    "xtc_probability": "0 to 1, how often all but the least likely of the tokens above xtc_threshold are left out.",
    "xtc_threshold": "0 to 1, 0.1 by default; above 0.5 is off.",
    "repetition_penalty": "Above 0, to 10; 1 is off. It looks at the whole prompt and answer.",
    "presence_penalty": "-2 to 2.",
    "frequency_penalty": "-2 to 2.",
    "logit_bias": "Token id to a bias of -100 to 100.",
    "allowed_token_ids": "The only tokens that the answer may be made of.",
    "bad_words": "A string or a list of strings that the answer does not hold.",
    "seed": "A signed 64-bit integer; it fixes the random draws of this request, whatever else runs. -1 is any.",
    "stop": "A string or a list of strings; the answer ends before the first of them.",
    "n": "Number of choices.",
    "return_token_ids": "true adds token_ids to each choice and prompt_token_ids to the answer.",
    "cache_salt": CACHE_SALT,
    "keep_alive": KEEP_ALIVE,
    "return_progress": RETURN_PROGRESS,
}

SHAPE = {
    "response_format": "text, json_object or json_schema; structural_tag with structures and triggers.",
    "structured_outputs": "One of json, json_object, regex, choice, grammar (GBNF or Lark) and structural_tag.",
    "guided_json": "As structured_outputs.json.",
    "guided_regex": "As structured_outputs.regex.",
    "guided_choice": "As structured_outputs.choice.",
    "guided_grammar": "As structured_outputs.grammar.",
    "structural_tag": "As structured_outputs.structural_tag.",
    "grammar": "A grammar in GBNF.",
    "json_schema": "A JSON Schema, as an object or as JSON text.",
    "regex": "A regular expression that the whole answer matches.",
    "ebnf": "A grammar in GBNF.",
    "format": '"json", or a JSON Schema.',
    "json_mode": "true: a JSON object.",
}
