"""What the trials of a sweep share: activations that depend on neither steer nor alpha.

The layers below the first trained one, and the frozen model's upper layers, give the same for the same texts whatever
is being learnt. A trial that computes them leaves them on disk, and later ones, in the same process or another, map
them into memory. The contract:

* An entry belongs to one model (weights and configuration), cut, depth, dtype, device and number of threads, and to the
  exact tokens of a pass: what is found has the bytes that would be computed, and a result never depends on it.
* A trial's entries appear whole at its end or not at all; trials that run at the same time do not share.
* Never more than the budget lies on disk. Other models' entries make room, longest unused first; when there is none
  left, further entries are computed each time.

It knows passes and activations; it knows nothing of losses.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rmu_exp.data.batches import PackedRows
from rmu_exp.model.checkpoint import DTYPES, Checkpoint
from rmu_exp.model.split import SplitModel, Trunk
from rmu_exp.support.files import cache_path, write_atomic

log = logging.getLogger("rmu_exp")
NAMES = {dtype: name for name, dtype in DTYPES.items()}
ALIGN = 64  # bytes


class ActivationCache:
    """Keeps nothing: what a run alone uses."""

    def trunk(self, split: SplitModel, run: PackedRows) -> Trunk:
        """What the layers below the first trained one make of a pass, whose tensors are on the model's device."""
        return split.trunk(run.ids_RT, run.mask_RT, run.positions_RT)

    @torch.no_grad()
    def frozen(self, split: SplitModel, run: PackedRows, trunk: Trunk, layers: Collection[int]) -> dict[int, Tensor]:
        """Index and output (R, T, D) of these upper layers of the frozen model; none above them is run."""
        outputs = itertools.islice(split.walk(trunk, {}), max(layers) - split.first + 1)
        return {layer: h_RTD for layer, h_RTD in outputs if layer in layers}


class Shared(ActivationCache):
    """Takes from a folder what is there, and notes what is not.

    Args:
        folder: of the model, see :func:`shared`.
        room: bytes that may be added.

    Attributes:
        known: what was there, mapped into memory.
        found, added: how often something was taken, and how many entries are new.
    """

    def __init__(self, folder: Path, room: int) -> None:
        self.folder, self.room = folder, room
        self.known: dict[str, Tensor] = {}
        for index in sorted(folder.glob("*.json")):
            self.known |= _mapped(index)
        self.found = self.added = 0
        self._index: dict[str, Any] = {}
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, prefix=".writing-")
        self._file, self._name = os.fdopen(handle, "wb", buffering=0), Path(name)

    def trunk(self, split: SplitModel, run: PackedRows) -> Trunk:
        """As :meth:`ActivationCache.trunk`."""
        key = f"{run.digest}/trunk"
        if (known := self._take(key, split)) is not None:
            return split.trunk(run.ids_RT, run.mask_RT, run.positions_RT, known)
        trunk = super().trunk(split, run)
        self._put(key, trunk.h_BTD)
        return trunk

    def frozen(self, split: SplitModel, run: PackedRows, trunk: Trunk, layers: Collection[int]) -> dict[int, Tensor]:
        """As :meth:`ActivationCache.frozen`."""
        keys = {layer: f"{run.digest}/{layer}" for layer in layers}
        known = {layer: self._take(key, split) for layer, key in keys.items()}
        found = {layer: h for layer, h in known.items() if h is not None}
        if len(found) == len(keys):
            return found
        computed = super().frozen(split, run, trunk, layers)
        for layer, key in keys.items():
            self._put(key, computed[layer])
        return computed

    def _take(self, key: str, split: SplitModel) -> Tensor | None:
        known = self.known.get(key)
        self.found += known is not None
        return None if known is None else known.to(split.device)

    def _put(self, key: str, value: Tensor) -> None:
        raw = value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
        padded = -(-len(raw) // ALIGN) * ALIGN
        if key in self.known or key in self._index or self._file.tell() + padded > self.room:
            return
        start = self._file.tell()
        try:
            if self._file.write(raw.ljust(padded, b"\0")) < padded:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self.room = 0
            log.warning("no more activations are kept: %s", error)
            return
        self._index[key] = [start, list(value.shape), NAMES[value.dtype]]
        self.added += 1

    def publish(self) -> None:
        """Let later trials see what this one has noted, if the disk takes it."""
        data = self._name.with_name(f"{self._name.name.removeprefix('.writing-')}.bin")
        try:
            os.fsync(self._file.fileno())
            self._file.close()
            if self._index:
                self._name.replace(data)
                write_atomic(data.with_suffix(".json"), json.dumps(self._index))
        except OSError as error:
            with suppress(OSError):
                data.unlink(missing_ok=True)
            if self.room:
                log.warning("the activations are not kept: %s", error)
        self.discard()

    def discard(self) -> None:
        """Forget what this one has noted."""
        with suppress(OSError):
            self._file.close()
            self._name.unlink(missing_ok=True)


@contextmanager
def shared(
    checkpoint: Checkpoint, first: int, depth: int, dtype: torch.dtype, device: str, budget: int
) -> Iterator[ActivationCache]:
    """The shared activations of a model, in the cache folder; nothing is shared when that cannot be written to.

    Args:
        first: the lowest trained layer.
        depth: how many layers are loaded.
        budget: bytes on disk, over all models.
    """
    place = torch.cuda.get_device_name(device) if device.startswith("cuda") else torch.backends.cpu.get_cpu_capability()
    what = {
        "model": checkpoint.identity(),
        "cut": [first, depth],
        "dtype": str(dtype),
        "device": [device.partition(":")[0], place, torch.get_num_threads()],
        "versions": [version(name) for name in ("rmu_exp", "torch", "transformers")],
    }
    root = cache_path() / "activations"
    folder = root / hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
    try:
        kept = Shared(folder, _room(root, folder, budget))
        os.utime(folder)
    except OSError as error:
        log.warning("activations are not shared: %s", error)
        yield ActivationCache()
        return
    try:
        yield kept
    except BaseException:
        kept.discard()
        raise
    kept.publish()


def _mapped(index: Path) -> dict[str, Tensor]:
    """The tensors of one file, mapped into memory; changing them would not change the file."""
    entries, data = json.loads(index.read_text(encoding="utf-8")), index.with_suffix(".bin")
    try:
        whole = torch.from_file(str(data), shared=False, size=data.stat().st_size, dtype=torch.uint8)
    except (OSError, RuntimeError):  # made room for another model in this moment
        return {}
    tensors = {}
    for key, (start, shape, name) in entries.items():
        size = torch.Size(shape).numel() * DTYPES[name].itemsize
        tensors[key] = whole[start : start + size].view(DTYPES[name]).view(shape)
    return tensors


def _room(root: Path, folder: Path, budget: int) -> int:
    """Bytes of the budget that are free for a model, after others' longest unused entries were taken away."""
    sizes = {f: sum(file.stat().st_size for file in f.iterdir()) for f in root.glob("*") if f.is_dir()}
    others = sorted((f for f in sizes if f != folder), key=lambda f: f.stat().st_mtime)
    for oldest in others:
        if sum(sizes.values()) <= budget // 2:
            break
        shutil.rmtree(oldest, ignore_errors=True)
        sizes.pop(oldest)
    return budget - sum(sizes.values())
