"""The unlearning loop: two corpora in, the changed tensors out.

A method says what it needs of each step and what its loss is; all else is the same for all methods. The loop knows
activations and tensors; it knows nothing of text, files or questions.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor

from rmu_exp.data.batches import FORGET, Batch
from rmu_exp.model.parameters import TrainedTensor, assemble
from rmu_exp.model.split import SplitModel, layers_of
from rmu_exp.support import signals
from rmu_exp.unlearning.activation_cache import ActivationCache
from rmu_exp.unlearning.budget import Budget
from rmu_exp.unlearning.gradients import Gradients, Numbers, Wrap
from rmu_exp.unlearning.guards import Guard
from rmu_exp.unlearning.method import Context, Method
from rmu_exp.unlearning.snapshot import Snapshots
from rmu_exp.unlearning.step import Step

FLUSH = 10  # steps between two readings of the metrics: reading waits for the device
MEASURE = 10  # batches of a topic between two that are measured on the frozen model, too; so are the last and a tenth
Metrics = dict[str, float | str]
"""A step's line in metrics.jsonl."""


def unlearn(
    model: torch.nn.Module,
    trained: list[TrainedTensor],
    batches: Iterable[Batch],
    method: Method,
    lr: float,
    *,
    decay_over: int | None = None,
    wrap: Wrap | None = None,
    recompute: bool = False,
    on_metrics: Callable[[Metrics], None] = lambda metrics: None,
    cache: ActivationCache | None = None,
    snapshots: Snapshots | None = None,
    guard: Guard | None = None,
    budget: Budget | None = None,
) -> list[Tensor]:
    """Train ``trained`` by a method's loss; ``model``, as deep as the method needs or deeper, is left as it was.

    Args:
        decay_over: steps over which the learning rate falls to nothing, linearly; None: it is constant.
        wrap: what stands around the loss.
        recompute: run layers again on the way back in place of keeping what is inside of them.
        on_metrics: called with one dictionary per step, some steps late.
        cache, snapshots: activations that other runs have computed; the state, kept and resumed from.
        budget: how much damage ends the training; it takes the full model with its head.

    Returns:
        The new values, in the order of ``trained``, in the masters' dtype.

    Raises:
        RunError: training has gone wrong; the last good state is kept.
        Stopped: somebody asked for it; the state is kept.
    """
    context = method.context
    split = SplitModel(model, min(t.layer for t in trained), recompute)
    masters = originals(model, trained, None if context.faithful else torch.float32)
    method.start(trained, masters)
    optimizer = method.optimizer(masters, lr)
    layers = sorted({context.layer, *method.kept(method.settings, context.layer, split.first)})
    guard, keep, cache = guard or Guard(), snapshots or Snapshots(), cache or ActivationCache()
    meter = Meter(context, on_metrics, guard)
    method.begin(split)
    if budget:
        budget.begin(split, trained)
    keep.restore(masters, optimizer, method, budget)

    same = partial(Step, split, layers=layers, marker=context.marker, faithful=context.faithful, cache=cache)

    def step_of(batch: Batch, number: int) -> Step:
        looks = measured(number, context.steps, len(context.topics))
        return same(batch=batch, weights=assemble(model, trained, masters), number=number, measured=looks)

    gradients = Gradients(method, masters, step_of, context.device, wrap)
    for number, batch in enumerate(batches, 1):
        if number <= keep.steps:
            continue
        numbers = gradients.of(batch, number)
        if decay_over:
            optimizer.param_groups[0]["lr"] = lr * max(0.0, 1 - (number - 1) / decay_over)
        optimizer.step()
        if budget:
            meter.measured(budget, number, masters, numbers)
        meter.add(number, batch, optimizer.param_groups[0]["lr"], numbers)
        guard.check(number, masters)
        if budget and budget.over:
            break
        if keep.due():
            meter.flush()  # which refuses a state that has gone wrong
            keep.save(number, masters, optimizer, method, budget)
            if signals.asked():
                raise signals.Stopped
    meter.flush()
    if budget:
        budget.settle(masters)
    return [w.detach() for w in masters]


