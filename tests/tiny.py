"""Tiny random checkpoints and harmless texts for tests."""

from __future__ import annotations

from pathlib import Path

import families
import torch

SENTENCE = "the river runs past a quiet mill and over seven stones to the old bridge where two herons wait"
WORDS = SENTENCE.split()


def mistral(folder: Path, layers: int = 6, hidden: int = 32, seed: int = 0, **config) -> Path:
    """A random Mistral with a word-level tokenizer of its own, saved in Hugging Face's format."""
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(seed)
    words = dict.fromkeys(WORDS)
    settings = {
        "vocab_size": len(words) + 3,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.2,
        "max_position_embeddings": 1024,
        "eos_token_id": 2,
    }
    MistralForCausalLM(MistralConfig(**(settings | config))).save_pretrained(folder)
    families.save_tokenizer(folder, words, unk_token="<unk>", eos_token="</s>")
    return folder


def texts(count: int, seed: int, longest: int = 40) -> list[str]:
    """Harmless texts of very unequal lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest, (count,), generator=generator).tolist()
    return [" ".join(WORDS[i] for i in torch.randint(len(WORDS), (n,), generator=generator)) for n in lengths]
