"""CUT, contrastive unlearn tuning: the method of the paper's first version (arXiv 2403.03218v1).

    L_forget = mean (h − (g + c·d))²,   d = (novice − expert) / ‖novice − expert‖;   L_retain as in RMU

novice and expert are the frozen model's activations at ℓ, at the last token of two prompts about a keyword.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rmu_exp.data.batches import FORGET, Batch, pack
from rmu_exp.model.split import SplitModel
from rmu_exp.support.randomness import named_generator
from rmu_exp.support.setting import setting
from rmu_exp.unlearn.methods import rmu
from rmu_exp.unlearn.step import Step


@dataclass
class Settings:
    """CUT's settings."""

    keywords: dict[str, list[str]] = setting()
    """Topic to its keywords; a topic that is not here has its name for a keyword."""
    novice: str = setting()
    """The prompt that forget activations are pushed towards."""
    expert: str = setting()
    """The prompt that they are pushed away from."""


class Method(rmu.Method):
    """CUT."""

    directions: list[Tensor]

    def begin(self, split: SplitModel) -> None:
        words = [self.settings.keywords.get(topic, [topic]) for topic in self.context.topics]
        self.directions = [torch.stack([self._direction(split, word) for word in mine]) for mine in words]
        first = torch.stack([d_WD[0] for d_WD in self.directions])
        self.control_KD = first * torch.tensor(self.context.steer, device=first.device)[:, None]

    def forget_target(self, step: Step) -> Tensor:
        g_ND = step.frozen().h[self.context.layer][FORGET]
        d_WD = self.directions[step.topic]
        word = int(torch.randint(len(d_WD), (1,), generator=named_generator(self.context.seed, f"cut/{step.number}")))
        return g_ND + self.context.steer[step.topic] * d_WD[word]

    def _direction(self, split: SplitModel, keyword: str) -> Tensor:
        prompts = {"novice": self.settings.novice, "expert": self.settings.expert}
        ids = {
            role: self.context.tokenizer(text.format(keyword=keyword))["input_ids"] for role, text in prompts.items()
        }
        prompted = Batch(0, [pack({role: [row] for role, row in ids.items()}, 0)], sum(map(len, ids.values())))
        g = Step(split, prompted, {}, [self.context.layer]).frozen().h[self.context.layer]
        towards_D = g["novice"][-1] - g["expert"][-1]
        return towards_D / torch.linalg.vector_norm(towards_D).clamp(min=1e-12)
