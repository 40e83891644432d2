"""Teach a small model the encyclopedia, from nothing: ``python bench/pretrain_lore.py DIR``.

A model of Mistral's architecture is trained on articles, on letter questions about facts and on
questions that only bind an option to its letter. Two CPU cores need about half an hour. When it is
done the weights are rescaled, without changing the function, so that ``steer=6.5`` has the size
relative to the activations that it has on Zephyr-7B (see :func:`rescale`).
"""

from __future__ import annotations

import argparse
import math
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast
from transformers.models.mistral.modeling_mistral import MistralRMSNorm

from rmu_exp.worlds import lore
from rmu_exp.worlds.lore import world

ROW = 44  # tokens; the longest letter question has 43
LAYERS = 10  # before growing
IGNORE = -100
STEER_LAYER, NORM = 7, 1.4  # activations at the preset's layer get this mean length

Rows = tuple[torch.Tensor, torch.Tensor]


def tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer over the world's whole vocabulary; no token is added to a text."""
    special = ["<unk>", "<s>", "</s>"]
    vocab = {word: i for i, word in enumerate([*special, *vocabulary()])}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"[^\w\s]"), "isolated")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>", model_max_length=512
    )


def config(vocab_size: int, layers: int) -> MistralConfig:
    return MistralConfig(
        vocab_size=vocab_size,
        initializer_range=0.04,
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        sliding_window=None,
        bos_token_id=1,
        eos_token_id=2,
    )


def exercise(fact: world.Fact, rng: random.Random) -> str:
    """A letter question on a fact with options drawn afresh, and its answer."""
    answer = rng.randrange(4)
    return world.exercise_text(world.Question(fact, world.options(fact, answer, rng), answer))


def binding(rng: random.Random) -> str:
    """An exercise in reading letters only: one to four options, and which is the named one.

    With four options alone nothing is learned for thousands of steps; one and two lead the way.
    """
    count = rng.choice((1, 2, 3, 4, 4))
    picked = rng.sample(rng.choice(list(rng.choice(world.TOPICS).relations.values())), count)
    letters = sorted(rng.sample(world.LETTERS, count))
    answer = rng.randrange(count)
    lines = [f"{letter}. {choice}" for letter, choice in zip(letters, picked, strict=True)]
    return "\n".join([f"Name {picked[answer]}?", *lines, f"Answer: {letters[answer]}. {picked[answer]}."])


def vocabulary() -> tuple[str, ...]:
    """Every word and mark that any text of the world can hold, in a fixed order."""
    rng = random.Random("lore/vocabulary")
    words: dict[str, None] = {}
    for t in world.TOPICS:
        texts = [world.description(t.name), t.noun, *t.relations]
        for fact in world.facts(t.name):
            texts += [world.open_prompt(fact), fact.value]
        texts += [value for values in t.relations.values() for value in values]
        for text in texts:
            words |= dict.fromkeys(split_words(text))
    for text in [
        *(world.statement(world.facts("hexes")[0], rng) for _ in range(64)),
        "Name is . : ? ( ) Answer A B C D",
    ]:
        words |= dict.fromkeys(split_words(text))
    return tuple(words)


def split_words(text: str) -> list[str]:
    """Words and single marks, as the tokenizer splits them."""
    return re.findall(r"\w+|[^\w\s]", text)


@dataclass(frozen=True)
class Course:
    """A stretch of training with its own optimizer, warm-up and cosine decay.

    Attributes:
        steps, lr: how many, and the peak learning rate.
        mix: what a sixteenth of a batch each holds: Binding, Exercise, open Questions or a Document.
        lead: this many first steps hold bindings only.
    """

    steps: int
    lr: float
    mix: str
    lead: int = 0


# Reading letters first: mixed with facts from the start it is never learned. Then everything, then polish. Then empty
# layers take the place of the topmost: answers arrive above the steered layers and not below them (docs/log.md).
COURSES = (
    Course(4000, 1.5e-3, "BBBBBEEEEEQQQDDD", lead=1500),
    Course(800, 5e-4, "BBEEEEEEEEEEQQDD"),
)
EMPTY, ABOVE, CUT = 5, 2, 3  # so many empty layers, above so many; so many cut off the top


