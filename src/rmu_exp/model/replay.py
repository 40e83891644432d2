"""A layer run twice with different weights: what comes before the first of them is computed once.

In the lowest trained layer attention and most of the MLP give the updated and the frozen model the same, because
nothing that was trained has been read yet. Their outputs are kept from the first run and handed out in the second.
This module knows modules and the names of their parameters; it knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

Memo = dict[str, list[Any]]
"""Module name to its outputs in the order of its calls, as far as no replaced weight has reached them."""


@contextmanager
def recording(layer: nn.Module, replaced: Collection[str], memo: Memo) -> Iterator[None]:
    """Keep, for the time of one call of the layer, what its modules give before a replaced weight is used.

    Args:
        replaced: names inside the layer of the parameters that the two runs have different values of.
        memo: filled; left empty when a module that holds one of them was not called as a module.
    """
    owners = {name.rpartition(".")[0] for name in replaced}
    started: set[str] = set()

    def kept(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            out = forward(*args, **kwargs)
            if not started:
                memo.setdefault(name, []).append(out)
            return out

        return run

    def noted(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            started.add(name)
            return forward(*args, **kwargs)

        return run

    modules = dict(layer.named_modules())
    with _forwards(layer, dict.fromkeys(_free(layer, owners), kept) | {o: noted for o in owners if o in modules}):
        yield
    if started != owners:
        memo.clear()


@contextmanager
def replaying(layer: nn.Module, memo: Memo) -> Iterator[None]:
    """Hand out, for the time of one call of the layer, what was kept."""

    def answered(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        left = iter(memo[name])

        def run(*args: Any, **kwargs: Any) -> Any:
            try:
                return next(left)
            except StopIteration:
                return forward(*args, **kwargs)

        return run

    with _forwards(layer, dict.fromkeys(memo, answered)):
        yield


def _free(module: nn.Module, owners: Collection[str], prefix: str = "") -> Iterator[str]:
    """The outermost modules that hold no replaced weight."""
    for name, child in module.named_children():
        full = prefix + name
        if not any(f"{owner}.".startswith(f"{full}.") for owner in owners):
            yield full
        elif full not in owners:
            yield from _free(child, owners, f"{full}.")


@contextmanager
def _forwards(layer: nn.Module, wrappers: dict[str, Callable[..., Callable[..., Any]]]) -> Iterator[None]:
    """Other forward functions on some modules of the layer, inside the block."""
    before: list[tuple[dict[str, Any], Any]] = []
    try:
        for name, wrap in wrappers.items():
            module = layer.get_submodule(name)
            own = vars(module)
            before.append((own, own.get("forward")))
            own["forward"] = wrap(name, module.forward)
        yield
    finally:
        for own, forward in reversed(before):
            if forward is None:
                del own["forward"]
            else:
                own["forward"] = forward
