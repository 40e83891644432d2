"""Perturbed latents: one vector, added to every token's activations at one layer, learned to bring the answers out.

The vector is learned on a quarter of the facts, the layer chosen by another, and scored on the other half (arXiv
2502.05209 perturbs latents for each prompt by itself; one vector for all cannot carry the answers). Controls: the same
on the base model and on the oracle; random vectors of the same length.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rmu_exp.attacks import optimise
from rmu_exp.attacks.api import BASE, SCORED, UNLEARNED, Context, Finding, Outcome, Parts, figure, pooled
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
    got = {n: _learned(context, settings, UNLEARNED, n) for n in tried}
    best = context.best({n: after for n, (after, _) in got.items()})
    after, about = got[best]
    control: dict[str, Outcome] = {}
    losses: dict[str, Any] = {UNLEARNED: about["losses"]}
    for state in context.controls:
        control[state], found = _learned(context, settings, state, best)
        losses[state] = found["losses"]
    control["random"] = pooled([Outcome.of(found) for found in about["random"]])
    curve = figure("Perturbed latents: loss while learning on T", "step", "cross-entropy of the answer", {"": losses})
    budget = {"layer": best, "layers": len(tried), "radius": settings.radius, "steps": settings.steps}
    return context.finding(
        after,
        control,
        budget | {"batch_size": settings.batch_size, "questions": len(context.parts.told)},
        taught=after.told.right,
        curves={"loss": curve},
        more={"layers": [{"layer": n} | found.rates() | {"length": of["length"]} for n, (found, of) in got.items()]},
    )


def _learned(context: Context, settings: Settings, state: str, layer: int) -> tuple[Outcome, dict[str, Any]]:
    """One vector as one part of the attack: what is answered under it, and the rest of what :func:`_learn` gives."""
    found = context.part(f"{state}/{layer}", partial(_learn, context, settings, state, layer))
    return Outcome.of(found["after"]), found


def layers(context: Context, settings: Settings) -> list[int]:
    """The layers that the words mean; the steered one where the model has none there."""
    with context.model(BASE) as model:
        depth = len(layers_of(model))
    lowest = min(context.span, default=context.layer)
    means = {"below": lowest - 1, "steered": context.layer, "above": context.layer + 1}
    return sorted({means[p] if 0 <= means[p] < depth else context.layer for p in settings.places})


def _learn(context: Context, settings: Settings, state: str, layer: int) -> dict[str, Any]:
    """One vector: outcomes under it and under random ones, its length in units of the mean, the losses."""
    learn, attacked = context.pick(context.parts.told), state == UNLEARNED
    with context.model(state) as model:
        rows = [context.scorer.encode(item.context) for item in learn]
        h_ND = context.scorer.at_last(model, rows)[BLOCK][layer]
        mean, width = h_ND.norm(dim=-1).mean().item(), h_ND.shape[-1] ** 0.5
        shift_D = torch.zeros(h_ND.shape[-1], device=context.device)  # in units of the root mean square

        def logits(ids_RT: Tensor) -> Tensor:
            with added(model, layer, shift_D * (mean / width)):
                found: Tensor = model(input_ids=ids_RT, use_cache=False).logits
            return found

        def outcome(vector_D: Tensor, parts: Sequence[str], unbiased: bool = True) -> Outcome:
            with added(model, layer, vector_D * (mean / width)):
                return context.outcome(context.scorer.put(model), parts, unbiased)

        order, radius = context.generator("latent/order"), settings.radius * width
        losses = optimise.learn(context, shift_D, logits, learn, settings, order, radius=radius)
        after, length = outcome(shift_D, Parts._fields if attacked else [SCORED]), shift_D.norm()
        random = []
        for k in range(settings.random if attacked else 0):
            noise_D = torch.randn(len(shift_D), generator=context.generator(f"latent/{k}")).to(shift_D)
            random.append(asdict(outcome(noise_D * (length / noise_D.norm()), [SCORED], unbiased=False)))
        return {"after": asdict(after), "random": random, "length": length.item() / width, "losses": losses}


def added(model: nn.Module, layer: int, shift_D: Tensor) -> AbstractContextManager[None]:
    """Inside the block, a vector is added to the output of a layer at every token."""
    return changing(model, {layer: lambda h_BTD: h_BTD + shift_D.to(h_BTD.device, h_BTD.dtype)})
