"""One step's texts, as the model being updated and the frozen one see them.

What a method asks for is computed when it asks, and once. The layers below the first trained one run without autograd,
once for all texts and both models; the frozen model is not a second one but the same without the trained tensors.
It knows activations and logits; it knows nothing of losses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rmu_exp.corpora.batches import Batch, Pass
from rmu_exp.model.anatomy import SplitModel, Trunk

Weights = dict[int, dict[str, Tensor]]


@dataclass(frozen=True)
class Seen:
    """What a model makes of a step's texts.

    Attributes:
        h: layer to role to activations (tokens, hidden).
        logits: role to logits (tokens, vocabulary) for each token's successor; empty when nobody needs them.
    """

    h: dict[int, dict[str, Tensor]]
    logits: dict[str, Tensor]


class Step:
    """One step.

    Args:
        weights: the tensors of the updated model that differ from the frozen one's, as ``assemble`` gives them.
        layers: whose activations are kept.
        logits: whether logits are computed.

    Attributes:
        number: of the step, from 1.
        topic: index of the batch's topic.
        last: what the updated model last made of the texts; None before.
    """

    def __init__(
        self,
        split: SplitModel,
        batch: Batch,
        weights: Weights,
        layers: Sequence[int],
        logits: bool = False,
        faithful: bool = False,
        number: int = 1,
    ) -> None:
        self.split, self.batch, self.weights, self.layers = split, batch, weights, layers
        self.logits, self.faithful, self.number = logits, faithful, number
        self.topic = batch.topic
        self.last: Seen | None = None

    def of(self, batch: Batch) -> Step:
        """The same step for other texts."""
        return Step(self.split, batch, self.weights, self.layers, self.logits, self.faithful, self.number)

    @cached_property
    def trunks(self) -> list[tuple[Pass, Trunk]]:
        """Each pass on the model's device, and what the layers below the first trained one make of it."""
        return trunks(self.split, self.batch)

    def updated(self, shifts: Mapping[int, Sequence[Tensor]] | None = None) -> Seen:
        """What the model being updated makes of the texts.

        Args:
            shifts: layer to what is added to its output, a tensor (R, T, hidden) for each pass.
        """
        self.last = self._plain if shifts is None else self._seen(self.weights, shifts)
        return self.last

    @cached_property
    def _plain(self) -> Seen:
        return self._seen(self.weights, {})

    @cached_property
    def frozen(self) -> Seen:
        """What the frozen model makes of them, without autograd."""
        with torch.no_grad():
            return self._seen({}, {})

    def _seen(self, weights: Weights, shifts: Mapping[int, Sequence[Tensor]]) -> Seen:
        h: dict[int, dict[str, Tensor]] = {layer: {} for layer in self.layers}
        logits: dict[str, Tensor] = {}
        for i, (run, trunk) in enumerate(self.trunks):
            added = {layer: by_pass[i] for layer, by_pass in shifts.items()}
            for layer, h_RTD in self.split.walk(trunk, weights, added):
                if layer in h:
                    h[layer] |= self._by_role(h_RTD, run)
            if self.logits:
                logits |= self._by_role(self.split.logits(h_RTD, run.ids_RT), run)
        return Seen(h, logits)

    def _by_role(self, x_RTD: Tensor, run: Pass) -> dict[str, Tensor]:
        x_ND = x_RTD.flatten(0, 1) if self.faithful else x_RTD.flatten(0, 1).float()
        return {role: x_ND[index] for role, index in run.tokens.items()}


def trunks(split: SplitModel, batch: Batch) -> list[tuple[Pass, Trunk]]:
    """Each pass of a batch on the model's device, and what the layers below the first trained one make of it."""
    moved = [run.to(split.device) for run in batch.passes]
    return [(run, split.trunk(run.ids_RT, run.mask_RT, run.positions_RT)) for run in moved]
