"""Set-difference pruning: zero the weights that matter for forget texts and not for retain texts (arXiv 2409.18025).

A weight's importance is |w · dL/dw| (SNIP), L the next-token loss on some texts. The share p of weights that matter
most on forget texts, without the share q that matter most on retain texts, is set to zero, in every matrix inside
the decoder layers. p and q are chosen by one half of the facts and scored on the other. Controls: the base model and
a model that never knew, pruned by their own importances; and as many random weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from rmu_exp.attacks.frame import UNLEARNED, Context, Correct, Finding, share, take
from rmu_exp.model.anatomy import layers_of

Scores = dict[str, Tensor]
"""A number for each weight of each matrix."""


@dataclass
class Settings:
    """Set-difference pruning."""

    forget: list[float]
    """Shares p of each matrix, the most important on forget texts, that are pruned."""
    retain: list[float]
    """Shares q, the most important on retain texts, that are spared; pairs with q > p are left out."""
    texts: int
    """Texts of each kind that the importances are measured on."""
    max_length: int
    """Tokens a text is cut to."""


def run(context: Context, settings: Settings) -> Finding:
    learn, score = context.halves
    pairs = [(p, q) for p in settings.forget for q in settings.retain if q <= p]
    model = context.copy(UNLEARNED)
    before = {name: w.clone() for name, w in matrices(model)}
    matter, spared = (importance(model, context, kind, settings) for kind in ("forget", "retain"))
    answers: dict[tuple[float, float], Correct] = {}
    zeros: dict[tuple[float, float], int] = {}

    def pruned(pair: tuple[float, float]) -> tuple[int, Correct]:
        count = prune(model, matter, spared, *pair)
        correct = context.scorer.correct(model, context.items)
        _restore(model, before)
        return count, correct

    for pair in pairs:
        zeros[pair], answers[pair] = context.part(f"{pair}", partial(pruned, pair))
    best = max(pairs, key=lambda pair: share(take(answers[pair], learn)))
    control: dict[str, Correct] = {}
    noise = context.generator("prune/random")
    _prune_random(model, matter, spared, *best, noise)
    control["random"] = take(context.scorer.correct(model, context.items), score)
    for state in (s for s in context.states if s != UNLEARNED):
        model = context.copy(state)
        own_forget, own_retain = (importance(model, context, kind, settings) for kind in ("forget", "retain"))
        prune(model, own_forget, own_retain, *best)
        control[state] = take(context.scorer.correct(model, context.items), score)
    rows = [
        {"forget": p, "retain": q, "zeros": zeros[p, q], "learn": share(take(a, learn)), "score": share(take(a, score))}
        for (p, q), a in answers.items()
    ]
    return Finding(
        before=take(context.plain(UNLEARNED), score),
        after=take(answers[best], score),
        control=control,
        budget={
            "p": best[0],
            "q": best[1],
            "pairs": len(pairs),
            "texts": settings.texts,
            "queries": len(pairs) * len(learn),
        },
        more={"pairs": rows},
    )


def matrices(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Every matrix inside the decoder layers, by name."""
    for name, weight in layers_of(model).named_parameters():
        if weight.dim() >= 2:
            yield name, weight


def importance(model: nn.Module, context: Context, kind: str, settings: Settings) -> dict[str, Tensor]:
    """|w · dL/dw| of every matrix, summed over texts of one kind."""
    texts: Sequence[str] = context.forget if kind == "forget" else context.retain
    picked = context.rng(f"prune/{kind}").sample(list(texts), min(settings.texts, len(texts)))
    wanted = dict(matrices(model))
    total = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in wanted.items()}
    for weight in wanted.values():
        weight.requires_grad_(True)
    for text in picked:
        ids = torch.tensor([context.scorer.encode(text)[: settings.max_length]], device=context.device)
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        for (name, weight), grad in zip(wanted.items(), torch.autograd.grad(loss, list(wanted.values())), strict=True):
            total[name] += (weight.detach() * grad).abs().float()
    model.requires_grad_(False)
    return total


@torch.no_grad()
def prune(model: nn.Module, forget: Scores, retain: Scores, p: float, q: float) -> int:
    """Zero the top p of ``forget`` without the top q of ``retain``; gives the number of weights zeroed."""
    count = 0
    for name, weight in matrices(model):
        gone = _top(forget[name], p) & ~_top(retain[name], q)
        weight[gone] = 0
        count += int(gone.sum())
    return count


@torch.no_grad()
def _prune_random(
    model: nn.Module, forget: Scores, retain: Scores, p: float, q: float, generator: torch.Generator
) -> None:
    """Zero random weights, as many of each matrix as :func:`prune` does."""
    for name, weight in matrices(model):
        count = int((_top(forget[name], p) & ~_top(retain[name], q)).sum())
        gone = torch.randperm(weight.numel(), generator=generator)[:count]
        weight.view(-1)[gone.to(weight.device)] = 0


def _top(score: Tensor, part: float) -> Tensor:
    """Which entries are among the largest ``part`` of a matrix."""
    count = max(1, round(part * score.numel()))
    mask = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
    mask[score.flatten().topk(count).indices] = True
    return mask.view_as(score)


@torch.no_grad()
def _restore(model: nn.Module, before: dict[str, Tensor]) -> None:
    for name, weight in matrices(model):
        weight.copy_(before[name])
