"""JensUn (arXiv 2509.02820): both losses are Jensen-Shannon divergences, which have a bound, so that neither runs away.

    L = mean JSD(π, e_t) over forget tokens  +  α · mean JSD(π, π₀) over retain tokens
    JSD(p, q) = ½ · KL(p ‖ m) + ½ · KL(q ‖ m),   m = (p + q) / 2,   at most log 2

e_t is all on one token: those of a refusal, such as "No idea", in turn along each text, from its first that counts. π₀
is the frozen model. As in the paper's code (github.com/nmndeep/JensUn-Unlearning). ``steer`` is not used.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from rmu_exp.data.batches import FORGET, RETAIN
from rmu_exp.support.setting import setting
from rmu_exp.unlearning import lm_losses, method
from rmu_exp.unlearning.method import Context, Losses, summed
from rmu_exp.unlearning.step import Step


@dataclass
class Settings:
    """JensUn's settings."""

    refusal: str = setting(filled=True)
    """What the model learns to say in place of a forget text."""


class Method(method.Method):
    """JensUn."""

    logits = True
    mean_over = method.SUCCESSORS

    def __init__(self, settings: Settings, context: Context) -> None:
        super().__init__(settings, context)
        ids = context.tokenizer(settings.refusal, add_special_tokens=False)["input_ids"]
        self.refusal = torch.tensor(ids, device=context.device)

    def loss(self, step: Step) -> Losses:
        seen, frozen = step.updated(logits=True), step.frozen(RETAIN, logits=True)
        text_M = step.following(FORGET).text_M
        at_M = torch.arange(len(text_M), device=text_M.device) - torch.searchsorted(text_M, text_M)  # in its own text
        forget = from_token(lm_losses.counted(step, seen, FORGET), self.refusal[at_M % len(self.refusal)])
        retain = jsd(lm_losses.counted(step, seen, RETAIN), lm_losses.counted(step, frozen, RETAIN))
        return summed(forget, retain, self.context.alpha[step.topic])


def jsd(p_MV: Tensor, q_MV: Tensor) -> Tensor:
    """The Jensen-Shannon divergence of two models' logits, its mean over tokens: a scalar."""
    log_p, log_q = log_softmax(p_MV, -1), log_softmax(q_MV, -1)
    log_m = torch.logaddexp(log_p, log_q) - torch.tensor(2.0).log()
    return ((log_p.exp() * (log_p - log_m)).sum(-1) + (log_q.exp() * (log_q - log_m)).sum(-1)).mean() / 2


def from_token(logits_MV: Tensor, ids_M: Tensor) -> Tensor:
    """Mean JSD of what the logits say and certainty of a token each: a scalar.

    Where p is the token's probability, it is ½ · [p·log p − (1 + p)·log(1 + p)] + log 2, whatever the others' are.
    """
    log_p = log_softmax(logits_MV, -1).gather(-1, ids_M[:, None]).squeeze(-1)
    p = log_p.exp()
    return ((p * log_p - (1 + p) * torch.log1p(p)) / 2).mean() + torch.tensor(2.0).log()
