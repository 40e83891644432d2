"""The Delta: the tensors that unlearning changed, and the control vectors they were steered by.

One safetensors file, with names as the checkpoint on disk has them. It knows nothing of training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rmu_exp.model.checkpoint import DTYPES, Checkpoint
from rmu_exp.model.parameters import TrainedTensor, on_disk
from rmu_exp.model.split import layers_of
from rmu_exp.support.errors import UserError
from rmu_exp.support.files import replace_atomic

CONTROL = "control_vectors"
FORMAT = "rmu_exp.delta.1"
KEY = "rmu_exp"


@dataclass
class Delta:
    """Changed tensors of one base model."""

    tensors: dict[str, Tensor]  # full name on disk to new value, in the base checkpoint's dtype
    control: Tensor | None = None  # forget targets c·u, (topics, hidden); None for methods without
    topics: list[str] = field(default_factory=list)  # names of control's rows
    base: dict[str, str] = field(default_factory=dict)  # ``name``, ``revision`` (may be empty), ``digest``

    @staticmethod
    def from_trained(
        trained: Sequence[TrainedTensor],
        values: Sequence[Tensor],
        control: Tensor | None,
        topics: Sequence[str],
        checkpoint: Checkpoint,
    ) -> Delta:
        """A Delta of trained values.

        Each value is rounded to the dtype that its tensor has on disk, so that what is judged is what an
        export holds.
        """
        places = checkpoint.places(t.name for t in trained)
        dtypes = {name: DTYPES[entry.dtype] for name, (_, entry) in places.items()}
        tensors = {
            t.name: v.detach().to("cpu", dtypes[t.name], copy=True) for t, v in zip(trained, values, strict=True)
        }
        kept = None if control is None else control.detach().cpu().clone()
        return Delta(tensors, kept, list(topics), checkpoint.about())

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all; the same Delta gives the same bytes."""
        tensors = {name: self.tensors[name].detach().cpu().contiguous() for name in sorted(self.tensors)}
        if self.control is not None:
            tensors[CONTROL] = self.control.detach().cpu().contiguous()
        about = json.dumps({"base": self.base, "format": FORMAT, "topics": self.topics}, sort_keys=True)
        # One key: the library writes several in no fixed order.
        replace_atomic(path, lambda temporary: save_file(tensors, temporary, {KEY: about}))

    def digest(self) -> str:
        """``sha256:…`` over the changed tensors' names, dtypes, shapes and bytes, in the order of their names."""
        total = hashlib.sha256()
        for name in sorted(self.tensors):
            value = self.tensors[name].detach().cpu().contiguous()
            total.update(f"{name}:{value.dtype}:{list(value.shape)}\n".encode())
            total.update(value.flatten().view(torch.uint8).numpy().tobytes())
        return f"sha256:{total.hexdigest()}"

    @staticmethod
    def load(path: Path) -> Delta:
        """Read a file written by :meth:`save`. Raises UserError: missing, damaged, or not a Delta."""
        try:
            with safe_open(str(path), "pt") as file:
                about = json.loads((file.metadata() or {})[KEY])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except FileNotFoundError as error:
            raise UserError(f"{path}: no such file; give a delta.safetensors of a run") from error
        except (KeyError, ValueError) as error:
            raise UserError(f"{path}: not a Delta; give a delta.safetensors of a run") from error
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: damaged or not a safetensors file ({error}); copy it again") from error
        control = tensors.pop(CONTROL, None)
        _check(path, about, tensors, control)
        return Delta(tensors, control, about["topics"], about["base"])

    def refuse_other_base(self, checkpoint: Checkpoint, key: str) -> None:
        """Refuse a checkpoint that the Delta was not made for: by content, or by commit where no content is at hand.

        Raises:
            UserError: its message begins with ``key``.
        """
        mine = checkpoint.about()
        known = [k for k in ("digest", "revision") if self.base.get(k) and mine[k]]
        if known and all(self.base[k] != mine[k] for k in known):
            was = f"{self._base()} ({self.base[known[0]]})"
            raise UserError(f"{key}: this Delta was made for {was}, not for {checkpoint.name} ({mine[known[0]]})")

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[nn.Module]:
        """The model with the Delta in it, in the model's dtype, inside the block; exactly the base again after it.

        Raises:
            UserError: a name or shape that the model does not have; the model is unchanged.
        """
        views = self._views(model)
        before = {name: view.clone() for name, view in views.items()}
        try:
            self.put(model)
            yield model
        finally:
            for name, view in views.items():
                view.copy_(before[name])

    def put(self, model: nn.Module) -> None:
        """Put the Delta into a model for good, in the model's dtype. Raises as :meth:`applied`."""
        for name, view in self._views(model).items():
            view.copy_(self.tensors[name])

    def _views(self, model: nn.Module) -> dict[str, Tensor]:
        """Each changed tensor's place in a model."""
        known, layers = on_disk(model), layers_of(model)
        views: dict[str, Tensor] = {}
        for name, value in self.tensors.items():
            if name not in known:
                raise UserError(f"delta: the model has no tensor {name}; it was made for {self._base()}")
            views[name] = known[name].view(layers[known[name].layer])
            if views[name].shape != value.shape:
                has, given = tuple(views[name].shape), tuple(value.shape)
                raise UserError(f"delta: {name} is {given}, the model has {has}; it was made for {self._base()}")
        return views

    def _base(self) -> str:
        return self.base.get("name") or "another model"


def _check(path: Path, about: object, tensors: dict[str, Tensor], control: Tensor | None) -> None:
    """Refuse a file whose description is not one of ours, or does not fit its tensors."""
    about = about if isinstance(about, dict) else {}
    if (given := about.get("format")) != FORMAT:
        raise UserError(f"{path}: format {given!r}, allowed is {FORMAT!r}; give a delta.safetensors of a run")
    topics, base = about.get("topics"), about.get("base")
    fits = isinstance(topics, list) and isinstance(base, dict) and bool(tensors)
    if fits and control is not None:
        fits = control.dim() == 2 and len(control) == len(topics or ())
    if not fits:
        raise UserError(f"{path}: its description does not fit its tensors; give a delta.safetensors of a run")
