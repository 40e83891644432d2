"""A real run of a tiny random model, carried out in this process: a few steps, a few questions, exported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tiny

from rmu_exp.cli import compose
from rmu_exp.pipeline import run as pipeline
from rmu_exp.settings import Run

CONF = Path(__file__).parent.parent / "conf"


def words(folder: Path) -> list[str]:
    """The command line of the run, over a model and texts that are made in a folder."""
    if not (folder / "model").is_dir():
        tiny.mistral(folder / "model", layers=4)
        for name, seed in (("forget", 1), ("retain", 2)):
            (folder / f"{name}.txt").write_text("\n".join(tiny.texts(30, seed)))
    given = ["model=local", f"model.path={folder / 'model'}", "data=local", f"data.forget=[{folder / 'forget.txt'}]"]
    given += [f"data.retain=[{folder / 'retain.txt'}]", "layer=1", "steer=6", "alpha=10", "train.lr=0.01"]
    given += ["train.max_batches=4", "eval.tasks=[lore_forget,lore_general]", "eval.limit=6", "tracking=off"]
    return [*given, "data.questions.forget=[lore_forget]", "model.threads=1"]


def seen(folder: Path) -> list[str]:
    """What turns samples, damage and two perplexities on; neutral.txt lies in the folder."""
    neutral = folder / "neutral.txt"
    more = [f"data.neutral={neutral}", f"eval.perplexity=[{neutral},{folder / 'retain.txt'}]"]
    return ["eval.samples=3", "eval.damage=7", "eval.tokens=5", *more]


def carry_out(given: Sequence[str], output: Path) -> Run:
    """The run of a command line, into a folder."""
    (run,) = compose.composed([*given, f"output={output}"], CONF)
    pipeline.execute(run, output)
    return run
