"""Whether training fits the device: said before weights are loaded, and refused where it cannot be."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import torch

from rmu_exp.data.batches import Batch
from rmu_exp.pipeline.train import NORM_BATCHES, TrainPlan, context_of
from rmu_exp.support import memory
from rmu_exp.support.errors import UserError
from rmu_exp.unlearning import experts, lora, optimizers
from rmu_exp.unlearning.footprint import Footprint, footprint
from rmu_exp.unlearning.gradients import Wrap

WORTH_A_WORD = 5e8  # bytes of weights; below them nobody's memory is at stake, and counting takes a second or two
STEPS = 2  # after which the optimizer keeps all that it will


def checked(plan: TrainPlan) -> TrainPlan:
    """The plan with a line about memory; the largest of the first batches is counted.

    What must be there is what training holds between two steps. Weights that stay in their files do not count: Linux
    reads them again where it lacks room. The activations, which splitting a step makes smaller, do not count either.

    Raises UserError: that alone is more than the device has, whatever else runs on it.
    """
    run, models = plan.run, plan.models
    room = None if models.shared or models.over else memory.room(models.device, run.model.memory)
    if room is None or sum(p.nbytes for p in models.base.skeleton(plan.loads).parameters()) < WORTH_A_WORD:
        return plan
    first = list(itertools.islice(plan.batches, NORM_BATCHES * len(run.topics)))
    plan = dataclasses.replace(plan, batches=itertools.chain(first, plan.batches))
    largest = max(first, key=lambda batch: sum(packed.ids_RT.numel() for packed in batch.passes))
    takes = counted(plan, [largest] * STEPS)
    if takes is None:
        return plan
    free, total = (size / 1e9 for size in room)
    in_files = models.device == "cpu" and models.dtype == models.base.dtype
    least = (takes.kept + (0 if in_files else takes.weights)) / 1e9
    paged = run.train.optimizer == optimizers.PAGED  # its moments need not be on the device
    if least > total and not paged and run.layers.experts != experts.USED:  # these are fewer than are counted
        raise UserError(
            f"model.device: {models.device} has {total:.1f} GB, and training {run.method.name} keeps {least:.1f} GB "
            "between two steps; use a larger device, a smaller layers.span, layers=lora, or model.dtype=bfloat16"
        )
    said = f"memory: training takes about {takes.most / 1e9:.1f} GB, {takes.weights / 1e9:.1f} of it weights"
    return dataclasses.replace(plan, memory=f"{said}; {free:.1f} GB are free on {models.device}")


def counted(plan: TrainPlan, batches: Sequence[Batch]) -> Footprint | None:
    """What training takes in steps of these batches, from shapes alone; None: that cannot be counted."""
    run, trained = plan.run, plan.trained
    model = plan.models.base.skeleton(plan.loads).to(plan.models.dtype).eval().requires_grad_(False)
    with torch.device("meta"):
        if run.layers.lora:
            trained = lora.Adapters(model, trained, run.layers.rank, run.layers.rank_alpha, run.seed).trained
    context = dataclasses.replace(context_of(plan, [1.0] * len(run.topics)), device=torch.device("meta"))
    if context.optimizer == optimizers.PAGED:  # of the same size; the driver would page what has no data
        context = dataclasses.replace(context, optimizer=optimizers.EIGHT_BITS[0])
    wrap = Wrap(run.train.sam, run.train.sign_mask)
    return footprint(model, trained, plan.method(plan.settings, context), batches, wrap, run.train.checkpointing)
