"""The weight files of a checkpoint folder: which there are, what is in them, whether they are whole.

Everything here reads headers and indices only, never a tensor. Light to import.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from rmu_exp.support.errors import UserError
from rmu_exp.support.files import cache_path, write_atomic

CONFIG = "config.json"
ADAPTER = "adapter_config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth")
LAYER = re.compile(r"(?:^|\.)(?:layers|h)\.(\d+)\.")
BESIDE = re.compile(r"vision|visual|audio|image")  # towers of a multimodal model, which have layers of their own
ABOVE = re.compile(r"^(?:lm_head|embed_out)\.|(?:^|\.)(?:norm|final_layer_norm|ln_f)\.(?:weight|bias)$")


@dataclass(frozen=True)
class Entry:
    """A tensor in a safetensors file."""

    dtype: str  # as the format spells it, such as ``BF16``
    shape: tuple[int, ...]
    begin: int  # its first byte in the file
    end: int  # the byte after its last


def check_folder(folder: Path, key: str) -> None:
    """Refuse a folder that is no checkpoint in Hugging Face's format with whole safetensors weights.

    Raises UserError that begins with ``key``, the setting that named the folder.
    """
    wanted = "give a checkpoint folder in Hugging Face's format"
    if not folder.is_dir():
        raise UserError(f"{key}: {folder} is not a folder; {wanted}")
    if not (folder / CONFIG).is_file():
        adapter = (folder / ADAPTER).is_file()
        hint = "it holds an adapter: merge it into its base model first" if adapter else wanted
        raise UserError(f"{key}: {folder} has no {CONFIG}; {hint}")
    if (folder / ADAPTER).is_file():
        raise UserError(
            f"{key}: {folder} holds an adapter ({ADAPTER}) beside the model, which transformers would load with it; "
            "merge it into the model, or move the adapter's files elsewhere"
        )
    for name in file_names(folder, key):
        if not (folder / name).is_file():
            raise UserError(f"{key}: {folder / name} is named in {INDEX} but missing; copy or download it again")
        header(folder / name)


def file_names(folder: Path, key: str) -> list[str]:
    """Names of the weight files, there or not. Raises UserError: no safetensors weights, or a damaged index."""
    table = weight_map(folder)
    if table is not None:
        return sorted(set(table.values()))
    if (folder / SINGLE).is_file():
        return [SINGLE]
    raise no_safetensors(f"{key}: {folder}", [file.name for file in folder.iterdir()])


def no_safetensors(where: str, names: Iterable[str]) -> UserError:
    """The refusal of weights in any other format than safetensors."""
    pickled = any(name.endswith(PICKLED) for name in names)
    other = " (only pickled weights, which are never loaded)" if pickled else ""
    return UserError(f"{where} has no {SINGLE} and no {INDEX}{other}; give a checkpoint with safetensors weights")


def weight_map(folder: Path) -> dict[str, str] | None:
    """Tensor name to file name from the index; None when there is no index. Raises UserError: the index is damaged."""
    index = folder / INDEX
    if not index.is_file():
        return None
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(v, str) for v in table.values()):
        raise UserError(f"{index}: damaged (no weight_map); copy or download it again")
    if any("/" in name or "\\" in name for name in table.values()):
        raise UserError(f"{index}: names a file outside its folder; get this checkpoint from a source you trust")
    return table


def needed(table: Mapping[str, str], depth: int | None) -> dict[str, str]:
    """The part of a weight map that a model of the first ``depth`` layers reads; None: all of it.

    Without the head and the final norm, which such a model does not have.
    """
    if depth is None:
        return dict(table)
    layers = {name: None if BESIDE.search(name) else LAYER.search(name) for name in table}
    kept = {name for name, layer in layers.items() if (int(layer[1]) < depth if layer else not ABOVE.search(name))}
    return {name: file for name, file in table.items() if name in kept}


def header(file: Path) -> dict[str, Entry]:
    """The tensors of a safetensors file, by name. Raises UserError: it is cut off, damaged or unreadable."""
    try:
        with safe_open(str(file), "np"):
            pass
        with file.open("rb") as handle:
            start = 8 + int.from_bytes(handle.read(8), "little")
            table = json.loads(handle.read(start - 8))
    except SafetensorError as error:
        raise UserError(f"{file}: damaged or cut off ({error}); copy or download it again") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error})") from error
    table.pop("__metadata__", None)
    places = {name: [start + offset for offset in raw["data_offsets"]] for name, raw in table.items()}
    return {name: Entry(raw["dtype"], tuple(raw["shape"]), *places[name]) for name, raw in table.items()}


def same_bytes(one: tuple[Path, Entry], other: tuple[Path, Entry], chunk: int = 2**24) -> bool:
    """Whether two tensors in files are the same, of the same dtype and shape; ``chunk``: bytes read at a time."""
    (file, mine), (its_file, its) = one, other
    if (mine.dtype, mine.shape) != (its.dtype, its.shape):
        return False
    with file.open("rb") as left, its_file.open("rb") as right:
        left.seek(mine.begin)
        right.seek(its.begin)
        return all(
            left.read(size) == right.read(size)
            for at in range(mine.begin, mine.end, chunk)
            if (size := min(chunk, mine.end - at))
        )


def file_digest(file: Path) -> str:
    """sha256 of a file's content, remembered for as long as its path, size and time are the same."""
    stat = file.resolve().stat()
    what = f"{file.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
    note = cache_path() / "digests" / hashlib.sha256(what.encode()).hexdigest()
    if note.is_file() and len(known := note.read_text(encoding="ascii")) == 64:
        return known
    with file.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    with suppress(OSError):  # without a cache it is computed again
        write_atomic(note, digest)
    return digest


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises UserError when it is something else."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not readable as JSON ({error}); copy or download it again") from error
    if not isinstance(value, dict):
        raise UserError(f"{file}: not a JSON object; copy or download it again")
    return value
