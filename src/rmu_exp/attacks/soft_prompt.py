"""A soft prompt: a few vectors in front of the question's embeddings, learned to bring the answers out.

Learned on the told facts (T) and scored on the other half (V). Soft prompts can elicit almost anything (arXiv
2502.15836): the controls count, the same on the oracle and the base model, and vectors as they were before learning.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rmu_exp.attacks import optimise
from rmu_exp.attacks.api import SCORED, UNLEARNED, Context, Finding, Outcome, Parts, figure
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
    curve = figure("Soft prompt: loss while learning on T", "step", "cross-entropy of the answer", {"": losses})
    budget = {"vectors": settings.vectors, "steps": settings.steps, "batch_size": settings.batch_size}
    after = {state: Outcome.of(found["after"]) for state, found in got.items()}
    return context.finding(
        after[UNLEARNED],
        {state: after[state] for state in context.controls} | {"random": Outcome.of(got[UNLEARNED]["random"])},
        budget | {"questions": len(context.parts.told)},
        curves={"loss": curve},
        taught=after[UNLEARNED].told.right,
    )


def _learn(context: Context, settings: Settings, state: str) -> dict[str, Any]:
    """One soft prompt: outcomes after it as it began and as it ended, and the losses."""
    learn, attacked = context.pick(context.parts.told), state == UNLEARNED
    with context.model(state) as model:
        start_PD = initial(model, context, settings.vectors)
        scale, shift_PD = start_PD.pow(2).mean().sqrt(), torch.zeros_like(start_PD)  # in units of the embeddings' size

        def logits(ids_RT: Tensor) -> Tensor:
            return logits_after(model, context, start_PD + scale * shift_PD, ids_RT)

        put = optimise.put(context, logits, settings.vectors)
        random = context.outcome(put, [SCORED] if attacked else [], unbiased=False)
        order = context.generator("soft_prompt/order")
        losses = optimise.learn(context, shift_PD, logits, learn, settings, order, extra=settings.vectors)
        after = context.outcome(put, Parts._fields if attacked else [SCORED])
        return {"random": asdict(random), "after": asdict(after), "losses": losses}


def initial(model: nn.Module, context: Context, count: int) -> Tensor:
    """What ``count`` random tokens enter the model as, (P, D), fp32."""
    all_VD = embeddings(model)
    picked = torch.randint(len(all_VD), (count,), generator=context.generator("soft_prompt"))
    return all_VD[picked.to(all_VD.device)].float()


def logits_after(model: nn.Module, context: Context, soft_PD: Tensor, ids_RT: Tensor) -> Tensor:
    """Logits (R, P + T, V) with the soft prompt before the text; after its BOS, where it begins so."""
    embedded_RTD = embedding_of(model)(ids_RT)
    soft_RPD = soft_PD.to(embedded_RTD.dtype).expand(len(ids_RT), -1, -1)
    bos = context.tokenizer.bos_token_id
    at = int(bos is not None and bool((ids_RT[:, 0] == bos).all()))
    given_RTD = torch.cat([embedded_RTD[:, :at], soft_RPD, embedded_RTD[:, at:]], dim=1)
    logits: Tensor = model(inputs_embeds=given_RTD, use_cache=False).logits
    return logits
