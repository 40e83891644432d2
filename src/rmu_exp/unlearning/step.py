"""One step's texts, as the model being updated and the frozen one see them.

What a method asks for is computed when it asks, and once; the layers below the first trained one once for both models.
The frozen model is the same without the trained tensors. It knows activations and logits; it knows nothing of losses.

Axes: R rows, T positions, N tokens of a role, M those whose following token counts, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from rmu_exp.data.batches import FORGET, RETAIN, Batch, PackedRows, inside, spread, texts
from rmu_exp.model.split import SplitModel, Trunk
from rmu_exp.unlearning.activation_cache import ActivationCache

Weights = dict[int, dict[str, Tensor]]
Part = tuple[PackedRows, Trunk, dict[str, Tensor]]
"""Packed rows, what the lower layers make of them, and role to the tokens of theirs that are wanted."""


@dataclass(frozen=True)
class Activations:
    """What a model makes of a step's texts.

    Attributes:
        h: layer to role to activations (N, D).
        logits: role to logits (N, V) of each token's following one; empty when nobody needs them.
    """

    h: dict[int, dict[str, Tensor]]
    logits: dict[str, Tensor]


class Following(NamedTuple):
    """The tokens of a role whose following token, in the same text, counts.

    Attributes:
        rows_M: which of the role's tokens.
        ids_M: what follows each.
        text_M: its text, counted from 0.
        texts: how many texts.
    """

    rows_M: Tensor
    ids_M: Tensor
    text_M: Tensor
    texts: int


@dataclass(eq=False)
class Step:
    """One step. Where the model would mix the texts of a row, each gets a row of its own.

    Attributes:
        weights: the tensors of the updated model that differ from the frozen one's, as ``assemble`` gives them.
        layers: whose activations are kept.
        number: of the step, from 1.
        measured: whether the frozen model's activations on the forget texts are wanted whatever the loss needs.
        marker: token ids after which a text counts for losses over following tokens; empty: all of it.
        faithful: activations stay in the model's dtype; otherwise they are given in fp32.
        cache: where activations are that do not depend on what is learned.
    """

    split: SplitModel
    batch: Batch
    weights: Weights
    layers: Sequence[int]
    number: int = 1
    measured: bool = False
    marker: Sequence[int] = ()
    faithful: bool = False
    cache: ActivationCache = field(default_factory=ActivationCache)
    _updated: Activations | None = field(default=None, init=False)
    _frozen: Activations | None = field(default=None, init=False)
    _following: dict[str, Following] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if any(packed.positions_RT is not None for packed in self.batch.passes) and not self.split.keeps_texts_apart():
            self.batch = spread(self.batch)

    @property
    def topic(self) -> int:
        """Index of the batch's topic."""
        return self.batch.topic

    def of(self, batch: Batch) -> Step:
        """The same step for other texts."""
        return replace(self, batch=batch)

    @cached_property
    def trunks(self) -> list[tuple[PackedRows, Trunk]]:
        """Packed rows on the model's device, and what the layers below the first trained one make of them."""
        moved = [packed.to(self.split.device) for packed in self.batch.passes]
        return [(packed, self.cache.trunk(self.split, packed)) for packed in moved]

    def updated(
        self, *roles: str, logits: bool = False, shifts: Mapping[int, Sequence[Tensor]] | None = None
    ) -> Activations:
        """What the model being updated makes of the texts of some roles (none named: of all).

        Args:
            logits: run it to its head; otherwise to the highest layer that is kept.
            shifts: layer to what is added to its output, a tensor (R, T, D) for each of the packed rows.
        """
        parts = [(packed, trunk, packed.tokens) for packed, trunk in self.trunks]
        self._updated = self._seen(self.holding(roles) if roles else parts, self.weights, logits, shifts or {})
        return self._updated

    @torch.no_grad()
    def frozen(self, *roles: str, logits: bool = False) -> Activations:
        """What the frozen model makes of the texts of some roles (none named: of all), without autograd.

        Rows without such texts are not run, unless the step is measured. What is known is not computed again.
        """
        wanted = {role for packed in self.batch.passes for role in packed.tokens}
        if roles and not self.measured:
            wanted &= set(roles)
        known = self._frozen
        if known is None or not wanted <= set(known.h[self.layers[0]]) or (logits and not known.logits):
            parts = self.holding(wanted)
            if logits:
                self._frozen = self._seen(parts, {}, True, {})
                return self._frozen
            self._frozen = known = Activations({layer: {} for layer in self.layers}, {})
            for packed, trunk, tokens in parts:
                for layer, h_RTD in self.cache.frozen(self.split, packed, trunk, self.layers).items():
                    known.h[layer].update(self._by_role(h_RTD, tokens))
        return known

    def following(self, role: str) -> Following:
        """A role's tokens whose following token counts, found on the host: reading ids off a device waits for it."""
        if role not in self._following:
            *found, count = following(self.batch, role, self.marker)
            rows_M, ids_M, text_M = (x_M.to(self.split.device, non_blocking=True) for x_M in found)
            self._following[role] = Following(rows_M, ids_M, text_M, count)
        return self._following[role]

    def inside(self, role: str) -> Tensor:
        """Which of a role's tokens are text and not a text's first, (N) bool."""
        return next(inside(packed, role) for packed, _ in self.trunks if role in packed.tokens)

    @torch.no_grad()
    def numbers(self, layer: int, target: Tensor | None = None) -> dict[str, Tensor]:
        """Mean norms at a layer, by role and model, and cosines of the two models: of what has been asked for.

        ``reached`` is how far forget activations are on their way to the target, from 0 (where the frozen model's
        are) to 1: the median of 1 - ‖h - target‖ / ‖g - target‖ over tokens that are not a text's first.
        """
        h, g = ({} if seen is None else seen.h[layer] for seen in (self._updated, self._frozen))
        found: dict[str, Tensor] = {}
        for role in (FORGET, RETAIN):
            for state, x in (("updated", h), ("frozen", g)):
                if role in x:
                    found[f"norm_{role}_{state}"] = x[role].float().norm(dim=-1).mean()
            if role in h and role in g:
                found[f"cos_{role}"] = torch.cosine_similarity(h[role].float(), g[role].float(), dim=-1).mean()
        if target is not None and FORGET in h and FORGET in g:
            left, whole = (torch.linalg.vector_norm(x[FORGET].float() - target.float(), dim=-1) for x in (h, g))
            found["reached_forget"] = (1 - left / whole).where(self.inside(FORGET), torch.nan).nanmedian()
        return found

    def holding(self, roles: Collection[str]) -> list[Part]:
        """The packed rows that hold texts of the roles, and no others."""
        return [part for i in range(len(self.batch.passes)) if (part := self._holding(i, roles))]

    def _holding(self, i: int, roles: Iterable[str]) -> Part | None:
        """Those of the packed rows that hold texts of the roles; None: there are none."""
        packed, (moved, trunk) = self.batch.passes[i], self.trunks[i]
        tokens = {role: index for role, index in packed.tokens.items() if role in roles}
        if not tokens:
            return None
        count, width = packed.ids_RT.shape
        rows = torch.cat([index // width for index in tokens.values()]).unique()
        if len(rows) == count:
            return moved, trunk, {role: moved.tokens[role] for role in tokens}
        place = torch.full((count,), -1)
        place[rows] = torch.arange(len(rows))
        mask, positions = (None if x is None else x[rows] for x in (packed.mask_RT, packed.positions_RT))
        shifted = {role: place[index // width] * width + index % width for role, index in tokens.items()}
        part = PackedRows(packed.ids_RT[rows], mask, positions, shifted).to(self.split.device)
        return part, trunk.rows(rows.to(self.split.device, non_blocking=True)), part.tokens

    def _seen(
        self, parts: Iterable[Part], weights: Weights, logits: bool, shifts: Mapping[int, Sequence[Tensor]]
    ) -> Activations:
        seen = Activations({layer: {} for layer in self.layers}, {})
        for i, (packed, trunk, tokens) in enumerate(parts):
            added = {layer: by_rows[i] for layer, by_rows in shifts.items()}
            for layer, h_RTD in self.split.walk(trunk, weights, added):
                if layer in seen.h:
                    seen.h[layer].update(self._by_role(h_RTD, tokens))
                if layer == max(self.layers) and not logits:
                    break
            if logits:
                seen.logits.update(self._by_role(self.split.logits(h_RTD, packed.ids_RT), tokens))
        return seen

    def _by_role(self, x_RTD: Tensor, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x_ND = x_RTD.flatten(0, 1) if self.faithful else x_RTD.flatten(0, 1).float()
        return {role: x_ND[index] for role, index in tokens.items()}


def following(batch: Batch, role: str, marker: Sequence[int]) -> Following:
    """A role's tokens whose following token counts: in a text that holds the marker, those after it."""
    (packed,) = (packed for packed in batch.passes if role in packed.tokens)
    found = texts(packed, role)
    rows: list[int] = []
    ids: list[int] = []
    text: list[int] = []
    at = 0
    for number, tokens in enumerate(found):  # a role's tokens stand text by text
        first = max(after_marker(tokens, marker) - 1, 0)
        rows += range(at + first, at + len(tokens) - 1)
        ids += tokens[first + 1 :]
        text += [number] * len(tokens[first + 1 :])
        at += len(tokens)
    rows_M, ids_M, text_M = (torch.tensor(x, dtype=torch.long) for x in (rows, ids, text))
    return Following(rows_M, ids_M, text_M, len(found))


def after_marker(text: Sequence[int], marker: Sequence[int]) -> int:
    """Where the part of a text after the last marker begins; 0 when it has none."""
    width = len(marker)
    for start in range(len(text) - width, -1, -1) if width else ():
        if list(text[start : start + width]) == list(marker):
            return start + width
    return 0
