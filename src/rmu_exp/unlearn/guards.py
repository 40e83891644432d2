"""Training that goes wrong is stopped in time, by stated rules.

* a number that is not finite, or retain activations more than ``EXPLODED`` times as long as the frozen model's: stop;
* more than ``STRETCHED`` times: a warning, once;
* with ``train.check_every``: accuracy on a small fixed set of questions that should stay, less than the base model's by
  more than ``train.collapse``: stop.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from rmu_exp.support.errors import RunError

log = logging.getLogger("rmu_exp")
STRETCHED, EXPLODED = 10.0, 100.0
Accuracy = Callable[[Sequence[Tensor] | None], float]
"""Accuracy on the fixed set with the trained tensors' values in place; None: the base model's."""


class Guard:
    """The rules, over one training run.

    Args:
        accuracy: asks the fixed set of questions; None: it is not asked.
        every: steps between two such checks.
        collapse: how much accuracy may be lost.
    """

    def __init__(self, accuracy: Accuracy | None = None, every: int = 0, collapse: float = 1.0) -> None:
        self.accuracy, self.every, self.collapse = accuracy, every, collapse
        self.base: float | None = None
        self.warned = False

    def metrics(self, step: int, numbers: Mapping[str, float]) -> None:
        """Look at a step's losses and norms.

        Raises:
            RunError: the step is beyond repair.
        """
        for name, value in numbers.items():
            if not math.isfinite(value):
                raise RunError(f"{name} is {value} at step {step}; try a smaller train.lr, steer or alpha")
        if "norm_retain_updated" not in numbers or "norm_retain_frozen" not in numbers:
            return
        ratio = numbers["norm_retain_updated"] / max(numbers["norm_retain_frozen"], 1e-12)
        if ratio > EXPLODED:
            raise RunError(
                f"retain activations are {ratio:.0f} times as long as the frozen model's at step {step}; "
                "try a smaller train.lr or a larger alpha"
            )
        if ratio > STRETCHED and not self.warned:
            log.warning("retain activations are %.0f times as long as the frozen model's at step %d", ratio, step)
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
