"""Where an architecture keeps its parts, and how a model is run in two pieces.

Masks, positions and the differences between layer types stay the architecture's own business: the model's
own forward is run with its upper layers replaced by recorders, which keep what it would have handed them.
This module knows modules and activations; it knows nothing of files, names on disk or losses.

Shapes: B rows, T positions, D hidden size.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from rmu_exp.support.errors import UserError

T = TypeVar("T")
log = logging.getLogger("rmu_exp")
_APART: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Whether a model keeps packed texts apart."""
_NAMED: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
"""What the causal model calls a part that was loaded without it."""
LAYERS = ("layers", "h", "blocks", "layer", "block")
NORM = ("norm", "final_layer_norm")  # of several beside the layers
CAUSAL = ("is_causal", "is_decoder")  # what attention modules say of themselves
ONE_WAY = {"attn_type": "uni", "causal": True}  # what the configurations of XLNet and XLM say
IN_BLOCKS = "block_sparse"
ATTENTION = ("self_attn", "attention", "attn", "self_attention")
MLP = ("mlp", "block_sparse_moe", "feed_forward", "ffn", "moe")


def _layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The path of the decoder layers inside the model, and the layers.

    Raises:
        UserError: the architecture keeps its layers elsewhere, or has an encoder of its own.
    """
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise UserError(f"model: {type(model).__name__} has an encoder; allowed is a decoder-only model")
    known = {path: module for path, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    found = [path for path in known if path.rpartition(".")[2] in LAYERS]
    decoder = cast(Any, model).get_decoder() if hasattr(model, "get_decoder") else model
    inside = {id(module) for module in decoder.modules()}  # a multimodal model has other towers beside it
    for path in sorted(found, key=lambda path: id(known[path]) not in inside):
        return path, known[path]
    raise UserError(f"model: {type(model).__name__} has no list of decoder layers; looked for {', '.join(LAYERS)}")


def stem_of(model: nn.Module) -> nn.Module:
    """What takes token ids and gives hidden states: a causal model without its head; the model itself has none."""
    stem = getattr(model, stem_name(model), model)
    assert isinstance(stem, nn.Module)
    return stem


def stem_name(model: nn.Module) -> str:
    """What a causal model calls the part without its head; empty for that part itself."""
    names = (getattr(model, "base_model_prefix", ""), "model")
    return next((name for name in names if name and isinstance(getattr(model, name, None), nn.Module)), "")


def lies_at(model: nn.Module, name: str) -> None:
    """Note what the causal model calls a part that is here without it."""
    _NAMED[model] = name


def named_in(model: nn.Module) -> str:
    """What the causal model calls a part that is here without it."""
    return _NAMED.get(model) or getattr(model, "base_model_prefix", "") or "model"


def body_of(model: nn.Module) -> nn.Module:
    """The part of a model that holds the decoder layers. Raises UserError as :func:`layers_of`."""
    return model.get_submodule(_layers(model)[0].rpartition(".")[0])


def layers_of(model: nn.Module) -> nn.ModuleList:
    """The decoder layers, lowest first.

    Raises:
        UserError: the architecture keeps its layers elsewhere; so do the functions below for their parts.
    """
    return _layers(model)[1]


def layers_path(model: nn.Module) -> str:
    """Where the layers are in the causal model, such as ``model.layers``; the same for a headless one."""
    path = _layers(model)[0]
    if stem_of(model) is not model:
        return path
    return f"{named_in(model)}.{path}"


def refuse_attention(model: nn.Module, name: str) -> None:
    """Refuse what the attention modules of a causal model say of themselves (UserError).

    An encoder, in which tokens see those that follow them; and BigBird's blocks, in whose place layers put another
    attention once they see a short text.
    """
    parts = list(layers_of(model).modules())
    said = [getattr(part, key) for part in parts for key in CAUSAL if hasattr(part, key)]
    config, which = getattr(model, "config", None), f"the attention of {name} ({type(model).__name__})"
    if (said and not any(said)) or any(getattr(config, key, value) != value for key, value in ONE_WAY.items()):
        raise UserError(
            f"model: {which} is not causal by itself; "
            "allowed is a causal language model (with is_decoder: true in its config.json if it is one)"
        )
    if any(getattr(part, "attention_type", None) == IN_BLOCKS for part in parts):
        raise UserError(f"model: {which} wants whole blocks; set attention_type: original_full in its config.json")


def norm_of(model: nn.Module) -> nn.Module | None:
    """The norm after the last layer; None: the architecture has none."""
    name = _norm_name(body_of(model))
    return None if name is None else cast(nn.Module, getattr(body_of(model), name))


def _norm_name(body: nn.Module) -> str | None:
    """The norm that stands beside the layers, other than one of the embeddings."""
    norms = [n for n, part in body.named_children() if "Norm" in type(part).__name__ and "emb" not in n]
    return next((name for name in NORM if name in norms), norms[-1] if norms else None)


def embedding_of(model: nn.Module) -> nn.Module:
    """The token embedding."""
    return cast(nn.Module, cast(Any, model).get_input_embeddings())


@torch.no_grad()
def embeddings(model: nn.Module) -> Tensor:
    """What each token of the vocabulary enters the model as, (V, D); some architectures scale the table's rows."""
    embedding = embedding_of(model)
    table: Tensor = embedding.weight  # type: ignore[assignment]
    return embedding(torch.arange(len(table), device=table.device))


