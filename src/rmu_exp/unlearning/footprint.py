"""How much memory training takes, counted before anything is loaded: one step of the real code on tensors without data.

What is counted are the tensors alive at any moment, each at its size. What kernels and allocators take beside them is
not; docs/performance.md says by how much that is off.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rmu_exp.data.batches import Batch
from rmu_exp.model.parameters import TrainedTensor, assemble
from rmu_exp.model.split import SplitModel, never_apart
from rmu_exp.unlearning.gradients import Gradients, Wrap
from rmu_exp.unlearning.loop import originals
from rmu_exp.unlearning.method import Method
from rmu_exp.unlearning.step import Step

META = torch.device("meta")


@dataclass(frozen=True)
class Footprint:
    """Bytes.

    Attributes:
        weights: of the layers that are loaded, and of adapters on them.
        kept: of the trained tensors' fp32 copies, their gradients and the optimizer's two moments.
        step: the most that a training step takes beside the weights, ``kept`` included; None: it cannot be counted.
    """

    weights: int
    kept: int
    step: int | None

    @property
    def least(self) -> int:
        """What it takes at least."""
        return self.weights + self.kept

    @property
    def most(self) -> int:
        """What it takes."""
        return self.weights + max(self.kept, self.step or 0)


@contextmanager
def _without_packing() -> Iterator[None]:
    """Keep transformers from looking for packed texts in positions, which have no numbers here."""
    from transformers import masking_utils

    looks = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda *_, **__: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = looks


class Alive(TorchDispatchMode):
    """Inside it, bytes of the tensors that operations have made and that are alive; ``most``: the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and note what it made."""
        out = func(*args, **(kwargs or {}))
        before = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for made in tree_leaves(out):
            if isinstance(made, Tensor) and (storage := made.untyped_storage())._cdata not in before | self._known:
                self._known.add(key := storage._cdata)
                self.now += (size := storage.nbytes())
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._gone, key, size)
        return out

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def footprint(
    model: nn.Module,
    trained: list[TrainedTensor],
    make: Callable[[], Method],
    batch: Batch,
    wrap: Wrap | None = None,
) -> Footprint:
    """What training takes, from a model on the meta device in the dtype that it will have.

    Args:
        make: the method, with the meta device in its context.
        batch: a step's texts.
    """
    weights = sum({id(x): x.nbytes for x in (*model.parameters(), *model.buffers())}.values())
    values = originals(model, trained, None)
    kept = sum(4 * 4 * value.numel() for value in values)
    step = None
    never_apart(model)  # that is asked with numbers, of which there are none; and rows of many texts stay as they are
    rows = Batch(batch.topic, [replace(packed, mask_RT=None, alone=True) for packed in batch.passes], 0)
    # suppressed: a method that looks at numbers cannot be counted in this way
    with suppress(Exception), _without_packing(), Alive() as alive:
        _steps(model, trained, make(), rows, wrap or Wrap())
        step = alive.most
    return Footprint(weights, kept, step)


def _steps(model: nn.Module, trained: list[TrainedTensor], method: Method, batch: Batch, wrap: Wrap) -> None:
    """The loop's first two steps: the optimizer's moments are there at the second."""
    split = SplitModel(model, min(t.layer for t in trained))
    faithful = method.context.faithful
    masters = originals(model, trained, None if faithful else torch.float32)
    method.start(trained, masters)
    optimizer = method.optimizer(masters, 1e-5)
    layers = sorted({method.context.layer, *method.kept(method.settings, method.context.layer, split.first)})
    method.begin(split)

    def step_of(batch: Batch, number: int) -> Step:
        return Step(split, batch, assemble(model, trained, masters), layers, number, True, faithful=faithful)

    gradients = Gradients(method, masters, step_of, META, wrap)
    for number in (1, 2):
        gradients.of(batch, number)
        optimizer.step()
