"""The base model's answers: asked once, kept in the cache, the same for every run that begins from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from rmu_exp.evaluate.harness import Answers
from rmu_exp.model.checkpoint import Checkpoint
from rmu_exp.record.store import cached, fingerprint
from rmu_exp.settings import Eval

Ask = Callable[[Path], Answers]


def judged(
    checkpoint: Checkpoint,
    settings: Eval,
    dtype: torch.dtype,
    device: str,
    ask: Ask,
    anew: bool = False,
) -> Answers:
    """The answers of the base model, from the cache when it was asked the same questions before.

    Args:
        ask: asks the checkpoint in a folder.
        anew: the kept answers are to other questions, since the tasks' data have changed.
    """
    made_from = fingerprint(
        checkpoint.identity(),
        dataclasses.asdict(dataclasses.replace(settings, perplexity=None)),
        str(dtype),
        device.partition(":")[0],
        [version(name) for name in ("rmu_exp", "lm-eval", "torch", "transformers")],
    )

    def make() -> dict[str, Any]:
        checkpoint.fetch()
        return dataclasses.asdict(ask(checkpoint.folder))

    return Answers(**cached("base_answers", made_from, make, anew))