def measured(number: int, steps: int, topics: int) -> bool:
    """Whether a step, counted from 1, is measured on the frozen model, too."""
    mine, last = (number - 1) // topics, steps // topics - 1
    return mine % MEASURE == 0 or mine in (steps // topics // 10, last)


def originals(model: torch.nn.Module, trained: Sequence[TrainedTensor], dtype: torch.dtype | None) -> list[Tensor]:
    """Copies of the tensors to train, in ``dtype`` or in the model's own."""
    layers = layers_of(model)
    values = [t.read(layers[t.layer]) for t in trained]
    return [v.to(dtype or v.dtype).requires_grad_() for v in values]


@torch.no_grad()
def root_mean_square(model: torch.nn.Module, trained: Sequence[TrainedTensor]) -> float:
    """Of all numbers in the tensors to train.

    A tensor of zeros has no scale of its own, and counts as a fresh matrix does, with a mean square of 1 / inputs.
    """
    tensors = originals(model, trained, torch.float32)
    squares = [w.square().mean().item() or 1 / w.shape[-1] for w in tensors]
    return math.sqrt(statistics.fmean(squares, weights=[w.numel() for w in tensors]))


def frozen_norms(model: torch.nn.Module, layer: int, batches: Iterable[Batch]) -> dict[int, float]:
    """Topic to the median norm of the model's activations at a layer on the topic's forget texts.

    Padding and each text's first token do not count.
    """
    split, norms = SplitModel(model, layer), dict[int, list[Tensor]]()
    for batch in batches:
        step = Step(split, batch, {}, [layer])
        lengths_N = torch.linalg.vector_norm(step.frozen().h[layer][FORGET].float(), dim=-1)
        norms.setdefault(batch.topic, []).append(lengths_N[step.inside(FORGET)])
    return {topic: torch.cat(lengths).median().item() for topic, lengths in norms.items()}


class Meter:
    """Collects each step's numbers on the device and hands them on as plain dictionaries."""

    def __init__(self, context: Context, on_metrics: Callable[[Metrics], None], guard: Guard) -> None:
        self.context, self.on_metrics, self.guard = context, on_metrics, guard
        self.pending: list[tuple[int, Metrics, Numbers]] = []
        self.last = time.perf_counter()

    def add(self, number: int, batch: Batch, lr: float, numbers: Numbers) -> None:
        """Note a step."""
        topic, context = batch.topic, self.context
        line: Metrics = {"step": number, "topic": context.topics[topic], "alpha": context.alpha[topic]}
        line |= {"steer": context.steer[topic], "lr": lr, "tokens": batch.text_tokens}
        self.pending.append((number, line, numbers))
        if len(self.pending) == FLUSH:
            self.flush()

    def measured(self, budget: Budget, step: int, masters: Sequence[Tensor], numbers: Numbers) -> None:
        """Note KL to the base where the budget measures it; the time that this takes is not the step's."""
        before = budget.spent
        kl = budget.look(step, masters)
        self.last += budget.spent - before
        if kl is not None and kl < float("inf"):
            numbers["kl"] = torch.tensor(kl, device=self.context.device)

    def flush(self) -> None:
        """Read what is pending; the time since the last reading is shared evenly among the steps."""
        if not self.pending:
            return
        values = iter(torch.stack([v for _, _, numbers in self.pending for v in numbers.values()]).tolist())
        now = time.perf_counter()
        seconds = (now - self.last) / len(self.pending)
        self.last = now
        for number, line, numbers in self.pending:
            read: dict[str, float] = {name: next(values) for name in numbers}
            self.guard.metrics(number, read)
            self.on_metrics(line | read | {"seconds": seconds})
        self.pending.clear()
