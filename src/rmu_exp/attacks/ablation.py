"""Direction ablation: what RMU adds to the activations of forget texts is one direction; project it out.

The direction is a difference of mean activations at a layer, over the prompts of one half of the facts
(arXiv 2409.18025). With access to the base model it is unlearned minus base; without, the unlearned model's own
forget prompts minus its retain texts. It is removed by hooks at the output of the chosen layers, or once and for
all from the matrices that write to the residual stream there. Directions, layers and ways are chosen by the first
half of the facts and scored on the other.

Controls: random directions; the base model and the oracle, ablated in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rmu_exp.attacks.api import BASE, UNLEARNED, Context, Correct, Finding, share, take
from rmu_exp.model.hooks import changing, watching
from rmu_exp.model.split import attention_of, layers_of, mlp_of
from rmu_exp.support.errors import RunError
from rmu_exp.support.setting import setting

WITH_BASE, WITHOUT_BASE = ("with_base", "without_base")
HOOKS, WEIGHTS = ("hooks", "weights")
WRITING = ("o_proj.weight", "down_proj.weight", "down_proj", "dense.weight", "dense_4h_to_h.weight")
SPAN, UPWARDS, LAYER = ("span", "upwards", "layer")


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
    learn, score = context.halves
    directions = _directions(context, settings)
    tried: dict[str, tuple[str, list[int], str]] = {
        f"{access}, {where}, {way}": (access, places(context, where), way)
        for access in settings.access for where in settings.layers for way in settings.ways
    }  # fmt: skip
    by_learn: dict[str, float] = {}
    kept: dict[str, Correct] = {}
    for name, (access, layers, way) in tried.items():
        kept[name] = context.part(name, partial(_answers, context, UNLEARNED, directions[access], layers, way))
        by_learn[name] = share(take(kept[name], learn))
    best = max(by_learn, key=lambda name: by_learn[name])
    access, layers, way = tried[best]
    control: dict[str, Any] = {
        state: take(context.part(state, partial(_answers, context, state, directions[access], layers, way)), score)
        for state in context.states
        if state != UNLEARNED
    }
    noise: Correct = []
    for k in range(settings.random):
        random_LD = torch.randn(directions[access].shape, generator=context.generator(f"ablation/{k}"))
        found = context.part(f"random/{k}", partial(_answers, context, UNLEARNED, _unit(random_LD), layers, way))
        noise += take(found, score)
    control["random"] = noise
    return Finding(
        before=take(context.plain(UNLEARNED), score),
        after=take(kept[best], score),
        control=control,
        budget={
            "variant": best,
            "variants": len(tried),
            "prompts": min(settings.texts, len(learn)),
            "queries": len(learn) * len(tried),
        },
        more={"variants": [{"variant": n, "learn": by_learn[n], "score": share(take(kept[n], score))} for n in tried]},
    )


def _unit(x_LD: Tensor) -> Tensor:
    return x_LD / x_LD.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def places(context: Context, where: str) -> list[int]:
    """The layers that a word means."""
    if where == LAYER:
        return [context.layer]
    with context.model(BASE) as model:
        depth = len(layers_of(model))
    return (
        list(range(context.span[0], context.layer + 1 if where == SPAN else depth)) if context.span else [context.layer]
    )


def _directions(context: Context, settings: Settings) -> dict[str, Tensor]:
    """Access to unit directions (L, D), one a layer."""
    learn, _ = context.halves
    asked = [context.scorer.encode(item.context) for item in context.pick(learn)[: settings.texts]]
    kept = [context.scorer.encode(text)[:512] for text in context.retain[: settings.texts]]
    with context.model(UNLEARNED) as model:
        forget_LD = mean_activations(model, context, asked)
        retain_LD = mean_activations(model, context, kept)
    with context.model(BASE) as model:
        base_LD = mean_activations(model, context, asked)
    return {WITH_BASE: _unit(forget_LD - base_LD), WITHOUT_BASE: _unit(forget_LD - retain_LD)}


@torch.no_grad()
def mean_activations(model: nn.Module, context: Context, rows: Sequence[Sequence[int]]) -> Tensor:
    """Mean activations over all tokens of the rows at the output of every layer, (L, D), fp32."""
    depth = len(layers_of(model))
    sums: list[Any] = [0.0] * depth
    count = 0
    for batch in context.scorer.batches([len(row) for row in rows]):
        ids_BT, last_B = context.scorer.padded([rows[i] for i in batch])
        real_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device)[None] <= last_B[:, None]
        count += int(real_BT.sum())

        def seen(_place: str, layer: int, h_BTD: Tensor, real_BT: Tensor = real_BT) -> None:
            sums[layer] = sums[layer] + h_BTD[real_BT].float().sum(dim=0).cpu()

        with watching(model, seen):
            model(input_ids=ids_BT, use_cache=False, logits_to_keep=1)
    return torch.stack(sums) / count


def _answers(context: Context, state: str, directions_LD: Tensor, layers: Sequence[int], way: str) -> Correct:
    if way == WEIGHTS:
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
