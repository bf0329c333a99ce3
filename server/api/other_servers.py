"""Request fields that llama-server, vLLM, SGLang, Ollama and LM Studio have and OpenAI has not, as data.

A client that was written for one of them means something by each of these. They work, have no effect on an answer, or
are refused by name; none is merely ignored.
"""

from __future__ import annotations

from server.api.fields import Refusal

# Other names of what works.
SAMPLING_ALIASES = {
    "repeat_penalty": "repetition_penalty", "n_cmpl": "n", "min_new_tokens": "min_tokens", "ttl": "keep_alive",
}  # fmt: skip
# What every dialect has of them, in the same words.
CACHE_SALT = "Prefixes are shared only with requests that have the same one."
KEEP_ALIVE = (
    'How long the model stays in memory afterwards: seconds, "5m", -1 for ever, 0 not at all; the last one holds.'
)
RETURN_PROGRESS = "true: a stream tells as data what it waits for: see [Progress](progress.md)."

_LOADED_BEFORE = "How a model is loaded does not depend on a request."
_OFF = "A parameter of a sampler that is not built in, and is off."
_ONE_ENGINE = "There is one engine process to a model."
_SPECULATION = "Speculative decoding changes speed, not the answer."

ACCEPTED = {
    "cache_prompt": "Prefixes are always reused; the answer is the same.",
    "id_slot": "The scheduler chooses the slot.",
    "priority": "Clients are served fairly, whatever they say of themselves.",
    "request_id": "A label; send the header x-request-id.",
    "rid": "A label; send the header x-request-id.",
    "session_id": "A label; prefixes are found by their tokens.",
    "extra_key": "A label; cache_salt keeps prefixes apart.",
    "custom_labels": "A label; nothing is stored.",
    "stream_interval": "Pieces are sent as they come.",
    "stream_reasoning": "Pieces are sent as they come.",
    "sse_ping_interval": "A setting of the server.",
    "timings_per_token": "Speeds are in /metrics.",
    "guided_decoding_backend": "There is one backend.",
    "n_keep": "The context is never shifted.",
    "n_discard": "The context is never shifted.",
    "num_keep": "The context is never shifted.",
    "n_cache_reuse": "Prefixes are always reused; the answer is the same.",
    "backend_sampling": "Where tokens are drawn changes speed, not the answer.",
    **dict.fromkeys(("draft_model", "ngram_corpus_id"), _SPECULATION),
    **dict.fromkeys(
        (
            "speculative.n_min", "speculative.n_max", "speculative.p_min", "speculative.type",
            "speculative.ngram_size_n", "speculative.ngram_size_m", "speculative.ngram_m_hits",
        ),
        _SPECULATION,
    ),
    **dict.fromkeys(
        (
            "num_ctx", "context_length", "num_batch", "num_gpu", "main_gpu", "num_thread", "numa", "low_vram", "f16_kv",
            "use_mmap", "use_mlock", "logits_all",
        ),
        _LOADED_BEFORE,
    ),
    **dict.fromkeys(
        (
            "mirostat_tau", "mirostat_eta", "dynatemp_exponent", "adaptive_decay", "dry_base", "dry_allowed_length",
            "dry_penalty_last_n", "dry_sequence_breakers",
        ),
        _OFF,
    ),
    **dict.fromkeys(
        (
            "bootstrap_host", "bootstrap_port", "bootstrap_room", "routed_dp_rank", "disagg_prefill_dp_rank",
            "data_parallel_rank", "routed_experts_prompt_start", "routed_experts_start_len",
        ),
        _ONE_ENGINE,
    ),
}  # fmt: skip

_NO_SAMPLER = "this sampler is not built in"
_NO_BEAMS = "there is no beam search"
_NO_MEDIA = "messages are text"
_NO_ADAPTERS = "adapters are not built in"
_NO_HOOKS = "nothing of a client's own runs inside the engine"
_NOT_IN_ANSWERS = "answers do not hold it"
_USE_MESSAGES = "say it in messages"
_OUTPUT_AS_IS = "answers are the model's text, without special tokens and without the stop string"

