"""The base model's answers: asked once, kept in the cache, the same for every run that begins from it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from filelock import FileLock

from rmu_exp.judge.qa import Answers
from rmu_exp.model.checkpoint import Checkpoint
from rmu_exp.paths import cache_dir, write_atomic
from rmu_exp.run import Eval


def judged(
    checkpoint: Checkpoint, settings: Eval, dtype: torch.dtype, device: str, ask: Callable[[Path], Answers]
) -> Answers:
    """The answers of the base model, from the cache when the same question set was put to it before.

    Args:
        ask: puts the questions to the checkpoint in a folder.
    """
    what = {
        "model": checkpoint.digest(),
        "settings": dataclasses.asdict(settings),
        "dtype": str(dtype),
        "device": device.partition(":")[0],
        "versions": [version(name) for name in ("rmu_exp", "lm-eval", "torch", "transformers")],
    }
    key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
    file = cache_dir() / "base" / f"{key}.json"
    file.parent.mkdir(exist_ok=True)
    with FileLock(f"{file}.lock"):  # of trials that start together one asks, the others wait for its answers
        if file.is_file():
            return Answers(**json.loads(file.read_text(encoding="utf-8")))
        checkpoint.fetch()
        answers = ask(checkpoint.folder)
        write_atomic(file, json.dumps(dataclasses.asdict(answers)))
        return answers
