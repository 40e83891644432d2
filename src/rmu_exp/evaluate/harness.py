"""Questions, through lm-evaluation-harness: a model in memory in, right or wrong for each question out.

lm-eval's own task definitions are used (and lore's, which are ordinary lm-eval YAML); only the folders
that hold the wanted tasks are indexed, because indexing all of them takes many seconds.
This module knows nothing of unlearning.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rmu_exp import worlds
from rmu_exp.evaluate import statistics
from rmu_exp.evaluate.correction import Asked, Correction, best_blind, correction
from rmu_exp.model.checkpoint import Checkpoint
from rmu_exp.record.results import Accuracy, Corrected, Qa
from rmu_exp.record.store import Store, cached, fingerprint
from rmu_exp.settings import Eval, Model, Role
from rmu_exp.support import hub
from rmu_exp.support.errors import RunError, UserError, chain, first_line
from rmu_exp.support.progress import asking_progress

if TYPE_CHECKING:
    import torch

IN_MEMORY = ("fast", "stock")
METRICS = ("acc", "acc_norm")  # the first of them that a task has is its accuracy
_HASHES = ("doc_hash", "prompt_hash", "target_hash")  # lm-eval's own, of each question
FEWSHOT_SEED = 1234  # lm-eval's own
MOST_PICKED = 8  # answers in a histogram
V = TypeVar("V")
_PER_QUESTION = ("correct", "chosen", "targets", "corrected", "prob", "mass", "picked")


@contextmanager
def quiet() -> Iterator[None]:
    """Only errors of lm-eval and datasets are logged."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "lm-eval", "datasets")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


@dataclass
class Answers:
    """What one model answered, by task."""

    correct: dict[str, list[int]] = field(default_factory=dict)  # 1 or 0 for each question, in the task's order
    chosen: dict[str, list[int]] = field(default_factory=dict)  # index of the chosen option
    targets: dict[str, list[int]] = field(default_factory=dict)  # index of the right option
    corrected: dict[str, list[int]] = field(default_factory=dict)  # 1 or 0 by the scores without answer bias
    prob: dict[str, list[float]] = field(default_factory=dict)  # probability of the right option after the prompt
    mass: dict[str, list[float]] = field(default_factory=dict)  # that of all options together
    picked: dict[str, list[str]] = field(default_factory=dict)  # the chosen option in words
    correction: dict[str, str] = field(default_factory=dict)  # how answer bias was taken out
    blind: dict[str, float] = field(default_factory=dict)  # accuracy of the best answer to no question in particular
    chance: dict[str, float] = field(default_factory=dict)  # accuracy of a blind guess
    groups: dict[str, list[str]] = field(default_factory=dict)  # group to its tasks, largest group first
    hashes: dict[str, str] = field(default_factory=dict)  # sha256 of documents, prompts and right options

    def tasks_of(self, name: str) -> list[str]:
        """The tasks of a group, or the task itself."""
        return self.groups.get(name, [name])

    def pooled(self, values: Mapping[str, list[V]], name: str) -> list[V]:
        """Values of a task's questions, or of those of all tasks of a group; none where a task has none."""
        tasks = self.tasks_of(name)
        return [v for t in tasks for v in values[t]] if all(t in values for t in tasks) else []

    def accuracy(self, name: str) -> Accuracy:
        """What results.json says of a task or a group."""
        correct, corrected = self.pooled(self.correct, name), self.pooled(self.corrected, name)
        found = statistics.summary(correct)
        if corrected:
            unbiased = statistics.summary(corrected)
            found.corrected = Corrected(acc=unbiased.acc, ci95=unbiased.ci95)
        if prob := self.pooled(self.prob, name):
            found.prob, found.mass = statistics.mean(prob), statistics.mean(self.pooled(self.mass, name))
        found.answers = dict(Counter(self.pooled(self.picked, name)).most_common(MOST_PICKED))
        return found

    def first(self, count: int) -> Answers:
        """The answers to the first questions of each task."""
        parts = {name: {t: c[:count] for t, c in getattr(self, name).items()} for name in _PER_QUESTION}
        return replace(self, **parts)

    def mean(self, values: Mapping[str, float], name: str) -> float:
        """A task's value, or the mean over a group's questions."""
        sizes = {t: len(self.correct[t]) for t in self.tasks_of(name)}
        return sum(values[t] * size for t, size in sizes.items()) / sum(sizes.values())


