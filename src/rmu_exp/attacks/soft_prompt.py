"""A soft prompt: a few vectors in front of the question's embeddings, learned to bring the answers out.

Learned on one half of the facts (T) and scored on the other (V). Soft prompts can elicit almost anything (arXiv
2502.15836): the controls count, the same on the oracle and the base model, and vectors as they were before learning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rmu_exp.attacks import optimise
from rmu_exp.attacks.api import UNLEARNED, Context, Finding, figure
from rmu_exp.evaluate.questions import Question
from rmu_exp.model.split import embedding_of, embeddings
from rmu_exp.support.setting import setting


@dataclass
class Settings:
    """A learned soft prompt."""

    vectors: int = setting(least=1)
    """Vectors before the prompt."""
    steps: int = setting(least=1)
    """Steps of Adam."""
    batch_size: int = setting(least=1)
    """Questions per step."""
    lr: float = setting(above=0)
    """Learning rate, in units of the embeddings' root mean square."""


def run(context: Context, settings: Settings) -> Finding:
    got = {state: context.part(state, partial(_learn, context, settings, state)) for state in context.states}
    losses = {state: found["losses"] for state, found in got.items()}
    curve = figure("Soft prompt: loss while learning on T", "step", "cross-entropy of the letter", {"": losses})
    budget = {"vectors": settings.vectors, "steps": settings.steps, "batch_size": settings.batch_size}
    return Finding(
        before=context.scored(context.plain(UNLEARNED)),
        after=got[UNLEARNED]["after"],
        control={state: got[state]["after"] for state in context.controls} | {"random": got[UNLEARNED]["random"]},
        budget=budget | {"questions": len(context.halves[0])},
        curves={"loss": curve},
    )


def _learn(context: Context, settings: Settings, state: str) -> dict[str, Any]:
    """One soft prompt: answers after it as it began and as it ended, and the losses."""
    learn, score = (context.pick(half) for half in context.halves)
    with context.model(state) as model:
        start_PD = initial(model, context, settings.vectors)
        scale, shift_PD = start_PD.pow(2).mean().sqrt(), torch.zeros_like(start_PD)  # in units of the embeddings' size

        def letters(items: Sequence[Question]) -> Tensor:
            return letters_after(model, context, start_PD + scale * shift_PD, items)

        random = optimise.answers(context, letters, score, settings.vectors)
        losses = optimise.learn(shift_PD, letters, learn, settings, context.generator("soft_prompt/order"))
        after = optimise.answers(context, letters, score, settings.vectors)
        return {"random": random, "after": after, "losses": losses}


def initial(model: nn.Module, context: Context, count: int) -> Tensor:
    """What ``count`` random tokens enter the model as, (P, D), fp32."""
    all_VD = embeddings(model)
    picked = torch.randint(len(all_VD), (count,), generator=context.generator("soft_prompt"))
    return all_VD[picked.to(all_VD.device)].float()


def letters_after(model: nn.Module, context: Context, soft_PD: Tensor, items: Sequence[Question]) -> Tensor:
    """Logits (B, K) of the items' letters with the soft prompt before the text; after its BOS, where it begins so."""
    ids_BT, last_B = context.scorer.padded([context.scorer.encode(item.context) for item in items])
    embedded_BTD = embedding_of(model)(ids_BT)
    soft_BPD = soft_PD.to(embedded_BTD.dtype).expand(len(items), -1, -1)
    bos = context.tokenizer.bos_token_id
    at = int(bos is not None and bool((ids_BT[:, 0] == bos).all()))
    given_BTD = torch.cat([embedded_BTD[:, :at], soft_BPD, embedded_BTD[:, at:]], dim=1)
    out = model(inputs_embeds=given_BTD, use_cache=False).logits
    return optimise.at_letters(context, out, last_B + len(soft_PD), items)
