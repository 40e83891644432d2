"""A further trial of a sweep over steer and alpha against the same trial alone, alternating, in one process.

    python bench/trials.py                       # layer 7 × 512, 4 × 256 tokens, 4 steps a trial
    python bench/trials.py --hidden 1024 --layer 11 --steps 2
    python bench/trials.py --lengths paragraphs

The first trial writes the activations that do not depend on steer and alpha; what is timed is the loop of later
trials, with new steers, once with and once without them. The tensors must come out equal, bit for bit. Options as
bench/step.py.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import step
import torch

from rmu_exp.data.batches import Batch
from rmu_exp.unlearning.activation_cache import ActivationCache
from rmu_exp.unlearning.loop import unlearn
from rmu_exp.unlearning.methods import rmu


def trial(ours: step.Ours, batches: list[Batch], number: int, cache: ActivationCache) -> list[torch.Tensor]:
    """A trial with a steer and an alpha of its own."""
    context = dataclasses.replace(ours.method.context, steer=[float(number)], alpha=[100.0 * number])
    return unlearn(
        ours.model, ours.trained, batches, rmu.Method(rmu.Settings(faithful=False), context), step.LR, cache=cache
    )


def main() -> None:
    args = step.arguments()
    if not any(word.startswith("--steps") for word in sys.argv):
        args.steps = 4
    torch.manual_seed(0)
    ours, batches = step.Ours(args), next(step.rounds(args))
    folder = Path(tempfile.mkdtemp())
    try:
        writing = ActivationCache(folder, 10**12)
        first = step.seconds(partial(trial, ours, batches, 1, writing), args.device)
        size = sum(file.stat().st_size for file in folder.iterdir())
        alone: list[step.Took] = []
        further: list[step.Took] = []
        for number in range(2, args.rounds + 2):
            found: list[list[torch.Tensor]] = []
            for times, share in ((alone, False), (further, True)):
                start, cpu = time.perf_counter(), time.process_time()
                cache = ActivationCache(folder, 10**12) if share else ActivationCache()  # opening it is part of a trial
                found.append(trial(ours, batches, number, cache))
                step.synchronise(args.device)
                times.append(step.Took(time.perf_counter() - start, time.process_time() - cpu))
            assert sum(file.stat().st_size for file in folder.iterdir()) == size, "something was computed again"
            assert all(torch.equal(a, b) for a, b in zip(*found, strict=True)), "sharing changed a result"
    finally:
        shutil.rmtree(folder)
    print(f"layer {args.layer} × {args.hidden}, {args.steps} steps a trial, {args.dtype}, torch {torch.__version__}")
    print(f"  on disk              {size / args.steps / 1e6:.1f} MB a step")
    print(f"  first trial          {first.clock:.3f} s ({first.cpu:.3f} CPU), writing included")
    print(f"  alone                {step.spread(alone)}")
    print(f"  further trial        {step.spread(further)}")
    print(f"  ratio                {step.ratios(further, alone)}; tensors equal bit for bit")


if __name__ == "__main__":
    main()
