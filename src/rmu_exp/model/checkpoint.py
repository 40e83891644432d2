"""A checkpoint: where it is, what it is, and how much of it is loaded."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rmu_exp.errors import UserError
from rmu_exp.paths import cache_dir, write_atomic

INDEX = "model.safetensors.index.json"


def locate(
    name: str | None, path: str | None = None, revision: str | None = None, remote_code: bool = False
) -> Checkpoint:
    """Find a checkpoint: ``path`` if given, the shipped model for ``lore``, otherwise a hub id.

    Raises:
        UserError: what is there is not a checkpoint in Hugging Face's format with safetensors weights.
    """
    if path is not None:
        return Checkpoint(path, _checked(Path(path).expanduser(), "model.path"), None, remote_code)
    if name == "lore":
        return Checkpoint("lore", _checked(Path(str(files("rmu_exp.lore"))) / "weights", "model"), None, remote_code)
    from rmu_exp.model.hub import snapshot

    folder, commit = snapshot(str(name), revision)
    return Checkpoint(str(name), _checked(folder, "model.name"), commit, remote_code)


@dataclass(frozen=True)
class Checkpoint:
    """A folder in Hugging Face's format.

    Attributes:
        name: as the user gave it.
        folder: where it lies.
        revision: the commit, when it came from the hub.
        remote_code: whether code that comes with it may run.
    """

    name: str
    folder: Path
    revision: str | None = None
    remote_code: bool = False

    @cached_property
    def config(self) -> Any:
        """transformers' configuration."""
        from transformers import AutoConfig

        with _hushed():
            return AutoConfig.from_pretrained(self.folder, trust_remote_code=self.remote_code)

    @property
    def depth(self) -> int:
        """Number of decoder layers, read from config.json without loading anything."""
        raw = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        for key in ("num_hidden_layers", "n_layer"):
            if key in raw:
                return int(raw[key])
        return int(self.config.num_hidden_layers)

    def tokenizer(self) -> Any:
        """transformers' tokenizer; padding is the end-of-text token where there is none.

        Raises:
            UserError: it has neither a padding nor an end-of-text token.
        """
        from transformers import AutoTokenizer

        with _hushed():
            tokenizer = AutoTokenizer.from_pretrained(self.folder, trust_remote_code=self.remote_code)
        if tokenizer.pad_token_id is None:
            if tokenizer.eos_token_id is None:
                raise UserError(f"{self.name}: the tokenizer has neither a pad nor an eos token; add one to its folder")
            tokenizer.pad_token_id = tokenizer.eos_token_id
        return tokenizer

    def open(self, depth: int | None, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """The first ``depth`` layers without head and final norm, or with None the whole causal model."""
        from transformers import AutoModel, AutoModelForCausalLM

        with _hushed():
            shared = {"dtype": dtype, "trust_remote_code": self.remote_code, "use_safetensors": True}
            if depth is None:
                model = AutoModelForCausalLM.from_pretrained(self.folder, **shared)
            else:
                model = AutoModel.from_pretrained(self.folder, config=self._cut(depth), **shared)
        model.to(device)  # type: ignore[arg-type]
        return model.eval().requires_grad_(False)

    def _cut(self, depth: int) -> Any:
        import copy

        config = copy.deepcopy(self.config)
        config.num_hidden_layers = depth
        if getattr(config, "layer_types", None):
            config.layer_types = list(config.layer_types)[:depth]
        return config

    def weight_files(self) -> list[Path]:
        """The safetensors files that make up the checkpoint, in order of their names."""
        return _weight_files(self.folder)

    def digest(self) -> str:
        """sha256 over the weights; remembered for files that have not changed since."""
        total = hashlib.sha256()
        for file in self.weight_files():
            total.update(f"{file.name}:{_file_digest(file)}\n".encode())
        return f"sha256:{total.hexdigest()}"


def _file_digest(file: Path) -> str:
    stat = file.stat()
    key = hashlib.sha256(f"{file.resolve()}:{stat.st_size}:{stat.st_mtime_ns}".encode()).hexdigest()
    note = cache_dir() / "digests" / key
    if note.is_file():
        return note.read_text()
    digest = hashlib.sha256()
    with file.open("rb") as handle:
        while block := handle.read(1 << 24):
            digest.update(block)
    write_atomic(note, digest.hexdigest())
    return digest.hexdigest()


def _weight_files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        return [folder / name for name in names]
    return sorted(folder.glob("*.safetensors"))


def _checked(folder: Path, key: str) -> Path:
    """Refuse a folder whose weights are missing, in another format, or cut off."""
    if not folder.is_dir():
        raise UserError(f"{key}: {folder} is not a folder; give a checkpoint folder in Hugging Face's format")
    if not (folder / "config.json").is_file():
        raise UserError(f"{key}: {folder} has no config.json; give a checkpoint folder in Hugging Face's format")
    found = _weight_files(folder)
    if not found:
        other = " (only pickled weights, which are never loaded)" if any(folder.glob("*.bin")) else ""
        raise UserError(f"{key}: {folder} has no safetensors weights{other}; convert the checkpoint to safetensors")
    for file in found:
        if not file.is_file():
            raise UserError(f"{key}: {file} is named in {INDEX} but missing; copy or download it again")
        check_whole(file)
    return folder


def check_whole(file: Path) -> None:
    """Refuse a safetensors file that is cut off or damaged, by its header and size.

    Raises:
        UserError: naming the file.
    """
    size = file.stat().st_size
    try:
        with file.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            if not 0 < length <= min(size - 8, 100 << 20):
                raise ValueError("header length")
            header = json.loads(handle.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        if 8 + length + max(ends, default=0) != size:
            raise ValueError("size")
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise UserError(f"{file}: damaged or cut off ({error}); copy or download it again") from error


@contextmanager
def _hushed() -> Iterator[None]:
    """Keep transformers' load reports and progress bars off the screen."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
