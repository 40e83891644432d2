"""A full checkpoint from a base and a Delta, without ever holding the model.

A safetensors file is a table of byte ranges, so the base's files are copied as they are and the changed
tensors' ranges are overwritten in the copies: memory stays at the largest changed tensor.
"""

from __future__ import annotations

import json
import shutil
import struct
import tempfile
from pathlib import Path
from typing import Any

import torch

from rmu_exp.errors import RunError, UserError
from rmu_exp.model.checkpoint import Checkpoint
from rmu_exp.model.delta import Delta

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
LEFT_OUT = (".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx")  # other copies of the base's weights


def export(checkpoint: Checkpoint, delta: Delta, out: Path, card: str | None = None) -> Path:
    """Write base + Delta as an ordinary Hugging Face folder; the folder appears only when it is whole.

    Args:
        card: text of the README.md (the model card) to go with it.

    Raises:
        UserError: ``out`` exists, or the Delta belongs to another model.
        RunError: the disk cannot take it.
    """
    if out.exists():
        raise UserError(f"export: {out} exists already; choose another folder or move it away")
    places = {name: (file, entry) for file in checkpoint.weight_files() for name, entry in header(file).items()}
    unknown = [name for name in delta.tensors if name not in places]
    if unknown:
        raise UserError(f"export: {checkpoint.name} has no tensor {unknown[0]}; this Delta belongs to another model")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as name:
            folder = Path(name) / "model"
            folder.mkdir()
            for file in sorted(checkpoint.folder.iterdir()):
                if file.is_file() and file.suffix not in LEFT_OUT and file.name != "README.md":
                    shutil.copyfile(file, folder / file.name)
            for tensor, value in delta.tensors.items():
                file, entry = places[tensor]
                _overwrite(folder / file.name, tensor, entry, value)
            if card:
                (folder / "README.md").write_text(card, encoding="utf-8")
            folder.rename(out)
    except OSError as error:
        raise RunError(f"export: {out} cannot be written ({error}); nothing was left there") from error
    return out


def header(file: Path) -> dict[str, dict[str, Any]]:
    """Name to ``dtype``, ``shape`` and ``offsets`` (first and last byte in the file) of a safetensors file."""
    with file.open("rb") as handle:
        (length,) = struct.unpack("<Q", handle.read(8))
        table = json.loads(handle.read(length))
    table.pop("__metadata__", None)
    for entry in table.values():
        first, last = entry.pop("data_offsets")
        entry["offsets"] = (8 + length + first, 8 + length + last)
    return table


def _overwrite(file: Path, name: str, entry: dict[str, Any], value: torch.Tensor) -> None:
    if list(value.shape) != entry["shape"] or entry["dtype"] not in DTYPES:
        raise UserError(
            f"export: {name} is {entry['dtype']} {entry['shape']} in the base and {list(value.shape)} in the Delta"
        )
    raw = value.detach().cpu().to(DTYPES[entry["dtype"]]).contiguous().view(torch.uint8).numpy().tobytes()
    first, last = entry["offsets"]
    if len(raw) != last - first:
        raise UserError(f"export: {name} has {last - first} bytes in the base and {len(raw)} in the Delta")
    with file.open("r+b") as handle:
        handle.seek(first)
        handle.write(raw)
