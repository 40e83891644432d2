"""LLMU, large language model unlearning (arXiv 2310.10683). ``steer`` is not used.

    L = −ε₁ · NLL(forget) + ε₂ · NLL(random completion) + α · KL(frozen ‖ updated) on the retain texts

The first half of a forget text is the prompt, the second half of one of the step's retain texts is the completion.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rmu_exp.data.batches import FORGET, RETAIN, Batch, pack
from rmu_exp.support.setting import setting
from rmu_exp.unlearning import lm_losses, method
from rmu_exp.unlearning.method import Losses
from rmu_exp.unlearning.step import Step, after_marker


@dataclass
class Settings:
    """LLMU's settings."""

    ascent: float = setting(least=0)
    """ε₁: weight of gradient ascent on the forget texts."""
    mismatch: float = setting(least=0)
    """ε₂: weight of learning completions that do not belong to the forget texts' beginnings."""


class Method(method.Method):
    """LLMU."""

    logits = True

    def loss(self, step: Step) -> Losses:
        seen, alpha = step.updated(logits=True), self.context.alpha[step.topic]
        forget = -self.settings.ascent * lm_losses.nll(step, seen, FORGET)
        retain = lm_losses.retain_loss("kl", step, seen, RETAIN)
        mismatch = self.mismatch(step)
        loss = forget + self.settings.mismatch * mismatch + alpha * retain
        return {"loss": loss, "forget_loss": forget, "retain_loss": retain, "mismatch_loss": mismatch}

    def mismatch(self, step: Step) -> Tensor:
        """NLL of completions that do not belong to the forget texts' beginnings."""
        prompts, others = (lm_losses.all_texts(step.batch, role) for role in (FORGET, RETAIN))
        starts = [text[: -(-len(text) // 2)] for text in prompts]
        ends = [text[len(text) // 2 :] for text in others]
        rows = {str(i): [start + ends[i % len(ends)]] for i, start in enumerate(starts)}
        mixed = step.of(Batch(step.topic, [pack(rows, 0)], 0))
        seen = mixed.updated(logits=True)
        own = []
        for (role, (row,)), start in zip(rows.items(), starts, strict=True):
            begins = max(len(start), after_marker(row, step.marker))
            own.append(lm_losses.token_nll(seen, role, mixed.following(role))[begins - len(row) :])
        return torch.cat(own).mean()
