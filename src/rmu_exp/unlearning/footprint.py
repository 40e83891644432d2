"""The memory that training takes, counted before weights are loaded: the loop itself, run on tensors without data.

Counted are the tensors that are alive at any moment. What allocators and kernels take beside them is not;
docs/performance.md has what that comes to.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rmu_exp.data.batches import Batch
from rmu_exp.model.parameters import TrainedTensor
from rmu_exp.unlearning.gradients import Wrap
from rmu_exp.unlearning.loop import unlearn
from rmu_exp.unlearning.method import Method

aten = torch.ops.aten
LR = 1e-5  # of no consequence


@dataclass(frozen=True)
class Footprint:
    """Bytes.

    Attributes:
        weights: of the layers that are loaded, and of adapters on them.
        kept: what is held between two steps beside them: copies of the trained tensors, gradients, the optimizer.
        step: the most that a step takes beside the weights; ``kept`` is a part of it.
    """

    weights: int
    kept: int
    step: int

    @property
    def most(self) -> int:
        """What training takes, at its highest."""
        return self.weights + self.step


def footprint(
    model: nn.Module,
    trained: list[TrainedTensor],
    method: Method,
    batches: Sequence[Batch],
    wrap: Wrap | None = None,
    recompute: bool = False,
) -> Footprint | None:
    """What training takes, counted in steps of these batches; two show what the optimizer keeps.

    Args:
        model: on the meta device, in the dtype that it will have.
        method: with the meta device in its context.

    Returns:
        None where it cannot be counted: the method goes by numbers, or calls what cannot be run without data.
    """
    weights = sum({id(x): x.nbytes for x in (*model.parameters(), *model.buffers())}.values())
    ended = _Ended()

    def steps() -> Iterator[Batch]:
        yield from batches
        raise ended  # before the loop reads the metrics, which have no values

    with _fused(), Alive() as alive:
        try:
            unlearn(model, trained, steps(), method, LR, wrap=wrap, recompute=recompute)
        except Exception as error:
            # whatever a model or a method of somebody else's does without data; a run does not fail of it
            return Footprint(weights, alive.now, alive.most) if error is ended else None
    return None


class _Ended(Exception):  # noqa: N818
    """All steps that are counted were done."""


class Alive(TorchDispatchMode):
    """Inside it, ``now`` is the bytes of the tensors that operations made and that are alive, ``most`` its maximum.

    A number that is read off a tensor without data is 1, and a mask without data is true everywhere.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it made."""
        if func is aten._local_scalar_dense.default and args[0].is_meta:
            return torch.ones((), dtype=args[0].dtype).item()
        if func is aten.index.Tensor and args[0].is_meta:
            args = (args[0], [_everywhere(index) for index in args[1]])
        out = func(*args, **(kwargs or {}))
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for made in tree_leaves(out):
            if isinstance(made, Tensor) and (storage := made.untyped_storage())._cdata not in given | self._known:
                self._known.add(key := storage._cdata)
                self.now += (size := storage.nbytes())
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._gone, key, size)
        return out

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _everywhere(index: Tensor | None) -> Tensor | None:
    """A mask of one dimension without data as the places where it is true."""
    if index is None or index.dtype != torch.bool or index.dim() != 1:
        return index
    return torch.empty(len(index), dtype=torch.long, device=index.device)


@contextmanager
def _fused() -> Iterator[None]:
    """Inside it, attention by a fused kernel, as on any device; without data torch would take the one that keeps T × T.

    The function itself is replaced: a mode of torch's would not reach layers that are run again on the way back.
    """
    own = functional.scaled_dot_product_attention

    def fused(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **how: Any
    ) -> Tensor:
        shared = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(shared, 1) if shared > 1 else x for x in (key, value))
        run = aten._scaled_dot_product_flash_attention_for_cpu
        out: Tensor = run(query, key, value, 0.0, bool(how.get("is_causal")), attn_mask=attn_mask)[0]
        return out

    functional.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = own
