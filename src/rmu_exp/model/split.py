"""Where an architecture keeps its parts, and how a model is run in two pieces.

Masks, positions and the differences between layer types stay the architecture's own business: the model's
own forward is run with its upper layers replaced by recorders, which keep what it would have handed them.
This module knows modules and activations; it knows nothing of files, names on disk or losses.

Shapes: B rows, T positions, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rmu_exp.support.errors import UserError

T = TypeVar("T")
BODY = ("model", "gpt_neox", "transformer")
LAYERS = ("layers", "h")
NORM = ("norm", "final_layer_norm", "ln_f")
EMBEDDING = ("embed_tokens", "embed_in", "wte")
HEAD = ("lm_head", "embed_out")
ATTENTION = ("self_attn", "attention", "attn")
MLP = ("mlp", "block_sparse_moe")


def body_of(model: nn.Module) -> nn.Module:
    """The part of a model that holds the decoder layers: the model itself when it has no head.

    Raises:
        UserError: the architecture keeps its layers elsewhere; so do the functions below for their parts.
    """
    for body in (model, *(getattr(model, name, None) for name in BODY)):
        if body is not None and any(isinstance(getattr(body, name, None), nn.ModuleList) for name in LAYERS):
            return body
    looked = ", ".join([*LAYERS, *(f"{body}.{layers}" for body in BODY for layers in LAYERS)])
    raise UserError(f"model: {type(model).__name__} has no list of decoder layers; looked for {looked}")


def layers_of(model: nn.Module) -> nn.ModuleList:
    """The decoder layers, lowest first."""
    layers = getattr(body_of(model), _layers_name(model))
    assert isinstance(layers, nn.ModuleList)
    return layers


def layers_path(model: nn.Module) -> str:
    """Where the layers are in the causal model, such as ``model.layers``; the same for a headless one."""
    return f"{getattr(model, 'base_model_prefix', '') or 'model'}.{_layers_name(model)}"


def norm_of(model: nn.Module) -> nn.Module:
    """The norm after the last layer."""
    return _part(body_of(model), NORM, "final norm")


def embedding_of(model: nn.Module) -> nn.Module:
    """The token embedding."""
    return _part(body_of(model), EMBEDDING, "token embedding")


@torch.no_grad()
def embeddings(model: nn.Module) -> Tensor:
    """What each token of the vocabulary enters the model as, (V, D); some architectures scale the table's rows."""
    embedding = embedding_of(model)
    table: Tensor = embedding.weight  # type: ignore[assignment]
    return embedding(torch.arange(len(table), device=table.device))


def head_of(model: nn.Module) -> nn.Module:
    """The head of a causal model."""
    return _part(model, HEAD, "head")


def attention_of(layer: nn.Module) -> nn.Module:
    """A layer's attention block."""
    return _part(layer, ATTENTION, "attention")


def mlp_of(layer: nn.Module) -> nn.Module:
    """A layer's MLP or mixture of experts."""
    return _part(layer, MLP, "MLP")


def drop_norm(model: nn.Module) -> None:
    """Put the identity in place of the norm after the last layer, so that a cut model ends in activations."""
    body = body_of(model)
    setattr(body, _name_of(body, NORM, "final norm"), nn.Identity())


def _layers_name(model: nn.Module) -> str:
    return _name_of(body_of(model), LAYERS, "list of decoder layers")


def _part(owner: nn.Module, names: tuple[str, ...], what: str) -> nn.Module:
    part = getattr(owner, _name_of(owner, names, what))
    assert isinstance(part, nn.Module)
    return part


def _name_of(owner: nn.Module, names: tuple[str, ...], what: str) -> str:
    for name in names:
        if isinstance(getattr(owner, name, None), nn.Module):
            return name
    raise UserError(f"model: {type(owner).__name__} has no {what}; looked for {', '.join(names)}")


Call = tuple[tuple[object, ...], dict[str, object]]
"""Arguments and keywords of a layer, its input aside."""


@dataclass(frozen=True)
class Trunk:
    """What the lower layers leave: the upper layers' input, and all else that the model hands them.

    Attributes:
        h_BTD: the input of the lowest upper layer.
        calls: further arguments and keywords of each upper layer, lowest first.
    """

    h_BTD: Tensor
    calls: list[Call]

    def rows(self, rows: Tensor) -> Trunk:
        """The same for some rows of the batch, by their indices."""
        batch = self.h_BTD.shape[0]
        calls = [(_rows(args, rows, batch), _rows(kwargs, rows, batch)) for args, kwargs in self.calls]
        return Trunk(self.h_BTD[rows], calls)


def _rows(value: T, rows: Tensor, batch: int) -> T:
    """Take rows of every batch-first tensor inside ``value``; what all rows share (first size 1) stays whole."""
    found: object = value
    if isinstance(value, Tensor):
        found = value[rows] if value.dim() > 1 and value.shape[0] == batch else value
    elif isinstance(value, tuple):
        found = tuple(_rows(v, rows, batch) for v in value)
    elif isinstance(value, dict):
        found = {key: _rows(v, rows, batch) for key, v in value.items()}
    return cast(T, found)


