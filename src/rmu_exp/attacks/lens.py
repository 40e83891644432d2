"""The logit lens: the model's own head read off at every layer (arXiv 2409.18025).

Activations at the last token of each question go through the final norm and the head; the option whose first token is
likeliest is the answer. Place and layer are chosen by one half of the facts and scored on the other. Controls: base
model and oracle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from rmu_exp.attacks.api import SCORED, UNLEARNED, Context, Finding, Outcome, accuracy, figure, take
from rmu_exp.evaluation.questions import Question
from rmu_exp.evaluation.scoring import Answered, Put, likeliest
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
    firsts = [[ids[0] for ids in scorer.options(item)] for item in items]
    right = [item.answer for item in items]
    answers: dict[str, dict[tuple[str, int], list[int]]] = {}
    best: dict[str, tuple[str, int]] = {}
    found: dict[str, Outcome] = {}
    for state in context.states:
        with context.model(state) as model:
            seen = scorer.at_last(model, rows, settings.places)
            answers[state] = {
                (place, layer): [int(a == b) for a, b in zip(read(model, h_ND, firsts), right, strict=True)]
                for place, h_LND in seen.items()
                for layer, h_ND in enumerate(h_LND)
            }
            by_choice = {
                name: Outcome(choice=Answered(take(correct, context.parts.choice)))
                for name, correct in answers[state].items()
            }
            place, layer = best[state] = context.best(by_choice)
            there = dict(zip((item.context for item in items), seen[place][layer], strict=True))
            found[state] = context.outcome(_put(context, model, there, place, layer), [SCORED])
    panels = {
        place: {
            state: [(float(layer), accuracy(correct)) for (p, layer), correct in of.items() if p == place]
            for state, of in answers.items()
        }
        for place in settings.places
    }
    (place, layer), readings = best[UNLEARNED], len(answers[UNLEARNED])
    return context.finding(
        found.pop(UNLEARNED),
        found,
        {"place": place, "layer": layer, "readings": readings},
        curves={"layers": figure("Logit lens at the last token", "layer", "questions right", panels, context.chance)},
    )


def _put(context: Context, model: nn.Module, known: dict[str, Tensor], place: str, layer: int) -> Put:
    """Puts questions to the head at one place; an option is as likely as its first token.

    Args:
        known: the activations (D) there of prompts that were read before; those of others are added.
    """

    @torch.no_grad()
    def ask(items: Sequence[Question]) -> list[list[float]]:
        scorer = context.scorer
        if new := list(dict.fromkeys(item.context for item in items if item.context not in known)):
            h_LND = scorer.at_last(model, [scorer.encode(prompt) for prompt in new], [place])[place]
            known.update(zip(new, h_LND[layer], strict=True))
        h_ND = torch.stack([known[item.context] for item in items])
        logs_NV = logits_of(model, h_ND).log_softmax(dim=-1)
        firsts = [[ids[0] for ids in scorer.options(item)] for item in items]
        return [logs_V[tokens].tolist() for logs_V, tokens in zip(logs_NV, firsts, strict=True)]

    return ask


def read(model: nn.Module, h_ND: Tensor, tokens: Sequence[Sequence[int]]) -> list[int]:
    """Index of the token, of each row's own, that final norm and head find likeliest in these activations."""
    found = [logits_V[list(own)] for logits_V, own in zip(logits_of(model, h_ND), tokens, strict=True)]
    return likeliest(pad_sequence(found, batch_first=True, padding_value=-math.inf))


@torch.no_grad()
def logits_of(model: nn.Module, h_ND: Tensor) -> Tensor:
    """Logits (N, V), fp32, on the CPU, that final norm and head make of activations."""
    head = head_of(model)
    weight = next(head.parameters())
    norm, h_ND = norm_of(model), h_ND.to(weight.device, weight.dtype)
    logits_NV: Tensor = head(h_ND if norm is None else norm(h_ND))
    return logits_NV.cpu().float()
