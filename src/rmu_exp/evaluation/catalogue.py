"""Which tasks there are, and their questions: lm-eval's own, a world's, and those in files and folders of one's own.

Only the folders of lm-eval that hold the wanted tasks are indexed, because indexing all of them takes many seconds.
What cannot be asked is refused here, before anything is trained. Knows no model.
"""

from __future__ import annotations

import io
import logging
import math
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from rmu_exp import worlds
from rmu_exp.evaluation import own_questions
from rmu_exp.settings import Eval
from rmu_exp.support import hub
from rmu_exp.support.errors import RunError, UserError, chain, first_line

FEWSHOT_SEED = 1234  # lm-eval's own, as are the next three
PYTHON_SEED, NUMPY_SEED, TORCH_SEED = 0, 1234, 1234
WHOLE = frozenset({"dataset_path", "class", "custom_dataset"})  # with one of these a task is defined in its group
YAML = (".yaml", ".yml")  # of which lm-eval reads the first
OUTSIDE = "eval.tasks: no task {0!r} in lm-eval; `lm_eval ls tasks` lists what there is"


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


@contextmanager
def seeded() -> Iterator[None]:
    """Seeds as on lm-eval's command line, some of whose tasks draw; whoever comes after draws as before."""
    import numpy as np
    import torch

    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]), redirect_stdout(io.StringIO()):  # lm-eval prints what it bootstraps
        random.seed(PYTHON_SEED)
        np.random.seed(NUMPY_SEED)
        torch.manual_seed(TORCH_SEED)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@dataclass(frozen=True)
class Tasks:
    """lm-eval's tasks, with those that worlds declare in Python and those in files of questions.

    Attributes:
        manager: lm-eval's TaskManager.
        declared: name to configuration.
        names: entry of eval.tasks to the names of its tasks and groups.
    """

    manager: Any
    declared: Mapping[str, dict[str, Any]]
    names: Mapping[str, list[str]] = field(default_factory=dict)

    def load(self, entries: Sequence[str]) -> Any:
        """What lm-eval's ``TaskManager.load`` gives for these entries."""
        named = dict.fromkeys(name for entry in entries for name in self.names.get(entry, [entry]))
        return self.manager.load([self.declared.get(name, name) for name in named])


@quiet()
def find(entries: Sequence[str], include_path: Sequence[str] = ()) -> Tasks:
    """The tasks of lm-eval, of worlds, in YAML and in files of questions that ``entries`` name.

    Raises:
        UserError: a task that there is not, a file that cannot be read, or questions that cannot be asked.
    """
    declared: dict[str, dict[str, Any]] = {}
    names: dict[str, list[str]] = {}
    folders = [_folder("eval.include_path", path) for path in include_path]
    for entry in entries:
        if not entry.strip():
            raise UserError("eval.tasks: an entry is empty, allowed is a task, a file or a folder")
        if own_questions.is_file(entry):
            name = own_questions.task_name(entry)
            if name in declared:
                raise UserError(f"eval.tasks: two files of questions are called {name}; rename one")
            declared[name], names[entry] = _declared(name, own_questions.read(entry)), [name]
        elif rows := worlds.questions(entry):
            declared[entry], names[entry] = _declared(entry, rows), [entry]
        elif _is_path(entry):
            folder, names[entry] = _own_yaml(entry)
            folders.append(folder)
        else:
            names[entry] = [entry]
    for entry, (name, *_) in names.items():
        if name in declared and any(name in mine for other, mine in names.items() if other != entry):
            raise UserError(f"eval.tasks: {entry} is called {name}, as another entry is; rename the file")
    wanted = [name for mine in names.values() for name in mine if name not in declared]
    return Tasks(_manager(wanted, folders), declared, names)


def _is_path(entry: str) -> bool:
    """Whether an entry is a file or a folder, and no name of a task that a file or a folder happens to have."""
    path = Path(entry)
    if "/" in entry or path.suffix.lower() in YAML:
        return True
    try:
        return path.is_file() if path.suffix else any(path.rglob("*.yaml"))
    except OSError:  # no name that a file can have
        return False