Ask = Callable[[Path], Answers]
"""Asks the checkpoint in a folder."""


@dataclass(frozen=True)
class Tasks:
    """lm-eval's tasks, with those that worlds declare in Python.

    Attributes:
        manager: lm-eval's TaskManager.
        declared: name to configuration.
    """

    manager: Any
    declared: Mapping[str, dict[str, Any]]

    def load(self, names: Sequence[str]) -> Any:
        """What lm-eval's ``TaskManager.load`` gives for these tasks and groups."""
        return self.manager.load([self.declared.get(name, name) for name in names])


@quiet()
def task_manager(tasks: Sequence[str]) -> Tasks:
    """The project's own tasks and those in the folders of lm-eval that hold ``tasks``.

    Raises:
        UserError: a task that neither lm-eval nor a world has.
    """
    from lm_eval.tasks import TaskManager

    declared = {task: _declared(task, rows) for task in tasks if (rows := worlds.questions(task))}
    wanted = [task for task in tasks if task not in declared]
    own = [*worlds.task_folders(), Path(str(files("rmu_exp.evaluate"))) / "tasks"]
    manager = TaskManager(include_path=[str(f) for f in (*own, *_folders(wanted))], include_defaults=False)
    missing = [task for task in wanted if task not in manager.all_tasks]
    if missing:  # a task that does not lie where its name says
        everywhere = [*own, *_folders(wanted), *_folders_that_mention(missing)]
        manager = TaskManager(include_path=[str(f) for f in everywhere], include_defaults=False)
    for task in wanted:
        if task not in manager.all_tasks:
            raise UserError(f"eval.tasks: no task {task!r} in lm-eval; `lm_eval ls tasks` lists what there is")
    return Tasks(manager, declared)


