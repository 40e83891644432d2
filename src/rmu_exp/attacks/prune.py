"""Set-difference pruning: zero the weights that matter for forget texts and not for retain texts (arXiv 2409.18025).

A weight's importance is |w · dL/dw| (SNIP), L the next-token loss on some texts. p and q are chosen by one half of the
facts and scored on the other. Controls: the base model and the oracle, pruned by their own importances; and in each
matrix as many weights, drawn at random. A device holds one set of gradients; importances stay on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rmu_exp.attacks.api import MEASURED, SCORED, UNLEARNED, Context, Finding, Outcome
from rmu_exp.model.split import layers_of
from rmu_exp.support.errors import UserError
from rmu_exp.support.setting import setting

Pair = tuple[float, float]
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
    pairs = [(p, q) for p in settings.forget for q in settings.retain if q <= p]
    scores = importances(context, UNLEARNED, settings)
    zeros: dict[Pair, int] = {}
    tried: dict[Pair, Outcome] = {}
    for pair in pairs:
        zeros[pair], found = context.part(f"{pair}", partial(_pruned, context, UNLEARNED, scores, pair))
        tried[pair] = Outcome.of(found)
    best = context.best(tried)
    shuffle = context.generator("prune/random")
    control = {"random": pruned(context, UNLEARNED, scores, best, shuffle)[1]}
    control |= {s: pruned(context, s, importances(context, s, settings), best)[1] for s in context.controls}
    rows = [
        {"forget": pair[0], "retain": pair[1], "zeros": zeros[pair]} | found.rates() for pair, found in tried.items()
    ]
    budget = {"p": best[0], "q": best[1], "pairs": len(pairs), "texts": settings.texts}
    queries = len(pairs) * len(context.parts.choice)
    return context.finding(tried[best], control, budget | {"queries": queries}, more={"pairs": rows})


def _pruned(context: Context, state: str, scores: tuple[Scores, Scores], pair: Pair) -> tuple[int, dict[str, Any]]:
    count, found = pruned(context, state, scores, pair, parts=MEASURED)
    return count, asdict(found)


def pruned(
    context: Context,
    state: str,
    scores: tuple[Scores, Scores],
    pair: Pair,
    shuffle: torch.Generator | None = None,
    *,
    parts: Sequence[str] = (SCORED,),
) -> tuple[int, Outcome]:
    """How many weights of a copy are zeroed, and what it answers."""
    model = context.copy(state)
    count = prune(model, *scores, pair, shuffle)
    return count, context.outcome(context.scorer.put(model), parts, unbiased=shuffle is None)


def matrices(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Every matrix inside the decoder layers, by name."""
    for name, weight in layers_of(model).named_parameters():
        if weight.dim() >= 2:
            yield name, weight


def importances(context: Context, state: str, settings: Settings) -> tuple[Scores, Scores]:
    """Those on forget texts and those on retain texts."""
    model = context.copy(state)
    return importance(model, context, "forget", settings), importance(model, context, "retain", settings)


def importance(model: nn.Module, context: Context, kind: str, settings: Settings) -> Scores:
    """|w · dL/dw| of every matrix, summed over texts of one kind, on the CPU."""
    texts = context.forget if kind == "forget" else context.retain
    picked = context.rng(f"prune/{kind}").sample(texts, min(settings.texts, len(texts)))
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
def prune(model: nn.Module, forget: Scores, retain: Scores, pair: Pair, shuffle: torch.Generator | None = None) -> int:
    """Zero weights of each matrix, and give their number.

    Args:
        pair: p and q: the top p of ``forget`` without the top q of ``retain``.
        shuffle: zero as many at random.
    """
    count, (p, q) = 0, pair
    for name, weight in matrices(model):
        gone = top(forget[name].to(weight.device), p) & ~top(retain[name].to(weight.device), q)
        number = int(gone.sum())
        if shuffle is None:
            weight[gone] = 0
        else:
            weight.view(-1)[torch.randperm(weight.numel(), generator=shuffle)[:number].to(weight.device)] = 0
        count += number
    return count


def top(score: Tensor, part: float) -> Tensor:
    """Which entries are among the largest ``part`` of a matrix."""
    count = max(1, round(part * score.numel()))
    mask = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
    mask[score.flatten().topk(count).indices] = True
    return mask.view_as(score)