# llama-server's defaults, which llama.vscode and others spell out: they ask for what happens without them.
_ALL_SAMPLERS = (
    "edkypmxt", "edskypmxt",
    ["penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"],
)  # fmt: skip
_USUAL_LAST_N = 64

REFUSED = {
    # Samplers.
    "typical_p": Refusal(_NO_SAMPLER, (1,)),
    "tfs_z": Refusal(_NO_SAMPLER, (1,)),
    "mirostat": Refusal(_NO_SAMPLER, (0,)),
    "dynatemp_range": Refusal(_NO_SAMPLER, (0,)),
    "top_n_sigma": Refusal(_NO_SAMPLER, (-1, 0)),
    "adaptive_target": Refusal(_NO_SAMPLER, (-1,)),
    "dry_multiplier": Refusal(_NO_SAMPLER, (0,)),
    "watermarking": Refusal(_NO_SAMPLER, (False,)),
    "samplers": Refusal("the order of the samplers is fixed", ([], *_ALL_SAMPLERS)),
    "min_keep": Refusal("the likeliest token always stays, and no more", (0, 1)),
    "repeat_last_n": Refusal("repetition_penalty looks at the whole prompt and answer", (-1, _USUAL_LAST_N)),
    "penalize_newline": Refusal("a newline is a token like any other", (True,)),
    "penalize_nl": Refusal("a newline is a token like any other", (True,)),
    "length_penalty": Refusal(_NO_BEAMS, (1,)),
    "use_beam_search": Refusal(_NO_BEAMS, (False,)),
    "repetition_detection": Refusal("the model decides where an answer ends"),
    # Ends of an answer.
    "stop_token_ids": Refusal("use stop, with strings", ([],)),
    "stop_regex": Refusal("use stop, with strings", ("", [])),
    "n_indent": Refusal("use a grammar", (0,)),
    "t_max_predict_ms": Refusal("use max_tokens", (0,)),
    # What an answer looks like.
    "include_stop_str_in_output": Refusal(_OUTPUT_AS_IS, (False,)),
    "no_stop_trim": Refusal(_OUTPUT_AS_IS, (False,)),
    "skip_special_tokens": Refusal(_OUTPUT_AS_IS, (True,)),
    "spaces_between_special_tokens": Refusal(_OUTPUT_AS_IS, (True,)),
    "n_probs": Refusal("use logprobs", (0,)),
    "post_sampling_probs": Refusal("log-probabilities are the model's own", (False,)),
    "logprob_token_ids": Refusal("log-probabilities are those of the likeliest tokens"),
    "return_tokens": Refusal("use return_token_ids", (False,)),
    "return_prompt_token_ids": Refusal("use return_token_ids", (False,)),
    "return_tokens_as_token_ids": Refusal("use return_token_ids", (False,)),
    "return_prompt_text": Refusal("use /tokenize", (False,)),
    "return_token_offsets": Refusal("use /tokenize", (False,)),
    "response_fields": Refusal("answers are always whole", ([],)),
    **dict.fromkeys(
        (
            "return_hidden_states", "return_routed_experts", "return_cached_tokens_details", "return_meta_info",
            "debug_render_only", "verbose",
        ),
        Refusal(_NOT_IN_ANSWERS, (False,)),
    ),
    # The prompt.
    "truncate_prompt_tokens": Refusal("a prompt that does not fit is an error"),
    "truncation_side": Refusal("a prompt that does not fit is an error"),
    "truncate": Refusal("a prompt that does not fit is an error", (False,)),
    "shift": Refusal("the context is never shifted", (False,)),
    "context": Refusal("send the whole conversation", ([],)),
    "raw": Refusal("use /v1/completions for a prompt of your own", (False,)),
    "template": Refusal("the template is the model's own", ("",)),
    "system": Refusal(_USE_MESSAGES, ("",)),
    "previous_response_id": Refusal("send the whole conversation", ("",)),
    "integrations": Refusal("the server calls no tools itself", ([],)),
    "plugins": Refusal("there are no plugins", ([],)),
    "lora": Refusal(_NO_ADAPTERS, ([],)),
    "lora_path": Refusal(_NO_ADAPTERS, ("",)),
    "embedding_only": Refusal("the model is loaded to answer", (False,)),
    "vocab_only": Refusal("the model is loaded to answer", (False,)),
    # Constraints.
    "guided_whitespace_pattern": Refusal("the model chooses the space between values"),
    "guided_json_object": Refusal("use response_format", (False,)),
    "grammar_lazy": Refusal("a grammar holds from the first token on", (False,)),
    "grammar_triggers": Refusal("a grammar holds from the first token on", ([],)),
    "preserved_tokens": Refusal(_OUTPUT_AS_IS, ([],)),
    # What runs inside other engines.
    "custom_logit_processor": Refusal(_NO_HOOKS, ("",)),
    "custom_params": Refusal(_NO_HOOKS, ({},)),
    "vllm_xargs": Refusal(_NO_HOOKS, ({},)),
    "kv_transfer_params": Refusal(_NO_HOOKS, ({},)),
    "ec_transfer_params": Refusal(_NO_HOOKS, ({},)),
    "session_params": Refusal("send the whole conversation", ({},)),
    # Media.
    "images": Refusal(_NO_MEDIA, ([],)),
    "images_config": Refusal(_NO_MEDIA, ({},)),
    "media_io_kwargs": Refusal(_NO_MEDIA, ({},)),
    "mm_processor_kwargs": Refusal(_NO_MEDIA, ({},)),
    "return_mm_kwargs": Refusal(_NO_MEDIA, (True, False)),
    "max_dynamic_patch": Refusal(_NO_MEDIA),
    "min_dynamic_patch": Refusal(_NO_MEDIA),
    "use_audio_in_video": Refusal(_NO_MEDIA, (False,)),
}  # fmt: skip