def _declared(task: str, rows: Sequence[worlds.Row]) -> dict[str, Any]:
    """The configuration of a task over some questions: their options are scored by likelihood."""
    import datasets

    metric = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
    given = {"custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(list(rows))}, "test_split": "test"}
    given |= {"doc_to_text": "Question: {{question}}\nAnswer:", "doc_to_choice": "choices", "doc_to_target": "answer"}
    return given | {"task": task, "output_type": "multiple_choice", "num_fewshot": 0, "metric_list": [metric]}


def _root() -> Path:
    import lm_eval.tasks

    return Path(str(lm_eval.tasks.__file__)).parent


def _folders(tasks: Sequence[str]) -> list[Path]:
    names = {task.split("_")[0] for task in tasks}
    return [folder for name in sorted(names) if (folder := _root() / name).is_dir()]


def _folders_that_mention(tasks: Sequence[str]) -> list[Path]:
    """Folders with a YAML file that names one of the tasks; reading all is a tenth of indexing all."""
    wanted = re.compile("|".join(map(re.escape, tasks)).encode())
    mentioning = [file for file in _root().rglob("*.yaml") if wanted.search(file.read_bytes())]
    return sorted({_root() / file.relative_to(_root()).parts[0] for file in mentioning})


@quiet()
def ask(model: Any, tokenizer: Any, settings: Eval, journal: Store | None = None) -> Answers:
    """Ask a causal language model in memory the questions of lm-eval's tasks.

    Args:
        settings: its ``backend`` says by which class: ``fast`` is :class:`rmu_exp.evaluate.engine.Engine`, ``stock``
            lm-eval's own, with the same answers.
        journal: where ``fast`` keeps the batches that are done, and finds them.

    Raises:
        UserError: an unknown task, or one that is not multiple choice.
        RunError: the questions cannot be loaded.
    """
    from lm_eval.models.huggingface import HFLM

    if settings.backend == "fast":
        from rmu_exp.evaluate.engine import Engine

        with asking_progress() as advance:
            return _ask(Engine(pretrained=model, tokenizer=tokenizer, on_progress=advance, journal=journal), settings)
    return _ask(HFLM(pretrained=model, tokenizer=tokenizer, batch_size=settings.batch_size), settings)


@quiet()
def ask_backend(folder: Path, settings: Eval, model: Model) -> Answers:
    """Ask a checkpoint on disk by one of lm-eval's own backends, which may spread it over many devices.

    Args:
        settings: ``backend`` is lm-eval's name of it, ``backend_args`` go to it as they are.

    Raises:
        UserError: no such backend, what it needs is not installed, or arguments that it does not know.
    """
    from lm_eval.api.registry import get_model

    given = dict(settings.backend_args)
    given |= {"pretrained": str(folder), "batch_size": settings.batch_size}
    given.setdefault("trust_remote_code", model.trust_remote_code)
    try:
        wrapped = get_model(settings.backend)(**given)
    except (ImportError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"eval.backend: {settings.backend} cannot be used ({first_line(error)})") from error
    return _ask(wrapped, settings)


def _ask(wrapped: Any, settings: Eval) -> Answers:
    import lm_eval

    names = settings.tasks or []
    manager = task_manager(names)
    with loading(names):
        loaded = manager.load(names)
        for task in loaded["tasks"].values():  # as simple_evaluate does, which also lists every package, for seconds
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=FEWSHOT_SEED)
        found = lm_eval.evaluate(
            lm=wrapped, task_dict=loaded, limit=settings.limit, bootstrap_iters=0, log_samples=True, verbosity=None
        )
    answers = _answers(found)
    if settings.corrected:
        _correct(wrapped, loaded["tasks"], found["samples"], answers)
    return answers


def _correct(
    wrapped: Any, tasks: Mapping[str, Any], samples: Mapping[str, list[dict[str, Any]]], answers: Answers
) -> None:
    """Ask what the corrected scores need, and add what they say."""
    from lm_eval.api.instance import Instance

    plans: dict[str, Correction] = {}
    for name, found in samples.items():
        found = sorted(found, key=lambda s: s["doc_id"])
        metric = next(m for m in METRICS if m in found[0])
        asked = [_asked(s, metric) for s in found]
        if plan := correction(asked, tasks[name].doc_to_text):
            plans[name] = plan
    pairs = list(dict.fromkeys(pair for plan in plans.values() for pair in plan.pairs))
    requests = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    known = dict(zip(pairs, (value for value, _ in wrapped.loglikelihood(requests, disable_tqdm=True)), strict=True))
    for name, plan in plans.items():
        rows = zip(plan.scores(known), answers.targets[name], strict=True)
        answers.corrected[name] = [int(row.index(max(row)) == target) for row, target in rows]
        answers.correction[name] = plan.kind


def _asked(sample: dict[str, Any], metric: str) -> Asked:
    """A question as it was asked; ``acc_norm`` compares log-likelihoods per character."""
    options = tuple(continuation for _, continuation in sample["arguments"])
    logs = [response[0] for response in sample["filtered_resps"]]
    lengths = [float(len(o.removeprefix(" "))) if metric == "acc_norm" else 1.0 for o in options]
    scores = [score / length for score, length in zip(logs, lengths, strict=True)]
    return Asked(sample["doc"], sample["arguments"][0][0], options, scores, lengths)