def _folder(key: str, path: str) -> Path:
    folder = Path(path).expanduser().absolute()
    if not folder.is_dir():
        raise UserError(f"{key}: no folder {path}")
    return folder


def _own_yaml(entry: str) -> tuple[Path, list[str]]:
    """The folder of a task's YAML or of several, and the names of the tasks and groups that are no part of another."""
    from lm_eval.tasks._index import TaskIndex

    path = Path(entry).expanduser().absolute()
    if path.is_dir():
        _refuse_damaged(path)
        index = TaskIndex.build([path])
        inside = {child for found in index.values() for child in _children(found.cfg or {})}
        named = [name for name, found in index.items() if found.kind.name != "TAG" and name not in inside]
        if not named:
            raise UserError(f"eval.tasks: {entry} has no YAML file of a task")
        return path, named
    if not path.is_file():
        raise UserError(f"eval.tasks: no file or folder {entry}")
    if path.suffix != ".yaml":
        allowed = ", ".join((*own_questions.ENDINGS, ".yaml"))
        raise UserError(f"eval.tasks: got {entry}, allowed is a file that ends in {allowed}")
    config = _yaml(path)
    name = config.get("group") or config.get("task")
    if not isinstance(name, str):
        raise UserError(f"{entry}: neither task: nor group: names it; see docs/data.md")
    return path.parent, [name]


def _yaml(file: Path) -> Mapping[str, Any]:
    """A task's YAML, with what it includes. Raises UserError: lm-eval cannot read it."""
    import yaml
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        return load_yaml(file, resolve_func=False)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise UserError(f"{file}: lm-eval cannot read it ({line}{error.problem})") from error
    except Exception as error:
        raise UserError(f"{file}: lm-eval cannot read it ({first_line(error)})") from error


def _refuse_damaged(folder: Path) -> None:
    """Refuse a folder with a YAML file that lm-eval would pass over in silence: a broken one, and a name's second."""
    defined: dict[str, Path] = {}
    for file in sorted(folder.rglob("*.yaml")):
        config = _yaml(file)
        name = config["task"] if isinstance(config.get("task"), str) else config.get("group")
        if isinstance(name, str) and defined.setdefault(name, file) != file:
            raise UserError(f"{file}: defines {name}, as {defined[name]} does; rename one")


def _children(config: Mapping[str, Any]) -> Iterator[str]:
    """Names of the tasks and groups in a group that are not defined in it."""
    inside = config.get("task")
    for child in inside if "group" in config and isinstance(inside, list) else ():
        if isinstance(child, str):
            yield child
        elif isinstance(child, dict) and "group" in child:
            yield from _children(child)
        elif isinstance(child, dict) and isinstance(child.get("task"), str) and not WHOLE.intersection(child):
            yield child["task"]


def _compile_once() -> None:
    """Templates of prompts are compiled once; lm-eval does it again for each question."""
    from lm_eval.utils import env

    if not hasattr(env.from_string, "cache_info"):
        env.from_string = lru_cache(1000)(env.from_string)


def _manager(wanted: Sequence[str], own: Sequence[Path]) -> Any:
    """lm-eval's TaskManager over the folders that hold some tasks and what their groups consist of."""
    from lm_eval.tasks import TaskManager

    ours = [*worlds.task_folders(), Path(str(files("rmu_exp.evaluation"))) / "tasks"]
    folders = dict.fromkeys(_folders(wanted))
    looked_for: set[str] = set()
    while True:
        everywhere = [str(f) for f in (*folders, *ours, *dict.fromkeys(own))]  # later ones win
        manager = TaskManager(include_path=everywhere, include_defaults=False)
        missing = _reached(wanted, manager.task_index) - set(manager.all_tasks)
        if new := missing - looked_for:
            looked_for |= new
            by_name = [folder for folder in _folders(sorted(new)) if folder not in folders]
            folders |= dict.fromkeys(by_name or _folders_that_mention(sorted(new)))
        elif missing and (rest := [f for f in _folders_that_mention(sorted(missing)) if f not in folders]):
            folders |= dict.fromkeys(rest)
        else:
            break
    for folder in own if missing else ():
        _refuse_damaged(folder)
    for task in sorted(missing):
        raise UserError(OUTSIDE.format(task))
    return manager


