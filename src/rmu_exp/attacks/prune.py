"""Set-difference pruning: zero the weights that matter for forget texts and not for retain texts (arXiv 2409.18025).

A weight's importance is |w · dL/dw| (SNIP), L the next-token loss on some texts. The share p of weights that matter
most on forget texts, without the share q that matter most on retain texts, is set to zero, in every matrix inside
the decoder layers. p and q are chosen by one half of the facts and scored on the other. Controls: the base model and
the oracle, pruned by their own importances; and in each matrix as many weights, drawn at random.

Beside the base model and the copy that is pruned, a device holds one set of gradients; importances stay on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from rmu_exp.attacks.api import UNLEARNED, Context, Correct, Finding, share, take
from rmu_exp.model.split import layers_of
from rmu_exp.support.errors import UserError
from rmu_exp.support.setting import setting

Scores = dict[str, Tensor]
"""A number for each weight of each matrix."""


@dataclass
class Settings:
    """Set-difference pruning."""

    forget: list[float] = setting(above=0, below=1, filled=True)
    """Fractions p of each matrix to prune, the most important on forget texts."""
    retain: list[float] = setting(above=0, below=1, filled=True)
    """Fractions q to spare, the most important on retain texts; pairs with q > p are left out."""
    texts: int = setting(least=1)
    """Texts of each kind that the importances are measured on."""
    max_length: int = setting(least=1)
    """Texts are truncated to this many tokens."""

    def check(self) -> None:
        """Refuse a grid without a pair that can be pruned."""
        if min(self.retain) > max(self.forget):
            allowed = f"one or more no larger than the largest of attacks.prune.forget, {max(self.forget):g}"
            raise UserError(f"attacks.prune.retain: got {self.retain}, allowed is {allowed}")


def run(context: Context, settings: Settings) -> Finding:
    learn, score = context.halves
    pairs = [(p, q) for p in settings.forget for q in settings.retain if q <= p]
    answers, zeros, best, random = _tried(context, settings, pairs)
    control = {"random": take(random, score)}
    for state in (s for s in context.states if s != UNLEARNED):
        control[state] = take(_pruned(context, state, settings, *best), score)
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


def _tried(
    context: Context, settings: Settings, pairs: Sequence[tuple[float, float]]
) -> tuple[dict[tuple[float, float], Correct], dict[tuple[float, float], int], tuple[float, float], Correct]:
    """The unlearned model's answers and zeroed weights by pair, the best pair, and its random control's answers."""
    learn, _ = context.halves
    model = context.copy(UNLEARNED)
    matter, spared = (importance(model, context, kind, settings) for kind in ("forget", "retain"))
    answers: dict[tuple[float, float], Correct] = {}
    zeros: dict[tuple[float, float], int] = {}

    def pruned(pair: tuple[float, float]) -> tuple[int, Correct]:
        count = prune(model, matter, spared, *pair)
        correct = context.scorer.correct(model, context.items)
        restore(model, context)
        return count, correct

    for pair in pairs:
        zeros[pair], answers[pair] = context.part(f"{pair}", partial(pruned, pair))
    best = max(pairs, key=lambda pair: share(take(answers[pair], learn)))
    prune_random(model, matter, spared, *best, context.generator("prune/random"))
    return answers, zeros, best, context.scorer.correct(model, context.items)


def _pruned(context: Context, state: str, settings: Settings, p: float, q: float) -> Correct:
    """Another model's answers, pruned by its own importances."""
    model = context.copy(state)
    forget, retain = (importance(model, context, kind, settings) for kind in ("forget", "retain"))
    prune(model, forget, retain, p, q)
    return context.scorer.correct(model, context.items)


def matrices(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Every matrix inside the decoder layers, by name."""
    for name, weight in layers_of(model).named_parameters():
        if weight.dim() >= 2:
            yield name, weight


def importance(model: nn.Module, context: Context, kind: str, settings: Settings) -> dict[str, Tensor]:
    """|w · dL/dw| of every matrix, summed over texts of one kind, on the CPU."""
    texts: Sequence[str] = context.forget if kind == "forget" else context.retain
    picked = context.rng(f"prune/{kind}").sample(list(texts), min(settings.texts, len(texts)))
    wanted = dict(matrices(model))
    total = {name: torch.zeros(w.shape, dtype=torch.float32) for name, w in wanted.items()}
    for weight in wanted.values():
        weight.requires_grad_(True)
    for text in picked:
        ids = torch.tensor([context.scorer.encode(text)[: settings.max_length]], device=context.device)
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        for (name, weight), grad in zip(wanted.items(), torch.autograd.grad(loss, list(wanted.values())), strict=True):
            total[name] += (weight.detach() * grad).abs().cpu().float()
    model.requires_grad_(False)
    return total


@torch.no_grad()
def prune(model: nn.Module, forget: Scores, retain: Scores, p: float, q: float) -> int:
    """Zero the top p of ``forget`` without the top q of ``retain``; gives the number of weights zeroed."""
    count = 0
    for name, weight in matrices(model):
        gone = _gone(weight, forget[name], retain[name], p, q)
        weight[gone] = 0
        count += int(gone.sum())
    return count


@torch.no_grad()
def prune_random(
    model: nn.Module, forget: Scores, retain: Scores, p: float, q: float, generator: torch.Generator
) -> None:
    """Zero random weights, as many of each matrix as :func:`prune` does."""
    for name, weight in matrices(model):
        count = int(_gone(weight, forget[name], retain[name], p, q).sum())
        gone = torch.randperm(weight.numel(), generator=generator)[:count]
        weight.view(-1)[gone.to(weight.device)] = 0


def _gone(weight: Tensor, forget: Tensor, retain: Tensor, p: float, q: float) -> Tensor:
    """Which weights are pruned; worked out where the weights are."""
    return top(forget.to(weight.device), p) & ~top(retain.to(weight.device), q)


def top(score: Tensor, part: float) -> Tensor:
    """Which entries are among the largest ``part`` of a matrix."""
    count = max(1, round(part * score.numel()))
    mask = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
    mask[score.flatten().topk(count).indices] = True
    return mask.view_as(score)


@torch.no_grad()
def restore(model: nn.Module, context: Context) -> None:
    """Give a pruned copy of the unlearned model its weights back."""
    with context.model(UNLEARNED) as whole:
        for (_, weight), (_, before) in zip(matrices(model), matrices(whole), strict=True):
            weight.copy_(before)
