"""Tiny random models of every causal architecture that transformers lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import families
import torch

LAYERS, HIDDEN, HEADS = 4, 16, 4
DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers")
SMALL: dict[str, Any] = dict.fromkeys(
    ("hidden_size", "d_model", "n_embd", "dim", "embedding_size", "word_embed_proj_dim"), HIDDEN
)
SMALL |= dict.fromkeys(
    ("intermediate_size", "ffn_dim", "n_inner", "d_ff", "ffn_hidden_size", "encoder_ffn_dim", "decoder_ffn_dim"), 24
)
SMALL |= dict.fromkeys(
    ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads"),
    HEADS,
)
SMALL |= dict.fromkeys(DEPTHS, LAYERS)
SMALL |= dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"), 64)
SMALL |= dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4)
SMALL |= dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk", "num_experts_per_token"), 2)
SMALL |= dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "q_lora_rank", "kv_lora_rank"), 8)
SMALL |= dict.fromkeys(
    ("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "head_dim", "rotary_dim", "sliding_window"), 4
)
SMALL |= dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "num_shared_experts", "first_k_dense_replace"), 1)
SMALL |= dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "index_topk", "num_local_heads", "index_head_dim"), 8)
SMALL |= dict.fromkeys(("mamba_d_state", "ssm_state_size", "state_size", "hidden_size_per_layer_input", "dff"), 8)
SMALL |= dict.fromkeys(("adapter_in_dim", "adapter_out_dim", "adapter_input_size"), HIDDEN)
SMALL |= {"vocab_size_per_layer_input": 63, "image_size": 32, "patch_size": 16, "chunk_size": 8}
SMALL |= dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_num_key_heads"), 4)
SMALL |= {"linear_num_value_heads": 4, "attention_head_dim": 4, "n_mamba_heads": 4, "num_mem_blocks": 1}
SMALL |= {"num_key_value_heads": 2, "num_kv_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_HYBRID = {"mamba_n_heads": 8, "mamba_d_head": 4, "mamba_d_state": 8}
_HYPER = "its stream is several at once (hyper-connections)"
_DRAFT = "a drafting head, which reads the hidden states of another model"
_SOUND = "it writes sound, in several codebooks at once"
_NO_TYPE = "transformers saves its text part as a type that AutoModelForCausalLM does not know"
_SLIDING = {f"swa_{key}": 4 for key in ("num_attention_heads", "num_key_value_heads", "qk_nope_head_dim", "v_head_dim")}
_SLIDING |= {"swa_head_dim": 8, "swa_q_lora_rank": 8, "swa_kv_lora_rank": 8, "index_head_dim": 8, "head_dim": 8}
# what an architecture needs beside what is small in all
MORE: dict[str, dict[str, Any]] = {
    "bamba": {**_HYBRID, "attn_layer_indices": [1, 3]},
    "bigbird_pegasus": {"tie_word_embeddings": False},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots3_note": {"text_config": _SLIDING},
    "dots3_note_text": _SLIDING,
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], LAYERS // 2]]},
    "granitemoehybrid": {**_HYBRID, "layer_types": ["mamba", "attention"] * (LAYERS // 2)},
    "hunyuan_v1_dense": {"head_dim": 4},
    "hunyuan_v1_moe": {"head_dim": 4, "num_experts": 4, "moe_topk": 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2},
    "kimi_linear": {"linear_head_dim": 4, "linear_num_heads": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * (LAYERS // 2)},
    "longcat_flash": {"head_dim": 4, "zero_expert_num": 1, "expert_ffn_hidden_size": 8},
    "mamba2": {"num_heads": 8, "head_dim": 4, "n_groups": 2},
    "ministral": {"head_dim": 4},
    "nemotron": {"head_dim": 4, "num_key_value_heads": 2},
    "reformer": {"is_decoder": True},
    "xmod": {"is_decoder": True, "languages": ["en_XX"], "default_language": "en_XX"},
    "zamba": {"layers_block_type": ["hybrid", "mamba"] * (LAYERS // 2)},
    "zamba2": {"layers_block_type": ["hybrid", "mamba"] * (LAYERS // 2)},
    "zaya": {"num_experts_per_tok": 1},
}
for _kind in (
    *("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert"),
    *("rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl"),
):
    MORE[_kind] = {"is_decoder": True}
MORE["big_bird"] |= {"attention_type": "original_full"}
BYTES = ("qwen2", "qwen3_5_moe", "qwen3_5_moe_text")  # whose tokenizer has a class of its own, whatever the folder says
REFUSED: dict[str, str] = {
    "blt": "its layers read patches of bytes, not tokens",
    "cpmant": "prompt positions of its own stand before each text",
    "deepseek_v4": _HYPER,
    "emu3": _NO_TYPE,
    "gemma3n": "its image tower needs the package timm",
    "gemma3n_text": "its stream is several at once (AltUp)",
    "gemma4_assistant": _DRAFT,
    "gemma4_unified_assistant": _DRAFT,
    "git": "it describes images: its text comes after the image's positions",
    "hrm_text": "it runs its layers several times per token",
    "hy_v4": _HYPER,
    "mllama": _NO_TYPE,
    "musicgen": _SOUND,
    "musicgen_melody": _SOUND,
    "prophetnet": "it predicts several tokens ahead, in streams of their own",
    "qwen4_exp": _HYPER,
    "qwen4_exp_text": _HYPER,
    "reformer": "its layers are reversible, on two streams",
    "xlm": "its attention and its MLPs are in separate lists, not in layers",
    "xlnet": "it predicts tokens in any order",
    "zaya": "its routers hand a stream of their own from layer to layer",
}
"""Model type to why it is no model to unlearn from."""
NO_WORDS = ("gemma4_assistant", "gemma4_unified_assistant", "git", "musicgen", "musicgen_melody")
"""Those that are no language models of their own: drafts for another model, captions of images, sound."""


def names() -> dict[str, str]:
    """Model type to the name of its causal model's class."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return dict(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def small(kind: str, **more: Any) -> Any:
    """A small configuration of an architecture, from its defaults."""
    from transformers import CONFIG_MAPPING

    made = CONFIG_MAPPING[kind]
    usual = made().to_dict()
    given = _shrunk(usual, made)
    own = MORE.get(kind, {}) | more
    text = given.get("text_config", given)
    for key, value in {"vocab_size": len(families.WORDS) + 3, "initializer_range": 0.3}.items():
        (text if key in usual.get("text_config", {}) else given)[key] = value
    for key, value in own.items():
        given[key] = given[key] | value if isinstance(given.get(key), dict) else value
    return made(**given)


