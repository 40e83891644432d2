"""Erasure of language memory (arXiv 2410.02760): the model learns to speak of the topic as a novice would.

    target(x) ∝ P(x) · (P(x | novice) / P(x | expert))^η
    L = CE(target, updated) on the forget texts  +  α · CE(frozen, updated) on the retain texts

P is the frozen model, without and with a sentence before the text. As in the published code η grows evenly along a
text, from 1 at its first token to its value at the last, and layers 4 to 7 of 32 are adapted. The paper's third loss,
for fluent text after such a prompt, is not here. ``steer`` is not used.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax

from rmu_exp.data.batches import FORGET, RETAIN, Batch, pack
from rmu_exp.support.setting import setting
from rmu_exp.unlearning import lm_losses, method
from rmu_exp.unlearning.method import Context, Losses, summed
from rmu_exp.unlearning.step import Step


@dataclass
class Settings:
    """ELM's settings."""

    strength: float = setting(least=0)
    """η: how far the target moves from the expert to the novice, at a text's last token."""
    novice: str = setting()
    """The sentence that makes the model a novice."""
    expert: str = setting()
    """The sentence that makes it an expert."""


class Method(method.Method):
    """ELM."""

    logits = True
    mean_over = method.SUCCESSORS

    def __init__(self, settings: Settings, context: Context) -> None:
        super().__init__(settings, context)
        sentences = ([s.format(topic=topic) for topic in context.topics] for s in (settings.novice, settings.expert))
        self.novices, self.experts = ([context.tokenizer(s)["input_ids"] for s in of_topic] for of_topic in sentences)

    def loss(self, step: Step) -> Losses:
        seen, frozen = step.updated(logits=True), step.frozen(logits=True)
        rows_M = step.following(FORGET).rows_M
        novice, expert = (self.prompted(step, ids[step.topic])[rows_M] for ids in (self.novices, self.experts))
        texts = lm_losses.all_texts(step.batch, FORGET)
        eta_N = torch.cat([growing(self.settings.strength, len(text)) for text in texts]).to(novice)
        target_MV = erased(frozen.logits[FORGET][rows_M], novice, expert, eta_N[rows_M, None])
        forget = cross_entropy(seen.logits[FORGET][rows_M], target_MV)
        kept_MV = lm_losses.counted(step, frozen, RETAIN).softmax(-1)
        retain = cross_entropy(lm_losses.counted(step, seen, RETAIN), kept_MV)
        return summed(forget, retain, self.context.alpha[step.topic])

    def prompted(self, step: Step, prompt: list[int]) -> Tensor:
        """The frozen model's logits for the forget texts' tokens after a prompt, in the order of the step's.

        Only the prompt keeps its BOS: its last token then speaks for the text's BOS, since both are followed by the
        text's first word.
        """
        texts, bos = lm_losses.all_texts(step.batch, FORGET), [self.context.tokenizer.bos_token_id]
        again = [int(prompt[:1] == text[:1] == bos) for text in texts]
        rows = {str(i): [prompt + text[n:]] for i, (text, n) in enumerate(zip(texts, again, strict=True))}
        seen = step.of(Batch(step.topic, [pack(rows, 0)], 0)).frozen(logits=True)
        return torch.cat([seen.logits[role][len(prompt) - n :] for role, n in zip(rows, again, strict=True)])


def growing(strength: float, length: int) -> Tensor:
    """η of each token of a text, (T): evenly from 1, or from less where the last is less."""
    return torch.linspace(min(1.0, strength), strength, length)


def erased(plain_NV: Tensor, novice_NV: Tensor, expert_NV: Tensor, strength: Tensor | float) -> Tensor:
    """The target's probabilities, from three models' logits; ``strength`` is η, one for all or (N, 1)."""
    away = log_softmax(novice_NV, -1) - log_softmax(expert_NV, -1)
    return (log_softmax(plain_NV, -1) + strength * away).softmax(-1)
