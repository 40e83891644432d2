"""One step's gradients, in as many parts as memory asks for; their losses are weighted so that they add up.

Around any method's loss L = L_F + rest, with L_F about the forget texts, two wrappers:

    SAM             ε = ρ · ∇L_F(θ) / ‖∇L_F(θ)‖,   g = ∇L_F(θ + ε) + ∇rest(θ)
    sign mask       of ∇L_F only the entries that do not have the other sign than ∇rest

SAM is that of "Towards LLM unlearning resilient to relearning attacks" (arXiv 2502.05374 and its code). The mask is
A-GEM's condition (arXiv 1812.00420) for each weight, as in MUDMAN (arXiv 2506.12484), but with the step's own gradient
of the rest, where MUDMAN has a running mean.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rmu_exp.data.batches import FORGET, RETAIN, Batch, split
from rmu_exp.support import memory
from rmu_exp.support.errors import RunError
from rmu_exp.unlearning.method import Losses, Method
from rmu_exp.unlearning.step import Step, following

log = logging.getLogger("rmu_exp")
Numbers = dict[str, Tensor]
"""Scalars of a step, without gradients."""


@dataclass(frozen=True)
class Wrap:
    """What stands around a loss: ``sam`` is ρ, 0 for none; ``sign_mask`` masks the forget gradient."""

    sam: float = 0.0
    sign_mask: bool = False


class Gradients:
    """Adds up the gradients of a step's loss.

    Args:
        masters: what is trained.
        make: a step of some texts, by its number.
        wrap: what stands around the loss.

    Attributes:
        parts: in how many parts a step goes through.
    """

    def __init__(
        self,
        method: Method,
        masters: Sequence[Tensor],
        make: Callable[[Batch, int], Step],
        device: torch.device,
        wrap: Wrap | None = None,
    ) -> None:
        self.method, self.masters, self.make, self.device, self.wrap = method, masters, make, device, wrap or Wrap()
        self.parts = 1

    def of(self, batch: Batch, number: int) -> Numbers:
        """Leave the step's gradients in the masters.

        Returns:
            What is worth showing: the losses, and norms and cosines at ℓ of what the method has looked at.

        Raises:
            RunError: not even one text of each kind fits into memory.
        """
        one = self._in_parts if self.wrap == Wrap() else self._wrapped
        return memory.until_it_fits(lambda: one(batch, number), lambda: self._more_parts(batch), self.device)

    def _wrapped(self, batch: Batch, number: int) -> Numbers:
        numbers, forget, rest = self._apart(batch, number)
        if self.wrap.sam:
            norms = [torch.linalg.vector_norm(f).to(self.device) for f in forget]
            up = self.wrap.sam / torch.stack(norms).norm().clamp(min=1e-12)
            before = [w.detach().clone() for w in self.masters]
            try:
                with torch.no_grad():
                    for w, f in zip(self.masters, forget, strict=True):
                        w.add_(f * up.to(f.device))
                _, forget, _ = self._apart(batch, number, both=False)
            finally:
                with torch.no_grad():
                    for w, own in zip(self.masters, before, strict=True):
                        w.copy_(own)
        if self.wrap.sign_mask:
            forget = [f * (f.sign() * r.sign() >= 0) for f, r in zip(forget, rest, strict=True)]
        for w, f, r in zip(self.masters, forget, rest, strict=True):
            w.grad = f + r
        return numbers

    def _apart(self, batch: Batch, number: int, both: bool = True) -> tuple[Numbers, list[Tensor], list[Tensor]]:
        """The step's numbers, and the gradients of the forget loss and of the rest (zeros without ``both``)."""
        forget, rest = ([torch.zeros_like(w, requires_grad=False) for w in self.masters] for _ in range(2))

        def take(losses: Losses) -> None:
            own = losses["forget_loss"]
            for total, part, again in ((forget, own, both), (rest, losses["loss"] - own, False))[: 1 + both]:
                found = torch.autograd.grad(part, self.masters, retain_graph=again, materialize_grads=True)
                for kept, more in zip(total, found, strict=True):
                    kept += more

        return self._in_parts(batch, number, take), forget, rest

    def _in_parts(self, batch: Batch, number: int, take: Callable[[Losses], None] | None = None) -> Numbers:
        """``take`` differentiates a part's losses; None: into the masters."""
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
                rest = weight[RETAIN] * (losses["loss"] - forget)
                part: Losses = {"loss": weight[FORGET] * forget + rest, "forget_loss": weight[FORGET] * forget}
                losses["loss"] = part["loss"]
            if take:
                take(losses if self.parts == 1 else part)
            else:
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
