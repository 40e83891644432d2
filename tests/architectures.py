"""Tiny random models of every causal architecture that transformers lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import families
import torch

LAYERS, HIDDEN, HEADS = 4, 16, 4
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
SMALL |= dict.fromkeys(
    ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"), LAYERS
)
SMALL |= dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"), 64)
SMALL |= dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4)
SMALL |= dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk", "num_experts_per_token"), 2)
SMALL |= dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "q_lora_rank", "kv_lora_rank"), 8)
SMALL |= dict.fromkeys(
    ("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "head_dim", "rotary_dim", "sliding_window"), 4
)
SMALL |= dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "num_shared_experts", "first_k_dense_replace"), 1)
SMALL |= {"vocab_size_per_layer_input": 63, "hidden_size_per_layer_input": 8}
SMALL |= {"num_key_value_heads": 2, "num_kv_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
PER_LAYER = ("layer_types", "mlp_layer_types", "layers_block_type", "no_rope_layers", "block_types")


def names() -> dict[str, str]:
    """Model type to the name of its causal model's class."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return dict(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def small(kind: str, **more: Any) -> Any:
    """A small configuration of an architecture, from its defaults."""
    from transformers import CONFIG_MAPPING

    made = CONFIG_MAPPING[kind]
    usual = made().to_dict()
    given = {key: value for key, value in SMALL.items() if key in usual and usual[key] is not None}
    given |= {key: value for key, value in SMALL.items() if key in made.attribute_map}
    if "qk_rope_head_dim" in usual:  # there it is computed from its two parts
        given.pop("head_dim", None)
        given["num_key_value_heads"] = HEADS
    given |= {key: usual[key][:LAYERS] for key in PER_LAYER if isinstance(usual.get(key), list)}
    return made(**given, **more, vocab_size=len(families.WORDS) + 3, initializer_range=0.3)


def make(kind: str, folder: Path) -> Path:
    """Write a random model of an architecture, with its tokenizer."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(small(kind))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    with families.quiet():
        model.save_pretrained(folder)
    families.save_tokenizer(folder)
    return folder
