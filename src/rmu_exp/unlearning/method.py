"""What a method is to the loop: a file in ``methods/`` with its ``Settings`` and ``Method``, and one in ``conf/``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from rmu_exp.data.batches import FORGET, RETAIN
from rmu_exp.model.checkpoint import Checkpoint
from rmu_exp.model.parameters import TrainedTensor
from rmu_exp.model.split import SplitModel
from rmu_exp.unlearning import optimizers
from rmu_exp.unlearning.step import Step

Losses = dict[str, Tensor]
"""``loss`` is what is minimised, ``forget_loss`` the part of it about the forget texts, its weight included; further
scalars, such as ``retain_loss``, are logged."""

TOKENS = {FORGET: "tokens", RETAIN: "tokens"}
SUCCESSORS = {FORGET: "successors", RETAIN: "successors"}
TEXTS = {FORGET: "texts", RETAIN: "successors"}


def summed(forget: Tensor, retain: Tensor, alpha: float) -> Losses:
    """forget + α · retain, and the two."""
    return {"loss": forget + alpha * retain, "forget_loss": forget, "retain_loss": retain}


@dataclass(frozen=True)
class Context:
    """What a method may know of its run.

    Attributes:
        layer: ℓ.
        topics, steer, alpha: one entry per topic.
        hidden: width of the residual stream.
        device: the model's.
        steps: how many there will be.
        faithful: in the published loop's manner, to the letter.
        dtype: of the control vectors.
        distribution: of the control vectors' directions.
        tokenizer: the model's.
        marker: token ids after which a text counts for losses over following tokens; empty: all of it.
        optimizer: what turns gradients into steps, where the method has none of its own.
    """

    layer: int
    topics: Sequence[str]
    steer: Sequence[float]
    alpha: Sequence[float]
    hidden: int
    device: torch.device
    steps: int
    seed: int = 0
    faithful: bool = False
    dtype: torch.dtype = torch.float32
    distribution: str = "uniform"
    tokenizer: Any = None
    marker: Sequence[int] = ()
    optimizer: str = "adamw"


class Method:
    """Base of the methods.

    Attributes:
        logits: whether it needs the full model with its head; otherwise no layer above its highest target is loaded.
        mean_over: what the losses are means over, by role: ``tokens``, ``successors`` (tokens with one that count) or
            ``texts``. When memory runs out a step then goes through in parts; None: it needs all its texts at once.
        at_once: whether only its last weights mean something, as where they change at the last step only: a budget of
            damage then chooses how much of the whole change is taken.
        linear: whether it trains weights of linear modules only.
        inside: whether it looks at modules inside of layers as they run, which are then not run again on the way back
            and lie on one device.
        control_KD: forget targets, one per topic, saved with the Delta; None for methods without.
    """

    logits: ClassVar[bool] = False
    mean_over: Mapping[str, str] | None = None
    at_once: ClassVar[bool] = False
    linear: ClassVar[bool] = False
    inside: ClassVar[bool] = False
    control_KD: Tensor | None = None

    def __init__(self, settings: Any, context: Context) -> None:
        self.settings, self.context = settings, context

    @classmethod
    def targets(cls, settings: Any, layer: int) -> list[int]:
        """The layers whose activations its loss is about."""
        return [layer]

    @classmethod
    def kept(cls, settings: Any, layer: int, lowest: int) -> list[int]:
        """The layers whose activations a step keeps; ``lowest`` is the lowest trained one."""
        return cls.targets(settings, layer)

    @classmethod
    def repeats(cls, settings: Any) -> int:
        """How many steps in a row have the same batch."""
        return 1

    @classmethod
    def refuse(cls, settings: Any, layer: int, lowest: int, steps: int) -> None:
        """Raise UserError where it cannot work: ``lowest`` is the lowest trained layer. Nothing is loaded yet."""

    @classmethod
    def refuse_tensors(cls, settings: Any, base: Checkpoint, trained: Sequence[TrainedTensor]) -> None:
        """Raise UserError where it cannot work with this base model or these trained tensors. Nothing is loaded yet."""

    @classmethod
    def made_from(cls, settings: Any) -> str:
        """The digest of what it reads beside model and texts, so that unfinished work is not taken up with another."""
        return ""

    def start(self, trained: Sequence[TrainedTensor], masters: Sequence[Tensor]) -> None:
        """Called once, before :meth:`begin`: may give the trained tensors other values than the base model's."""

    def begin(self, split: SplitModel) -> None:
        """Called once, with the frozen model, before the first step."""

    def loss(self, step: Step) -> Losses:
        """The loss of one step."""
        raise NotImplementedError

    def forget_target(self, step: Step) -> Tensor | None:
        """Where forget activations should go at ``layer``, (D) or (N, D); None: the loss names no place."""
        return None

    def state(self) -> dict[str, Tensor]:
        """What has changed in the method since :meth:`begin`, by name, for a snapshot."""
        return {} if self.control_KD is None else {"control_KD": self.control_KD}

    def restore(self, state: dict[str, Tensor]) -> None:
        """The reverse of :meth:`state`."""
        if self.control_KD is not None:
            self.control_KD.copy_(state["control_KD"])

    def optimizer(self, masters: list[Tensor], lr: float) -> torch.optim.Optimizer:
        """What turns gradients into steps."""
        return optimizers.make(self.context.optimizer, masters, lr)
