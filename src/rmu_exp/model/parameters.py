"""Trained tensors by name: what the user asks for, as the checkpoint on disk spells it.

transformers 5 fuses the experts of a mixture into one tensor per layer; on disk each expert has tensors of its
own. So a name on disk is a whole in-memory parameter, or a slice of one. This module knows names and
slices; it knows nothing of training or of files.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from rmu_exp.model import disk_names
from rmu_exp.model.disk_names import Index
from rmu_exp.model.split import MLP as MLPS
from rmu_exp.model.split import layers_of, layers_path
from rmu_exp.support.errors import UserError

ALL, MLP = "all", "mlp"
ATTENTION = re.compile(r"att(?:n|ention)?[._]|^temporal")
ROUTER = re.compile(r"(?:^|[._])(?:gate|router)\.")  # a shared expert's own gate is one, too
DOWN = (
    *("down_proj", "w2", "w2_weight", "fc2", "c_proj", "dense_4h_to_h", "fc_out", "output_linear", "Wo"),
    *("proj_down", "output.dense", "ffn.2", "feed_forward.value"),
)
"""What an MLP's output matrix is called, as the end of its name."""
MIXED = ("out_proj", "o_proj")
"""The same of a layer that has no MLP, as in state-space models: what writes to the residual stream."""
_SHARED: WeakKeyDictionary[nn.Module, set[int]] = WeakKeyDictionary()
PUBLISHED = {"mixtral": ["block_sparse_moe.experts.0.w3.weight"]}


@dataclass(frozen=True)
class TrainedTensor:
    """One trained tensor."""

    layer: int  # index of its layer
    name: str  # its full name on disk
    parameter: str  # the in-memory parameter that holds it, by its name inside the layer
    index: Index | None = None  # which slice of that parameter it is; None: all of it

    def read(self, layer: nn.Module) -> Tensor:
        """A copy of the tensor in the model."""
        return self.view(layer).clone()

    def view(self, layer: nn.Module) -> Tensor:
        """The tensor in the model's own memory; writing to it changes the model."""
        whole = layer.get_parameter(self.parameter).detach()
        return whole if self.index is None else whole[self.index]


def expert_of(name: str) -> int | None:
    """The expert that a tensor on disk belongs to, by its name; None: it is of no single one."""
    match = disk_names.EXPERT.match(name)
    return None if match is None else int(match["expert"])


def assemble(
    model: nn.Module, trained: Sequence[TrainedTensor], values: Sequence[Tensor]
) -> dict[int, dict[str, Tensor]]:
    """The model's parameters with ``values`` in them, as ``SplitModel.upper`` takes them.

    A fused parameter is copied once, however many of its slices are trained. Values are cast to the
    parameter's dtype; gradients flow to ``values`` only.

    Returns:
        Layer index to in-memory parameter name to tensor.
    """
    layers, table = layers_of(model), dict[int, dict[str, Tensor]]()
    slices: dict[tuple[int, str], list[tuple[Index, Tensor]]] = {}
    for t, value in zip(trained, values, strict=True):
        if t.index is None:
            dtype = layers[t.layer].get_parameter(t.parameter).dtype
            table.setdefault(t.layer, {})[t.parameter] = value.to(dtype)
        else:
            slices.setdefault((t.layer, t.parameter), []).append((t.index, value))
    for (layer, parameter), parts in slices.items():
        full = layers[layer].get_parameter(parameter).detach()
        indices = [index for index, _ in parts]
        table.setdefault(layer, {})[parameter] = _Place.apply(full, indices, *(v for _, v in parts))
    return table


class _Kept(Protocol):
    """What :class:`_Place` keeps for the way back."""

    indices: list[Index]
    dtypes: list[torch.dtype]


