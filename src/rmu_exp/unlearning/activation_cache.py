"""What the trials of a sweep share: activations that depend on neither steer nor alpha.

An entry is one safetensors file. It belongs to one model (weights and configuration), split, depth, dtype, device and
number of threads, and to the exact tokens of packed rows: what is found has the bytes that would be computed. Never
more than the budget lies on disk: other models' entries make room, longest unused first.
"""

from __future__ import annotations

import itertools
import logging
import os
import shutil
from collections.abc import Collection
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rmu_exp.data.batches import PackedRows
from rmu_exp.model.checkpoint import Checkpoint
from rmu_exp.model.split import SplitModel, Trunk
from rmu_exp.record.store import fingerprint
from rmu_exp.support.files import cache_path, replace_atomic

log = logging.getLogger("rmu_exp")
NAME = "h"  # of the tensor in an entry's file


class ActivationCache:
    """Takes from a folder what is there, and adds what is not.

    Args:
        folder: of the model, see :func:`shared`; None: nothing is kept, as in a run alone.
        room: bytes that may be added.
    """

    def __init__(self, folder: Path | None = None, room: int = 0) -> None:
        self.folder, self.room = folder, room

    def trunk(self, split: SplitModel, packed: PackedRows) -> Trunk:
        """What the layers below the first trained one make of rows, whose tensors are on the model's device."""
        known = self._take(packed, "trunk", split)
        positions_RT = None if packed.alone else packed.positions_RT
        trunk = split.trunk(packed.ids_RT, packed.mask_RT, positions_RT, known)
        if known is None:
            self._add(packed, "trunk", trunk.h_BTD)
        return trunk

    @torch.no_grad()
    def frozen(self, split: SplitModel, packed: PackedRows, trunk: Trunk, layers: Collection[int]) -> dict[int, Tensor]:
        """Index and output (R, T, D) of these upper layers of the frozen model; none above them is run."""
        known = {layer: h for layer in layers if (h := self._take(packed, layer, split)) is not None}
        if len(known) < len(set(layers)):
            outputs = itertools.islice(split.walk(trunk, {}), max(layers) - split.first + 1)
            known = {layer: h_RTD for layer, h_RTD in outputs if layer in layers}
            for layer, h_RTD in known.items():
                self._add(packed, layer, h_RTD)
        return known

    def _take(self, packed: PackedRows, what: str | int, split: SplitModel) -> Tensor | None:
        if self.folder is None:
            return None
        try:
            known = load_file(self.folder / f"{packed.digest}-{what}.safetensors")[NAME]
        except (OSError, SafetensorError):  # not there, or room was made for another model in this moment
            return None
        return known.to(split.device, copy=True)  # aligned as any other tensor: kernels may round differently otherwise

    def _add(self, packed: PackedRows, what: str | int, value: Tensor) -> None:
        if self.folder is None or value.nbytes > self.room:
            return
        file, kept = self.folder / f"{packed.digest}-{what}.safetensors", {NAME: value.detach().cpu().contiguous()}
        try:
            if not file.exists():
                replace_atomic(file, lambda temporary: save_file(kept, temporary))
                self.room -= file.stat().st_size
        except (OSError, SafetensorError) as error:
            self.room = 0
            log.warning("no more activations are kept: %s", error)


def shared(
    checkpoint: Checkpoint, first: int, depth: int, dtype: torch.dtype, device: str, budget: int
) -> ActivationCache:
    """The shared activations of a model, in the cache folder; nothing is shared when that cannot be written to.

    Args:
        first: the lowest trained layer.
        depth: how many layers are loaded.
        budget: bytes on disk, over all models.
    """
    place = torch.cuda.get_device_name(device) if device.startswith("cuda") else torch.backends.cpu.get_cpu_capability()
    root = cache_path() / "activations"
    folder = root / fingerprint(
        checkpoint.identity(),
        [first, depth, str(dtype)],
        [device.partition(":")[0], place, torch.get_num_threads()],
        [version(name) for name in ("rmu_exp", "torch", "transformers")],
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
        return ActivationCache(folder, _room(root, folder, budget))
    except OSError as error:
        log.warning("activations are not shared: %s", error)
        return ActivationCache()


def _room(root: Path, folder: Path, budget: int) -> int:
    """Bytes of the budget that are free for a model, after others' longest unused entries were taken away."""
    sizes = {f: sum(file.stat().st_size for file in f.iterdir()) for f in root.glob("*") if f.is_dir()}
    for oldest in sorted(sizes.keys() - {folder}, key=lambda f: f.stat().st_mtime):
        if sum(sizes.values()) > budget // 2:
            shutil.rmtree(oldest, ignore_errors=True)
            sizes.pop(oldest)
    return budget - sum(sizes.values())
