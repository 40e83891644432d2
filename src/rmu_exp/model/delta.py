"""The Delta: the tensors that unlearning changed, and the control vectors they were steered by.

One safetensors file with names as the checkpoint on disk has them. It knows nothing of training.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from rmu_exp.errors import UserError
from rmu_exp.paths import write_atomic

CONTROL = "control_vectors"
FORMAT = "rmu_exp.delta.1"


@dataclass
class Delta:
    """Changed tensors of one base model.

    Attributes:
        tensors: full name on disk to new value, in the base checkpoint's dtype.
        control: forget targets c·u, (topics, hidden), or None for methods without.
        topics: names of control's rows.
        base: what it belongs to: ``name``, ``revision``, ``digest``.
    """

    tensors: dict[str, Tensor]
    control: Tensor | None = None
    topics: list[str] = field(default_factory=list)
    base: dict[str, str] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all; the same Delta gives the same bytes."""
        tensors = {name: self.tensors[name].detach().cpu().contiguous() for name in sorted(self.tensors)}
        if self.control is not None:
            tensors[CONTROL] = self.control.detach().cpu().contiguous()
        about = {"base": self.base, "format": FORMAT, "topics": self.topics}
        write_atomic(path, save(tensors, {"rmu_exp": json.dumps(about, sort_keys=True)}))

    @staticmethod
    def load(path: Path) -> Delta:
        """Read a file written by :meth:`save`.

        Raises:
            UserError: missing, damaged, or not a Delta.
        """
        try:
            with safe_open(str(path), "pt") as file:
                about = json.loads((file.metadata() or {})["rmu_exp"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise UserError(f"{path}: not a readable Delta ({error}); give a delta.safetensors of a run") from error
        control = tensors.pop(CONTROL, None)
        return Delta(tensors, control, about["topics"], about["base"])

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[nn.Module]:
        """The model with the Delta in it, inside the block; exactly the base again behind it."""
        originals = self.apply(model)
        try:
            yield model
        finally:
            Delta(originals).apply(model)

    @torch.no_grad()
    def apply(self, model: nn.Module) -> dict[str, Tensor]:
        """Put the tensors into a full model in memory; returns what was there.

        Raises:
            UserError: a name or shape that the model does not have.
        """
        known = dict(model.named_parameters())
        originals: dict[str, Tensor] = {}
        for name, value in self.tensors.items():
            if name not in known or known[name].shape != value.shape:
                has = tuple(known[name].shape) if name in known else "no such tensor"
                raise UserError(f"delta: {name} of shape {tuple(value.shape)} does not fit the model ({has})")
        for name, value in self.tensors.items():
            originals[name] = known[name].detach().clone()
            known[name].copy_(value)
        return originals
