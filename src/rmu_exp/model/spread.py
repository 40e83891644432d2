"""One model over several GPUs, layer by layer (accelerate): where its parts lie, and where activations meet.

Parts compute where their weights are. What they give goes back to where the model's input is, so that whatever looks
at activations, or changes them, finds all of them on one device; keys and values stay with their layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from rmu_exp.model.split import layers_of
from rmu_exp.support.errors import UserError

Place = int | str
"""A GPU by its number, or accelerate's word for another place."""


def room(gpus: Sequence[int] | None = None) -> dict[int, int]:
    """GPU to the bytes of it that accelerate would use now; None: of every one that is visible.

    What torch holds of them without using it is given back first: accelerate counts it as taken.
    """
    from accelerate.utils import get_max_memory

    torch.cuda.empty_cache()
    return {
        place: size
        for place, size in get_max_memory().items()
        if isinstance(place, int) and (gpus is None or place in gpus)
    }


def device_map(skeleton: nn.Module, dtype: torch.dtype, free: Mapping[int, int]) -> dict[str, int]:
    """Name of each part to its GPU, as evenly as whole layers allow.

    Args:
        skeleton: on the meta device.
        free: GPU to the bytes that its weights may take.

    Raises UserError: the weights do not fit.
    """
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    whole = [*{type(layer).__name__ for layer in layers_of(skeleton)}]
    even: dict[Place, int] = get_balanced_memory(
        skeleton, dict(free), no_split_module_classes=whole, dtype=dtype, low_zero=False
    )
    share = {gpu: even[gpu] for gpu in free}
    found: dict[str, Place] = infer_auto_device_map(skeleton, dict(share), no_split_module_classes=whole, dtype=dtype)
    if elsewhere := [name for name, place in found.items() if place not in free]:
        size, total = sum(p.numel() for p in skeleton.parameters()) * dtype.itemsize / 1e9, sum(free.values()) / 1e9
        raise UserError(
            f"model.device_map: {size:.1f} GB of weights do not fit {len(free)} GPUs with {total:.1f} GB free "
            f"({elsewhere[0]} is left over); use more or larger GPUs, or a smaller model.dtype"
        )
    return {name: int(place) for name, place in found.items()}


def gather(model: nn.Module) -> None:
    """Let every part of a model that accelerate has spread give its output where its input was."""
    for module in model.modules():
        hook: Any = getattr(module, "_hf_hook", None)
        if hook is not None:
            hook.io_same_device = True
