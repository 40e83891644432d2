"""A soft prompt: a few vectors in front of the question's embeddings, learned to bring the answers out.

They are learned on questions of one half of the facts (T) and scored on the other half (V): what is learned on T
cannot say anything of V. Soft prompts can elicit almost anything (arXiv 2502.15836), so the controls count: the same
on a model that never knew, the base model, and vectors as they were before learning.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rmu_exp.attacks.frame import BASE, NEVER, UNLEARNED, Context, Correct, Curve, Finding, take
from rmu_exp.attacks.items import Item
from rmu_exp.model.anatomy import embedding_of


@dataclass
class Settings:
    """A learned soft prompt."""

    vectors: int
    """Vectors in front of the prompt."""
    steps: int
    """Steps of Adam."""
    batch_size: int
    """Questions a step."""
    lr: float
    """Learning rate, in units of the embeddings' root mean square."""


def run(context: Context, settings: Settings) -> Finding:
    learn, score = context.halves
    after: dict[str, Correct] = {}
    losses: dict[str, list[tuple[float, float]]] = {}
    for state in context.states:
        got = context.part(state, partial(_learn, context, settings, state))
        after[state], losses[state] = got["after"], got["losses"]
        if state == UNLEARNED:
            after["random"] = got["random"]
    return Finding(
        before=take(context.plain(UNLEARNED), score),
        after=after[UNLEARNED],
        control={name: after[name] for name in (BASE, NEVER, "random") if name in after},
        budget={
            "vectors": settings.vectors,
            "steps": settings.steps,
            "batch_size": settings.batch_size,
            "questions": len(learn),
        },
        curves={
            "loss": Curve("Soft prompt: loss while learning on T", "step", "cross-entropy of the letter", {"": losses})
        },
    )


def _learn(context: Context, settings: Settings, state: str) -> dict[str, Any]:
    """One soft prompt: answers behind it as it began and as it ended, and the losses."""
    learn, score = (context.pick(half) for half in context.halves)
    with context.model(state) as model:
        start_PD = initial(model, context, settings.vectors)
        learned_PD, losses = learned(model, context, start_PD, learn, settings)
        random, after = (answers(model, context, soft_PD, score) for soft_PD in (start_PD, learned_PD))
    return {"random": random, "after": after, "losses": losses}


def initial(model: nn.Module, context: Context, count: int) -> Tensor:
    """Embeddings (P, D) of random tokens, in fp32."""
    weight_VD: Tensor = embedding_of(model).weight  # type: ignore[assignment]
    picked = torch.randint(len(weight_VD), (count,), generator=context.generator("soft_prompt"))
    return weight_VD[picked.to(weight_VD.device)].detach().float()


def learned(
    model: nn.Module, context: Context, start_PD: Tensor, items: list[Item], settings: Settings
) -> tuple[Tensor, list[tuple[float, float]]]:
    """The vectors after learning, and the loss at every step."""
    scale = start_PD.pow(2).mean().sqrt()
    shift_PD = torch.zeros_like(start_PD, requires_grad=True)  # in units of the embeddings' size
    optimizer = torch.optim.Adam([shift_PD], lr=settings.lr)
    generator = context.generator("soft_prompt/order")
    losses = []
    for step in range(settings.steps):
        picked = torch.randperm(len(items), generator=generator)[: settings.batch_size].tolist()
        batch = [items[i] for i in picked]
        logits_BK = _letters(model, context, start_PD + scale * shift_PD, batch)
        right_B = torch.tensor([item.answer for item in batch], device=logits_BK.device)
        loss = torch.nn.functional.cross_entropy(logits_BK.float(), right_B)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append((float(step + 1), loss.item()))
    return (start_PD + scale * shift_PD).detach(), losses


def _letters(model: nn.Module, context: Context, soft_PD: Tensor, items: list[Item]) -> Tensor:
    """Logits (B, K) of the items' letters behind the soft prompt."""
    ids_BT, last_B = context.scorer.padded([context.scorer.encode(item.context) for item in items])
    embedded_BTD = embedding_of(model)(ids_BT)
    soft_BPD = soft_PD.to(embedded_BTD.dtype).expand(len(items), -1, -1)
    out = model(inputs_embeds=torch.cat([soft_BPD, embedded_BTD], dim=1), use_cache=False).logits
    at = out[torch.arange(len(items), device=out.device), last_B + len(soft_PD)]
    letters_BK = torch.tensor([context.scorer.letters(item) for item in items], device=out.device)
    return at.gather(1, letters_BK)


@torch.no_grad()
def answers(model: nn.Module, context: Context, soft_PD: Tensor, items: list[Item]) -> Correct:
    """1 or 0 for each item, asked behind the soft prompt."""
    correct = [0] * len(items)
    lengths = [len(context.scorer.encode(item.context)) + len(soft_PD) for item in items]

    def ask(batch: list[int]) -> None:
        chosen = _letters(model, context, soft_PD, [items[i] for i in batch]).argmax(dim=1).tolist()
        for i, letter in zip(batch, chosen, strict=True):
            correct[i] = int(letter == items[i].answer)

    context.scorer.in_batches(ask, lengths)
    return correct
