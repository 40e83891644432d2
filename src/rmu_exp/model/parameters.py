"""Trained tensors by name: what the user asks for, as the checkpoint on disk spells it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from rmu_exp.errors import UserError
from rmu_exp.model.anatomy import body_of, layers_of

DOWN = ("mlp.down_proj.weight", "mlp.dense_4h_to_h.weight", "mlp.c_proj.weight")


@dataclass(frozen=True)
class Trained:
    """One trained tensor.

    Attributes:
        layer: index of its layer.
        name: its full name on disk.
        parameter: the in-memory parameter inside the layer that holds it.
        index: the slice of that parameter, or None for all of it.
    """

    layer: int
    name: str
    parameter: str
    index: tuple[int | slice, ...] | None = None

    def read(self, layer: nn.Module) -> Tensor:
        """A copy of the tensor."""
        whole = layer.get_parameter(self.parameter).detach()
        return (whole if self.index is None else whole[self.index]).clone()

    def place(self, whole: Tensor, value: Tensor) -> Tensor:
        """The in-memory parameter with ``value`` in its place; differentiable with respect to ``value``."""
        if self.index is None:
            return value
        mark = torch.zeros(whole.shape, dtype=torch.bool, device=whole.device)
        mark[self.index] = True
        return whole.masked_scatter(mark, value)


def resolve(model: nn.Module, layers: Sequence[int], names: Sequence[str] | None) -> list[Trained]:
    """The tensors of ``layers`` whose names match.

    Args:
        names: names inside a layer, globs allowed; None: the MLP's output matrix.

    Raises:
        UserError: a name that matches nothing; the message lists what a layer holds.
    """
    stack = layers_of(model)
    prefix = _prefix(model)
    found: list[Trained] = []
    for layer in layers:
        known = [name for name, _ in stack[layer].named_parameters()]
        wanted = names or [down_projection(known)]
        for pattern in wanted:
            matched = [name for name in known if fnmatchcase(name, pattern)]
            if not matched:
                raise UserError(
                    f"layers.parameters: {pattern!r} matches nothing in layer {layer}; there are {', '.join(known)}"
                )
            new = [Trained(layer, f"{prefix}.{layer}.{name}", name) for name in matched]
            found += [t for t in new if t not in found]
    return found


def by_index(model: nn.Module, layer: int, ids: Sequence[int]) -> list[str]:
    """The published code's ``param_ids``: indices into a layer's parameters, as names.

    Raises:
        UserError: an index beyond the layer's parameters.
    """
    known = [name for name, _ in layers_of(model)[layer].named_parameters()]
    for i in ids:
        if not 0 <= i < len(known):
            raise UserError(f"layers.param_ids: got {i}, allowed is 0 to {len(known) - 1}: {', '.join(known)}")
    return [known[i] for i in ids]


def down_projection(known: Sequence[str]) -> str:
    """The name of the MLP's output matrix among a layer's parameters."""
    for name in DOWN:
        if name in known:
            return name
    raise UserError(f"layers.parameters: this model has none of {', '.join(DOWN)}; choose among {', '.join(known)}")


def _prefix(model: nn.Module) -> str:
    """What stands before the layer's index in a full name on disk, such as ``model.layers``."""
    body, stack = body_of(model), layers_of(model)
    inner = next(name for name, module in body.named_children() if module is stack)
    outer = getattr(model, "base_model_prefix", "model")
    return f"{outer}.{inner}"
