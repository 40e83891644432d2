"""The unlearning loop: two corpora in, the changed tensors out.

The loss lives at layer ℓ, so the model it gets has ℓ+1 layers and no head. The layers below the first
trained one run once, without autograd, for forget and retain texts together; the frozen model is not a
second model but the saved originals of the few trained tensors, run on the same trunk activations.

The loop knows activations and tensors; it knows nothing of text, files or questions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rmu_exp.corpora.batches import FORGET, RETAIN, Batch, Pass
from rmu_exp.errors import RunError
from rmu_exp.model.anatomy import SplitModel, layers_of, split_at
from rmu_exp.model.parameters import Trained, assemble
from rmu_exp.unlearn import rmu
from rmu_exp.unlearn.trunks import Trunks

FLUSH = 10  # steps between two readings of the metrics: reading waits for the device
BETA2 = 0.999


@dataclass(frozen=True)
class Settings:
    """What the loop needs of a Run."""

    lr: float
    alpha: Sequence[float]
    steer: Sequence[float]
    topics: Sequence[str]
    faithful: bool = False
    decay_over: int | None = None
    """Steps over which the learning rate falls to nothing, linearly; None: it is constant."""


def unlearn(
    model: torch.nn.Module,
    trained: list[Trained],
    batches: Iterable[Batch],
    control_KD: Tensor,
    settings: Settings,
    on_metrics: Callable[[dict[str, Any]], None] = lambda metrics: None,
    trunks: Trunks | None = None,
) -> list[Tensor]:
    """Train ``trained`` so that forget texts are steered and retain texts stay.

    Args:
        model: layers 0..ℓ, no head; it is left as it was.
        control_KD: forget targets c·u, one a topic, on the model's device.
        on_metrics: called with one dictionary a step, some steps late.
        trunks: where activations are that other runs have computed; None: all are computed here.

    Returns:
        The new values, in the order of ``trained``, in the masters' dtype.

    Raises:
        RunError: the loss is not finite.
    """
    split = split_at(model, min(t.layer for t in trained))
    masters = originals(model, trained, None if settings.faithful else torch.float32)
    optimizer = torch.optim.AdamW(masters, lr=settings.lr, betas=(0.9, BETA2), weight_decay=0.0)
    meter = Meter(settings, on_metrics)
    for step, batch in enumerate(batches, 1):
        h, g = activations(split, batch, assemble(model, trained, masters), settings.faithful, trunks or Trunks())
        forget = rmu.forget_loss(h[FORGET], control_KD[batch.topic])
        retain = rmu.retain_loss(h[RETAIN], g[RETAIN])
        loss = forget + settings.alpha[batch.topic] * retain
        optimizer.zero_grad()
        loss.backward()
        if settings.decay_over:
            optimizer.param_groups[0]["lr"] = settings.lr * max(0.0, 1 - (step - 1) / settings.decay_over)
        optimizer.param_groups[0]["eps"] = 1e-6 / (1 - BETA2**step) ** 0.5  # see published_epsilon in docs/method.md
        optimizer.step()
        meter.add(
            step,
            batch,
            optimizer.param_groups[0]["lr"],
            {"loss": loss, "forget_loss": forget, "retain_loss": retain},
            h,
            g,
        )
    meter.flush()
    return [w.detach() for w in masters]


def originals(model: torch.nn.Module, trained: Sequence[Trained], dtype: torch.dtype | None) -> list[Tensor]:
    """Copies of the tensors to train, in ``dtype`` or in the model's own."""
    layers = layers_of(model)
    values = [t.read(layers[t.layer]) for t in trained]
    return [v.to(dtype or v.dtype).requires_grad_() for v in values]


def activations(
    split: SplitModel, batch: Batch, updated: dict[int, dict[str, Tensor]], faithful: bool, trunks: Trunks
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Role to activations (tokens, hidden) at layer ℓ: of the updated model, and of the frozen one.

    Args:
        updated: the tensors that differ from the frozen model's, as :func:`assemble` gives them.
    """
    h: dict[str, Tensor] = {}
    g: dict[str, Tensor] = {}
    for run in batch.passes:
        run = run.to(split.device)
        trunk = trunks.trunk(split, run)
        h |= _by_role(split.upper(trunk, updated), run, faithful)
        g |= _by_role(trunks.frozen(split, run, trunk, [split.last])[split.last], run, faithful)
    return h, g


def _by_role(h_RTD: Tensor, run: Pass, faithful: bool) -> dict[str, Tensor]:
    h_ND = h_RTD.flatten(0, 1) if faithful else h_RTD.flatten(0, 1).float()
    return {role: h_ND[index] for role, index in run.tokens.items()}


class Meter:
    """Collects each step's numbers on the device and hands them on as plain dictionaries."""

    def __init__(self, settings: Settings, on_metrics: Callable[[dict[str, Any]], None]) -> None:
        self.settings, self.on_metrics = settings, on_metrics
        self.pending: list[tuple[dict[str, Any], list[str], Tensor]] = []
        self.last = time.perf_counter()

    @torch.no_grad()
    def add(
        self, step: int, batch: Batch, lr: float, losses: dict[str, Tensor], h: dict[str, Tensor], g: dict[str, Tensor]
    ) -> None:
        numbers = {name: value.detach().float() for name, value in losses.items()}
        for role in (FORGET, RETAIN):
            numbers[f"norm_{role}_updated"] = h[role].float().norm(dim=-1).mean()
            if role in g:
                numbers[f"norm_{role}_frozen"] = g[role].float().norm(dim=-1).mean()
                numbers[f"cos_{role}"] = torch.cosine_similarity(h[role].float(), g[role].float(), dim=-1).mean()
        line = {
            "step": step,
            "topic": self.settings.topics[batch.topic],
            "alpha": self.settings.alpha[batch.topic],
            "steer": self.settings.steer[batch.topic],
            "lr": lr,
            "tokens": batch.text_tokens,
        }
        self.pending.append((line, list(numbers), torch.stack(list(numbers.values()))))
        if len(self.pending) == FLUSH:
            self.flush()

    def flush(self) -> None:
        """Read what is pending; the time since the last reading is shared evenly among the steps."""
        if not self.pending:
            return
        values = torch.stack([v for _, _, v in self.pending]).tolist()
        now = time.perf_counter()
        seconds = (now - self.last) / len(self.pending)
        self.last = now
        for (line, names, _), row in zip(self.pending, values, strict=True):
            metrics = line | dict(zip(names, row, strict=True)) | {"seconds": seconds}
            if not torch.isfinite(torch.tensor(row[0])):
                raise RunError(f"the loss is {row[0]} at step {line['step']}; try a smaller train.lr, steer or alpha")
            self.on_metrics(metrics)
        self.pending.clear()
