"""Training that goes wrong is stopped in time: numbers that are not finite, retain activations that explode
(``EXPLODED`` times the frozen model's; ``STRETCHED`` times: a warning), accuracy on a fixed set that collapses.
Training that does nothing is warned of: forget activations that have hardly moved after a tenth of the steps.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from rmu_exp.support.errors import RunError

log = logging.getLogger("rmu_exp")
STRETCHED, EXPLODED = 10.0, 100.0
MOVED, FEWEST = 0.002, 20  # of the way to the target after a tenth of the steps; of steps, to say anything
Accuracy = Callable[[Sequence[Tensor] | None], float]
"""Accuracy on the fixed set with the trained tensors' values in place; None: the base model's."""


class Guard:
    """The rules, over one training run.

    Args:
        accuracy: asks the fixed set of questions; None: it is not asked.
        every: steps between two such checks.
        collapse: how much accuracy may be lost.
        steps: how many there will be; 0: unknown.
    """

    def __init__(self, accuracy: Accuracy | None = None, every: int = 0, collapse: float = 1.0, steps: int = 0) -> None:
        self.accuracy, self.every, self.collapse, self.steps = accuracy, every, collapse, steps
        self.base: float | None = None
        self.warned = self.looked = False

    def metrics(self, step: int, numbers: Mapping[str, float]) -> None:
        """Look at a step's losses and norms.

        Raises:
            RunError: the step is beyond repair.
        """
        for name, value in numbers.items():
            if not math.isfinite(value) and step == 1:
                raise RunError(
                    f"{name} is {value} at step 1, before anything was trained: the model's activations do not fit its "
                    "dtype (float16 overflows in some: model.dtype=float32), or no token of these texts counts"
                )
            if not math.isfinite(value):
                raise RunError(f"{name} is {value} at step {step}; try a smaller train.lr, steer or alpha")
        reached = numbers.get("reached_forget")
        if reached is not None and not self.looked and 10 * step > self.steps >= FEWEST:
            self.looked = True
            if reached < MOVED:
                log.warning(
                    "forget activations have gone %.1f %% of the way to their target after %d of %d steps; "
                    "try a larger train.lr or more steps (train.max_batches)",
                    *(100 * reached, step, self.steps),
                )
        if not {"norm_retain_updated", "norm_retain_frozen"} <= numbers.keys():
            return
        ratio = numbers["norm_retain_updated"] / max(numbers["norm_retain_frozen"], 1e-12)
        said = f"retain activations are {ratio:.0f} times as long as the frozen model's at step {step}"
        if ratio > EXPLODED:
            raise RunError(f"{said}; try a smaller train.lr or a larger alpha")
        if ratio > STRETCHED and not self.warned:
            log.warning("%s", said)
            self.warned = True

    def check(self, step: int, values: Sequence[Tensor]) -> None:
        """Ask the fixed set of questions, when it is time.

        Raises:
            RunError: too much of what should stay has been lost.
        """
        if self.accuracy is None or step % self.every:
            return
        if self.base is None:
            self.base = self.accuracy(None)
        now = self.accuracy(values)
        log.info("step %d: %.1f %% of the questions that should stay are answered correctly", step, 100 * now)
        if now < self.base - self.collapse:
            raise RunError(
                f"{100 * now:.0f} % of the questions that should stay are answered correctly at step {step}, "
                f"{100 * self.base:.0f} % before training; try a smaller train.lr or steer, or a larger alpha"
            )
