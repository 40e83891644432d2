"""Which experts of a mixture are trained: all, some by their indices, or those that forget texts are routed to."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rmu_exp.data.batches import FORGET, Batch, pack, texts
from rmu_exp.model.parameters import TrainedTensor, expert_of
from rmu_exp.model.split import SplitModel, layers_of
from rmu_exp.support.errors import UserError
from rmu_exp.unlearning.step import Step

KEY, ALL, USED = "layers.experts", "all", "used"
log = logging.getLogger("rmu_exp")


def listed(trained: list[TrainedTensor], experts: object, faithful: bool) -> list[TrainedTensor]:
    """The tensors without those of experts that are not in ``experts``; all of them where it is a word.

    Raises UserError: there are no experts that have tensors of their own on disk, or no such expert.
    """
    if faithful and experts == USED:
        raise UserError(
            f"{KEY}: got used, but the published loop asks no router; give a list, or method.faithful=false"
        )
    if experts == ALL:
        return trained
    mine = {t.name: e for t in trained if (e := expert_of(t.name)) is not None}
    if not mine:
        raise UserError(f"{KEY}: {trained[0].name} is not of one expert, nor is any other trained tensor; use all")
    if not isinstance(experts, list):
        if unfused := [t.name for t in trained if t.name in mine and t.index is None]:
            raise UserError(f"{KEY}: what {unfused[0]} is used for cannot be seen from its block; give a list")
        return trained
    if beyond := [e for e in experts if e not in mine.values()]:
        raise UserError(f"{KEY}: got {beyond[0]}, allowed is 0 to {max(mine.values())}")
    return [t for t in trained if mine.get(t.name, experts[0]) in experts]


@torch.no_grad()
def used(model: nn.Module, trained: Sequence[TrainedTensor], batches: Iterable[Batch]) -> list[TrainedTensor]:
    """The tensors without those of experts that the frozen model sends no forget token of these batches to."""
    blocks = {t.layer: t.parameter.rpartition(".")[0] for t in trained if expert_of(t.name) is not None}
    split, layers = SplitModel(model, min(blocks)), layers_of(model)
    seen: dict[int, set[int]] = {layer: set() for layer in blocks}
    for batch in batches:
        halves = {
            FORGET: [text for packed in batch.passes if FORGET in packed.tokens for text in texts(packed, FORGET)]
        }
        step = Step(split, Batch(batch.topic, [pack(halves, 0)], 0), {}, [max(blocks)])
        (packed,) = step.batch.passes
        with ExitStack() as stack:
            for layer, block in blocks.items():
                note = partial(_note, seen[layer], packed.tokens[FORGET])
                hook = layers[layer].get_submodule(block).register_forward_pre_hook(note, with_kwargs=True)
                stack.callback(hook.remove)
            step.frozen()
    for layer, found in seen.items():
        log.info("%s: layer %d: %s", KEY, layer, ", ".join(map(str, sorted(found))))
    return [t for t in trained if (e := expert_of(t.name)) is None or e in seen[t.layer]]


def _note(seen: set[int], tokens_N: Tensor, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Add the experts of some tokens, which a block of experts is handed as (tokens, experts per token) indices."""
    given = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and not x.is_floating_point()]
    if not given:
        raise UserError(f"{KEY}: this architecture's experts are not told which token is whose; give a list")
    seen.update(given[0].flatten(0, -2)[tokens_N.to(given[0].device)].unique().tolist())
