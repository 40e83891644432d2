"""The models and the texts of a run, each found or read when it is first asked for."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeVar

import torch
from torch import nn

from rmu_exp import data
from rmu_exp.data.sources import Corpus
from rmu_exp.model import adapter, diff
from rmu_exp.model.checkpoint import Checkpoint, locate, named
from rmu_exp.settings import Data, Model
from rmu_exp.support import devices
from rmu_exp.support.errors import UserError

T = TypeVar("T")
HELD: dict[str, tuple[object, Any]] = {}
"""Of each kind of thing the newest, with its key: what the trials of a sweep that run in this process load once."""


def once(kind: str, key: object, make: Callable[[], T]) -> T:
    """What ``make`` gives, made again only if the last thing of this kind had another key (compared)."""
    if kind not in HELD or HELD[kind][0] != key:
        HELD.pop(kind, None)  # before the next is loaded: both may not fit
        HELD[kind] = key, make()
    found: T = HELD[kind][1]
    return found


@dataclass(frozen=True)
class Models:
    """The base model and the oracle, and how they are loaded.

    Attributes:
        device: where inputs and activations are.
        shared: by all trials in one process.
        over: GPUs that each model is spread over; none: it is not.
    """

    settings: Model
    base: Checkpoint
    device: str
    shared: bool = False
    over: tuple[int, ...] = ()

    @classmethod
    def find(
        cls, settings: Model, base: str | None = None, revision: str | None = None, *, shared: bool = False
    ) -> Models:
        """Find the base model (``base``: in place of the settings'); nothing large is read.

        Raises UserError: no such model or device.
        """
        over = several_gpus(settings) if settings.device_map else ()
        device = "cuda:0" if over else devices.automatic() if settings.device == "auto" else settings.device
        refuse_device(device)
        if base is not None:
            found = named(base, "base", settings)
        else:
            where = settings.name, settings.path, revision or settings.revision, settings.trust_remote_code
            found = locate(*where)
        if settings.adapter is not None:
            found = adapter.onto(found, settings.adapter, "model.adapter")
        return cls(settings, found, device, shared, over)

    @property
    def dtype(self) -> torch.dtype:
        """fp32 on a CPU, where bf16 is slow; the checkpoint's own on a GPU; or the one of the settings."""
        if self.settings.dtype == "auto":
            return torch.float32 if self.device == "cpu" else self.base.dtype
        dtype = getattr(torch, self.settings.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype

    @cached_property
    def oracle(self) -> Checkpoint | None:
        """The model that never saw the forget topics. Raises UserError when it does not match the base."""
        if self.settings.oracle is None:
            return None
        found = named(self.settings.oracle, "model.oracle", self.settings)
        self.refuse_other(found, "model.oracle", shape_only=True)
        return found

    def refuse_other(self, other: Checkpoint, key: str, shape_only: bool = False) -> None:
        """Refuse a checkpoint that is not of the base model's configuration (or only shape) and tokenizer."""
        if difference := diff.difference(self.base, other, shape_only):
            raise UserError(f"{key}: {other.name} does not match {self.base.name}: {difference}")

    def load(self, checkpoint: Checkpoint | None = None) -> nn.Module:
        """A full model of its own: the base, or another checkpoint."""
        return (checkpoint or self.base).open(None, self.dtype, torch.device(self.device), self.over)

    def open(self, depth: int | None) -> nn.Module:
        """The first layers of the base, or all of it (None); whoever uses it leaves it as it is."""
        make = partial(self.base.open, depth, self.dtype, torch.device(self.device), self.over)
        if not self.shared:
            return make()
        key = (self.base, self.base.digest(), depth, self.dtype, self.device, self.over)
        return once("full model" if depth is None else "first layers", key, make)


def several_gpus(settings: Model) -> tuple[int, ...]:
    """The GPUs that models are spread over. Raises UserError: fewer than two can be seen."""
    if settings.device != "auto":
        raise UserError(f"model.device: got {settings.device!r}, but model.device_map=auto takes every visible GPU")
    found = tuple(range(torch.cuda.device_count())) if torch.cuda.is_available() else ()
    if len(found) < 2:
        raise UserError(f"model.device_map: auto is for two GPUs or more, and {len(found)} can be seen; give null")
    return found


def refuse_device(device: str) -> None:
    """Refuse a device that there is not."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?|mps", device):
        raise UserError(f"model.device: got {device!r}, allowed is auto, cpu, cuda, cuda:1, …")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"model.device: got {device!r}, but no GPU is visible; allowed here is cpu")


@dataclass(frozen=True)
class Texts:
    """The forget and the retain corpora, one per topic; read when they are first needed."""

    settings: Data

    @cached_property
    def corpora(self) -> tuple[list[Corpus], list[Corpus]]:
        """Forget and retain. Raises UserError for a source that is missing, damaged or empty."""
        return data.load(self.settings)

    @cached_property
    def neutral(self) -> Corpus | None:
        """Held-out text that damage is measured on; None: none is named. Warns where it is the retain corpus."""
        return data.neutral(self.settings)

    @property
    def digests(self) -> dict[str, str]:
        """Corpus to the sha256 of its texts."""
        return {c.source: c.digest for side in self.corpora for c in side}
