"""Where an architecture keeps its layers, and how a model is split at one of them.

Masks, positions and the differences between layer types stay the architecture's own business: the model's
own forward is run with its upper layers replaced by recorders, which keep what it would have handed them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rmu_exp.errors import UserError

LAYERS = ("layers", "h", "blocks")
NORM = ("norm", "final_layer_norm", "ln_f")
BODY = ("model", "gpt_neox", "transformer", "language_model", "base_model")


def body_of(model: nn.Module) -> nn.Module:
    """The part of a model that holds the decoder layers (the model itself when it has no head).

    Raises:
        UserError: none of the known attribute paths exists.
    """
    candidates = [model, *(getattr(model, name, None) for name in BODY)]
    for body in candidates:
        if body is not None and any(isinstance(getattr(body, name, None), nn.ModuleList) for name in LAYERS):
            return body
    looked = ", ".join([*LAYERS, *(f"{b}.{n}" for b in BODY[:3] for n in LAYERS)])
    raise UserError(f"model: {type(model).__name__} has no list of decoder layers; looked for {looked}")


def layers_of(model: nn.Module) -> nn.ModuleList:
    """The decoder layers, lowest first."""
    body = body_of(model)
    return getattr(body, _name_of(body, LAYERS))


def norm_of(model: nn.Module) -> nn.Module:
    """The norm behind the last layer."""
    body = body_of(model)
    return getattr(body, _name_of(body, NORM))


def _name_of(body: nn.Module, names: tuple[str, ...]) -> str:
    for name in names:
        if hasattr(body, name):
            return name
    raise UserError(f"model: {type(body).__name__} has none of {', '.join(names)}")


class _Recorder(nn.Module):
    """Stands in for a layer: keeps what the model hands it and passes the hidden states through."""

    def __init__(self, layer: nn.Module, returns_tuple: bool) -> None:
        super().__init__()
        self.returns_tuple = returns_tuple
        self.call: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        for name in ("attention_type", "layer_type"):  # read by some models when they choose a layer's mask
            if hasattr(layer, name):
                setattr(self, name, getattr(layer, name))

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.call = ((hidden, *args), kwargs)
        return (hidden,) if self.returns_tuple else hidden


@dataclass
class Trunk:
    """What the lower layers leave: the upper layers' input and everything else the model hands them."""

    h_BTD: Tensor
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]


class SplitModel:
    """A headless model cut below layer ``first``.

    Attributes:
        model: the model itself, unchanged.
        first: index of the lowest upper layer.
        device: where it lives.
    """

    def __init__(self, model: nn.Module, first: int) -> None:
        self.model, self.first = model, first
        self.device = next(model.parameters()).device
        self._layers = layers_of(model)
        self._tuples = _returns_tuple(self._layers[0])

    @torch.no_grad()
    def trunk(self, ids_BT: Tensor, mask_BT: Tensor | None = None, positions_BT: Tensor | None = None) -> Trunk:
        """Run the layers below ``first`` without autograd.

        Args:
            mask_BT: 1 for text, 0 for padding; None when there is none, or when rows are packed.
            positions_BT: positions that restart at every text make the model mask packed texts apart.
        """
        recorders = [_Recorder(layer, self._tuples) for layer in self._layers[self.first :]]
        extra = {} if positions_BT is None else {"position_ids": positions_BT}
        with self._replaced(recorders):
            self.model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False, **extra)
        calls = [r.call for r in recorders]
        return Trunk(calls[0][0][0], [(args[1:], kwargs) for args, kwargs in calls])

    def upper(self, trunk: Trunk, weights: dict[int, dict[str, Tensor]]) -> Tensor:
        """The last layer's output (B, T, hidden), with ``weights`` in place of the model's own.

        Args:
            weights: layer index to parameter name inside the layer to tensor.
        """
        h_BTD = trunk.h_BTD
        for index, (args, kwargs) in enumerate(trunk.calls, self.first):
            out = functional_call(self._layers[index], weights.get(index, {}), (h_BTD, *args), kwargs)
            h_BTD = out[0] if isinstance(out, tuple) else out
        return h_BTD

    @contextmanager
    def _replaced(self, recorders: list[_Recorder]) -> Iterator[None]:
        body = body_of(self.model)
        name = _name_of(body, LAYERS)
        setattr(body, name, nn.ModuleList([*self._layers[: self.first], *recorders]))
        try:
            yield
        finally:
            setattr(body, name, self._layers)


def split_at(model: nn.Module, first: int) -> SplitModel:
    """A view of ``model`` cut below layer ``first``."""
    return SplitModel(model, first)


def _returns_tuple(layer: nn.Module) -> bool:
    """Whether an architecture's layers give their hidden states in a tuple, by the annotation of forward."""
    return "tuple" in str(layer.forward.__annotations__.get("return", "")).lower()