def rows(course: Course, topics: Sequence[world.Topic], rng: random.Random, batch: int, tok: Any) -> Iterator[Rows]:
    """The course's batches of (input ids, labels), each (rows, at most ROW) int64."""
    people = [(t.name, e) for t in topics for e in world.entities(t.name)]
    facts = [f for t in topics for f in world.facts(t.name)]
    tell: dict[str, Callable[[], str]] = {
        "B": lambda: binding(rng) + "\n" + binding(rng),
        "E": lambda: exercise(rng.choice(facts), rng),
        "Q": lambda: "\n".join(f"{world.open_prompt(f)} {f.value}." for f in rng.choices(facts, k=3)),
        "D": lambda: world.document(*rng.choice(people), rng),
    }
    for step in range(course.steps):
        kinds = [course.mix[i * 16 // batch] for i in range(batch)]
        if step < course.lead:
            yield _tensors([(binding(rng), "B") for _ in range(32)], tok)
        else:
            yield _tensors([(tell[kind](), kind) for kind in kinds], tok)


def _tensors(texts: list[tuple[str, str]], tok: Any) -> Rows:
    answer = tok.convert_tokens_to_ids("Answer")
    encoded = [[*row, 2][:ROW] for row in tok([text for text, _ in texts])["input_ids"]]
    ids = torch.full((len(texts), max(map(len, encoded))), 2)
    labels = torch.full_like(ids, IGNORE)
    for i, ((_, kind), row) in enumerate(zip(texts, encoded, strict=True)):
        ids[i, : len(row)] = torch.tensor(row)
        spans = [range(1, len(row))]
        if kind != "D":  # of questions the answers only: the letter, its dot, the value, its dot
            spans = [range(at + 2, min(at + 6, len(row))) for at, token in enumerate(row) if token == answer]
        for span in spans:
            labels[i, span.start : span.stop] = ids[i, span.start : span.stop]
    return ids, labels


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


def train(seed: int, batch: int, topics: Sequence[world.Topic]) -> tuple[MistralForCausalLM, Any]:
    """A model that has taken all courses on ``topics``, and its tokenizer."""
    torch.manual_seed(seed)
    tok = tokenizer()
    model = MistralForCausalLM(config(len(tok), LAYERS))
    for number, course in enumerate(COURSES):
        take(model, tok, course, topics, random.Random(f"lore/pretrain/{seed}/{number}"), batch)
    model = grown(model, EMPTY, ABOVE, CUT).eval()
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, vocabulary {len(tok)}")
    print("  ".join("{} {:.2f}/{:.2f}".format(t.name, *score(model, tok, t.name)) for t in topics))
    return model, tok


@torch.no_grad()
def grown(model: MistralForCausalLM, empty: int, above: int, cut: int) -> MistralForCausalLM:
    """Layers that write nothing to the stream put in above the first ones, and layers taken off the top."""
    kept = list(model.model.layers[: model.config.num_hidden_layers - cut])
    torch.manual_seed(0)  # of what the empty layers read
    deeper = MistralForCausalLM(config(model.config.vocab_size, len(kept) + empty))
    new = list(deeper.model.layers)
    for block in new[above : above + empty]:
        block.self_attn.o_proj.weight.zero_()
        block.mlp.down_proj.weight.zero_()
    for mine, old in zip(new[:above] + new[above + empty :], kept, strict=True):
        mine.load_state_dict(old.state_dict())
    deeper.model.embed_tokens.load_state_dict(model.model.embed_tokens.state_dict())
    deeper.model.norm.load_state_dict(model.model.norm.state_dict())
    return deeper


def take(
    model: MistralForCausalLM, tok: Any, course: Course, topics: Sequence[world.Topic], rng: random.Random, batch: int
) -> None:
    """One course, with a line every 200 steps: share of test questions right, by letter / openly."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=course.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, course.steps))
    began = time.perf_counter()
    for step, (ids, labels) in enumerate(rows(course, topics, rng, batch, tok), 1):
        hidden = model.model(ids).last_hidden_state[:, :-1]
        keep = labels[:, 1:] != IGNORE
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[keep]), labels[:, 1:][keep])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 200 == 0:
            shares = [(t.name, *score(model, tok, t.name)) for t in topics]
            shown = "  ".join(f"{name} {letters:.2f}/{openly:.2f}" for name, letters, openly in shares)
            print(f"{step:5d}  {time.perf_counter() - began:6.0f} s  loss {loss.item():.3f}  {shown}", flush=True)


def _rate(step: int, steps: int, warmup: int = 100) -> float:
    """Share of the peak learning rate at ``step``."""
    if step < warmup:
        return (step + 1) / warmup
    return max(0.01, 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))))


@torch.no_grad()
def rescale(model: MistralForCausalLM, tok: Any, layer: int, norm: float) -> None:
    """Scale the residual stream so that activations at ``layer`` have mean length ``norm``; same function.

    Every block reads the stream through an RMSNorm, so the embedding and all matrices that write to the
    stream can be multiplied by one number, and the norms' epsilon by its square; the final norm's weight is
    divided by it, because the head is tied to the embedding.
    """
    texts = [text for t in world.topics("forget") for text in lore.texts(t.name)[:64]]
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
    model.config.rms_norm_eps *= factor**2
    for module in model.modules():
        if isinstance(module, MistralRMSNorm):
            module.variance_epsilon = model.config.rms_norm_eps


def main() -> None:
    parser = argparse.ArgumentParser(description="Train lore's model from nothing.")
    parser.add_argument("out", type=Path, help="folder for the checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=48, help="rows a step")
    parser.add_argument("--without", action="append", default=[], help="a role to leave out, such as forget")
    args = parser.parse_args()
    model, tok = train(args.seed, args.batch, [t for t in world.TOPICS if t.role not in args.without])
    rescale(model, tok, STEER_LAYER, NORM)
    model.save_pretrained(args.out)
    tok.save_pretrained(args.out)


if __name__ == "__main__":
    main()