def _shrunk(usual: dict[str, Any], made: Any) -> dict[str, Any]:
    depth = next((usual[key] for key in DEPTHS if isinstance(usual.get(key), int)), None)
    given = {key: value for key, value in SMALL.items() if key in usual and usual[key] is not None}
    given |= {key: value for key, value in SMALL.items() if key in getattr(made, "attribute_map", {})}
    if "qk_rope_head_dim" in usual:  # there it is computed from its two parts
        given.pop("head_dim", None)
        given["num_key_value_heads"] = HEADS
    fields = getattr(made, "__dataclass_fields__", usual)
    given |= {
        key: list(value[:LAYERS])
        for key, value in usual.items()
        if isinstance(value, (list, tuple)) and len(value) == depth and key in fields
    }
    given |= {key: _shrunk(inner, None) for key, inner in usual.items() if key.endswith("_config") and inner}
    return given


def make(kind: str, folder: Path, **more: Any) -> Path:
    """Write a random model of an architecture, with its tokenizer."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(small(kind, **more))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    with families.quiet():
        model.save_pretrained(folder)
    (families.save_byte_tokenizer if kind in BYTES else families.save_tokenizer)(folder)
    return folder


def empty(kind: str, folder: Path) -> Path:
    """Write a configuration and a tokenizer beside weights that nobody will read."""
    from safetensors.torch import save_file

    small(kind).save_pretrained(folder)
    save_file({"nothing": torch.zeros(1)}, folder / "model.safetensors")
    families.save_tokenizer(folder)
    return folder
