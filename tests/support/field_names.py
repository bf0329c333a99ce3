"""The request fields of other servers, by server: what a client that was written for one of them may send here.

Chat completions, as of November 2026: vLLM 0.13 and SGLang 0.5 by their request models, llama-server by its README and
what it reads of a body, Ollama by its Python package, LM Studio by its documentation.
"""

from __future__ import annotations

_OPENAI = """
messages model audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens max_tokens
metadata modalities moderation n parallel_tool_calls prediction presence_penalty prompt_cache_key prompt_cache_options
prompt_cache_retention reasoning_effort response_format safety_identifier seed service_tier stop store stream
stream_options temperature tool_choice tools top_logprobs top_p user verbosity web_search_options
"""

_VLLM = """
include_reasoning thinking_token_budget use_beam_search top_k min_p repetition_penalty watermarking length_penalty
stop_token_ids include_stop_str_in_output ignore_eos min_tokens skip_special_tokens spaces_between_special_tokens
truncate_prompt_tokens truncation_side prompt_logprobs logprob_token_ids allowed_token_ids bad_words echo
add_generation_prompt continue_final_message add_special_tokens documents chat_template chat_template_kwargs
media_io_kwargs mm_processor_kwargs structured_outputs priority request_id session_id return_tokens_as_token_ids
return_token_ids routed_experts_prompt_start return_token_offsets return_prompt_text return_mm_kwargs cache_salt
kv_transfer_params ec_transfer_params vllm_xargs repetition_detection stream_interval guided_json guided_regex
guided_choice guided_grammar guided_decoding_backend guided_whitespace_pattern structural_tag best_of
"""

_SGLANG = """
return_hidden_states return_routed_experts routed_experts_start_len return_cached_tokens_details
return_prompt_token_ids return_token_ids return_meta_info task top_k min_p min_tokens regex ebnf json_schema
repetition_penalty stop_token_ids stop_regex no_stop_trim ignore_eos continue_final_message skip_special_tokens
lora_path session_id session_params separate_reasoning stream_reasoning chat_template_kwargs max_dynamic_patch
min_dynamic_patch use_audio_in_video images_config custom_logit_processor custom_params input_ids rid extra_key
cache_salt ngram_corpus_id priority custom_labels bootstrap_host bootstrap_port bootstrap_room routed_dp_rank
disagg_prefill_dp_rank data_parallel_rank reasoning max_new_tokens min_new_tokens
"""

_LLAMA_SERVER = """
dynatemp_range dynatemp_exponent top_k top_p min_p n_predict n_indent n_keep n_discard n_cmpl n_cache_reuse typical_p
repeat_penalty repeat_last_n dry_multiplier dry_base dry_allowed_length dry_penalty_last_n dry_sequence_breakers
xtc_probability xtc_threshold top_n_sigma adaptive_target adaptive_decay mirostat mirostat_tau mirostat_eta grammar
grammar_lazy grammar_triggers preserved_tokens json_schema ignore_eos n_probs min_keep t_max_predict_ms id_slot
cache_prompt return_tokens samplers timings_per_token return_progress sse_ping_interval post_sampling_probs
response_fields backend_sampling speculative.n_min speculative.n_max speculative.p_min speculative.type
speculative.ngram_size_n speculative.ngram_size_m speculative.ngram_m_hits lora chat_format chat_parser
reasoning_format thinking_forced_open parse_tool_calls chat_template_kwargs thinking_budget_tokens reasoning_budget
reasoning_budget_tokens add_generation_prompt verbose
"""

_OLLAMA = """
options format keep_alive think images truncate shift system template context raw suffix debug_render_only
numa num_ctx num_batch num_gpu main_gpu low_vram f16_kv logits_all vocab_only use_mmap use_mlock embedding_only
num_thread num_keep num_predict top_k min_p tfs_z typical_p repeat_last_n repeat_penalty mirostat mirostat_tau
mirostat_eta penalize_newline
"""

_LM_STUDIO = """
top_k repeat_penalty ttl draft_model min_p context_length max_output_tokens reasoning system_prompt integrations
previous_response_id input
"""

# What clients send that belongs to none of them.
_OTHERS = """
thinking enable_thinking thinking_budget plugins lora json_mode xtc_probability tfs_z penalize_nl
"""

CHAT_FIELDS = {
    "openai": _OPENAI.split(),
    "vllm": _VLLM.split(),
    "sglang": _SGLANG.split(),
    "llama-server": _LLAMA_SERVER.split(),
    "ollama": _OLLAMA.split(),
    "lm-studio": _LM_STUDIO.split(),
    "others": _OTHERS.split(),
}