@contextmanager
def loading(tasks: Sequence[str]) -> Iterator[None]:
    """Say in one line why lm-eval could not load the questions of ``tasks``.

    Raises:
        UserError: the questions are gated, missing, or not cached while the hub is switched off.
        RunError: the hub cannot be reached, or what it gave is damaged.
    """
    try:
        with quiet():
            yield
    except (UserError, RunError):
        raise
    except Exception as error:
        named = (re.search(r"'([\w.-]+/[\w.-]+)'", str(cause)) for cause in chain(error))
        repo = next((match[1] for match in named if match), None)
        if repo is not None:
            hub.check(repo, "dataset")  # says more than the error that lm-eval passes on
        names = ", ".join(tasks)
        line = hub.explained(error, repo or names, "dataset")
        if line is None and isinstance(error, (OSError, ValueError)):
            line = RunError(f"the questions of {names} cannot be loaded ({first_line(error)})")
        if line is None:
            raise
        raise line from error


def _answers(found: dict[str, Any]) -> Answers:
    answers = Answers()
    for task, samples in found["samples"].items():
        samples = sorted(samples, key=lambda s: s["doc_id"])
        metric = next((m for m in METRICS if samples and m in samples[0]), None)
        if metric is None:
            raise UserError(f"eval.tasks: {task} is not a multiple-choice task with accuracy")
        answers.correct[task] = [int(s[metric]) for s in samples]
        answers.targets[task] = [int(s["target"]) for s in samples]
        asked = [_asked(s, metric) for s in samples]
        answers.chosen[task] = [q.scores.index(max(q.scores)) for q in asked]
        answers.chance[task] = sum(1 / len(q.scores) for q in asked) / len(asked)
        answers.blind[task] = best_blind([q.options for q in asked], answers.targets[task])
        answers.picked[task] = [q.options[c].strip() for q, c in zip(asked, answers.chosen[task], strict=True)]
        chances = [[math.exp(s * n) for s, n in zip(q.scores, q.lengths, strict=True)] for q in asked]
        answers.prob[task] = [row[t] for row, t in zip(chances, answers.targets[task], strict=True)]
        answers.mass[task] = [min(1.0, sum(row)) for row in chances]
        hashes = "\n".join(str(s.get(key)) for s in samples for key in _HASHES)
        answers.hashes[task] = hashlib.sha256(hashes.encode()).hexdigest()
    members = found.get("group_subtasks", {})
    for group in members:
        leaves = _leaves(group, members)
        if leaves and group not in answers.correct:
            answers.groups[group] = leaves
    return answers


def _leaves(name: str, members: dict[str, list[str]]) -> list[str]:
    if name not in members:
        return [name]
    return [leaf for child in members[name] for leaf in _leaves(child, members)]


def base_answers(
    checkpoint: Checkpoint, settings: Eval, dtype: torch.dtype, device: str, ask: Ask, anew: bool = False
) -> Answers:
    """The answers of the base model, from the cache when it was asked the same questions before.

    Args:
        ask: asks the checkpoint in a folder.
        anew: the kept answers are to other questions, since the tasks' data have changed.
    """
    made_from = fingerprint(
        checkpoint.identity(),
        asdict(replace(settings, perplexity=None)),
        str(dtype),
        device.partition(":")[0],
        [version(name) for name in ("rmu_exp", "lm-eval", "torch", "transformers")],
    )

    def make() -> dict[str, Any]:
        checkpoint.fetch()
        return asdict(ask(checkpoint.folder))

    return Answers(**cached("base_answers", made_from, make, anew))


def compare(base: Answers, unlearned: Answers, roles: Mapping[str, Role] | None = None) -> Qa:
    """The ``qa`` part of results.json: each group and task before and after, on the same questions, with its role."""
    table = Qa()
    for name in (*base.groups, *base.correct):
        before, after = (answers.pooled(answers.correct, name) for answers in (base, unlearned))
        row = statistics.row(before, after, base.mean(base.chance, name), base.mean(base.blind, name))
        row.base, row.unlearned, row.tasks = base.accuracy(name), unlearned.accuracy(name), base.groups.get(name)
        kinds = {base.correction[t] for t in base.tasks_of(name) if t in base.correction}
        row.correction = " and ".join(sorted(kinds)) or None
        row.role = (roles or {}).get(name)
        table[name] = row
    return table
