"""One step's gradients, in as many parts as memory asks for; their losses are weighted so that they add up."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rmu_exp.data.batches import FORGET, RETAIN, Batch, split
from rmu_exp.support import memory
from rmu_exp.support.errors import RunError
from rmu_exp.unlearn.method import Method
from rmu_exp.unlearn.step import Step, following

log = logging.getLogger("rmu_exp")
Numbers = dict[str, Tensor]
"""Scalars of a step, without gradients."""


class Gradients:
    """Adds up the gradients of a step's loss.

    Args:
        masters: what is trained.
        make: a step of some texts, by its number.

    Attributes:
        parts: in how many parts a step goes through.
    """

    def __init__(
        self, method: Method, masters: Sequence[Tensor], make: Callable[[Batch, int], Step], device: torch.device
    ) -> None:
        self.method, self.masters, self.make, self.device = method, masters, make, device
        self.parts = 1

    def of(self, batch: Batch, number: int) -> Numbers:
        """Leave the step's gradients in the masters.

        Returns:
            What is worth showing: the losses, and norms and cosines at ℓ of what the method has looked at.

        Raises:
            RunError: not even one text of each kind fits into memory.
        """
        return memory.until_it_fits(lambda: self._in_parts(batch, number), lambda: self._more_parts(batch), self.device)

    def _in_parts(self, batch: Batch, number: int) -> Numbers:
        for w in self.masters:
            w.grad = None
        total: Numbers = {}
        for some in [batch] if self.parts == 1 else split(batch, self.parts):
            step = self.make(some, number)
            losses = self.method.loss(step)
            weight = {FORGET: 1.0, RETAIN: 1.0}
            if self.parts > 1:
                weight = {role: self._count(some, role) / self._count(batch, role) for role in weight}
                forget = losses["forget_loss"]
                losses["loss"] = weight[FORGET] * forget + weight[RETAIN] * (losses["loss"] - forget)
            losses["loss"].backward()
            found = {name: value.detach().float() for name, value in losses.items()}
            seen = step.numbers(self.method.context.layer, self.method.forget_target(step))
            for name, value in (found | seen).items():
                share = 1.0 if name == "loss" else weight[FORGET if FORGET in name else RETAIN]
                total[name] = total[name] + share * value if name in total else share * value
        return total

    def _count(self, batch: Batch, role: str) -> int:
        """How many tokens or texts the mean over a role runs over."""
        assert self.method.mean_over is not None
        kind = self.method.mean_over[role]
        if kind == "tokens":
            return sum(len(run.tokens[role]) for run in batch.passes if role in run.tokens)
        found = following(batch, role, self.method.context.marker)
        return found.texts if kind == "texts" else len(found.rows_M)

    def _more_parts(self, batch: Batch) -> None:
        if self.method.mean_over is None:
            needs = "this method needs all texts of a step at once; try a smaller train.batch_size"
            raise RunError(f"out of memory: {needs}")
        if not split(batch, 2 * self.parts):
            raise RunError("out of memory at one text of each kind; try a smaller data.max_length or model.dtype")
        self.parts *= 2
        log.warning("out of memory: each step now goes through in %d parts, with the same result", self.parts)