def head_of(model: nn.Module) -> nn.Module:
    """The head of a causal model. Raises UserError: it has none."""
    head = cast(Any, model).get_output_embeddings()
    if head is None:
        raise UserError(f"model: {type(model).__name__} has no head")
    return cast(nn.Module, head)


def attention_of(layer: nn.Module) -> nn.Module:
    """A layer's attention block."""
    return _part(layer, ATTENTION, "attention")


def mlp_of(layer: nn.Module) -> nn.Module:
    """A layer's MLP or mixture of experts."""
    return _part(layer, MLP, "MLP")


class NoNorm(nn.Identity):
    """What stands in the place of a norm that was dropped."""


def drop_norm(model: nn.Module) -> None:
    """Put the identity in place of the norm after the last layer, whose weights a cut model lacks.

    A norm without weights stays: NanoChat's stands before the layers, too.
    """
    body = body_of(model)
    if (name := _norm_name(body)) is not None and [*getattr(body, name).parameters()]:
        nothing = NoNorm()
        vars(nothing)["weight"] = getattr(getattr(body, name), "weight", None)  # whose dtype some models ask for
        setattr(body, name, nothing)


def _part(owner: nn.Module, names: tuple[str, ...], what: str) -> nn.Module:
    name = _name_of(owner, names)
    if name is None:
        raise UserError(f"model: {type(owner).__name__} has no {what}; looked for {', '.join(names)}")
    return cast(nn.Module, getattr(owner, name))


def keep_layers(model: nn.Module, depth: int) -> None:
    """Take the layers from ``depth`` on away."""
    path, layers = _layers(model)
    setattr(model.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2], layers[:depth])


def _name_of(owner: nn.Module, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if isinstance(getattr(owner, name, None), nn.Module)), None)


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
        places = [tuple(_of_rows(arg, rows, batch) for arg in args) for args, _ in self.calls]
        calls = [(args, _rows(kwargs, rows, batch)) for args, (_, kwargs) in zip(places, self.calls, strict=True)]
        return Trunk(self.h_BTD[rows], calls)


def _rows(value: T, rows: Tensor, batch: int) -> T:
    """Take rows of every batch-first tensor inside ``value``; what all rows share (first size 1) stays whole."""
    found: object = value
    if isinstance(value, Tensor):
        found = value[rows] if value.dim() > 1 and value.shape[0] == batch else value
    elif isinstance(value, tuple):
        found = tuple(_rows(v, rows, batch) for v in value)
    elif isinstance(value, dict):
        found = {key: (_of_heads if key == "alibi" else _rows)(v, rows, batch) for key, v in value.items()}
    return cast(T, found)


def _of_rows(value: T, rows: Tensor, batch: int) -> T:
    """The same of an argument that stands in a place, which may have one number for each row (Xmod's languages)."""
    one_each = isinstance(value, Tensor) and value.dim() == 1 and len(value) == batch
    return cast(T, cast(Tensor, value)[rows]) if one_each else _rows(value, rows, batch)


def _of_heads(value: T, rows: Tensor, batch: int) -> T:
    """Take rows of an ALiBi tensor, whose first size is rows × heads in Bloom and Falcon."""
    if not isinstance(value, Tensor) or value.dim() > 3:
        return _rows(value, rows, batch)
    return value.unflatten(0, (batch, -1))[rows].flatten(0, 1)


