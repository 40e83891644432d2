"""The base model's answers: asked once, kept in the cache, the same for every run that begins from it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from importlib.metadata import version
from typing import Any

from rmu_exp.judge.qa import Answers, ask
from rmu_exp.model.checkpoint import Checkpoint
from rmu_exp.paths import cache_dir, write_atomic
from rmu_exp.run import Eval


def judged(checkpoint: Checkpoint, model: Any, tokenizer: Any, settings: Eval, dtype: str, device: str) -> Answers:
    """The answers of the base model, from the cache when the same question set was put to it before."""
    what = {
        "model": checkpoint.digest(),
        "tasks": settings.tasks,
        "limit": settings.limit,
        "batch_size": settings.batch_size,
        "dtype": dtype,
        "device": device.partition(":")[0],
        "versions": [version(name) for name in ("rmu_exp", "lm-eval", "torch", "transformers")],
    }
    key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
    file = cache_dir() / "base" / f"{key}.json"
    if file.is_file():
        return Answers(**json.loads(file.read_text(encoding="utf-8")))
    answers = ask(model, tokenizer, settings.tasks, limit=settings.limit, batch_size=settings.batch_size)
    write_atomic(file, json.dumps(dataclasses.asdict(answers)))
    return answers
