"""Equal damage: training stops where KL(base ‖ updated) on neutral text reaches a budget, for any method.

It is measured seldom, where its growth so far says that the budget will be reached. The last weights inside the budget
are kept: on the line from the last measured state inside to the first one outside, KL is brought into
[``LOW``, 1] of the budget. A method that acts at once has one such line, from the original weights on, with the length
of its step as the place on it; it may be stepped further than the method went.

Axes: B texts, T positions, N positions that predict a token, V vocabulary, D hidden size.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import kl_div
from torch.nn.utils.rnn import pad_sequence

from rmu_exp.model.parameters import TrainedTensor, assemble
from rmu_exp.model.split import SplitModel, layers_of

log = logging.getLogger("rmu_exp")
LOW, AIM = 0.95, 0.975  # of the budget: where a search ends, and what it aims at
FIRST = 8  # the first look is after this part of the steps
NEAREST, FARTHEST = 1.5, 4.0  # the next look, in steps so far
LONGEST = 8.0  # how many times longer a step that is too short is made at once
TRIES = 40  # looks along a line; halving alone would find any place that numbers of 32 bits can tell apart


@dataclass(frozen=True)
class Kept:
    """What was kept.

    Attributes:
        kl: KL(base ‖ kept) in nats per token.
        step: where in training the weights are; on the line between two steps it is a fraction.
        scale: for methods that act at once: how many times the method's own step was taken.
        reached: whether training came to the budget at all.
    """

    kl: float
    step: float
    scale: float | None
    reached: bool


class Budget:
    """KL to the base on a few texts, over one training run.

    Args:
        limit: the budget, nats per token.
        rows: token ids of the texts, two or more each.
        steps: how many there will be.
        at_once: only the last weights count, and any part of the whole change may be taken.

    Attributes:
        kept: what was kept, after :meth:`settle`.
        spent: seconds that measuring has taken in this process.
    """

    kept: Kept

    def __init__(self, limit: float, rows: Sequence[Sequence[int]], steps: int, at_once: bool = False) -> None:
        self.limit, self.rows, self.steps, self.at_once = limit, rows, steps, at_once
        self.looks = [(0, 0.0)]  # step and KL
        self.inside: list[Tensor] = []  # the weights at the last look; none: the original ones
        self.spent = 0.0

    @torch.no_grad()
    def begin(self, split: SplitModel, trained: Sequence[TrainedTensor]) -> None:
        """Read the texts with the frozen model, all of it, which stays as it is."""
        began = time.perf_counter()
        self.split, self.trained = split, trained
        self.ids_BT = pad_sequence([torch.tensor(row) for row in self.rows], batch_first=True).to(split.device)
        counts = torch.tensor([len(row) - 1 for row in self.rows])
        self.predicts_BT = (torch.arange(self.ids_BT.shape[1]) < counts[:, None]).to(split.device)
        self.trunk = split.trunk(self.ids_BT)  # what stands after a text's end reaches nothing before it
        self.base_NV = self._logs({})
        self.spent += time.perf_counter() - began

    @torch.no_grad()
    def measure(self, values: Sequence[Tensor]) -> float:
        """KL(base ‖ updated) with these values of the trained tensors, nats per token; inf where it is not finite."""
        began = time.perf_counter()
        logs_NV = self._logs(assemble(self.split.model, self.trained, values))
        kl = kl_div(logs_NV, self.base_NV, reduction="batchmean", log_target=True).item()
        self.spent += time.perf_counter() - began
        return max(0.0, kl) if math.isfinite(kl) else math.inf  # rounding may take a KL of nothing below 0

    def look(self, step: int, values: Sequence[Tensor]) -> float | None:
        """Measure after a step, when it is time to: KL, or None."""
        if step != self._next():
            return None
        kl = self.measure(values)
        self.looks.append((step, kl))
        log.info("step %d: KL to the base %.3g nats per token", step, kl)
        if not self.over and step < self.steps and not self.at_once:
            self.inside = [w.detach().to("cpu", copy=True) for w in values]
        return kl

    @property
    def over(self) -> bool:
        """Whether training has come to the budget."""
        return self.looks[-1][1] >= LOW * self.limit

    @torch.no_grad()
    def settle(self, values: Sequence[Tensor]) -> None:
        """Put the weights that are kept in the place of those after the last step, which was looked at."""
        (before, inside), (step, kl) = self.looks[-2:]
        place = 1.0
        if kl > self.limit or (self.at_once and not self.over):
            ends = self._line(values)

            def at(place: float) -> float:
                return self.measure([a + place * (b - a) for a, b in ends])

            low, high = ((0.0, inside), (1.0, kl)) if kl > self.limit else ((1.0, kl), None)
            place, kl = search(at, self.limit, low, high)
            if high is None and kl < LOW * self.limit:
                place, kl = low  # no length of the step comes to the budget: its own
            for w, (a, b) in zip(values, ends, strict=True):
                w.copy_(a + place * (b - a))
        scale = place if self.at_once else None
        where = float(step) if self.at_once else before + place * (step - before)
        self.kept = Kept(kl, where, scale, self.over or kl >= LOW * self.limit)
        if self.kept.reached:
            log.info("train.kl_budget: kept KL %.3g of %g nats per token, at step %.4g", kl, self.limit, where)
        else:
            more = "its step changes nothing" if self.at_once else "try a larger train.lr or more train.max_batches"
            log.warning("train.kl_budget: KL is %.3g at the end and never reached %g; %s", kl, self.limit, more)

    def state(self) -> dict[str, Tensor]:
        """What a snapshot keeps, by name."""
        return {"looks": torch.tensor(self.looks, dtype=torch.float64)} | {
            f"inside.{i}": w for i, w in enumerate(self.inside)
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """The reverse of :meth:`state`."""
        self.looks = [(int(step), kl) for step, kl in state["looks"].tolist()]
        self.inside = [state[f"inside.{i}"] for i in range(len(state) - 1)]

    def _line(self, values: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """The last state inside and the present one, which is copied, in fp32."""
        layers = layers_of(self.split.model)
        inside = self.inside or [t.view(layers[t.layer]) for t in self.trained]
        return [
            (a.to(w.device, torch.float32), w.detach().float().clone()) for a, w in zip(inside, values, strict=True)
        ]

    def _next(self) -> int:
        """The step after which to look: where KL, a power of the steps so far, should reach the budget."""
        if self.at_once:
            return self.steps
        step, kl = self.looks[-1]
        if step == 0:
            return max(1, self.steps // FIRST)
        (before, was), power = self.looks[-2], 2.0  # KL goes with the square of a small change
        if before and kl > was > 0:
            power = min(4.0, max(1.0, math.log(kl / was) / math.log(step / before)))
        growth = (AIM * self.limit / kl) ** (1 / power) if kl > 0 else FARTHEST
        return min(self.steps, max(step + 1, int(step * min(FARTHEST, max(NEAREST, growth)))))

    def _logs(self, weights: dict[int, dict[str, Tensor]]) -> Tensor:
        """Log-probabilities (N, V) of the texts' following tokens; only what predicts one goes through the head."""
        h_ND, ids_N = self.split.upper(self.trunk, weights)[self.predicts_BT], self.ids_BT[self.predicts_BT]
        return self.split.logits(h_ND[:, None], ids_N[:, None])[:, 0].float().log_softmax(dim=-1)


def search(
    at: Callable[[float], float], limit: float, low: tuple[float, float], high: tuple[float, float] | None
) -> tuple[float, float]:
    """Where on a line KL is in [``LOW``, 1] of the limit: the place and its KL.

    Near the base KL goes with the square of the place, so its root is interpolated; where that is no help, the
    interval is halved.

    Args:
        at: KL at a place.
        low, high: a place with its KL inside the limit and, further out, one outside; None: none is known yet.

    Returns:
        The furthest place found inside, if KL jumps over the interval, or does not grow.
    """
    wanted = math.sqrt(AIM * limit)
    for n in range(TRIES):
        if low[1] >= LOW * limit:
            break
        root = math.sqrt(low[1])
        if high is None:
            place = low[0] * (min(LONGEST, max(1.1, wanted / root)) if root else LONGEST)
        else:
            share = (wanted - root) / (math.sqrt(high[1]) - root) if n % 3 < 2 else 0.5
            place = low[0] + min(0.95, max(0.02, share)) * (high[0] - low[0])
        kl = at(place)
        if kl > limit:
            high = (place, kl)
        else:
            low = (place, kl)
    return low
