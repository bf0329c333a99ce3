"""A tiny random model of every architecture that mlx-lm has, made from its `ModelArgs`.

Every field whose name says what it counts gets a small number (`_RULES`); what has a default and no rule keeps the
default; a required field without a rule is an error, so that a new architecture asks for one. `_EXCEPTIONS` is what no
name can tell: lists of one entry per layer, nested tables, sizes that must go together.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import pkgutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.core as mx
import mlx_lm.models
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes

VOCABULARY, LAYERS, WINDOW = 128, 4, 8

# Modules of `mlx_lm.models` that are parts of architectures.
PARTS = {
    "activations", "base", "bitlinear_layers", "cache", "gated_delta", "mla", "pipeline", "rope_utils", "ssm",
    "switch_layers",
}  # fmt: skip
# Not tried, with the reason.
UNTRIED = {"prism_hadamard_qwen35": "takes only tensors in a packed layout of its own, with a manifest of them"}
# Ends the process at its import without this package, and uses nothing of it.
_PROBES_FOR = {"olmo": "hf_olmo"}
# The answer of mlx-lm 0.32.2 itself depends on how many tokens of the prompt are read at once: some of its layers have
# no causal mask, or a mask that is wider than what their cache keeps.
CHUNK_DEPENDENT = {"phi3small", "plamo3"}
# Made of Metal kernels without a fallback.
NEEDS_METAL = {"bitnet", "muse_spark"}
# Their numbers stand in `text_config`, for the class of another module. Where the class is one of the same module, it
# is found by its name (`_TEXT_CLASSES`).
WRAPPERS = {
    "gemma3": "gemma3_text", "gemma4": "gemma4_text", "kimi_k25": "deepseek_v3", "lfm2-vl": "lfm2",
    "mistral3": "ministral3", "pixtral": "llama", "qwen2_vl": "qwen2", "qwen3_5_moe": "qwen3_5", "qwen3_vl": "qwen3",
    "qwen3_vl_moe": "qwen3_moe",
}  # fmt: skip
_TEXT_CLASSES = ("TextArgs", "TextConfig", "TextModelArgs")

_ATTENTION = ["sliding_attention", "full_attention"] * 2
_EXPERTS, _CHOSEN = 4, 2
# The number that a field gets, and the names of such fields.
_RULES: list[tuple[Any, str]] = [
    (64, "hidden_size hidden_dim d_model n_embd model_dim block_dim moe_hidden_size"),
    (LAYERS, "num_hidden_layers num_layers n_layers n_layer num_transformer_layers"),
    (4, "num_attention_heads n_head num_heads n_heads num_query_heads swa_num_attention_heads index_n_heads"),
    (4, "linear_num_value_heads mamba_n_heads mamba_num_heads"),
    (2, "num_key_value_heads n_kv_heads num_kv_heads num_attention_groups swa_num_key_value_heads"),
    (2, "linear_num_key_heads"),
    (16, "head_dim kv_channels hidden_size_per_head v_head_dim qk_nope_head_dim swa_head_dim swa_v_head_dim"),
    (16, "linear_key_head_dim linear_value_head_dim mamba_d_head mamba_head_dim index_head_dim"),
    (16, "query_pre_attn_scalar hidden_size_per_layer_input"),
    (8, "qk_rope_head_dim rotary_dim"),
    (64, "intermediate_size ffn_hidden_size ff_intermediate_size intermediate_size_mlp n_inner block_ff_dim"),
    (64, "shared_intermediate_size dense_intermediate_size mlp_hidden_size"),
    (32, "moe_intermediate_size expert_ffn_hidden_size shared_expert_intermediate_size share_expert_dim"),
    (32, "moe_shared_expert_intermediate_size dim_model_base"),
    (VOCABULARY, "vocab_size num_vocab embedding_size vocab_size_per_layer_input"),
    (_EXPERTS, "num_experts n_routed_experts num_local_experts moe_num_experts"),
    (_CHOSEN, "num_experts_per_tok num_experts_per_token moe_topk moe_k moe_top_k top_k_experts"),
    (1, "n_shared_experts num_shared_experts num_shared_expert moe_num_shared_experts"),
    (1, "n_group topk_group n_groups mamba_n_groups num_expert_group group_norm_size"),
    (1, "first_k_dense_replace num_dense_layers moe_layer_freq decoder_sparse_step interleave_moe_layer_step"),
    (1, "num_kv_reuse_layers"),
    (2, "num_kv_shared_layers sliding_window_pattern full_attention_interval layer_group_size"),
    (16, "kv_lora_rank q_lora_rank a_low_rank_dim v_low_rank_dim gate_low_rank_dim decay_low_rank_dim"),
    (16, "state_size ssm_state_size mamba_d_state time_step_rank mamba_dt_rank"),
    (3, "conv_kernel conv_L_cache conv_window mamba_d_conv conv1d_width linear_conv_kernel_dim"),
    (3, "short_conv_kernel_size"),
    (WINDOW, "sliding_window window_size sliding_window_size attention_window_size attention_chunk_size"),
    (WINDOW, "loop_window_size index_topk"),
    (512, "max_position_embeddings n_positions n_ctx block_size model_max_length"),
    (1e-5, "layer_norm_epsilon layer_norm_eps norm_eps rms_norm_eps layernorm_epsilon post_norm_eps"),
    (10000.0, "rope_theta rotary_emb_base swa_rope_theta rope_local_base_freq"),
    (None, "rope_scaling rope_parameters"),
    (0.5, "partial_rotary_factor rotary_pct"),
    (1.0, "attention_multiplier residual_multiplier routed_scaling_factor scale_depth"),
    (2.0, "embedding_multiplier scale_emb logits_scaling"),
    (30.0, "final_logit_softcapping logits_soft_cap"),
    (False, "attention_bias mlp_bias use_bias use_qkv_bias conv_bias mamba_proj_bias bias use_conv_bias"),
    (False, "mamba_conv_bias post_norm tie_word_embeddings add_full_attention_sink_bias"),
    (True, "norm_topk_prob qk_norm use_qk_norm use_expert_bias add_swa_attention_sink_bias"),
    (True, "linear_allow_neg_eigval mla_scale_q_lora mla_scale_kv_lora"),
    ([], "mlp_only_layers"),
    (_ATTENTION, "layer_types"),
    ([0.001, 100.0], "time_step_limit"),
    ("noaux_tc", "topk_method"),
    ("sigmoid", "scoring_func"),
    ("silu", "hidden_act"),
]
_VALUES = {name: value for value, names in _RULES for name in names.split()}

_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_LLAMA4_ROPE = _ROPE | {"llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 16}
_YARN = {
    "type": "yarn", "rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 256,
    "mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 32, "beta_slow": 1,
}  # fmt: skip
_LONG_ROPE = {
    "type": "longrope", "original_max_position_embeddings": 256, "short_factor": [1.0] * 4, "long_factor": [1.0] * 4,
    "short_mscale": 1.0, "long_mscale": 1.0,
}  # fmt: skip
_LINEAR_ATTENTION = {"kda_layers": [1, 3], "num_heads": 4, "head_dim": 16, "short_conv_kernel_size": 3}
_LFM2 = {
    "layer_types": ["conv", "full_attention"] * 2, "block_multiple_of": 16, "block_ffn_dim_multiplier": 1.0,
    "block_auto_adjust_ff_dim": False,
}  # fmt: skip
_LONGCAT = {
    "attention_method": "MLA", "zero_expert_type": "identity", "zero_expert_num": 2, "ngram_vocab_size_ratio": 2,
    "num_layers": 2,
}  # fmt: skip
_MAMBA_AND_ATTENTION = ["mamba", "attention"] * 2
_EXCEPTIONS: dict[str, dict[str, Any]] = {
    "baichuan_m1": {"sliding_window_layers": [0, 2], "conv_window": 2},
    "dbrx": {
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": _EXPERTS, "moe_top_k": _CHOSEN},
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
    },
    "deepseek_v2": {"rope_scaling": _YARN, "topk_method": "greedy"},
    "deepseek_v41": {
        "compress_ratios": [2, 2, 0, 2],
        "kv_source_layer_ids": [0, 1, 3],
        "index_source_layer_ids": [0, 1, 3],
        "o_groups": 2,
        "o_lora_rank": 16,
        "scoring_func": "sqrtsoftplus",
        "hc_mult": 2,
        "hc_sinkhorn_iters": 2,
    },
    "exaone4": {"sliding_window_pattern": "LG"},
    "exaone_moe": {"is_moe_layer": [False, True, True, True]},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gear": {"layer_types": ["sliding_attention", "conv_mixer", "full_attention", "conv_mixer"]},
    "gemma3n": {
        "activation_sparsity_pattern": [0.0] * LAYERS,
        "altup_num_inputs": 2,
        "altup_coef_clip": 120.0,
        "altup_correct_scale": True,
        "altup_active_idx": 0,
        "laurel_rank": 8,
    },
    "gemma4_text": {"global_head_dim": 32},
    "glm_moe_dsa": {"rope_parameters": _ROPE},
    "granitemoehybrid": {"layer_types": _MAMBA_AND_ATTENTION},
    "hunyuan": {
        "rope_scaling": {"type": "dynamic", "factor": 1.0, "alpha": 1.0},
        "use_mixed_mlp_moe": True,
        "use_cla": True,
        "cla_share_factor": 2,
    },
    "jamba": {
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
        "mamba_expand": 2,
    },
    "kimi_k3": {
        "linear_attn_config": _LINEAR_ATTENTION,
        "hidden_act": "situ",
        "activation_situ_beta": 1.0,
        "attn_res_block_size": 2,
        "scoring_func": "sigmoid",
    },
    "kimi_linear": {"linear_attn_config": _LINEAR_ATTENTION},
    "lfm2": _LFM2,
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "llama4": {"num_experts_per_tok": 1},
    "llama4_text": {"no_rope_layers": [1, 1, 1, 0]},
    "longcat_flash": _LONGCAT,
    "longcat_flash_ngram": _LONGCAT,
    "mellum": {"rope_parameters": {"sliding_attention": _ROPE, "full_attention": _ROPE}},
    "mimo_v2_flash": {"hybrid_layer_pattern": [1, 0, 1, 0], "moe_layer_freq": [0, 1, 1, 1]},
    "minicpm3": {"rope_scaling": _LONG_ROPE},
    "minimax_m3_vl": {
        "moe_layer_freq": [0, 1, 1, 1],
        "index_block_size": 4,
        "index_topk_blocks": 2,
        "sparse_attention_freq": [0, 1, 1, 1],
        "rotary_dim": None,
    },
    "ministral3": {"rope_parameters": _LLAMA4_ROPE},
    "mistral4": {"rope_parameters": _YARN | {"llama_4_scaling_beta": 0.1}},
    "muse_spark": {
        "layer_rope_theta": [10000.0, 0, 10000.0, 0],
        "rope_parameters": _ROPE,
        "output_multiplier": 1.0,
        "num_shared_experts": 0,
    },
    "nemotron-nas": {"block_configs": [{"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 1.0}}] * LAYERS},
    "nemotron_h": {"layers_block_type": ["mamba", "attention", "moe", "mlp"], "layer_types": None},
    "olmo_hybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "openelm": {
        "num_query_heads": [4] * LAYERS,
        "num_kv_heads": [2] * LAYERS,
        "ffn_multipliers": [1.0] * LAYERS,
        "ffn_dim_divisor": 16,
    },
    # It writes to the ids of its own tokenizer, whatever the vocabulary is.
    "phi3small": {"dense_attention_every_n_layers": 2, "gegelu_limit": 20.0, "vocab_size": 100352},
    "phimoe": {"rope_scaling": _LONG_ROPE | {"short_factor": [1.0] * 8, "long_factor": [1.0] * 8}},
    "plamo": {"n_shared_head": 2},
    "plamo2": {"full_attention_idx": [1, 3]},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "spark2_5": {
        "hidden_act": "gelu",
        "rope_parameters": {"sliding_attention": _ROPE, "full_attention": _ROPE},
    },
    "step3p5": {"moe_layers_enum": "1,3"},
}


def names() -> list[str]:
    """Every architecture, by the `model_type` that selects it."""
    return sorted({module.name for module in pkgutil.iter_modules(mlx_lm.models.__path__)} - PARTS)


def config_of(name: str) -> dict[str, Any]:
    """A config.json. Raises LookupError for a required field that no rule knows."""
    if name in _PROBES_FOR:
        sys.modules.setdefault(_PROBES_FOR[name], ModuleType(_PROBES_FOR[name]))
    module = importlib.import_module(f"mlx_lm.models.{name}")
    top = _filled(name, module.ModelArgs)
    if "text_config" not in top:
        return top
    inner = WRAPPERS.get(name)
    if inner is not None:
        text = config_of(inner)
        text = text.get("text_config", text)
    else:
        text_class = next(getattr(module, own) for own in _TEXT_CLASSES if hasattr(module, own))
        text = _filled(name, text_class) | {"model_type": name}
    return top | {"text_config": text | _EXCEPTIONS.get(name, {})}


def write_architecture(folder: Path, name: str, *, seed: int = 0) -> Path:
    """A model folder of random float32 weights without a tokenizer; the same for the same arguments."""
    folder.mkdir(parents=True, exist_ok=True)
    config = config_of(name)
    (folder / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(folder / "model.safetensors"), _weights(config, seed), metadata={"format": "mlx"})
    return folder


def _filled(name: str, arguments: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"model_type": name}
    exceptions = _EXCEPTIONS.get(name, {})
    for field in dataclasses.fields(arguments):
        if field.name in exceptions:
            values[field.name] = exceptions[field.name]
        elif field.name in _VALUES:
            values[field.name] = _VALUES[field.name]
        elif field.name == "text_config":
            values[field.name] = {}
        elif field.name != "model_type" and field.default is field.default_factory is dataclasses.MISSING:
            raise LookupError(f"{name} wants {field.name}, of which no rule knows the value")
    return values


# Of the weights of a layer, so that the context and not only the last token decides what comes next.
_GAIN = 2.0


def _weights(config: dict[str, Any], seed: int) -> dict[str, mx.array]:
    """In the shapes of mlx-lm's own class. What has one axis (norms, biases) stays as the class makes it."""
    # Some argument classes change nested tables in place.
    model_class, arguments_class = _get_classes(json.loads(json.dumps(config)))
    model = model_class(arguments_class.from_dict(json.loads(json.dumps(config))))
    key = mx.random.key(seed)
    weights = {}
    for name, value in tree_flatten(model.parameters()):
        key, draw = mx.random.split(key)
        if value.ndim > 1:
            gain = 1.0 if value.shape[0] == VOCABULARY else _GAIN
            value = mx.random.normal(value.shape, key=draw) * (gain / math.sqrt(value.shape[-1]))
        weights[name] = value.astype(mx.float32)
    return weights
