"""What a run takes from the hub, said by the run's own settings: for a machine that will have no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rmu_exp import worlds
from rmu_exp.config import plugins
from rmu_exp.data import sources
from rmu_exp.evaluation import own_questions
from rmu_exp.model import gguf
from rmu_exp.settings import Run


@dataclass(frozen=True)
class Needs:
    """What is to be fetched: ``ORG/NAME[@REVISION]``, hub datasets, lm-eval tasks; ``depth`` layers (None: all).

    ``include_path``: folders in which some of the tasks lie.
    """

    models: Sequence[str]
    corpora: Sequence[str]
    tasks: Sequence[str]
    depth: int | None
    trust_remote_code: bool
    include_path: Sequence[str]


def of(runs: Sequence[Run]) -> Needs:
    """What a run takes from the hub, or all runs of a sweep together."""
    attacked = [run for run in runs if run.attacks]  # which ask about the forget topics, of the oracle too
    named = [run.model for run in runs if run.model.path is None and run.model.name]
    models = [f"{model.name}@{model.revision or ''}".rstrip("@") for model in named]
    models += [run.model.oracle for run in attacked if run.model.oracle]
    texts = [s for run in runs for s in (*run.data.forget, *run.data.retain, *run.eval.held_out, run.data.neutral) if s]
    tasks = [t for r in runs for t in r.eval.tasks or ()] + [t for r in attacked for t in r.data.questions.forget]
    depths = [depth(run) for run in runs]
    return Needs(
        models=[name for name in dict.fromkeys(models) if _on_hub(name)],
        corpora=[source for source in dict.fromkeys(texts) if sources.dataset(source) is not None],
        tasks=list(filter(_outside, dict.fromkeys(tasks))),
        depth=None if None in depths else max(d for d in depths if d is not None),
        trust_remote_code=any(run.model.trust_remote_code for run in runs),
        include_path=list(dict.fromkeys(path for run in runs for path in run.eval.include_path)),
    )


def depth(run: Run) -> int | None:
    """How many layers of the base a run loads; None: all, which whoever asks questions needs."""
    method = plugins.module("method", run.method.name)
    looks = run.texts_compared or run.prompts_asked
    whole = (
        run.eval.tasks
        or run.eval.perplexity
        or looks
        or run.attacks
        or run.export
        or run.train.check_every
        or run.train.kl_budget
    )
    if whole or method.Method.logits:
        return None
    return int(max(method.Method.targets(plugins.settings_of(run.method), run.layer))) + 1


def _on_hub(name: str) -> bool:
    ships = name.partition(":")[0] in worlds.names() or name in gguf.PACKAGES
    return not ships and not Path(name).expanduser().exists()


def _outside(task: str) -> bool:
    """Whether a task is lm-eval's; its data may be on the hub."""
    return task.partition("_")[0] not in worlds.names() and not own_questions.is_file(task)
