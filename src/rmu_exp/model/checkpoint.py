"""A checkpoint: where it is, what it is, and how much of it is loaded.

It knows files and transformers' loaders; it knows nothing of what is done with the model.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from rmu_exp import worlds
from rmu_exp.model import disk_names, gguf, quantised, spread
from rmu_exp.model import weight_files as weights
from rmu_exp.model.hub_snapshot import Snapshot, snapshot
from rmu_exp.model.made_folder import note_of
from rmu_exp.model.split import (
    drop_norm,
    keep_layers,
    layers_of,
    lies_at,
    named_in,
    refuse_attention,
    stem_name,
    stem_of,
)
from rmu_exp.settings import Model
from rmu_exp.support import memory
from rmu_exp.support.errors import RunError, UserError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

TOKENIZER = ("tokenizer", "vocab", "spiece.model", "sentencepiece")
TOKEN_FILES = (*TOKENIZER, "merges", "special_tokens", "added_tokens")
DEPTH = ("decoder_layers", "num_decoder_layers", "num_layers", "num_hidden_layers", "n_layer", "n_layers")
MERGED = "merged_adapter.json"
"""In a folder that was made of a base and an adapter: the note of both."""
UNLIMITED = 2**20  # tokens, for architectures without positions
HEADS = ("lm_head.", "embed_out.")
HEAD = ("lm_head.weight", "embed_out.weight")
EMBEDDING = ("embed_tokens.weight", "wte.weight", "embed_in.weight")
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}


def locate(
    name: str | None, path: str | None = None, revision: str | None = None, trust_remote_code: bool = False
) -> Checkpoint:
    """Find a checkpoint: ``path`` if given, a model that ships with a world or a package, otherwise a hub id.

    From the hub, configuration and tokenizer are downloaded here, weights when they are opened; but what is quantised
    is downloaded whole, and dequantised into the cache as a folder is.

    Args:
        path: a folder in Hugging Face's format, or a GGUF file.
        revision: branch, tag or commit on the hub.
        trust_remote_code: allow Python code that comes with the checkpoint.

    Raises:
        UserError: it is not there, may not be read, or is not in Hugging Face's format with whole safetensors weights.
        RunError: the hub cannot be reached, or a download broke off.
    """
    if path is not None:
        return _local(path, "model.path", trust_remote_code)
    if name in gguf.PACKAGES:
        folder = gguf.from_gguf(gguf.PACKAGES[name].file("model.name"), "model.name")
        return _checked(Checkpoint(name, folder, None, trust_remote_code), "model.name")
    if name and (shipped := worlds.checkpoint(name)):
        return _checked(Checkpoint(name, shipped, None, trust_remote_code), "model.name")
    if not name:
        raise UserError("model.name: not given; add model.name=ORG/NAME, or model.path=FOLDER or FILE.gguf")
    found = snapshot(name, revision, trust_remote_code)
    if quantised.settings_of(found.folder) is not None:
        quantised.refuse_unknown(found.folder, f"model.name: {name}")  # before much is downloaded
        Checkpoint(name, found.folder, found.commit, trust_remote_code, found).fetch()
        folder = quantised.dequantised(found.folder, f"model.name: {name}", name)
        return _checked(Checkpoint(name, folder, found.commit, trust_remote_code), "model.name")
    return _checked(Checkpoint(name, found.folder, found.commit, trust_remote_code, found), "model.name")


def named(given: str, key: str, model: Model) -> Checkpoint:
    """A checkpoint by one word: a folder or GGUF file that exists, a shipped model, or a hub id.

    Args:
        key: the setting that holds the word, for messages.
    """
    known = given in gguf.PACKAGES or worlds.checkpoint(given) is not None
    if not known and Path(given).expanduser().exists():
        return _local(given, key, model.trust_remote_code)
    if not known and not re.fullmatch(r"[\w.-]+/[\w.-]+", given):
        raise UserError(f"{key}: got {given!r}, allowed is a folder or GGUF file that exists, or a hub id ORG/NAME")
    return locate(given, trust_remote_code=model.trust_remote_code)


def _local(path: str, key: str, trust_remote_code: bool) -> Checkpoint:
    place = Path(path).expanduser()
    if gguf.is_gguf(place):
        folder = gguf.from_gguf(place, key)
    else:
        weights.check_folder(place, key)
        plain = quantised.settings_of(place) is None
        folder = place if plain else quantised.dequantised(place, f"{key}: {place}")
    return _checked(Checkpoint(path, folder, None, trust_remote_code), key)


@dataclass(frozen=True)
class Checkpoint:
    """A folder in Hugging Face's format."""

    name: str  # as the user gave it
    folder: Path  # where it lies; for a hub model, the part that has been downloaded so far
    revision: str | None = None  # the commit, when it came from the hub
    trust_remote_code: bool = False  # whether code that comes with it may run
    hub: Snapshot | None = None  # where to get more of it

    @cached_property
    def config(self) -> PreTrainedConfig:
        """transformers' configuration. Raises UserError when transformers does not know the architecture."""
        from transformers import AutoConfig

        with self._loading("its configuration"):
            return AutoConfig.from_pretrained(self.folder, trust_remote_code=self.trust_remote_code)

    @property
    def depth(self) -> int:
        """Number of decoder layers."""
        return self._size(*DEPTH)

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return self._size("hidden_size", "n_embd", "d_model")

    @property
    def context(self) -> int:
        """Tokens that the model takes; of one that sets no limit, as many as there may be."""
        limits = ("max_position_embeddings", "n_positions")
        known = any(isinstance(getattr(self.config, key, None), int) for key in limits)
        return self._size(*limits) if known else UNLIMITED

    @property
    def has_head(self) -> bool:
        """Whether it has a language-model head of its own, or one tied to its embedding."""
        table = weights.weight_map(self.folder) or self._tensors()
        own = not table or any(name.startswith(HEADS) for name in table)  # a hub's single file is not here yet
        return own or bool(getattr(self.config, "tie_word_embeddings", False))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights on disk: that of the largest tensor in the files that are here; else fp32."""
        known = [entry for _, entry in self._tensors().values() if entry.dtype in DTYPES]
        return DTYPES[max(known, key=lambda e: e.end - e.begin).dtype] if known else torch.float32

    def places(self, names: Iterable[str]) -> dict[str, tuple[Path, weights.Entry]]:
        """The file and the place in it of each of these tensors, by full name; those not found are left out.

        A checkpoint saved without its head (the hub's gpt2) leaves out the causal model's prefix.
        """
        known = self._tensors()
        spelled = {name: name if name in known else name.partition(".")[2] for name in names}
        return {name: known[own] for name, own in spelled.items() if own in known}

    def lacking(self, names: Iterable[str]) -> list[str]:
        """Those of the names that no tensor on disk has; none where the files that would say so are not here yet."""
        known = set(weights.weight_map(self.folder) or self._tensors())
        return [name for name in names if known and not {name, name.partition(".")[2]} & known]

    def _tensors(self) -> dict[str, tuple[Path, weights.Entry]]:
        present = [file for file in self.weight_files() if file.is_file()]
        return {name: (file, entry) for file in present for name, entry in weights.header(file).items()}

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """transformers' tokenizer; padding is the end-of-text token where it has none that the model knows.

        Raises:
            UserError: it cannot be loaded, or has neither a padding nor an end-of-text token.
        """
        from transformers import AutoTokenizer

        if not any(file.name.startswith(TOKENIZER) for file in self.folder.iterdir()):
            raise UserError(f"{self.name}: has no tokenizer; copy {TOKENIZER[0]}.json and the like from its base model")
        where: tuple[object, dict[str, object]] = (self.folder, {})
        if self.hub is not None:  # by name: transformers corrects the tokenizers of some repositories it knows
            where = (self.name, {"revision": self.revision, "local_files_only": True})
        with self._loading("its tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(where[0], **where[1], trust_remote_code=self.trust_remote_code)
            tokenizer("a")  # some damage shows only when it is used
        own = tokenizer.pad_token_id
        if own is None or own >= self._size("vocab_size"):  # fine-tuned models with a [PAD] beyond the embedding
            if tokenizer.eos_token_id is None:
                raise UserError(f"{self.name}: its tokenizer has neither a pad nor an eos token; add one to its folder")
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    @property
    def tied(self) -> bool:
        """Whether its configuration says that the head is the embedding."""
        return bool(getattr(self.config, "tie_word_embeddings", False))

    def refuse_odd_weights(self, key: str) -> None:
        """Refuse files that hold another head than the tied one, or numbers of fewer than 16 bits (UserError)."""
        table = self._tensors()
        for name, (_, entry) in table.items():
            if entry.dtype.startswith(("F8", "F4", "F6")):
                made = "give the checkpoint that it was made from, or one in bf16"
                raise UserError(
                    f"{key}: {self.name} holds {entry.dtype} weights ({name}), which are not trained; {made}"
                )
        heads = [table[name] for name in table if name.endswith(HEAD)]
        embeddings = [table[name] for name in table if name.endswith(EMBEDDING)]
        if heads and embeddings and self.tied and not weights.same_bytes(heads[0], embeddings[0]):
            raise UserError(
                f"{key}: {self.name}: its {weights.CONFIG} ties the head to the embedding, but its files hold another "
                "head; set tie_word_embeddings to false there, or leave the head out"
            )

    def weight_files(self) -> list[Path]:
        """The safetensors files that make up the checkpoint, by name; from a hub, some may not be here yet."""
        if self.hub is not None and not (self.folder / weights.INDEX).is_file():
            return [self.folder / weights.SINGLE]
        return [self.folder / name for name in weights.file_names(self.folder, self.name)]

    def fetch(self, depth: int | None = None) -> None:
        """Download what the first ``depth`` layers need, or all weights; nothing to do for a local folder.

        Raises as :func:`locate`.
        """
        if self.hub is not None:
            table = weights.weight_map(self.folder) or {"": weights.SINGLE}
            self.hub.fetch(sorted(set(weights.needed(table, depth).values())))

    def digest(self) -> str:
        """``sha256:…`` over the weight files' names and contents.

        Nothing large is read where the hub or the cache knows the files' own digests. Only when a part of
        a hub model was never downloaded and there is no network it is ``commit:…`` instead.
        """
        total = hashlib.sha256()
        for file in self.weight_files():
            own = self.hub.digest(file.name) if self.hub else weights.file_digest(file)
            if own is None:
                return f"commit:{self.revision}"
            total.update(f"{file.name}:{own}\n".encode())
        return f"sha256:{total.hexdigest()}"

    def identity(self) -> str:
        """sha256 over all that decides what it computes: weights, configuration, tokenizer, its own code."""
        total = hashlib.sha256(self.digest().encode())
        for file in sorted(self.folder.iterdir()):
            if file.name == "config.json" or file.suffix == ".py" or file.name.startswith(TOKEN_FILES):
                total.update(f"{file.name}:{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
        return f"sha256:{total.hexdigest()}"

    def about(self) -> dict[str, str]:
        """What identifies it: ``name``, ``revision`` (empty when local) and ``digest``."""
        return {"name": self.name, "revision": self.revision or "", "digest": self.digest()}

    @property
    def made_from(self) -> dict[str, str]:
        """What it was dequantised from, a GGUF file (name, sha256, architecture, and the versions that read it) or a
        folder (name, sha256, method), and the adapter that was merged into it (name, sha256, the base's name and
        digest)."""
        notes = (gguf.NOTE, quantised.NOTE, MERGED)
        return {key: value for note in notes for key, value in note_of(self.folder, note).items()}

    def open(self, depth: int | None, dtype: torch.dtype, device: torch.device, over: Sequence[int] = ()) -> nn.Module:
        """Load the model, for use without training: no gradients, no dropout.

        Args:
            depth: the first so many layers without head and final norm, whose output is then the model's
                ``last_hidden_state``; None: the whole causal model.
            over: GPUs that it is spread over; ``device`` is the first of them.

        Raises:
            UserError: the weights do not fit the configuration, or transformers cannot load them.
            RunError: it does not fit the memory, or a download failed.
        """
        cut = depth is not None and depth < self.depth
        whole = depth is not None and cut and self._knows_its_depth(depth)
        model, fault = self._load(self.depth if whole else depth, depth, dtype, device, over)
        if fault and cut and not whole:  # in some, which tensors a layer has depends on how many layers there are
            model, fault = self._load(self.depth, depth, dtype, device, over)
        if fault:
            raise UserError(fault)
        return model.eval().requires_grad_(False)

    def _knows_its_depth(self, depth: int) -> bool:
        """Whether numbers in the layers depend on how many layers there are, as MiniCPM's residual scale does."""
        few, all_ = (layers_of(self.skeleton(n)) for n in (depth, self.depth))

        def numbers(module: nn.Module) -> dict[str, object]:
            return {key: value for key, value in vars(module).items() if isinstance(value, (int, float))}

        mine = {name: module for name, module in all_.named_modules() if name}
        return any(name in mine and numbers(module) != numbers(mine[name]) for name, module in few.named_modules())

    def _load(
        self,
        read: int | None,
        depth: int | None,
        dtype: torch.dtype,
        device: torch.device,
        over: Sequence[int],
    ) -> tuple[nn.Module, str | None]:
        """The first ``depth`` layers of a model made with ``read`` (None: the causal one); what is wrong with it."""
        from transformers import AutoModelForCausalLM

        self.fetch(read)
        place: dict[str, Any] = {} if torch.device(device).type == "cpu" else {"device_map": {"": device}}
        if over:
            place = {"device_map": spread.device_map(self.skeleton(read), dtype, spread.room(over))}
        shared = {
            "dtype": dtype,
            "trust_remote_code": self.trust_remote_code,
            "use_safetensors": True,
            "output_loading_info": True,
            "ignore_mismatched_sizes": True,  # reported in one line
            **place,
        }
        with self._loading("its weights"), self._view(read) as folder:
            if read is None:
                loaded = AutoModelForCausalLM.from_pretrained(folder, **shared)
            else:  # the class that the causal model has inside, which is not always the architecture's plain model
                inside = cast(Any, self.skeleton(read))
                loaded = type(inside).from_pretrained(folder, config=self._cut(read), **shared)
                lies_at(loaded[0], named_in(inside))
                disk_names.note(loaded[0], disk_names.conversions(inside))
        model, info = cast(tuple[nn.Module, dict[str, set[Any]]], loaded)
        fault = self._fault(info, read)
        if over:
            spread.gather(model)
        if depth is not None and not fault:
            keep_layers(model, depth)
            drop_norm(model)
        return model, fault

    def skeleton(self, depth: int | None) -> nn.Module:
        """The first ``depth`` layers (None: the causal model) without weights: for questions about names and shapes.

        Raises UserError: transformers does not know the architecture, or it is none that predicts what follows.
        """
        from transformers import AutoModelForCausalLM

        with self._loading("its configuration"), torch.device("meta"):
            config = self.config if depth is None else self._cut(depth)
            causal = AutoModelForCausalLM.from_config(config, trust_remote_code=self.trust_remote_code)
        refuse_attention(causal, self.name)
        if depth is None:
            return cast(nn.Module, causal)
        stem = stem_of(causal)
        lies_at(stem, stem_name(causal))
        disk_names.note(stem, disk_names.conversions(causal))
        return stem

    def _cut(self, depth: int) -> PreTrainedConfig:
        config = copy.deepcopy(self.config)
        text = config.get_text_config(decoder=True)
        for name, value in vars(text).items():
            if isinstance(value, (list, tuple)) and len(value) == self.depth:  # one entry per layer
                setattr(text, name, value[:depth])
        for name in DEPTH:
            if name in vars(text):
                setattr(text, name, depth)
        return config

    @contextmanager
    def _view(self, depth: int | None) -> Iterator[Path]:
        """A folder in which a loader finds no more weight files than ``depth`` layers need."""
        table = weights.weight_map(self.folder)
        if depth is None or table is None:
            yield self.folder
            return
        mine = weights.needed(table, depth)
        with tempfile.TemporaryDirectory(prefix="rmu_exp-") as name:
            view = Path(name)
            others = [f for f in self.folder.iterdir() if f.is_file() and f.suffix != ".safetensors"]
            for file in (*others, *(self.folder / shard for shard in set(mine.values()))):
                if file.name != weights.INDEX:
                    (view / file.name).symlink_to(file.absolute())
            (view / weights.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": mine}))
            yield view

    def _fault(self, info: dict[str, set[Any]], depth: int | None) -> str | None:
        """What of a model did not come from the files, in words: it would be random."""
        missing = set(info["missing_keys"])
        if depth is not None and missing:  # the final norm, or what stands beside the layers and the causal model lacks
            used = self.skeleton(depth)
            drop_norm(used)
            missing &= set(used.state_dict())
        if missing:
            return f"{self.name}: its weights lack {_few(sorted(missing))}; they do not belong to its {weights.CONFIG}"
        wrong = sorted(f"{name} ({list(has)}, not {list(wanted)})" for name, has, wanted in info["mismatched_keys"])
        return f"{self.name}: its weights do not fit its {weights.CONFIG}: {_few(wrong)}" if wrong else None

    def _size(self, *keys: str) -> int:
        raw = weights.read_json(self.folder / weights.CONFIG)
        raw = raw.get("text_config") or raw
        for key in keys:
            if isinstance(raw.get(key), int):
                return int(raw[key])
        text = self.config.get_text_config(decoder=True)
        known = [value for key in keys if isinstance(value := getattr(text, key, None), int)]
        if not known:
            raise UserError(f"{self.name}: its {weights.CONFIG} has no {' or '.join(keys)}; it is no text model")
        return known[0]

    @contextmanager
    def _loading(self, what: str) -> Iterator[None]:
        """What transformers' loaders raise, in one line, and none of their chatter."""
        try:
            with _quiet():
                yield
        except (UserError, RunError):
            raise
        except Exception as error:
            if memory.ran_out(error):
                line = f"{self.name}: does not fit the memory; try a smaller model.dtype, or a larger device"
                raise RunError(line) from error
            line = first_line(error)
            if "trust_remote_code" in str(error):
                line = "it brings Python code of its own, which runs only with model.trust_remote_code=true"
            raise UserError(f"{self.name}: transformers cannot load {what}: {line}") from error


def _checked(checkpoint: Checkpoint, key: str) -> Checkpoint:
    """Refuse what cannot be unlearned from, before anything large is read."""
    if checkpoint.hub is None:
        weights.check_folder(checkpoint.folder, key)
    if checkpoint.hub is None:
        checkpoint.refuse_odd_weights(key)
    return checkpoint


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' load reports, warnings and progress bars off the screen."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
