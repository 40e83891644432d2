"""Direction ablation: what RMU adds to the activations of forget texts is one direction; project it out.

The direction is a difference of mean activations at a layer, over the prompts of the told facts (arXiv 2409.18025);
variants are chosen by other facts and scored on the rest. Controls: random directions; the base model and the oracle,
ablated in the same way.
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

from rmu_exp.attacks.api import BASE, MEASURED, SCORED, UNLEARNED, Context, Finding, Outcome, pooled
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
    kept = {name: context.asks(name, partial(_outcome, context, UNLEARNED, *how)) for name, how in tried.items()}
    best = context.best(kept)
    directions_LD, layers, way = tried[best]
    control = {
        state: context.asks(state, partial(_outcome, context, state, *tried[best], parts=[SCORED]))
        for state in context.controls
    }
    nothing = []
    for k in range(settings.random):
        random_LD = normalize(torch.randn(directions_LD.shape, generator=context.generator(f"ablation/{k}")), dim=-1)
        ask = partial(_outcome, context, UNLEARNED, random_LD, layers, way, parts=[SCORED], unbiased=False)
        nothing.append(context.asks(f"random/{k}", ask))
    told, choice, _ = map(len, context.parts)
    return context.finding(
        kept[best],
        control | {"random": pooled(nothing)},
        {
            "variant": best,
            "variants": len(tried),
            "prompts": min(settings.texts, told),
            "queries": choice * len(tried),
        },
        more={"variants": [{"variant": name} | found.rates() for name, found in kept.items()]},
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
    told = context.parts.told
    known = [i for i in told if i in context.known(BASE)] or told
    asked = [context.scorer.encode(item.context) for item in context.pick(known)[: settings.texts]]
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
    """Mean activations at the output of every layer, (L, D), fp32, over all tokens of the rows but their first."""

    def total(h_BTD: Tensor, real_BT: Tensor) -> Tensor:
        return h_BTD[:, 1:][real_BT[:, 1:]].float().sum(0, True)

    sums, _ = context.scorer.activations(model, rows, total)
    return sums[BLOCK].sum(dim=1) / sum(len(row) - 1 for row in rows)


def _outcome(
    context: Context,
    state: str,
    directions_LD: Tensor,
    layers: Sequence[int],
    way: str,
    *,
    parts: Sequence[str] = MEASURED,
    unbiased: bool = True,
) -> Outcome:
    if way == "weights":
        model = context.copy(state)
        remove_from_weights(model, directions_LD, layers)
        return context.outcome(context.scorer.put(model), parts, unbiased)
    with context.model(state) as model, removed(model, directions_LD, layers):
        return context.outcome(context.scorer.put(model), parts, unbiased)


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
