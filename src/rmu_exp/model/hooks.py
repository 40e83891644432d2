"""Activations of every layer, shown or changed. Axes: B rows, T positions, D hidden size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

from rmu_exp.model.split import attention_of, layers_of, mlp_of

BLOCK, ATTENTION, MLP, MIDDLE = "block", "attention", "mlp", "middle"
PLACES = (BLOCK, ATTENTION, MLP, MIDDLE)
Observer = Callable[[str, int, Tensor], None]
"""Called with a place, a layer's index and its activations (B, T, D)."""
Hook = Callable[..., object]


@contextmanager
def watching(model: nn.Module, seen: Observer, places: Sequence[str] = (BLOCK,)) -> Iterator[None]:
    """Show the activations of every forward pass: outputs of blocks, of attention and of MLPs, and the middle.

    The middle is the residual stream between attention and MLP. All are shown on the model's first device.
    """
    device = next(model.parameters()).device

    def show(place: str, index: int, h_BTD: Tensor) -> None:
        seen(place, index, h_BTD.to(device))

    with ExitStack() as hooks:
        for index, layer in enumerate(layers_of(model)):
            inside: dict[str, Tensor] = {}
            handles = [layer.register_forward_hook(_show(show, BLOCK, index))] if BLOCK in places else []
            if MIDDLE in places:
                handles.append(layer.register_forward_pre_hook(_keep(inside), with_kwargs=True))
                handles.append(_branch(layer).register_forward_hook(_middle(show, index, inside)))
            if ATTENTION in places:
                handles.append(attention_of(layer).register_forward_hook(_show(show, ATTENTION, index)))
            if MLP in places:
                handles.append(mlp_of(layer).register_forward_hook(_show(show, MLP, index)))
            for handle in handles:
                hooks.callback(handle.remove)
        yield


@contextmanager
def changing(model: nn.Module, changes: Mapping[int, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Put other activations (B, T, D) in the place of what layers give, inside the block: layer to how they change."""
    with ExitStack() as hooks:
        for index, change in changes.items():
            hooks.callback(layers_of(model)[index].register_forward_hook(_instead(change)).remove)
        yield


def _instead(change: Callable[[Tensor], Tensor]) -> Hook:
    def hook(_module: nn.Module, _inputs: object, out: object) -> object:
        changed = change(_first(out))
        return (changed, *out[1:]) if isinstance(out, tuple) else changed

    return hook


def _branch(layer: nn.Module) -> nn.Module:
    """What attention adds to the stream: its output, or the norm after it where there is one (Gemma, OLMo 2)."""
    after_both = hasattr(layer, "post_feedforward_layernorm")
    return layer.post_attention_layernorm if after_both else attention_of(layer)  # type: ignore[return-value]


def _first(out: object) -> Tensor:
    tensor = out[0] if isinstance(out, tuple) else out
    assert isinstance(tensor, Tensor)
    return tensor


def _show(seen: Observer, place: str, index: int) -> Hook:
    return lambda _module, _inputs, out: seen(place, index, _first(out))


def _keep(inside: dict[str, Tensor]) -> Hook:
    def hook(_module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        inside["h"] = args[0] if args else kwargs["hidden_states"]

    return hook


def _middle(seen: Observer, index: int, inside: dict[str, Tensor]) -> Hook:
    return lambda _module, _inputs, out: seen(MIDDLE, index, inside["h"].to(_first(out).device) + _first(out))
