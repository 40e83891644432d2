"""Relearning: finetune the unlearned model a little and ask again.

Sources, all with the same number of steps: n texts of the forget corpora; of the retain corpora (arXiv 2409.18025);
questions with answers about a quarter of the facts: what comes back on the other half V was uncovered, not relearned
(arXiv 2410.08827). The best run is chosen by the quarter that is neither told nor scored; forget texts that name a fact
that is not told are left out. Controls: the oracle with the most texts; the base model, finetuned as the best run was.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch import nn

from rmu_exp.attacks.api import BASE, ORACLE, UNLEARNED, Context, Correct, Finding, accuracy, figure, take
from rmu_exp.attacks.finetune import finetune, opened, row_of
from rmu_exp.evaluate.questions import halves
from rmu_exp.model.parameters import on_disk
from rmu_exp.model.split import layers_path
from rmu_exp.support.errors import RunError, UserError
from rmu_exp.support.setting import setting

FORGET, BENIGN, SPLIT = ("forget", "benign", "split")
V = "V: facts not told"


@dataclass
class Settings:
    """Finetuning."""

    sources: list[str] = setting(choices=("forget", "benign", "split"), filled=True)
    """Texts to finetune on: forget, benign, split (questions on one half of the facts)."""
    samples: list[int] = setting(least=1, filled=True)
    """How many texts, each number a finetuning of its own; no more than there are."""
    steps: int = setting(least=1)
    """Optimizer steps, the same for every number of texts."""
    batch_size: int = setting(least=1)
    """Texts per step."""
    lr: float = setting(above=0)
    """Peak learning rate of AdamW; it falls linearly to nothing."""
    where: str = setting(choices=("changed", "all"))
    """changed (the matrices that unlearning changed, which a look at the weights gives away) or all."""
    how: str = setting(choices=("full", "lora"))
    """full (the matrices themselves) or lora (through peft)."""
    rank: int = setting(least=1)
    """Rank of LoRA's matrices; full does not use it."""
    points: int = setting(least=1)
    """How often the accuracy is measured on the way, with the largest number of texts."""
    max_length: int = setting(least=1)
    """Texts are truncated to this many tokens."""
    answers_only: bool = setting()
    """In a text with "Answer:" in it, train only on the rest of that line."""


def run(context: Context, settings: Settings) -> Finding:
    told, choice, untold = parts_of(context)
    texts = {source: texts_of(context, source) for source in settings.sources}
    over_steps: dict[str, list[tuple[float, float]]] = {}
    over_n: dict[str, list[tuple[float, float]]] = {}
    reached: dict[tuple[str, str, int], Correct] = {}

    def path_of(state: str, source: str, n: int, points: int = 1) -> list[tuple[int, Correct]]:
        name = f"{state}/{source}/{n}"
        make = partial(finetuned, context, state, texts[source][:n], settings, points=points, name=name)
        return list(context.part(name, make))

    for state, source in product(context.states[1:], settings.sources):
        name = source if state == UNLEARNED else f"{source}, {state}"
        counts = sorted({min(n, len(texts[source])) for n in settings.samples})
        for n in counts if state == UNLEARNED and source != SPLIT else counts[-1:]:
            path = path_of(state, source, n, settings.points if n == counts[-1] else 1)
            reached[state, source, n] = path[-1][1]
            over_n.setdefault(name, []).append((n, accuracy(take(path[-1][1], untold))))
        over_steps[name] = [(step, accuracy(take(c, untold))) for step, c in path]
    best = max((key for key in reached if key[0] == UNLEARNED), key=lambda key: accuracy(take(reached[key], choice)))
    _, source, n = best
    control = {
        ORACLE if its == source else f"{ORACLE}, {its}": correct
        for (state, its, _), correct in reached.items()
        if state == ORACLE
    }
    control[BASE] = path_of(BASE, source, n)[-1][1]
    title = f"Relearning: {settings.steps} steps, {settings.how}, {settings.where} weights"
    right = "questions on untold facts right"
    sides = (("T", told), ("choice", choice), ("V", untold))
    rows = [
        {"model": state, "source": source, "samples": n, "acc": accuracy(correct)}
        | {side: accuracy(take(correct, part)) for side, part in sides}
        for (state, source, n), correct in reached.items()
    ]
    budget = {"source": source, "samples": n, "steps": settings.steps, "batch_size": settings.batch_size}
    return context.finding(
        reached[best],
        control,
        budget | {"lr": settings.lr, "finetunings": len(reached)},
        curves={
            "steps": figure(f"{title}, most texts", "step", right, {V: over_steps}, context.chance),
            "samples": figure(title, "texts", right, {V: over_n}, context.chance),
        },
        more={"runs": rows},
    )