def _reached(wanted: Iterable[str], index: Mapping[str, Any]) -> set[str]:
    """The wanted names, and all that their groups and tags consist of."""
    left, found = list(wanted), set[str]()
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            entry = index.get(name)
            left += _children(entry.cfg or {}) if entry is not None else ()
    return found


def _declared(task: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The configuration of a task over some questions: their options are scored by likelihood."""
    import datasets

    metric = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
    listed = [dict(row) for row in rows]
    given: dict[str, Any] = {"custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(listed)}}
    given |= {"doc_to_text": "Question: {{question}}\nAnswer:", "doc_to_choice": "choices", "doc_to_target": "answer"}
    given |= {"test_split": "test", "output_type": "multiple_choice", "num_fewshot": 0, "metric_list": [metric]}
    return given | {"task": task}


def _root() -> Path:
    import lm_eval.tasks

    return Path(str(lm_eval.tasks.__file__)).parent


def _folders(tasks: Sequence[str]) -> list[Path]:
    names = {part for task in tasks for part in (task, task.split("_")[0])}
    return sorted(folder for folder in _root().iterdir() if folder.name in names and folder.is_dir())


def _folders_that_mention(tasks: Sequence[str]) -> list[Path]:
    """Folders with a YAML file that names one of the tasks; reading all is a tenth of indexing all."""
    wanted = re.compile("|".join(map(re.escape, tasks)).encode())
    mentioning = [file for file in _root().rglob("*.yaml") if wanted.search(file.read_bytes())]
    return sorted({_root() / file.relative_to(_root()).parts[0] for file in mentioning})


@contextmanager
def loading(tasks: Sequence[str]) -> Iterator[None]:
    """Say in one line why lm-eval could not load the questions of ``tasks``.

    Raises:
        UserError: the questions are gated, missing, or not cached while the hub is switched off; a package is missing;
            lm-eval refuses the task.
        RunError: the hub cannot be reached, or what it gave is damaged.
    """
    try:
        with quiet():
            yield
    except (UserError, RunError):
        raise
    except SystemExit as error:  # of a task's own code
        why = "ends the program while it is loaded; something that it needs is not installed"
        raise UserError(f"eval.tasks: {', '.join(tasks)} {why}") from error
    except Exception as error:
        named = (re.search(r"'([\w.-]+/[\w.-]+)'", str(cause)) for cause in chain(error))
        repo = next((match[1] for match in named if match), None)
        if repo is not None:
            hub.check(repo, "dataset")  # says more than the error that lm-eval passes on
        names = ", ".join(tasks)
        line = hub.explained(error, repo or names, "dataset")
        if line is None and isinstance(error, ImportError):
            line = UserError(f"eval.tasks: {names} needs a package that is not installed ({first_line(error)})")
        if line is None and isinstance(error, FileNotFoundError):
            line = UserError(f"eval.tasks: what {names} needs is not there ({first_line(error)})")
        if line is None and isinstance(error, OSError):
            line = RunError(f"the questions of {names} cannot be loaded ({first_line(error)})")
        if line is None:
            reason = first_line(error) or type(error).__name__
            if isinstance(error, KeyError):  # of None: the aggregation of an unknown metric
                reason = "a metric that is not lm-eval's" if error.args == (None,) else f"it has no {error}"
            line = UserError(f"eval.tasks: lm-eval refuses {names} ({reason})")
        raise line from error


_LAST: dict[str, tuple[object, Any]] = {}


def loaded(settings: Eval, anew: bool = False) -> Any:
    """What ``TaskManager.load`` gives for the tasks of ``settings``, with shots set as on lm-eval's command line.

    What was loaded last is kept, since base and unlearned model are asked the same.

    Raises:
        UserError: what :func:`find` and :func:`loading` refuse, and tasks that cannot be asked here.
        RunError: the questions cannot be loaded.
    """
    entries = list(settings.tasks or [])
    key = (entries, list(settings.include_path), settings.num_fewshot)
    if anew or _LAST.get("tasks", (None,))[0] != key:
        _LAST.clear()
        _compile_once()
        tasks = find(entries, settings.include_path)
        found: dict[str, Any] = {"tasks": {}, "groups": {}}
        with seeded():
            for entry in entries:
                with loading([entry]):
                    part = tasks.load([entry])
                for name, task in part["tasks"].items():
                    if name in found["tasks"] and found["tasks"][name].dump_config() != task.dump_config():
                        raise UserError(f"eval.tasks: {name} is in several entries with different settings; ask one")
                found["tasks"] |= {name: found["tasks"].get(name, task) for name, task in part["tasks"].items()}
                found["groups"] |= part["groups"]
        for name, task in found["tasks"].items():
            _refuse(name, task)
            given = task.get_config("num_fewshot")
            if settings.num_fewshot is not None and given != 0:  # 0 in a task's own file stays, as in lm-eval
                task.set_config(key="num_fewshot", value=settings.num_fewshot)
            elif given is None:
                task.set_config(key="num_fewshot", value=0)
        _LAST["tasks"] = key, found
    kept = _LAST["tasks"][1]
    for task in kept["tasks"].values():
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
    return kept


def refuse_kind(name: str, task: Any) -> None:
    """Refuse a task that cannot be asked of a language model in memory, whatever its questions are."""
    if getattr(task, "UNSAFE_CODE", False):
        raise UserError(f"eval.tasks: {name} runs code that the model writes, which is not done here")
    if getattr(task, "MULTIMODAL", False):
        raise UserError(f"eval.tasks: {name} asks about images or sounds, which a language model cannot see")
    scored = task.OUTPUT_TYPE == "generate_until" and getattr(task.config, "process_results", None) is None
    metrics = getattr(task, "_metric_fn_list", {}) if scored else {}
    if lacking := next((metric for metric, found in metrics.items() if found is None), None):
        raise UserError(
            f"eval.tasks: {name} needs the metric {lacking}, which is not lm-eval's and which the package evaluate has "
            "not got; let it fetch that from the hub once"
        )


def _refuse(name: str, task: Any) -> None:
    refuse_kind(name, task)
    with loading([name]):
        count = len(task.eval_docs)
    if not count:
        raise UserError(f"eval.tasks: {name} has no questions")


def places(task: Any, settings: Eval) -> Sequence[int]:
    """Which of a task's questions are asked, in their order: the first, or as many drawn at random; of all if so said.

    They are what lm-eval's ``--samples`` takes; of a limit below 1 the number is rounded up, as there.
    """
    there, limit = len(task.eval_docs), settings.limit
    count = there if limit is None else min(there, math.ceil(there * limit) if limit < 1 else int(limit))
    if settings.draw is None or count == there:
        return range(count)
    return sorted(random.Random(f"{settings.draw}/{task.task_name}").sample(range(there), count))


def right_option(task: Any, doc: Mapping[str, Any]) -> int | None:
    """The place of a multiple-choice question's right option; None: it has several, or none."""
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    choices = list(task.doc_to_choice(doc))
    if isinstance(gold, (list, tuple)):
        gold = gold[0] if len(gold) == 1 else None
    if isinstance(gold, str):
        return choices.index(gold) if gold in choices else None
    if gold is None or isinstance(gold, float):
        return None
    return int(gold) if 0 <= int(gold) < len(choices) else None
