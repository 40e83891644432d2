"""What the trials of a sweep that run in one process load once: layers and tokenized texts.

One thing of each kind is kept, the newest. Activations are kept on disk for trials in other processes too:
:mod:`rmu_exp.unlearn.activation_cache`. This module knows nothing of what it keeps, but that a model must be as it was
loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from torch import nn

from rmu_exp.settings import Share

T = TypeVar("T")

_held: dict[str, tuple[Any, Any, Any]] = {}


def wanted(share: Share) -> bool:
    """Whether this run shares: by its setting, or because it is one of a sweep."""
    if share.when == "auto":
        return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    return share.when == "always"


def once(kind: str, key: object, make: Callable[[], T]) -> T:
    """What ``make`` gives, made again only if the last thing of this kind had another key (compared) or has changed."""
    known = _held.get(kind)
    if known is None or known[0] != key or known[2] != _marks(known[1]):
        _held.pop(kind, None)
        del known  # before the next is loaded: both may not fit
        made = make()
        _held[kind] = key, made, _marks(made)
    return _held[kind][1]


def forget() -> None:
    """Let go of everything."""
    _held.clear()


def _marks(thing: object) -> Any:
    """A model's tensors by name: other modules put into it, as adapters are, make another model of it."""
    return [(name, id(p)) for name, p in thing.named_parameters()] if isinstance(thing, nn.Module) else None
