"""Length of the activations at every layer, and their cosine with the base model's, by kind of text.

Forget and retain texts, and the prompts of every group of questions. It finds no answers; it shows where unlearning
reaches. Control: the base model, and the same for the oracle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rmu_exp.attacks.api import BASE, Context, Curve, Finding, each_token
from rmu_exp.support.setting import setting


@dataclass
class Settings:
    """Activation norms and cosines."""

    texts: int = setting(least=1)
    """Texts per kind."""
    max_length: int = setting(least=1)
    """Texts are truncated to this many tokens."""


def run(context: Context, settings: Settings) -> Finding:
    kinds = {"forget texts": context.forget, "retain texts": context.retain}
    kinds["forget questions"] = [item.context for item in context.items]
    kinds |= {f"{name} questions": [item.context for item in items] for name, items in context.others.items()}
    measured: dict[str, dict[str, list[float]]] = {}
    for kind, texts in kinds.items():
        picked = context.rng(f"norms/{kind}").sample(texts, min(settings.texts, len(texts)))
        rows = [context.scorer.encode(text)[: settings.max_length] for text in picked]
        with context.model(BASE) as model:
            base_LND = every_token(model, context, rows)
        for state in context.states:
            with context.model(state) as model:
                h_LND = base_LND if state == BASE else every_token(model, context, rows)
            found = measured.setdefault(kind, {})
            found[f"norm_{state}"] = h_LND.norm(dim=-1).mean(dim=1).tolist()
            if state != BASE:
                found[f"cosine_{state}"] = torch.cosine_similarity(h_LND, base_LND, dim=-1).mean(dim=1).tolist()
    lines = {
        what: {
            kind: {
                state: list(enumerate(map(float, of[f"{what}_{state}"])))
                for state in context.states
                if f"{what}_{state}" in of
            }
            for kind, of in measured.items()
        }
        for what in ("norm", "cosine")
    }
    return Finding(
        control=dict.fromkeys(context.controls, "measured beside it"),
        budget={"texts": settings.texts},
        curves={
            "norms": Curve("Length of the activations, mean over tokens", "layer", "L2 norm", lines["norm"]),  # type: ignore[arg-type]
            "cosines": Curve("Cosine with the base model's activations", "layer", "cosine", lines["cosine"]),  # type: ignore[arg-type]
        },
        top={"activations": measured},
    )


def every_token(model: nn.Module, context: Context, rows: Sequence[Sequence[int]]) -> Tensor:
    """Activations of all tokens of the rows at the output of every layer, (L, tokens, D), fp32, on the CPU."""
    kept: dict[int, list[Tensor]] = {}
    each_token(model, context.scorer, rows, lambda layer, h_ND: kept.setdefault(layer, []).append(h_ND.cpu()))
    return torch.stack([torch.cat(parts) for parts in kept.values()])
