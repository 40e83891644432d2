"""Direction ablation: what RMU adds to the activations of forget texts is one direction; project it out.

The direction is a difference of mean activations at a layer, over the prompts of one half of the facts
(arXiv 2409.18025); variants are chosen by that half and scored on the other. Controls: random directions; the base
model and the oracle, ablated in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from rmu_exp.attacks.api import BASE, UNLEARNED, Context, Correct, Finding
from rmu_exp.model.hooks import BLOCK, changing
from rmu_exp.model.split import attention_of, layers_of, mlp_of
from rmu_exp.support.errors import RunError
from rmu_exp.support.setting import setting

WRITING = ("o_proj.weight", "down_proj.weight", "down_proj", "dense.weight", "dense_4h_to_h.weight")


@dataclass
class Settings:
    """Direction ablation."""

    access: list[str] = setting(choices=("with_base", "without_base"), filled=True)
    """with_base: the direction is unlearned minus base; without_base: forget minus retain, of the unlearned model."""
    layers: list[str] = setting(choices=("layer", "span", "upwards"), filled=True)
    """Where: layer (the steered one), span (all changed ones), upwards (from the lowest changed one on)."""
    ways: list[str] = setting(choices=("hooks", "weights"), filled=True)
    """hooks (from the activations) or weights (from the matrices that write to them)."""
    texts: int = setting(least=1)
    """Prompts, and retain texts, whose activations are averaged."""
    random: int = setting(least=1)
    """Random directions of the control."""


def run(context: Context, settings: Settings) -> Finding:
    directions = _directions(context, settings)
    tried = {
        f"{access}, {where}, {way}": (directions[access], places(context, where), way)
        for access, where, way in product(settings.access, settings.layers, settings.ways)
    }
    kept: dict[str, Correct] = {
        name: context.part(name, partial(_answers, context, UNLEARNED, *how)) for name, how in tried.items()
    }
    best = context.best(kept)
    directions_LD, layers, way = tried[best]
    control: dict[str, Correct] = {
        state: context.part(state, partial(_answers, context, state, *tried[best])) for state in context.controls
    }
    control["random"] = []
    for k in range(settings.random):
        random_LD = normalize(torch.randn(directions_LD.shape, generator=context.generator(f"ablation/{k}")), dim=-1)
        control["random"] += context.part(f"random/{k}", partial(_answers, context, UNLEARNED, random_LD, layers, way))
    asked = len(context.halves[0])
    return context.finding(
        kept[best],
        control,
        {"variant": best, "variants": len(tried), "prompts": min(settings.texts, asked), "queries": asked * len(tried)},
        more={"variants": [{"variant": name} | context.accuracies(correct) for name, correct in kept.items()]},
    )


def places(context: Context, where: str) -> list[int]:
    """The layers that a word means."""
    if where == "layer" or not context.span:
        return [context.layer]
    with context.model(BASE) as model:
        depth = len(layers_of(model))
    return list(range(context.span[0], context.layer + 1 if where == "span" else depth))


def _directions(context: Context, settings: Settings) -> dict[str, Tensor]:
    """Access to unit directions (L, D), one per layer."""
    learn, _ = context.halves
    asked = [context.scorer.encode(item.context) for item in context.pick(learn)[: settings.texts]]
    kept = [context.scorer.encode(text)[:512] for text in context.retain[: settings.texts]]
    with context.model(UNLEARNED) as model:
        forget_LD = mean_activations(model, context, asked)
        retain_LD = mean_activations(model, context, kept)
    with context.model(BASE) as model:
        base_LD = mean_activations(model, context, asked)
    return {
        "with_base": normalize(forget_LD - base_LD, dim=-1),
        "without_base": normalize(forget_LD - retain_LD, dim=-1),
    }


def mean_activations(model: nn.Module, context: Context, rows: Sequence[Sequence[int]]) -> Tensor:
    """Mean activations over all tokens of the rows at the output of every layer, (L, D), fp32."""
    sums, _ = context.scorer.activations(model, rows, lambda h_BTD, real_BT: h_BTD[real_BT].float().sum(0, True))
    return sums[BLOCK].sum(dim=1) / sum(map(len, rows))


def _answers(context: Context, state: str, directions_LD: Tensor, layers: Sequence[int], way: str) -> Correct:
    if way == "weights":
        model = context.copy(state)
        remove_from_weights(model, directions_LD, layers)
        return context.scorer.correct(model, context.items)
    with context.model(state) as model, removed(model, directions_LD, layers):
        return context.scorer.correct(model, context.items)


def removed(model: nn.Module, directions_LD: Tensor, layers: Sequence[int]) -> AbstractContextManager[None]:
    """Inside the block, the output of each of ``layers`` has no part along that layer's direction."""
    return changing(model, {index: partial(_without, directions_LD[index]) for index in layers})


def _without(direction_D: Tensor, h_BTD: Tensor) -> Tensor:
    r_D, wide_BTD = direction_D.to(h_BTD.device).float(), h_BTD.float()  # bf16 would leave a part of it
    return (wide_BTD - (wide_BTD @ r_D)[..., None] * r_D).to(h_BTD.dtype)


@torch.no_grad()
def remove_from_weights(model: nn.Module, directions_LD: Tensor, layers: Sequence[int]) -> None:
    """Project each layer's direction out of what its attention and MLP write to the residual stream.

    Raises:
        RunError: the matrices that write to it are not known by name.
    """
    for index in layers:
        block = layers_of(model)[index]
        for part in (attention_of(block), mlp_of(block)):
            writing = [weight for name, weight in part.named_parameters() if name.endswith(WRITING)]
            if not writing:
                raise RunError(f"attacks.ablation.ways: weights is not there for {type(part).__name__}; use hooks")
            for weight in writing:
                r_D, wide = directions_LD[index].to(weight.device).float(), weight.float()
                weight.copy_(wide - r_D[:, None] * (r_D @ wide)[..., None, :])
