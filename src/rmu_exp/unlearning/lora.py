"""LoRA adapters by peft on a model's matrices, trained in their place and merged into the Delta.

An adapter starts at nothing and the model in memory is never changed: it is the frozen model all along.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rmu_exp.model.parameters import TrainedTensor
from rmu_exp.model.split import layers_of
from rmu_exp.support.errors import UserError

WEIGHT = ".weight"
ADAPTER = "default"


def matrices(model: nn.Module, trained: Sequence[TrainedTensor], key: str = "layers.rank") -> list[TrainedTensor]:
    """Those of the named tensors that are the weight of a linear module; ``key``: the setting that asks for it.

    Raises:
        UserError: there are none, or one is an expert of a fused mixture.
    """
    layers = layers_of(model)
    fused = [t.name for t in trained if t.index is not None]
    if fused:
        raise UserError(f"{key}: {fused[0]} is part of a fused tensor; this needs matrices of their own")
    linear = [
        t
        for t in trained
        if t.parameter.endswith(WEIGHT)
        and isinstance(layers[t.layer].get_submodule(t.parameter.removesuffix(WEIGHT)), nn.Linear)
    ]
    if not linear:
        raise UserError(f"{key}: none of {', '.join(t.name for t in trained[:3])} is a linear module's weight")
    return linear


class Adapters:
    """Adapters on some matrices of a model.

    Args:
        on: the matrices, as :func:`matrices` gives them.
        seed: of the adapters' first values.

    Attributes:
        trained: the adapters' own tensors, to be trained.
    """

    def __init__(self, model: nn.Module, on: Sequence[TrainedTensor], rank: int, alpha: int, seed: int) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        self.on, self.layers = list(on), layers_of(model)
        chosen = {id(self._module(t)) for t in on}
        names = [name for name, module in model.named_modules() if id(module) in chosen]
        config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=names)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inject_adapter_in_model(config, model, adapter_name=ADAPTER)
        model.eval().requires_grad_(False)
        self.trained = [
            TrainedTensor(t.layer, t.name, f"{t.parameter.removesuffix(WEIGHT)}.{half}.{ADAPTER}.weight")
            for t in on
            for half in ("lora_A", "lora_B")
        ]

    @torch.no_grad()
    def merged(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Each matrix with its trained adapter added, in fp32; the model is left as it is."""
        found = []
        for i, t in enumerate(self.on):
            module = self._module(t)
            for half, value in zip(("lora_A", "lora_B"), values[2 * i : 2 * i + 2], strict=True):
                getattr(module, half)[ADAPTER].weight.copy_(value)
            found.append(module.base_layer.weight.float() + module.get_delta_weight(ADAPTER).float())
            module.lora_B[ADAPTER].weight.zero_()
        return found

    def _module(self, t: TrainedTensor) -> Any:
        """peft's linear module with an adapter."""
        return self.layers[t.layer].get_submodule(t.parameter.removesuffix(WEIGHT))