REFUSED_IN_CHAT = {
    "chat_template": Refusal("the template is the model's own"),
    "documents": Refusal(_USE_MESSAGES, ([],)),
    "system_prompt": Refusal(_USE_MESSAGES, ("",)),
    "prompt": Refusal(_USE_MESSAGES, ("",)),
    "input": Refusal(_USE_MESSAGES, ("",)),
    "input_ids": Refusal("use /v1/completions for a prompt of your own"),
    "task": Refusal(_USE_MESSAGES),
    "suffix": Refusal("use /v1/completions", ("",)),
    "echo": Refusal("an answer is the model's own words", (False,)),
    "best_of": Refusal("answers are not ranked", (1,)),
    "prompt_logprobs": Refusal("use /v1/completions with echo and logprobs", (False,)),
    "add_special_tokens": Refusal("the chat template writes the special tokens", (False,)),
    "separate_reasoning": Refusal("reasoning is never part of the content", (True,)),
    "reasoning_format": Refusal("reasoning is never part of the content", ("auto", "deepseek")),
    "thinking_forced_open": Refusal("the chat template opens the reasoning", (False,)),
    "parse_tool_calls": Refusal("tool calls are always parsed", (True,)),
    "chat_format": Refusal("the format is the model's own"),
    "chat_parser": Refusal("the format is the model's own", ("",)),
}

REFUSED_IN_COMPLETIONS = {
    "prompt_logprobs": Refusal("use echo with logprobs", (False,)),
    "prompt_embeds": Refusal("a prompt is text or token ids"),
    "multimodal_data": Refusal(_NO_MEDIA, ([],)),
    "add_special_tokens": Refusal("the tokens that start a text are always added to it", (True,)),
    "top_logprobs": Refusal("use logprobs, with a number", (0,)),
}

# What Ollama reads inside `options`.
_OLLAMA_OPTIONS = frozenset(
    {
        "embedding_only", "f16_kv", "frequency_penalty", "logits_all", "low_vram", "main_gpu", "min_p", "mirostat",
        "mirostat_eta", "mirostat_tau", "num_batch", "num_ctx", "num_gpu", "num_keep", "num_predict", "num_thread",
        "numa", "penalize_newline", "presence_penalty", "repeat_last_n", "repeat_penalty", "seed", "stop",
        "temperature", "tfs_z", "top_k", "top_p", "typical_p", "use_mlock", "use_mmap", "vocab_only",
    }
)  # fmt: skip
INSIDE = {"options": _OLLAMA_OPTIONS}
