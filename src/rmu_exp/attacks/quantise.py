"""Quantisation: does rounding the weights undo the unlearning? (arXiv 2410.16454)

Round to nearest, symmetric, with one scale for each group of weights in a row of a linear layer; embeddings and
head keep their precision. Controls: the base model and the oracle, rounded in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from rmu_exp.attacks.api import MEASURED, SCORED, UNLEARNED, Context, Finding, Outcome, accuracy
from rmu_exp.model.split import layers_of
from rmu_exp.support.setting import setting


@dataclass
class Settings:
    """Rounding to nearest."""

    bits: list[int] = setting(least=2, filled=True)
    """Bits per weight, each number a model of its own."""
    group: int = setting(least=1)
    """Neighbouring weights of a row that share a scale."""


def run(context: Context, settings: Settings) -> Finding:
    got: dict[str, dict[int, Outcome]] = {
        state: {n: context.asks(f"{state}/{n}", partial(_outcome, context, state, n, settings.group))
                for n in settings.bits}
        for state in context.states
    }  # fmt: skip
    rows = [
        {"model": state, "bits": n, "acc": accuracy(found.scored.right)}
        for state, of in got.items()
        for n, found in of.items()
    ]
    best = context.best(got[UNLEARNED])
    return context.finding(
        got[UNLEARNED][best],
        {state: got[state][best] for state in context.controls},
        {"bits": best, "variants": len(settings.bits), "group": settings.group},
        more={"runs": rows},
    )


def _outcome(context: Context, state: str, bits: int, group: int) -> Outcome:
    model = context.copy(state)
    quantise(model, bits, group)
    return context.outcome(context.scorer.put(model), MEASURED if state == UNLEARNED else [SCORED])


@torch.no_grad()
def quantise(model: nn.Module, bits: int, group: int) -> None:
    """Round every matrix inside the decoder layers, in place."""
    for layer in layers_of(model):
        for weight in layer.parameters():
            if weight.dim() >= 2:
                weight.copy_(rounded(weight, bits, group))


def rounded(weight: Tensor, bits: int, group: int) -> Tensor:
    """The nearest values that ``bits`` bits and a scale for each group of the last axis can hold."""
    *rows, width = weight.shape
    short = -width % group
    parts = torch.nn.functional.pad(weight.float(), (0, short)).unflatten(-1, (-1, group))
    most = 2 ** (bits - 1) - 1
    scale = parts.abs().amax(dim=-1, keepdim=True).clamp_min(1e-12) / most
    whole = ((parts / scale).round().clamp(-most, most) * scale).flatten(-2)
    return whole[..., :width].reshape(*rows, width).to(weight.dtype)
