"""The logit lens: the model's own head read off at every layer (arXiv 2409.18025).

Activations at the last token of each question go through the final norm and the head; the likeliest letter is the
answer. Place and layer are chosen by one half of the facts and scored on the other. Controls: base model and oracle.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rmu_exp.attacks.api import UNLEARNED, Context, Correct, Finding, accuracy, figure
from rmu_exp.evaluate.scoring import likeliest
from rmu_exp.model.split import head_of, norm_of
from rmu_exp.support.setting import setting


@dataclass
class Settings:
    """The logit lens."""

    places: list[str] = setting(choices=("block", "attention", "mlp", "middle"), filled=True)
    """Where it is applied: block, attention, mlp (outputs) and middle (the stream between attention and MLP)."""


def run(context: Context, settings: Settings) -> Finding:
    scorer, items = context.scorer, context.items
    rows = [scorer.encode(item.context) for item in items]
    letters_NK = torch.tensor([scorer.letters(item) for item in items])
    right = [item.answer for item in items]
    answers: dict[str, dict[tuple[str, int], Correct]] = {}
    for state in context.states:
        with context.model(state) as model:
            seen = scorer.at_last(model, rows, settings.places)
            answers[state] = {
                (place, layer): [int(a == b) for a, b in zip(read(model, h_ND, letters_NK), right, strict=True)]
                for place, h_LND in seen.items()
                for layer, h_ND in enumerate(h_LND)
            }
    best = {state: context.best(of) for state, of in answers.items()}
    chosen = {state: of[best[state]] for state, of in answers.items()}
    panels = {
        place: {
            state: [(float(layer), accuracy(correct)) for (p, layer), correct in of.items() if p == place]
            for state, of in answers.items()
        }
        for place in settings.places
    }
    (place, layer), readings = best[UNLEARNED], len(answers[UNLEARNED])
    return context.finding(
        chosen.pop(UNLEARNED),
        chosen,
        {"place": place, "layer": layer, "readings": readings},
        curves={"layers": figure("Logit lens at the last token", "layer", "questions right", panels, context.chance)},
    )


@torch.no_grad()
def read(model: nn.Module, h_ND: Tensor, letters_NK: Tensor) -> list[int]:
    """Index of the letter that final norm and head find likeliest in these activations."""
    head = head_of(model)
    weight = next(head.parameters())
    logits_NV = head(norm_of(model)(h_ND.to(weight.device, weight.dtype)))
    return likeliest(logits_NV.cpu().gather(1, letters_NK))
