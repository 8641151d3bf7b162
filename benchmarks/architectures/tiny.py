"""A tiny random model of any architecture: its own configuration class, every size shrunk by its name."""

import dataclasses
import re
from typing import Any, Final

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

LAYERS: Final = 4
VOCABULARY: Final = 120
DEPTH: Final = r"num_hidden_layers|n_layers?|num_layers|num_blocks|(num_)?(en|de)coder_layers|depth|num_global_layers"
SIZES: Final[dict[str, int]] = {
    r"qk_head_dim": 16,
    r"(hidden|input|embedding|attention_hidden)_size|d_model|n_embd|emb_dim|dim|embedding_dim|word_embed_proj_dim": 32,
    r"(output_embedding|cross_attention_hidden|\w+_embed)_(size|dim)|lru_width|hidden_size_global": 32,
    DEPTH: LAYERS,
    r"vocab_size|\w+_vocab_size|vocab_size_per_layer_input": VOCABULARY,
    r"moe_(shared_expert_)?intermediate_size|(shared|shared_experts?)_intermediate_size|expert_ffn_hidden_size": 24,
    r"(dense_)?intermediate_size(_mlp)?|(\w+_)?ffn_dim|d_inner|n_inner|ffn_hidden_size|dff|d_ff|dim_ff": 40,
    r"feed_forward_size|mamba_d_ssm": 64,
    r"(\w+_)?num_(key_value_|kv_|key_)heads|kv_n_heads|num_query_groups": 2,
    r"(\w+_)?(attention_|query_)?heads|(\w+_)?n_heads?|num_heads|linear_num_value_heads": 4,
    r"(\w+_)?head_dim|d_head|d_kv|kv_channels|dim_head|attention_head_size|rotary_dim|hidden_size_per_layer_input": 8,
    r"(num|n)_(local_|routed_)?experts|moe_num_experts": 4,
    r"num_experts_per_tok(en)?|moe_topk|moe_k|top_k|moe_top_k": 2,
    r"n_group|topk_group|num_expert_group|o_groups": 1,
    r"(\w+_)?(lora_rank|rank|lowrank)": 16,
    r"(\w+_)?state_size|mamba_d_state|(\w+_)?chunk_size|(\w+_)?chunk_length": 8,
    r"max_position_embeddings|n_positions|n_ctx|\w*window(_size)?|context_length|model_max_length|max_seq_len": 64,
    r"first_k_dense_replace|num_dense_layers|moe_layer_start_index": 1,
}
"""What an integer whose whole name matches becomes, by the first that matches; one that is smaller stays."""
INDEXER: Final = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 8,
    "indexer_compress_ratio": 4,
}
OVERRIDES: Final[dict[str, dict[str, Any]]] = {
    "bamba": {"mamba_d_head": 16, "attn_layer_indices": [1, 3]},
    "blenderbot": {"encoder_layers": LAYERS},
    "blt": {"encoder_hash_byte_group_vocab": 50},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "dots3_note": {
        "vision_config": {"adapter_in_dim": 32, "adapter_out_dim": 32},
        "audio_config": {"adapter_input_size": 32, "adapter_out_dim": 32},
    },
    "falcon_h1": {"mamba_d_head": 16},
    "gemma3n_text": {"num_kv_shared_layers": 2},
    "gemma4_assistant": {
        "text_config": {
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": 0,
            "num_kv_shared_layers": LAYERS,
        }
    },
    "gpt_neo": {"attention_types": [[["global", "local"], LAYERS // 2]]},
    "granitemoehybrid": {"mamba_d_head": 16, "layer_types": ["linear_attention", "full_attention"] * 2},
    "hrm_text": {"num_layers_per_stack": None},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 0},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"head_dim": 16, "n_groups": 1},
    "mimo_v2_flash": {"swa_num_key_value_heads": 2},
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "nemotron_h": {"n_groups": 1, "mamba_head_dim": 16},
    "phi4_multimodal": {"vision_config": {"num_hidden_layers": LAYERS + 1}},
    "qwen4_exp": {"text_config": INDEXER},
    "qwen4_exp_text": INDEXER,
    "reformer": {
        "is_decoder": True,
        "attn_layers": ["local", "lsh"] * 2,
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [16, 16],
        "num_buckets": 2,
    },
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"attention_hidden_size": 64, "attention_head_dim": 16},
    "zamba2": {"mamba_headdim": 16},
}
"""Where shrinking by name isn't enough."""


SINGLE: Final = ("inkling2_text", "xglm", "xlnet")
"""They don't run in float64."""


def tiny(model_type: str, overrides: dict[str, Any]) -> Any:
    """A random model of an architecture whose layers differ, in float64 where it runs in that; always the same.

    Raises:
        Exception: whatever its configuration or its model raises at sizes that it can't take.
    """
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]  # as transformers has it
        shrunk(model_type, overrides),
        dtype=torch.float32 if model_type in SINGLE else torch.float64,
        experts_implementation="eager",  # grouped matrix products know no float64
    )
    for parameter in model.parameters():
        if parameter.ndim > 1:  # the configured spread of .02 would make all layers alike
            nn.init.normal_(parameter, std=0.3)
    model.generation_config.eos_token_id = None  # an answer has the length that is asked for
    return model.eval()


def shrunk(model_type: str, overrides: dict[str, Any]) -> PreTrainedConfig:
    """A tiny configuration of an architecture's own class, from its defaults."""
    kind = CONFIG_MAPPING[model_type]
    config: PreTrainedConfig = kind(**_merged(_values(kind()), OVERRIDES.get(model_type, {}) | overrides))
    return config


def _merged(values: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Sub-configurations are merged, all else is replaced."""
    return values | {
        name: _merged(values[name], value) if name.endswith("_config") else value for name, value in over.items()
    }


def _values(config: PreTrainedConfig) -> dict[str, Any]:
    fields = {field.name for field in dataclasses.fields(config) if field.init}
    layers = next((value for name, value in vars(config).items() if re.fullmatch(DEPTH, name)), None)
    values = {name: _value(name, value, layers) for name, value in vars(config).items() if name in fields}
    if "kv_lora_rank" in values:  # latent attention knows no groups
        values["num_key_value_heads"] = values["num_attention_heads"]
    return values


def _value(name: str, value: Any, layers: int | None) -> Any:
    if isinstance(value, PreTrainedConfig):
        return _values(value)
    if isinstance(value, list) and len(value) == layers:  # one entry a layer: each kind of layer comes once
        kinds = list(dict.fromkeys(value))
        return [kinds[layer % len(kinds)] for layer in range(LAYERS)]
    if isinstance(value, int) and not isinstance(value, bool):
        if re.search("_token_(id|index)$", name):
            return min(value, VOCABULARY - 1)
        return min(value, _size(name, value) or value)
    return value


def _size(name: str, value: Any) -> int | None:
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return next((size for pattern, size in SIZES.items() if re.fullmatch(pattern, name)), None)
