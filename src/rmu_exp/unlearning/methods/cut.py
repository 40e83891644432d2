"""CUT, contrastive unlearn tuning: the method of the paper's first version (arXiv 2403.03218v1).

    L_forget = mean (h − (g + c·d))²,   d = (novice − expert) / ‖novice − expert‖;   L_retain as in RMU

novice and expert are the frozen model's activations at ℓ, at the last token of two prompts about a keyword, drawn anew
at each step. It is RMU with ``method.target=add`` and a direction of the model's own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rmu_exp.model.split import SplitModel
from rmu_exp.support.randomness import named_generator
from rmu_exp.support.setting import setting
from rmu_exp.unlearning.directions import last_states
from rmu_exp.unlearning.methods import rmu
from rmu_exp.unlearning.step import Step


@dataclass(kw_only=True)
class Settings(rmu.Family):
    """CUT's settings."""

    keywords: dict[str, list[str]] = setting()
    """Topic to its keywords; a topic that is not here has its name for a keyword."""
    novice: str = setting()
    """The prompt that forget activations are pushed towards."""
    expert: str = setting()
    """The prompt that they are pushed away from."""


class Method(rmu.Steering):
    """CUT."""

    directions: list[Tensor]

    def begin(self, split: SplitModel) -> None:
        words = [self.settings.keywords.get(topic, [topic]) for topic in self.context.topics]
        self.directions = [torch.stack([self._direction(split, word) for word in mine]) for mine in words]
        first = torch.stack([d_WD[0] for d_WD in self.directions])
        self.control_KD = first * torch.tensor(self.context.steer, device=first.device)[:, None]

    def control(self, step: Step) -> Tensor:
        d_WD = self.directions[step.topic]
        word = int(torch.randint(len(d_WD), (1,), generator=named_generator(self.context.seed, f"cut/{step.number}")))
        return self.context.steer[step.topic] * d_WD[word]

    def _direction(self, split: SplitModel, keyword: str) -> Tensor:
        prompts = [text.format(keyword=keyword) for text in (self.settings.novice, self.settings.expert)]
        novice_D, expert_D = last_states(split, prompts, self.context.layer, self.context.tokenizer)
        towards_D = novice_D - expert_D
        return towards_D / torch.linalg.vector_norm(towards_D).clamp(min=1e-12)
