"""Length of the activations at every layer, and their cosine with the base model's, by kind of text.

Forget and retain texts, and the prompts of every group of questions. It finds no answers; it shows where unlearning
reaches. Control: the base model, and the same for the oracle.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rmu_exp.attacks.api import BASE, Context, Finding, figure
from rmu_exp.model.hooks import BLOCK
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
        found = measured.setdefault(kind, {})
        for state in context.states:  # of which base is the first
            with context.model(state) as model:
                h_LND = context.scorer.activations(model, rows, lambda h_BTD, real_BT: h_BTD[real_BT])[0][BLOCK]
            found[f"norm_{state}"] = h_LND.norm(dim=-1).mean(dim=1).tolist()
            if state == BASE:
                base_LND = h_LND
            else:
                found[f"cosine_{state}"] = torch.cosine_similarity(h_LND, base_LND, dim=-1).mean(dim=1).tolist()
    lines = {
        what: {
            kind: {name.partition("_")[2]: list(enumerate(of[name])) for name in of if name.startswith(what)}
            for kind, of in measured.items()
        }
        for what in ("norm", "cosine")
    }
    return Finding(
        control=dict.fromkeys(context.controls, "measured beside it"),
        budget={"texts": settings.texts},
        curves={
            "norms": figure("Length of the activations, mean over tokens", "layer", "L2 norm", lines["norm"]),
            "cosines": figure("Cosine with the base model's activations", "layer", "cosine", lines["cosine"]),
        },
        top={"activations": measured},
    )
