"""The base model's answers: asked once, kept in the cache, the same for every run that begins from it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

import torch
from filelock import FileLock

from rmu_exp.evaluate.harness import Answers
from rmu_exp.model.checkpoint import Checkpoint
from rmu_exp.settings import Eval
from rmu_exp.support.errors import first_line
from rmu_exp.support.files import cache_path, write_atomic

log = logging.getLogger("rmu_exp")
Ask = Callable[[Path], Answers]


def judged(
    checkpoint: Checkpoint,
    settings: Eval,
    dtype: torch.dtype,
    device: str,
    ask: Ask,
    anew: bool = False,
) -> Answers:
    """The answers of the base model, from the cache when the same question set was put to it before.

    A cache that cannot be used costs the time of asking again, nothing else.

    Args:
        ask: puts the questions to the checkpoint in a folder.
        anew: the kept answers are to other questions, since the tasks' data have changed.
    """
    what = {
        "model": checkpoint.identity(),
        "settings": dataclasses.asdict(dataclasses.replace(settings, perplexity=None)),
        "dtype": str(dtype),
        "device": device.partition(":")[0],
        "versions": [version(name) for name in ("rmu_exp", "lm-eval", "torch", "transformers")],
    }
    key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
    file = cache_path() / "base" / f"{key}.json"
    with _alone(file):  # of trials that start together one asks, the others wait for its answers
        if not anew and (known := _read(file)) is not None:
            return known
        checkpoint.fetch()
        answers = ask(checkpoint.folder)
        try:
            write_atomic(file, json.dumps(dataclasses.asdict(answers)))
        except OSError as error:
            log.warning("the base model's answers are not kept: %s", first_line(error))
        return answers


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Hold the file's lock, where there can be one."""
    with ExitStack() as held:
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(FileLock(f"{file}.lock"))
        yield


def _read(file: Path) -> Answers | None:
    """Answers that were kept; None when there are none, or only damaged ones."""
    try:
        return Answers(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
