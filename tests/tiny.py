"""Tiny random checkpoints and harmless texts for tests."""

from __future__ import annotations

from pathlib import Path

import torch

SENTENCE = "the river runs past a quiet mill and over seven stones to the old bridge where two herons wait"
WORDS = SENTENCE.split()


def mistral(folder: Path, layers: int = 6, hidden: int = 32, seed: int = 0, **config) -> Path:
    """A random Mistral with a word-level tokenizer of its own, saved in Hugging Face's format."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    vocab = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", *dict.fromkeys(WORDS)])}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", eos_token="</s>")
    settings = {
        "vocab_size": len(vocab),
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
    tokenizer.save_pretrained(folder)
    return folder


def texts(count: int, seed: int, longest: int = 40) -> list[str]:
    """Harmless texts of very unequal lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest, (count,), generator=generator).tolist()
    return [" ".join(WORDS[i] for i in torch.randint(len(WORDS), (n,), generator=generator)) for n in lengths]
