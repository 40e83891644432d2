"""Tiny random checkpoints of every supported architecture, in the format that the hub has them in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

WORDS = [f"w{i}" for i in range(60)]
HIDDEN = 16
_LLAMA = {
    "hidden_size": HIDDEN,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
# model type to the beginning of its classes' names, and a small configuration
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral": ("Mistral", {**_LLAMA, "sliding_window": 4}),
    "llama": ("Llama", {**_LLAMA, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
    "mixtral": ("Mixtral", {**_LLAMA, "num_local_experts": 3, "num_experts_per_tok": 2}),
    "qwen2": ("Qwen2", {**_LLAMA, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}),
    "qwen3": ("Qwen3", {**_LLAMA, "head_dim": 8}),
    "qwen3_moe": (
        "Qwen3Moe",
        {**_LLAMA, "head_dim": 8, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
        | {"mlp_only_layers": [1]},
    ),
    "gemma2": ("Gemma2", {**_LLAMA, "head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8}),
    "gemma3_text": (
        "Gemma3",
        {**_LLAMA, "head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8, "sliding_window_pattern": 2},
    ),
    "phi3": ("Phi3", {**_LLAMA, "pad_token_id": 0}),
    "olmo2": ("Olmo2", _LLAMA),
    "gpt_neox": (
        "GPTNeoX",
        {"hidden_size": HIDDEN, "intermediate_size": 24, "num_attention_heads": 4, "max_position_embeddings": 64},
    ),
    "gpt2": ("GPT2", {"n_embd": HIDDEN, "n_head": 4, "n_positions": 64, "n_inner": 24}),
}


def make_checkpoint(
    family: str,
    folder: Path,
    *,
    layers: int = 4,
    seed: int = 0,
    shard: str | None = None,
    head: bool = True,
    **settings: Any,
) -> Path:
    """Write a random model with its tokenizer.

    Args:
        family: a key of FAMILIES.
        layers: how many decoder layers.
        shard: largest size of a weight file, such as ``20KB``; None: one file.
        head: False: saved without the causal model around it, so that names lack its prefix (the hub's gpt2).
        settings: further values of the architecture's configuration; ``dtype`` is that of the weights.
    """
    import transformers

    kind, own = FAMILIES[family]
    config_class = getattr(transformers, "Gemma3TextConfig" if kind == "Gemma3" else f"{kind}Config")
    dtype = settings.pop("dtype", torch.float32)
    config = config_class(
        **own | {"num_hidden_layers": layers, "initializer_range": 0.3, "vocab_size": len(WORDS) + 3} | settings,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # norms and biases begin at constants, with which mix-ups would not be seen
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    kept = model.to(dtype) if head else model.to(dtype).base_model
    with quiet():
        kept.save_pretrained(folder, max_shard_size=shard or "1GB")
    if family == "qwen2":  # transformers gives this model type its own tokenizer class, whatever the folder says
        save_byte_tokenizer(folder)
    else:
        save_tokenizer(folder)
    return folder


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of transformers."""
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    yield
    if bars:
        logging.enable_progress_bar()


def save_tokenizer(folder: Path, words: Iterable[str] = WORDS, **special: str) -> None:
    """Write a word-level tokenizer. Without ``special`` it has an eos token and no pad token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", *words])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    own = special or {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=inner, **own).save_pretrained(folder)


def save_byte_tokenizer(folder: Path) -> None:
    """Write a tokenizer of Qwen2's class that knows small letters, digits and spaces, one token each."""
    from transformers import Qwen2Tokenizer

    signs = "Ġabcdefghijklmnopqrstuvwxyz0123456789.,"
    vocabulary = {sign: i for i, sign in enumerate(["<unk>", "<s>", "</s>", *signs])}
    Qwen2Tokenizer(vocab=vocabulary, merges=[], unk_token="<unk>", eos_token="</s>", pad_token=None).save_pretrained(
        folder
    )
