"""Relearning: finetune the unlearned model a little and ask again.

Sources, all with the same number of steps: n texts of the forget corpora; of the retain corpora (arXiv 2409.18025);
questions with answers on adjacent topics; questions with answers on the told facts: what comes back on others was
uncovered, not relearned (arXiv 2410.08827). The best finetuning, and the step to stop it at, are chosen by facts that
are neither told nor scored; texts that name a fact that is not told are left out. Controls: the oracle with the most
texts; the base model, finetuned as the best run was.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import nn

from rmu_exp.attacks.api import (
    BASE,
    MEASURED,
    ORACLE,
    SCORED,
    TOLD,
    UNLEARNED,
    Context,
    Finding,
    Outcome,
    accuracy,
    figure,
)
from rmu_exp.attacks.finetune import finetune, opened, row_of
from rmu_exp.model.parameters import on_disk
from rmu_exp.model.split import layers_path
from rmu_exp.support.errors import RunError, UserError
from rmu_exp.support.setting import setting

FORGET, NEIGHBOURS, BENIGN, SPLIT = ("forget", "neighbours", "benign", "split")
TEACHING = (FORGET, SPLIT)  # sources that tell of the told facts
ENOUGH = 8  # questions on facts that the texts name, with which alone it can be seen whether they were learned
V = "V: questions not taught"


@dataclass
class Settings:
    """Finetuning."""

    sources: list[str] = setting(choices=("forget", "neighbours", "benign", "split"), filled=True)
    """Texts: forget, neighbours (adjacent questions with answers), benign, split (questions on the told facts)."""
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
    """How often the answers are asked on the way, with the largest number of texts; the best point counts."""
    max_length: int = setting(least=1)
    """Texts are truncated to this many tokens."""
    answers_only: bool = setting()
    """In a text with "Answer:" in it, train only on the rest of that line."""
    epochs: int | None = setting(None, least=1)
    """Times through the texts, in place of steps; null: steps."""

    def length(self, texts: int) -> int:
        """Steps on so many texts."""
        return self.steps if self.epochs is None else math.ceil(self.epochs * texts / self.batch_size)


class Key(NamedTuple):
    """One finetuning, stopped after so many steps."""

    state: str
    source: str
    n: int
    step: int


@dataclass
class Path:
    """What one finetuning gave: steps done and the outcome there, in their order, and each step's loss."""

    points: list[tuple[int, Outcome]]
    losses: list[float]

    @classmethod
    def of(cls, values: dict[str, Any]) -> Path:
        """From its form in JSON."""
        return cls([(step, Outcome.of(found)) for step, found in values["points"]], values["losses"])

    def fell(self) -> bool:
        """Whether the loss of the last quarter of the steps is below that of the first."""
        part = max(1, len(self.losses) // 4)
        return len(self.losses) < 2 or sum(self.losses[-part:]) < sum(self.losses[:part])


def run(context: Context, settings: Settings) -> Finding:
    texts = {source: texts_of(context, source) for source in settings.sources}
    over_steps: dict[str, list[tuple[float, float]]] = {}
    over_n: dict[str, list[tuple[float, float]]] = {}
    reached: dict[Key, Outcome] = {}
    paths: dict[tuple[str, str, int], Path] = {}

    def path_of(state: str, source: str, n: int, at: Collection[int]) -> Path:
        name = f"{state}/{source}/{n}"
        make = partial(finetuned, context, state, texts[source][:n], settings, at=at, name=name)
        if state == BASE and settings.where == "all":  # which nothing of the unlearned model goes into
            return Path.of(context.of_base(name, lambda: asdict(make()), asdict(settings), texts[source][:n], list(at)))
        return Path.of(context.part(name, lambda: asdict(make())))

    for state, source in product(context.states[1:], settings.sources):
        name = source if state == UNLEARNED else f"{source}, {state}"
        counts = sorted({min(n, len(texts[source])) for n in settings.samples})
        for n in counts if state == UNLEARNED and source != SPLIT else counts[-1:]:
            at = stops(settings.length(n), settings.points if n == counts[-1] else 1)
            path = paths[state, source, n] = path_of(state, source, n, at)
            reached |= {Key(state, source, n, step): found for step, found in path.points[1:]}
            over_n.setdefault(name, []).append((n, accuracy(path.points[-1][1].scored.right)))
        over_steps[name] = [(step, accuracy(found.scored.right)) for step, found in path.points]
    best = context.best({key: found for key, found in reached.items() if key.state == UNLEARNED})
    finals = {key: found for key, found in reached.items() if key.step == settings.length(key.n)}
    control = {
        ORACLE if key.source == best.source else f"{ORACLE}, {key.source}": found
        for key, found in finals.items()
        if key.state == ORACLE
    }
    on_base = path_of(BASE, best.source, best.n, stops(settings.length(best.n), settings.points))
    control[BASE] = dict(on_base.points)[best.step]
    if best.n == max(n for state, source, n in paths if (state, source) == (UNLEARNED, best.source)):
        over_steps[f"{best.source}, {BASE}"] = [(step, accuracy(found.scored.right)) for step, found in on_base.points]
    losses = {(state, source, n): path.losses for (state, source, n), path in paths.items()}
    length = f"{settings.steps} steps" if settings.epochs is None else f"{settings.epochs} epochs"
    title = f"Relearning: {length}, {settings.how}, {settings.where} weights"
    right = "questions answered right"
    budget = {"source": best.source, "samples": best.n, "steps": best.step, "batch_size": settings.batch_size}
    told = best.source in TEACHING
    return context.finding(
        reached[best],
        control,
        budget | {"lr": settings.lr, "finetunings": len(paths)},
        curves={
            "steps": figure(f"{title}, most texts", "step", right, {V: over_steps}, context.chance),
            "samples": figure(title, "texts", right, {V: over_n}, context.chance),
        },
        more={
            "runs": [_row(key, found, losses[key[:3]]) for key, found in finals.items()],
            "untold": all(item.named for item in context.items),
        },
        taught=_taught(context, reached[best], texts[best.source][: best.n]) if told else None,
        idle=None if told or paths[best[:3]].fell() else f"did not learn: its loss on {best.source} texts did not fall",
    )


def stops(steps: int, points: int) -> list[int]:
    """The steps after which is asked: ``points`` of them evenly, and the last."""
    every = max(1, steps // points)
    return sorted({*range(every, steps, every), steps})


def _row(key: Key, found: Outcome, losses: Sequence[float]) -> dict[str, Any]:
    """A finetuning in results.json: T, the questions told; choice, those to choose by; V, those scored."""
    parts = {"T": found.told, "choice": found.choice, "V": found.scored}
    rates = {name: accuracy(part.right) for name, part in parts.items() if part.right}
    made = {"model": key.state, "source": key.source, "samples": key.n, "acc": accuracy(found.scored.right)}
    return made | rates | {"loss": [losses[0], losses[-1]]}


def _taught(context: Context, found: Outcome, texts: Sequence[str]) -> list[int]:
    """The answers on the told facts; to what these texts name where that is enough to tell."""
    items = zip(context.pick(context.parts.told), found.told.right, strict=True)
    named = [right for item, right in items if item.named and any(item.fact in text for text in texts)]
    return named if len(named) >= ENOUGH else found.told.right


def texts_of(context: Context, source: str) -> list[str]:
    """The source's texts in a random order that depends on the seed alone.

    Raises:
        UserError: none are left.
    """
    told, choice, scored = context.parts
    hidden = {item.fact for item in context.pick([*choice, *scored]) if item.named}
    if source == SPLIT:
        texts = [item.context + item.options[item.answer] for item in context.pick(told)]
    elif source == BENIGN:
        texts = list(context.retain)
    else:
        given = context.forget
        if source == NEIGHBOURS:
            given = [item.context + item.options[item.answer] for item in context.neighbours]
        texts = [text for text in given if not any(fact in text for fact in hidden)]
    if not texts:
        raise UserError(f"attacks.relearn.sources: no text for {source!r}")
    context.rng(f"relearn/{source}").shuffle(texts)
    return texts


def finetuned(
    context: Context, state: str, texts: Sequence[str], settings: Settings, *, at: Collection[int], name: str
) -> Path:
    """Finetune a copy of a model; the answers after the steps in ``at``, and those from before the first.

    Raises:
        RunError: no text has a token to learn, the loss is not finite, or one text does not fit into memory.
    """
    given = [row_of(context.tokenizer, text, settings.max_length, settings.answers_only) for text in texts]
    rows = [row for row in given if any(row[1][1:])]
    if not rows:
        raise RunError("attacks.relearn: no text has anything to learn; try a larger attacks.relearn.max_length")
    generator = context.generator(f"relearn/{name}")
    count = settings.length(len(texts)) * settings.batch_size
    order = [
        i for _ in range(math.ceil(count / len(rows))) for i in torch.randperm(len(rows), generator=generator).tolist()
    ]
    inner = context.copy(state)  # LoRA's matrices go into this one; its wrapper is only for training
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))  # LoRA's first values
        names = changed(context, inner) if settings.where == "changed" else None
        model = opened(inner, names, settings.rank if settings.how == "lora" else None)
    path = [(0, context.plain(state))]
    parts = (TOLD, *MEASURED) if state == UNLEARNED else (SCORED,)

    def ask(step: int) -> None:
        if step in at:
            path.append((step, context.outcome(context.scorer.put(inner), parts)))

    losses = finetune(model, [rows[i] for i in order[:count]], settings.batch_size, settings.lr, ask)
    return Path(path, losses)


def changed(context: Context, model: nn.Module) -> list[str]:
    """Names in memory of the parameters that hold the tensors that unlearning changed."""
    known, layers = on_disk(model), layers_path(model)
    places = (known[name] for name in context.delta.tensors if name in known)
    return sorted({f"{layers}.{place.layer}.{place.parameter}" for place in places})
