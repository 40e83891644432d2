"""What a layer's parameters are called in the checkpoint on disk, and which part of a parameter each tensor there is.

transformers loads some checkpoints into other parameters than it stores: the experts of a mixture become one tensor per
layer, modules have other names. Its own table of these conversions, which saving undoes, is what is read here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

Index = tuple[int | slice, ...]
Place = tuple[str, str, Index | None]
"""Where the layers are on disk; an in-memory parameter by its name inside the layer; which slice of it (None: all)."""
EXPERT = re.compile(r"^(?P<block>.*\bexperts)\.(?P<expert>\d+)\.(?P<part>.*)$")
ORDER = ("w1", "w2", "w3", "gate_proj", "up_proj", "down_proj")  # of one expert's tensors in published checkpoints
ROUTER = re.compile(r"\bgate\.weight$")
_TABLES: WeakKeyDictionary[nn.Module, list[Any]] = WeakKeyDictionary()
_KNOWN: WeakKeyDictionary[nn.Module, dict[tuple[str, torch.Size], dict[str, Place]]] = WeakKeyDictionary()


def places(model: nn.Module, path: str, layer: int, shapes: Mapping[str, torch.Size]) -> dict[str, Place]:
    """Name inside the layer on disk to where it is in memory, in published order.

    What is on disk in a form that is no slice of one parameter is left out: it can be neither trained nor saved alone.

    Args:
        path: where the layers are in the causal model, such as ``model.layers``.
        layer: the index of the layer.
        shapes: name inside the layer in memory to its shape.
    """
    known = _KNOWN.setdefault(model, {})
    found: dict[str, Place] = {}
    for name, shape in shapes.items():
        if (name, shape) not in known:
            known[name, shape] = _places(model, path, layer, name, shape)
        found |= known[name, shape]
    return _in_published_order(found)


def conversions(model: nn.Module) -> list[Any]:
    """transformers' table for a causal model, or the one that was noted for a part of it (see :func:`note`)."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import PrefixChange

    if model in _TABLES:
        return _TABLES[model]
    every = get_model_conversion_mapping(cast(Any, model), add_legacy=False)
    return [step for step in every if not isinstance(step, PrefixChange)]


def note(part: nn.Module, table: list[Any]) -> None:
    """Note the table of the causal model that a part without its head is of: it has another of its own."""
    _TABLES[part] = table


def _places(model: nn.Module, path: str, layer: int, name: str, shape: torch.Size) -> dict[str, Place]:
    saved = _saved(model, f"{path}.{layer}.{name}", torch.empty(shape, device="meta"))
    cut = {key: key.partition(f".{layer}.") for key in saved}
    inside = {rest: saved[key] for key, (_, _, rest) in cut.items()}
    stem, *others = {stem for stem, _, _ in cut.values()} or {""}
    if others or "" in inside:
        return {}
    if len(inside) == 1 and next(iter(inside.values())).shape == shape:
        return dict.fromkeys(inside, (stem, name, None))
    return {rest: (stem, name, index) for rest, index in _of_experts(shape, inside).items()}


def _saved(model: nn.Module, name: str, value: Tensor) -> dict[str, Tensor]:
    """What transformers writes for one parameter; empty: it needs others beside it."""
    from transformers.core_model_loading import revert_weight_conversion

    try:
        kept = conversions(model)
        if not kept:
            return {name: value}
        stand_in: Any = SimpleNamespace(_weight_conversions=kept, config=model.config)
        return dict(revert_weight_conversion(stand_in, {name: value}))
    except Exception:  # its converters raise what they like when a partner is missing
        return {}


def _of_experts(shape: torch.Size, saved: Mapping[str, Tensor]) -> dict[str, Index]:
    """Slices of a parameter of all experts, (experts, rows, columns): by expert, then by part, rows in order."""
    parts: dict[str, dict[int, str]] = {}
    rows: dict[str, int] = {}
    for key, value in saved.items():
        match = EXPERT.match(key)
        if match is None or value.dim() != 2 or len(shape) != 3 or value.shape[1] != shape[2]:
            return {}
        parts.setdefault(match["part"], {})[int(match["expert"])] = key
        rows[match["part"]] = value.shape[0]
    if sum(rows.values()) != shape[1] or any(len(own) != shape[0] for own in parts.values()):
        return {}
    found: dict[str, Index] = {}
    first = 0
    for part, own in parts.items():
        which = slice(first, first + rows[part])
        found |= {key: (e,) if len(parts) == 1 else (e, which) for e, key in own.items()}
        first += rows[part]
    return found


def _in_published_order(found: Mapping[str, Place]) -> dict[str, Place]:
    """Router and experts come first in their block, one expert after the other."""
    experts = sorted((name for name in found if EXPERT.match(name)), key=_rank)
    if not experts:
        return dict(found)
    match = EXPERT.match(experts[0])
    assert match is not None
    block = match["block"].removesuffix("experts")
    names = [*_routers(found, block), *experts]
    ordered: dict[str, Place] = {}
    for name in found:
        if name.startswith(block):
            ordered |= {first: found[first] for first in names}
        ordered.setdefault(name, found[name])
    return ordered


def _routers(names: Iterable[str], block: str) -> Sequence[str]:
    return [name for name in names if name.startswith(block) and ROUTER.fullmatch(name.removeprefix(block))]


def _rank(name: str) -> tuple[int, int]:
    match = EXPERT.match(name)
    assert match is not None
    part = match["part"].split(".")[0]
    return int(match["expert"]), ORDER.index(part) if part in ORDER else len(ORDER)