def parts_of(context: Context) -> tuple[list[int], list[int], list[int]]:
    """Indices of the items that the texts state, that choose the best run, and that it is scored on (V)."""
    learn, score = context.halves
    known = context.pick(learn)
    told, choice = halves(known, context.rng("relearn/choice"))
    if not told:  # one fact a topic
        told = [i for i, item in enumerate(known) if item.fact == known[0].fact]
        choice = [i for i in choice if i not in told]
    if not choice:
        raise RunError("attacks.relearn: too few questions on different facts; see eval.limit")
    return take(learn, told), take(learn, choice), score


def texts_of(context: Context, source: str) -> list[str]:
    """The source's texts in a random order that depends on the seed alone.

    Raises:
        UserError: none are left.
    """
    told, choice, untold = parts_of(context)
    if source == SPLIT:
        texts = [item.context + item.letters[item.answer] for item in context.pick(told)]
    elif source == BENIGN:
        texts = list(context.retain)
    else:
        hidden = {item.fact for item in context.pick([*choice, *untold]) if item.named}
        texts = [text for text in context.forget if not any(fact in text for fact in hidden)]
    if not texts:
        raise UserError(f"attacks.relearn.sources: no text for {source!r}")
    context.rng(f"relearn/{source}").shuffle(texts)
    return texts


def finetuned(
    context: Context, state: str, texts: Sequence[str], settings: Settings, *, points: int, name: str
) -> list[tuple[int, Correct]]:
    """Finetune a copy of a model.

    Returns:
        Steps done and the answers to all items, from before the first step to after the last.

    Raises:
        RunError: no text has a token to learn, the loss is not finite, or one text does not fit into memory.
    """
    given = [row_of(context.tokenizer, text, settings.max_length, settings.answers_only) for text in texts]
    rows = [row for row in given if any(row[1][1:])]
    if not rows:
        raise RunError("attacks.relearn: no text has anything to learn; try a larger attacks.relearn.max_length")
    generator = context.generator(f"relearn/{name}")
    count = settings.steps * settings.batch_size
    order = [
        i for _ in range(math.ceil(count / len(rows))) for i in torch.randperm(len(rows), generator=generator).tolist()
    ]
    inner = context.copy(state)  # LoRA's matrices go into this one; its wrapper is only for training
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))  # LoRA's first values
        names = changed(context, inner) if settings.where == "changed" else None
        model = opened(inner, names, settings.rank if settings.how == "lora" else None)
    path = [(0, context.plain(state))]
    every = max(1, settings.steps // points)

    def ask(step: int) -> None:
        if step % every == 0 or step == settings.steps:
            path.append((step, context.scorer.correct(inner, context.items)))

    finetune(model, [rows[i] for i in order[:count]], settings.batch_size, settings.lr, ask)
    return path


def changed(context: Context, model: nn.Module) -> list[str]:
    """Names in memory of the parameters that hold the tensors that unlearning changed."""
    known, layers = on_disk(model), layers_path(model)
    places = (known[name] for name in context.delta.tensors if name in known)
    return sorted({f"{layers}.{place.layer}.{place.parameter}" for place in places})