class _Place(torch.autograd.Function):
    """Copy a tensor and overwrite slices of the copy; the gradient of each value is its slice.

    In-place writes under autograd would copy the whole gradient once per slice.
    """

    @staticmethod
    def forward(ctx: _Kept, full: Tensor, indices: list[Index], *values: Tensor) -> Tensor:
        ctx.indices, ctx.dtypes = indices, [v.dtype for v in values]
        out = full.clone()
        for index, value in zip(indices, values, strict=True):
            out[index] = value.to(out.dtype)
        return out

    @staticmethod
    def backward(ctx: _Kept, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        own = [grad[index].to(dtype) for index, dtype in zip(ctx.indices, ctx.dtypes, strict=True)]
        return (None, None, *own)


def resolve(model: nn.Module, layers: Sequence[int], names: Sequence[str] | None) -> list[TrainedTensor]:
    """The tensors of ``layers`` that ``names`` mean.

    Args:
        layers: layer indices.
        names: names inside a layer as on disk, globs allowed; ``all``: every tensor of the layer;
            ``mlp``: every matrix of its MLP or experts, routers aside; None: the MLP's output matrix.

    Returns:
        Without repetition, layer by layer, in each layer's published order.

    Raises:
        UserError: no such layer, or a name that matches nothing; the message lists what the layer holds.
    """
    patterns = [names] if isinstance(names, str) else list(names or [])
    if names is not None and not patterns:
        raise UserError("layers.parameters: got an empty list; name at least one tensor, or leave it null")
    found, model_layers = list[TrainedTensor](), layers_of(model)
    for layer in layers:
        known = _slots(model, layer)
        chosen: set[str] = set()
        for pattern in patterns or [down_projection(model, layer)]:
            matched = {t.name for n, t in known.items() if pattern == ALL or fnmatchcase(n, pattern)}
            if pattern == MLP:
                matched = {t.name for n, t in known.items() if _in_mlp(n, t.view(model_layers[layer]))}
            if not matched:
                raise UserError(
                    f"layers.parameters: {pattern!r} matches nothing in layer {layer}; there are {_listed(known)}"
                )
            chosen |= matched
        found += [t for t in known.values() if t.name in chosen]
    return found


def _in_mlp(name: str, value: Tensor) -> bool:
    """Whether a tensor, by its name inside a layer, is a matrix of the MLP or of an expert."""
    return name.split(".")[0] in MLPS and value.dim() > 1 and not ROUTER.search(name)


def by_index(model: nn.Module, layer: int, ids: Sequence[int]) -> list[str]:
    """The published code's ``param_ids`` as names on disk.

    They are indices into ``layer.parameters()`` of the transformers release that code ran with (4.38): 6 is
    the MLP's output matrix of Mistral and Llama, 7 is the first expert's w3 of Mixtral.

    Raises:
        UserError: an index beyond the layer's parameters; the message lists them.
    """
    known = list(_slots(model, layer))
    for i in ids:
        if not 0 <= i < len(known):
            listed = ", ".join(f"{n} {name}" for n, name in enumerate(known[:40]))
            raise UserError(f"layers.param_ids: got {i}, allowed is 0 to {len(known) - 1}: {listed}")
    return [known[i] for i in ids]


def published(model: nn.Module) -> list[str] | None:
    """What the published run trained inside a layer of this architecture; None: the MLP's output matrix."""
    return PUBLISHED.get(getattr(getattr(model, "config", None), "model_type", ""))


def down_projection(model: nn.Module, layer: int = 0) -> str:
    """The name, or the glob over experts, of the MLP's output matrix.

    Raises:
        UserError: the layer has none under any known name.
    """
    known = _slots(model, layer)
    for ends in (DOWN, MIXED):
        found = [name for name in known if any(f".{name}".removesuffix(".weight").endswith(f".{end}") for end in ends)]
        if ends is DOWN:
            found = [name for name in found if not ATTENTION.search(name)]
        if found := [name for name in found if "shared" not in name] or found:  # experts before the shared one
            return re.sub(r"\bexperts\.\d+\.", "experts.*.", found[0])
    raise UserError(f"layers.parameters: layer {layer} has no known MLP output matrix; choose among {_listed(known)}")


def on_disk(model: nn.Module) -> dict[str, TrainedTensor]:
    """Every tensor of every decoder layer, by its full name on disk."""
    return {t.name: t for layer in range(len(layers_of(model))) for t in _slots(model, layer).values()}


def _slots(model: nn.Module, layer: int) -> dict[str, TrainedTensor]:
    """A layer's tensors in published order: name inside the layer on disk to where it is in memory."""
    layers = layers_of(model)
    if not 0 <= layer < len(layers):
        raise UserError(f"layers: got {layer}, allowed is 0 to {len(layers) - 1}")
    several = _of_several_layers(model)
    shapes = {name: p.shape for name, p in layers[layer].named_parameters() if id(p) not in several}
    return {
        name: TrainedTensor(layer, f"{stem}.{layer}.{name}", parameter, index)
        for name, (stem, parameter, index) in disk_names.places(model, layers_path(model), layer, shapes).items()
    }


def _of_several_layers(model: nn.Module) -> set[int]:
    """Parameters that layers share (Zamba): to train one for a layer would change the others."""
    if model not in _SHARED:
        count = Counter(key for layer in layers_of(model) for key in {id(p) for p in layer.parameters()})
        _SHARED[model] = {key for key, times in count.items() if times > 1}
    return _SHARED[model]


def _listed(known: dict[str, TrainedTensor]) -> str:
    return ", ".join(dict.fromkeys(re.sub(r"experts\.\d+\.", "experts.*.", name) for name in known))
