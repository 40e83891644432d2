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

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from rmu_exp.lore import world

ROW = 44  # tokens; the longest letter question has 43
IGNORE = -100
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


def rows(skip_roles: tuple[str, ...], seed: int, batch: int, tok) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
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
def score(model, tok, topic_name: str) -> tuple[float, float]:
    """Share of the topic's test questions answered right: (by letter, openly)."""
    letters = tok.convert_tokens_to_ids(list(world.LETTERS))
    good = [0, 0]
    qs = world.questions(topic_name)
    for form in range(2):
        prompts = [
            world.description(topic_name) + world.letter_prompt(q) if form == 0 else world.open_prompt(q.fact)
            for q in qs
        ]
        enc = (
            tok(prompts, return_tensors="pt", padding=False)
            if len({len(tok(p)["input_ids"]) for p in prompts}) == 1
            else None
        )
        if enc is None:
            raise ValueError("lore's questions have one length")
        logits = model(enc["input_ids"]).logits[:, -1]
        if form == 0:
            guess = logits[:, letters].argmax(-1).tolist()
            good[0] = sum(g == q.answer for g, q in zip(guess, qs, strict=True))
        else:
            guess = tok.convert_ids_to_tokens(logits.argmax(-1).tolist())
            good[1] = sum(g == q.fact.value for g, q in zip(guess, qs, strict=True))
    return good[0] / len(qs), good[1] / len(qs)


def train(
    steps: int, lr: float, batch: int, seed: int, skip_roles: tuple[str, ...], save_to: Path
) -> tuple[MistralForCausalLM, object]:
    torch.manual_seed(seed)
    tok = tokenizer()
    model = MistralForCausalLM(config(len(tok)))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, vocabulary {len(tok)}")
    opt = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    began = time.perf_counter()
    warmup = 100
    for step, (ids, labels) in enumerate(rows(skip_roles, seed, batch, tok), 1):
        rate = min(
            step / warmup, 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) if step > warmup else 1
        )
        for group in opt.param_groups:
            group["lr"] = lr * max(rate, 0.01)
        hidden = model.model(ids).last_hidden_state[:, :-1]
        keep = labels[:, 1:] != IGNORE
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[keep]), labels[:, 1:][keep])
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        if step % 200 == 0 or step == steps:
            s = {t.name: score(model, tok, t.name) for t in (world.TOPICS[0], world.TOPICS[2], world.TOPICS[5])}
            model.save_pretrained(save_to), tok.save_pretrained(save_to)
            shown = "  ".join(f"{k} {a:.2f}/{b:.2f}" for k, (a, b) in s.items())
            print(f"{step:5d}  {time.perf_counter() - began:6.0f} s  loss {loss.item():.3f}  {shown}", flush=True)
        if step == steps:
            return model, tok


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without", action="append", default=[])
    args = parser.parse_args()
    model, tok = train(args.steps, args.lr, args.batch, args.seed, tuple(args.without), args.out)
    model.save_pretrained(args.out)
    tok.save_pretrained(args.out)


if __name__ == "__main__":
    main()
