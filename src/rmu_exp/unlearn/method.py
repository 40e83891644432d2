"""What a method is to the loop: what it needs, and its loss.

A method is one file in ``methods/`` with a ``Settings`` dataclass and a ``Method``, and one file in ``conf/method/``.
The loop, precision, the optimizer, metrics and evaluation are shared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

import torch
from torch import Tensor

from rmu_exp.data.batches import FORGET, RETAIN
from rmu_exp.model.split import SplitModel
from rmu_exp.unlearn.step import Step

Losses = dict[str, Tensor]
"""``loss`` is what is minimised; further scalars, such as ``forget_loss`` and ``retain_loss``, are logged."""

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


class Method:
    """Base of the methods.

    Attributes:
        logits: whether it needs the full model with its head; otherwise no layer above its highest target is loaded.
        mean_over: what the losses are means over, by role: ``tokens``, ``successors`` (tokens with one that count) or
            ``texts``. When memory runs out a step then goes through in parts; None: it needs all its texts at once.
        control_KD: forget targets, one per topic, saved with the Delta; None for methods without.
    """

    logits: ClassVar[bool] = False
    mean_over: ClassVar[Mapping[str, str] | None] = None
    control_KD: Tensor | None = None

    def __init__(self, settings: Any, context: Context) -> None:
        self.settings, self.context = settings, context

    @classmethod
    def targets(cls, settings: Any, layer: int) -> list[int]:
        """The layers whose activations its loss is about."""
        return [layer]

    @classmethod
    def refuse(cls, settings: Any, layer: int, lowest: int, steps: int) -> None:
        """Raise UserError where it cannot work: ``lowest`` is the lowest trained layer. Nothing is loaded yet."""

    def begin(self, split: SplitModel) -> None:
        """Called once, with the frozen model, before the first step."""

    def loss(self, step: Step) -> Losses:
        """The loss of one step."""
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        """What has changed in the method since :meth:`begin`, by name, for a snapshot."""
        return {} if self.control_KD is None else {"control_KD": self.control_KD}

    def restore(self, state: dict[str, Tensor]) -> None:
        """The reverse of :meth:`state`."""
        if self.control_KD is not None:
            self.control_KD.copy_(state["control_KD"])

    def optimizer(self, masters: list[Tensor], lr: float) -> torch.optim.Optimizer:
        """What turns gradients into steps."""
        return PublishedAdamW(masters, lr)


class PublishedAdamW(torch.optim.AdamW):
    """The published loop's AdamW: no weight decay, ε = 1e-6 added before the second moment's bias correction.

    torch adds ε after it; ε/√(1 − β₂ᵗ) at step t makes the two equal.
    """

    def __init__(self, masters: list[Tensor], lr: float) -> None:
        super().__init__(masters, lr=lr, betas=(0.9, 0.999), weight_decay=0.0)
        self.first = masters[0]

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        number = 1 + int(self.state[self.first].get("step", 0))
        self.param_groups[0]["eps"] = 1e-6 / (1 - 0.999**number) ** 0.5
        return super().step(closure)


def find(name: str) -> Any:
    """The module of a method: its ``Settings`` and its ``Method``."""
    return import_module(f"rmu_exp.unlearn.methods.{name}")


def settings_of(given: Any) -> Any:
    """A method's ``Settings`` without its name, from a run's ``method``."""
    values = dataclasses.asdict(given)
    return find(values.pop("name")).Settings(**values)