class SplitModel:
    """A model cut below layer ``first``; the model itself is left as it is.

    Attributes:
        first, last: index of the lowest and of the highest upper layer.

    Raises:
        UserError: the model has no such layer, or keeps its layers in an unknown place.
    """

    def __init__(self, model: nn.Module, first: int) -> None:
        self.model, self.first = model, first
        self._layers = layers_of(model)
        self.last = len(self._layers) - 1
        if not 0 <= first < len(self._layers):
            raise UserError(f"layers: got {first}, allowed is 0 to {len(self._layers) - 1}")
        self.device = next(model.parameters()).device
        self._tuples = self._returns_tuple()

    @torch.no_grad()
    def trunk(
        self,
        ids_BT: Tensor,
        mask_BT: Tensor | None = None,
        positions_BT: Tensor | None = None,
        known_BTD: Tensor | None = None,
    ) -> Trunk:
        """Run the layers below ``first`` without autograd.

        Args:
            mask_BT: 1 for text, 0 for padding on either side; None when there is none, or when rows are packed.
            positions_BT: positions that restart at every text make the model mask packed texts apart.
            known_BTD: what these layers gave for the same rows before; they are then not run again.
        """
        first = self.first if known_BTD is None else 0
        stand_ins = [_StandIn(layer, self._tuples) for layer in self._layers[first:]]
        extra = {} if positions_BT is None else {"position_ids": positions_BT}
        with self._replaced([*self._layers[:first], *stand_ins]):
            body_of(self.model)(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False, **extra)
        upper = stand_ins[self.first - first :]
        return Trunk(upper[0].hidden if known_BTD is None else known_BTD, [stand_in.call for stand_in in upper])

    def upper(self, trunk: Trunk, weights: dict[int, dict[str, Tensor]]) -> Tensor:
        """The last layer's output, before any final norm.

        Args:
            weights: layer index to in-memory parameter name inside the layer to the tensor that takes
                its place; gradients flow to these tensors and to nothing else.

        Returns:
            (B, T, D).
        """
        *_, (_, h_BTD) = self.walk(trunk, weights)
        return h_BTD

    def walk(
        self, trunk: Trunk, weights: dict[int, dict[str, Tensor]], shifts: Mapping[int, Tensor] | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """Index and output (B, T, D) of each upper layer, lowest first.

        Args:
            weights: as for :meth:`upper`.
            shifts: layer index to what is added to its output; the layer below the first upper one may be among them.

        Raises:
            ValueError: a shift of a layer that is not run here.
        """
        h_BTD, shifts = trunk.h_BTD, shifts or {}
        if outside := sorted(set(shifts) - set(range(self.first - 1, self.last + 1))):
            raise ValueError(f"shifts: got layers {outside}, allowed are {self.first - 1} to {self.last}")
        if self.first - 1 in shifts:
            h_BTD = h_BTD + shifts[self.first - 1].to(h_BTD.dtype)
        for index, (args, kwargs) in enumerate(trunk.calls, self.first):
            out = functional_call(self._layers[index], weights.get(index, {}), (h_BTD, *args), kwargs)
            h_BTD = out[0] if isinstance(out, tuple) else out
            if index in shifts:
                h_BTD = h_BTD + shifts[index].to(h_BTD.dtype)
            yield index, h_BTD

    def logits(self, h_BTD: Tensor, ids_BT: Tensor) -> Tensor:
        """What a causal model's final norm and head make of the last layer's output: (B, T, V).

        Its own forward is run with that output in the place of its layers, so that scaling and capping stay its own.
        """
        with self._replaced([_StandIn(layer, self._tuples, h_BTD) for layer in self._layers]):
            out = self.model(input_ids=ids_BT, use_cache=False).logits
        assert isinstance(out, Tensor)
        return out

    @torch.no_grad()
    def _returns_tuple(self) -> bool:
        """Whether the layers give their hidden states in a tuple: asked with one token, once."""
        layer, tuples = self._layers[self.first], list[bool]()
        with (
            layer.register_forward_hook(lambda _module, _inputs, out: tuples.append(type(out) is tuple)),
            self._replaced(self._layers[: self.first + 1]),
        ):
            ids_BT = torch.zeros(1, 1, dtype=torch.long, device=self.device)
            body_of(self.model)(input_ids=ids_BT, attention_mask=None, use_cache=False)
        return tuples[0]

    @contextmanager
    def _replaced(self, layers: Iterable[nn.Module]) -> Iterator[None]:
        body, name = body_of(self.model), _layers_name(self.model)
        setattr(body, name, nn.ModuleList(layers))
        try:
            yield
        finally:
            setattr(body, name, self._layers)


class _StandIn(nn.Module):
    """Takes a layer's place: keeps what the model hands the layer, and gives the hidden states on, or others instead.

    It has the layer's attributes, because some models read them when they choose its mask.
    """

    hidden: Tensor
    call: Call

    def __init__(self, layer: nn.Module, returns_tuple: bool, given_BTD: Tensor | None = None) -> None:
        super().__init__()
        self._stands_for = (layer,)  # in a tuple, so that it is not registered as a submodule
        self._returns_tuple, self._given = returns_tuple, given_BTD

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        if name.startswith("_"):
            return super().__getattr__(name)
        return getattr(self._stands_for[0], name)

    def forward(self, hidden_states: Tensor, *args: object, **kwargs: object) -> object:
        self.hidden, self.call = hidden_states, (args, kwargs)
        out = hidden_states if self._given is None else self._given
        return (out,) if self._returns_tuple else out
