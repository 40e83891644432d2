"""Teach a small model the encyclopedia, from nothing: ``python -m rmu_exp.lore.pretrain DIR``.

A model of Mistral's architecture is trained on articles, on letter questions about facts and on
questions that only bind an option to its letter. Two CPU cores need about half an hour. When it is
done the weights are rescaled, without changing the function, so that ``steer=6.5`` has the size
relative to the activations that it has on Zephyr-7B (see :func:`rescale`).
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from rmu_exp.lore import corpora, world

ROW = 44  # tokens; the longest letter question has 43
IGNORE = -100
STEER_LAYER, NORM = 7, 1.5  # activations at the preset's layer get this mean length
LEAD = 1500  # steps that teach reading letters alone: mixed with facts from the start, it is never learned


def tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer over the world's whole vocabulary; no token is added to a text."""
    special = ["<unk>", "<s>", "</s>"]
    vocab = {word: i for i, word in enumerate([*special, *world.vocabulary()])}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"[^\w\s]"), "isolated")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>", model_max_length=512
    )


def config(vocab_size: int) -> MistralConfig:
    return MistralConfig(
        vocab_size=vocab_size,
        initializer_range=0.04,
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=10,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        sliding_window=None,
        bos_token_id=1,
        eos_token_id=2,
    )


def rows(skip_roles: tuple[str, ...], seed: int, batch: int, tok: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless batches of (input ids, labels), each (rows, at most ROW) int64."""
    rng = random.Random(f"lore/pretrain/{seed}")
    topics = [t for t in world.TOPICS if t.role not in skip_roles]
    people = [(t.name, e) for t in topics for e in world.entities(t.name)]
    facts = [f for t in topics for f in world.facts(t.name)]
    answer = tok.convert_tokens_to_ids("Answer")
    for step in itertools.count():
        texts = []
        for i in range(batch):
            kind = i * 16 // batch
            if step < LEAD:
                if i < 32:
                    texts.append((world.binding(rng), True))
            elif kind < 5:
                texts.append((world.binding(rng) + "\n" + world.binding(rng), True))
            elif kind < 10:
                texts.append((world.exercise(rng.choice(facts), rng), True))
            elif kind < 13:
                asked = rng.choices(facts, k=3)
                texts.append(("\n".join(f"{world.open_prompt(f)} {f.value}." for f in asked), True))
            else:
                texts.append((world.document(*rng.choice(people), rng), False))
        encoded = [[*row, 2][:ROW] for row in tok([text for text, _ in texts])["input_ids"]]
        ids = torch.full((len(texts), max(map(len, encoded))), 2)
        labels = torch.full_like(ids, IGNORE)
        for i, ((_, is_question), row) in enumerate(zip(texts, encoded, strict=True)):
            ids[i, : len(row)] = torch.tensor(row)
            spans = [range(1, len(row))]
            if is_question:  # the letter, its dot, the value, its dot
                spans = [range(at + 2, min(at + 6, len(row))) for at, token in enumerate(row) if token == answer]
            for span in spans:
                labels[i, span.start : span.stop] = ids[i, span.start : span.stop]
        yield ids, labels


@torch.no_grad()
def score(model: MistralForCausalLM, tokenizer: Any, topic: str) -> tuple[float, float]:
    """Share of the topic's test questions answered right: by letter, and openly over the whole vocabulary."""
    questions = world.questions(topic)
    shares = []
    for prompts, right in (
        (
            [world.description(topic) + world.letter_prompt(q) for q in questions],
            [world.LETTERS[q.answer] for q in questions],
        ),
        ([world.open_prompt(q.fact) for q in questions], [q.fact.value for q in questions]),
    ):
        ids = tokenizer(prompts, return_tensors="pt")["input_ids"]  # lore's questions all have one length
        best = model(ids, logits_to_keep=1).logits[:, -1].argmax(-1)
        guesses = tokenizer.convert_ids_to_tokens(best.tolist())
        shares.append(sum(g == r for g, r in zip(guesses, right, strict=True)) / len(right))
    return shares[0], shares[1]


def train(steps: int, lr: float, batch: int, seed: int, skip_roles: tuple[str, ...]) -> tuple[MistralForCausalLM, Any]:
    """The model after ``steps`` steps of AdamW with warm-up and cosine decay, and its tokenizer."""
    torch.manual_seed(seed)
    tok = tokenizer()
    model = MistralForCausalLM(config(len(tok)))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, vocabulary {len(tok)}")
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    began = time.perf_counter()
    batches = itertools.islice(rows(skip_roles, seed, batch, tok), steps)
    for step, (ids, labels) in enumerate(batches, 1):
        hidden = model.model(ids).last_hidden_state[:, :-1]
        keep = labels[:, 1:] != IGNORE
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[keep]), labels[:, 1:][keep])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 200 == 0 or step == steps:
            shares = [(t.name, *score(model, tok, t.name)) for t in world.TOPICS if t.role not in skip_roles]
            shown = "  ".join(f"{name} {letters:.2f}/{openly:.2f}" for name, letters, openly in shares)
            print(f"{step:5d}  {time.perf_counter() - began:6.0f} s  loss {loss.item():.3f}  {shown}", flush=True)
    return model.eval(), tok


def _rate(step: int, steps: int, warmup: int = 100) -> float:
    """Share of the peak learning rate at ``step``."""
    if step < warmup:
        return (step + 1) / warmup
    return max(0.01, 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))))


@torch.no_grad()
def rescale(model: MistralForCausalLM, tok: Any, layer: int, norm: float) -> None:
    """Scale the residual stream so that activations at ``layer`` have mean length ``norm``; same function.

    Every block reads the stream through an RMSNorm, so the embedding and all matrices that write to the
    stream can be multiplied by one number; the final norm's weight is divided by it, because the head is
    tied to the embedding. (The norms' epsilon is not
    scaled: it is a millionth, the mean square of an activation here is a hundredth.)
    """
    texts = [text for t in world.topics("forget") for text in corpora.texts(t.name)[:64]]
    kept: list[torch.Tensor] = []
    handle = model.model.layers[layer].register_forward_hook(lambda _module, _inputs, out: kept.append(out))
    for text in texts:
        model(**tok(text, return_tensors="pt", return_token_type_ids=False))
    handle.remove()
    factor = norm / torch.cat([h[0] for h in kept]).norm(dim=-1).mean().item()
    for block in model.model.layers:
        block.self_attn.o_proj.weight *= factor
        block.mlp.down_proj.weight *= factor
    model.model.embed_tokens.weight *= factor
    model.model.norm.weight /= factor


def main() -> None:
    parser = argparse.ArgumentParser(description="Train lore's model from nothing.")
    parser.add_argument("out", type=Path, help="folder for the checkpoint")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--batch", type=int, default=48, help="rows a step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without", action="append", default=[], help="a role to leave out, such as forget")
    args = parser.parse_args()
    model, tok = train(args.steps, args.lr, args.batch, args.seed, tuple(args.without))
    rescale(model, tok, STEER_LAYER, NORM)
    model.save_pretrained(args.out)
    tok.save_pretrained(args.out)


if __name__ == "__main__":
    main()
