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

from rmu_exp.data.batches import Batch, PackedRows
from rmu_exp.model.split import SplitModel, Trunk
from rmu_exp.unlearn.activation_cache import ActivationCache

Weights = dict[int, dict[str, Tensor]]


@dataclass(frozen=True)
class Activations:
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
        marker: token ids behind which a text counts for losses over next tokens; empty: all of it.
        kept: where activations are that do not depend on what is learnt.

    Attributes:
        number: of the step, from 1.
        topic: index of the batch's topic.
        last, reference: what the updated and the frozen model last made of the texts; None before.
    """

    def __init__(
        self,
        split: SplitModel,
        batch: Batch,
        weights: Weights,
        layers: Sequence[int],
        faithful: bool = False,
        number: int = 1,
        marker: Sequence[int] = (),
        kept: ActivationCache | None = None,
    ) -> None:
        self.split, self.batch, self.weights, self.layers = split, batch, weights, layers
        self.faithful, self.number, self.topic, self.marker = faithful, number, batch.topic, marker
        self.kept = kept or ActivationCache()
        self.last: Activations | None = None
        self.reference: Activations | None = None

    def of(self, batch: Batch) -> Step:
        """The same step for other texts."""
        return Step(self.split, batch, self.weights, self.layers, self.faithful, self.number, self.marker, self.kept)

    @cached_property
    def trunks(self) -> list[tuple[PackedRows, Trunk]]:
        """Each pass on the model's device, and what the layers below the first trained one make of it."""
        moved = [run.to(self.split.device) for run in self.batch.passes]
        return [(run, self.kept.trunk(self.split, run)) for run in moved]

    def updated(self, logits: bool = False, shifts: Mapping[int, Sequence[Tensor]] | None = None) -> Activations:
        """What the model being updated makes of the texts.

        Args:
            logits: run it to its head; otherwise to the highest layer that is kept.
            shifts: layer to what is added to its output, a tensor (R, T, hidden) for each pass.
        """
        self.last = self._seen(self.weights, logits, shifts or {})
        return self.last

    @torch.no_grad()
    def frozen(self, logits: bool = False) -> Activations:
        """What the frozen model makes of them, without autograd."""
        if logits:
            self.reference = self._seen({}, logits, {})
        else:
            self.reference = Activations({layer: {} for layer in self.layers}, {})
            for run, trunk in self.trunks:
                for layer, h_RTD in self.kept.frozen(self.split, run, trunk, self.layers).items():
                    self.reference.h[layer].update(self._by_role(h_RTD, run))
        return self.reference

    def _seen(self, weights: Weights, logits: bool, shifts: Mapping[int, Sequence[Tensor]]) -> Activations:
        seen = Activations({layer: {} for layer in self.layers}, {})
        for i, (run, trunk) in enumerate(self.trunks):
            added = {layer: by_pass[i] for layer, by_pass in shifts.items()}
            for layer, h_RTD in self.split.walk(trunk, weights, added):
                if layer in seen.h:
                    seen.h[layer].update(self._by_role(h_RTD, run))
                if layer == max(self.layers) and not logits:
                    break
            if logits:
                seen.logits.update(self._by_role(self.split.logits(h_RTD, run.ids_RT), run))
        return seen

    def _by_role(self, x_RTD: Tensor, run: PackedRows) -> dict[str, Tensor]:
        x_ND = x_RTD.flatten(0, 1) if self.faithful else x_RTD.flatten(0, 1).float()
        return {role: x_ND[index] for role, index in run.tokens.items()}
