"""Perturbed latents: one vector, added to every token's activations at one layer, learned to bring the answers out.

The vector is learned on a quarter of the facts, the layer chosen by another, and scored on the other half (arXiv
2502.05209 perturbs latents for each prompt by itself; one vector for all cannot carry the answers). Controls: the same
on the base model and on the oracle; random vectors of the same length.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rmu_exp.attacks import optimise
from rmu_exp.attacks.api import BASE, UNLEARNED, Context, Correct, Finding, figure, take
from rmu_exp.model.hooks import BLOCK, changing
from rmu_exp.model.split import layers_of
from rmu_exp.support.setting import setting


@dataclass
class Settings:
    """One vector added to the activations of a layer."""

    places: list[str] = setting(choices=("below", "steered", "above"), filled=True)
    """Whose output: below (the layer under the changed ones), steered, above (the layer after the steered one)."""
    radius: float = setting(above=0)
    """Greatest length of the vector, in units of the activations' mean length there."""
    steps: int = setting(least=1)
    """Steps of Adam."""
    batch_size: int = setting(least=1)
    """Questions per step."""
    lr: float = setting(above=0)
    """Learning rate, in units of the activations' root mean square."""
    random: int = setting(least=1)
    """Random vectors of the control."""


def run(context: Context, settings: Settings) -> Finding:
    tried = layers(context, settings)
    got = {n: context.part(f"unlearned/{n}", partial(_learn, context, settings, UNLEARNED, n)) for n in tried}
    taught, choice = context.quarters
    best = context.best({n: got[n]["after"] for n in tried}, by=choice)
    control: dict[str, Correct] = {}
    losses: dict[str, Any] = {UNLEARNED: got[best]["losses"]}
    for state in context.controls:
        found = context.part(f"{state}/{best}", partial(_learn, context, settings, state, best))
        control[state], losses[state] = found["after"], found["losses"]
    control["random"] = got[best]["random"]
    curve = figure("Perturbed latents: loss while learning on T", "step", "cross-entropy of the answer", {"": losses})
    budget = {"layer": best, "layers": len(tried), "radius": settings.radius, "steps": settings.steps}
    return context.finding(
        got[best]["after"],
        control,
        budget | {"batch_size": settings.batch_size, "questions": len(taught)},
        taught=take(got[best]["after"], taught),
        curves={"loss": curve},
        more={
            "layers": [{"layer": n} | context.accuracies(got[n]["after"]) | {"length": got[n]["length"]} for n in tried]
        },
    )


def layers(context: Context, settings: Settings) -> list[int]:
    """The layers that the words mean; the steered one where the model has none there."""
    with context.model(BASE) as model:
        depth = len(layers_of(model))
    lowest = min(context.span, default=context.layer)
    means = {"below": lowest - 1, "steered": context.layer, "above": context.layer + 1}
    return sorted({means[p] if 0 <= means[p] < depth else context.layer for p in settings.places})


def _learn(context: Context, settings: Settings, state: str, layer: int) -> dict[str, Any]:
    """One vector: answers to all items under it and under random ones, its length in units of the mean, the losses."""
    learn = context.pick(context.quarters[0])
    with context.model(state) as model:
        rows = [context.scorer.encode(item.context) for item in learn]
        h_ND = context.scorer.at_last(model, rows)[BLOCK][layer]
        mean, width = h_ND.norm(dim=-1).mean().item(), h_ND.shape[-1] ** 0.5
        shift_D = torch.zeros(h_ND.shape[-1], device=context.device)  # in units of the root mean square

        def logits(ids_RT: Tensor) -> Tensor:
            with added(model, layer, shift_D * (mean / width)):
                found: Tensor = model(input_ids=ids_RT, use_cache=False).logits
            return found

        order, radius = context.generator("latent/order"), settings.radius * width
        losses = optimise.learn(context, shift_D, logits, learn, settings, order, radius=radius)
        after, length = optimise.answers(context, logits, context.items), shift_D.norm()
        random: Correct = []
        for k in range(settings.random if state == UNLEARNED else 0):
            noise_D = torch.randn(len(shift_D), generator=context.generator(f"latent/{k}")).to(shift_D)
            shift_D.copy_(noise_D * (length / noise_D.norm()))
            random += optimise.answers(context, logits, context.items)
        return {"after": after, "random": random, "length": length.item() / width, "losses": losses}


def added(model: nn.Module, layer: int, shift_D: Tensor) -> AbstractContextManager[None]:
    """Inside the block, a vector is added to the output of a layer at every token."""
    return changing(model, {layer: lambda h_BTD: h_BTD + shift_D.to(h_BTD.device, h_BTD.dtype)})