class SplitModel:
    """A model cut below layer ``first``; the model itself is left as it is.

    Attributes:
        first, last: index of the lowest and of the highest upper layer.
        recompute: with autograd, whether upper layers are run again on the way back in place of being kept
            (gradient checkpointing): less memory, more time, the same numbers.

    Raises:
        UserError: the model has no such layer, or keeps its layers in an unknown place.
    """

    def __init__(self, model: nn.Module, first: int, recompute: bool = False) -> None:
        self.model, self.first, self.recompute = model, first, recompute
        self._layers = layers_of(model)
        self.last = len(self._layers) - 1
        if not 0 <= first < len(self._layers):
            raise UserError(f"layers: got {first}, allowed is 0 to {len(self._layers) - 1}")
        self.device = next(model.parameters()).device
        self._outputs = self._outputs_of_a_layer()

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
        stand_ins = [_StandIn(layer, self._outputs) for layer in self._layers[first:]]
        extra = {} if positions_BT is None else {"position_ids": positions_BT}
        with self._replaced([*self._layers[:first], *stand_ins]):
            stem_of(self.model)(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False, **extra)
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
            run = partial(functional_call, self._layers[index], weights.get(index, {}))
            if self.recompute and torch.is_grad_enabled():
                run = partial(checkpoint, run, use_reentrant=False, preserve_rng_state=False)  # nothing is drawn
            out = run((h_BTD, *args), kwargs)
            h_BTD = out[0] if isinstance(out, (tuple, list)) else out
            if index in shifts:
                h_BTD = h_BTD + shifts[index].to(h_BTD.dtype)
            yield index, h_BTD

    def logits(self, h_BTD: Tensor, ids_BT: Tensor) -> Tensor:
        """What a causal model's final norm and head make of the last layer's output: (B, T, V).

        Its own forward is run with that output in the place of its layers, so that scaling and capping stay its own.
        """
        with self._replaced([_StandIn(layer, self._outputs, h_BTD) for layer in self._layers]):
            out = self.model(input_ids=ids_BT, use_cache=False).logits
        assert isinstance(out, Tensor)
        return out

    @torch.no_grad()
    def keeps_texts_apart(self) -> bool:
        """Whether positions that restart keep packed texts apart: some architectures pass over them without a word.

        Two tokens after two others, with positions that restart, must come out as they do alone. Asked once per model.
        """
        if self.model in _APART:
            return _APART[self.model]
        ids_1T = torch.tensor([[3, 4, 5, 6]], device=self.device)
        positions_1T = torch.tensor([[0, 1, 0, 1]], device=self.device)
        with self._replaced(self._layers[: self.first + 1]):
            stem = stem_of(self.model)

            def last(ids_1T: Tensor, **extra: Tensor) -> Tensor:
                out = stem(input_ids=ids_1T, attention_mask=None, use_cache=False, **extra)[0]
                assert isinstance(out, Tensor)
                return out[:, -2:].float()

            joined, alone = last(ids_1T), last(ids_1T[:, 2:])
            try:
                packed = last(ids_1T, position_ids=positions_1T)
            except (TypeError, ValueError, RuntimeError, IndexError):  # it knows no such argument, or not in this way
                packed = joined
        _APART[self.model] = bool((packed - alone).norm() <= 0.1 * (joined - alone).norm())
        return _APART[self.model]

    @torch.no_grad()
    def _outputs_of_a_layer(self) -> int:
        """How many things a layer gives in a tuple, hidden states first; 0: these alone. Asked with one token, once.

        Raises UserError: the model runs a layer twice or not at all, or its hidden states are not (B, T, D).
        """
        layer, given = self._layers[self.first], list[Any]()
        with (
            layer.register_forward_hook(lambda _module, _inputs, out: given.append(out)),
            self._replaced(self._layers[: self.first + 1]),
        ):
            ids_BT = torch.zeros(1, 1, dtype=torch.long, device=self.device)
            stem_of(self.model)(input_ids=ids_BT, attention_mask=None, use_cache=False)
        kind, allowed = type(self.model).__name__, "allowed is a model whose layers each add to one stream, one by one"
        if len(given) != 1:
            raise UserError(f"model: {kind} runs layer {self.first} {len(given)} times; {allowed}")
        (out,) = given
        out = tuple(out) if isinstance(out, list) else out
        hidden = out[0] if isinstance(out, tuple) else out
        also = [x for x in out[1:] if isinstance(x, Tensor) and x.is_floating_point()] if isinstance(out, tuple) else []
        if not isinstance(hidden, Tensor) or hidden.dim() != 3 or any(x.dim() == 3 for x in also):
            raise UserError(f"model: the layers of {kind} hand on more than one stream; {allowed}")
        if hidden.shape[:2] != (1, 1):
            raise UserError(f"model: {kind} makes {hidden.shape[1]} positions of one token; allowed is one per token")
        return len(out) if isinstance(out, tuple) else 0

    @contextmanager
    def _replaced(self, layers: Iterable[nn.Module]) -> Iterator[None]:
        path = _layers(self.model)[0]
        body, name = self.model.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2]
        setattr(body, name, nn.ModuleList(layers))
        try:
            yield
        finally:
            setattr(body, name, self._layers)


def refuse_unknown_flow(skeleton: nn.Module) -> None:
    """Refuse a model that cannot be run in two pieces, asked of it without weights (UserError)."""
    try:
        SplitModel(skeleton, len(layers_of(skeleton)) - 1)
    except UserError:
        raise
    except Exception as error:  # some look at numbers, of which there are none
        log.debug("not asked without weights: %s", error)


class _StandIn(nn.Module):
    """Takes a layer's place: keeps what the model hands the layer, and gives the hidden states on, or others instead.

    It has the layer's attributes, because some models read them when they choose its mask.
    """

    hidden: Tensor
    call: Call

    def __init__(self, layer: nn.Module, outputs: int, given_BTD: Tensor | None = None) -> None:
        super().__init__()
        self._stands_for = (layer,)  # in a tuple, so that it is not registered as a submodule
        self._outputs, self._given = outputs, given_BTD

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        if name.startswith("_"):
            return super().__getattr__(name)
        return getattr(self._stands_for[0], name)

    def forward(self, hidden_states: Tensor, *args: object, **kwargs: object) -> object:
        self.hidden, self.call = hidden_states, (args, kwargs)
        out = hidden_states if self._given is None else self._given
        return (out, *[None] * (self._outputs - 1)) if self._outputs else out
