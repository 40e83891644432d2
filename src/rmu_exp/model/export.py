"""A full checkpoint from a base and a Delta, without ever holding the model.

A safetensors file is a table of byte ranges, so the base's files are copied as they are and the changed
tensors' ranges are overwritten in the copies: memory stays at the largest changed tensor.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from rmu_exp.model import weight_files
from rmu_exp.model.checkpoint import DTYPES, Checkpoint
from rmu_exp.model.delta import Delta
from rmu_exp.model.hub_snapshot import LEGAL, SMALL
from rmu_exp.support.errors import RunError, UserError

Place = tuple[Path, weight_files.Entry]


def export(checkpoint: Checkpoint, delta: Delta, out: Path, card: str | None = None) -> Path:
    """Write base + Delta as an ordinary Hugging Face folder; the folder appears only when it is whole.

    Every tensor keeps the base's dtype, every file its name; a hub model is downloaded in full first.

    Args:
        card: text of the model card, README.md; None: none.

    Raises:
        UserError: ``out`` exists, or the Delta belongs to another model.
        RunError: the disk cannot take it, or a download failed.
    """
    if out.exists():
        raise UserError(f"export: {out} exists already; choose another folder or move it away")
    delta.refuse_other_base(checkpoint, "export")
    checkpoint.fetch()
    places = checkpoint.places(delta.tensors)
    for name, value in delta.tensors.items():
        _check_fits(checkpoint, name, value, places)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _check_space(out.parent, checkpoint.weight_files())
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as name:
            folder = Path(name) / "model"
            folder.mkdir()
            _write(checkpoint, delta.tensors, places, folder, card)
            folder.rename(out)
    except OSError as error:
        raise RunError(f"export: {out} cannot be written ({error}); nothing was left there") from error
    return out


def _check_fits(checkpoint: Checkpoint, name: str, value: Tensor, places: dict[str, Place]) -> None:
    if name not in places:
        raise UserError(f"export: {checkpoint.name} has no tensor {name}; this Delta belongs to another model")
    entry = places[name][1]
    if tuple(value.shape) != entry.shape or entry.dtype not in DTYPES:
        has = f"{entry.dtype} {list(entry.shape)}"
        raise UserError(f"export: {name} is {has} in {checkpoint.name} and {list(value.shape)} in the Delta")


def _check_space(folder: Path, files: Iterable[Path]) -> None:
    wanted, free = sum(file.stat().st_size for file in files), shutil.disk_usage(folder).free
    if wanted > free:
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / "model"))
        has = f"{free / 1e9:.1f} GB free, the model takes {wanted / 1e9:.1f} GB"
        raise RunError(f"export: {folder} has {has}") from full


def _write(
    checkpoint: Checkpoint, changes: dict[str, Tensor], places: dict[str, Place], folder: Path, card: str | None
) -> None:
    shards = {file.name for file in checkpoint.weight_files()}
    for file in sorted(checkpoint.folder.iterdir()):
        small = file.name.endswith((*SMALL, ".py")) or file.name.startswith(LEGAL)
        pickles_index = file.name.endswith(".bin.index.json")
        if file.is_file() and (file.name in shards or (small and not pickles_index)):
            shutil.copyfile(file, folder / file.name)
    for name, value in changes.items():
        file, entry = places[name]
        raw = value.detach().cpu().to(DTYPES[entry.dtype]).contiguous().flatten().view(torch.uint8)
        with (folder / file.name).open("r+b") as handle:
            handle.seek(entry.begin)
            handle.write(raw.numpy().tobytes())
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")
    for file in folder.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
