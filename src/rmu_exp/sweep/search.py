"""A search by Optuna over the ranges of the command line, with several objectives.

Hydra's published plugin for Optuna wants optuna < 3; this one asks a current Optuna for one trial after another and
reports each result to it, so that everything else (launchers, folders, report) is that of any sweep. The study
lies in a data base: further processes with the same command share it, and a search that was cut off resumes.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from filelock import FileLock
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig

from rmu_exp.record.results import Results
from rmu_exp.report import objectives
from rmu_exp.support.errors import UserError, first_line
from rmu_exp.sweep import trials, worst_case
from rmu_exp.sweep.overrides import split, sweep_of, trial_name

if TYPE_CHECKING:
    import optuna

DIGITS = 4  # of a number drawn from an interval, so that names stay short and a trial can be repeated by hand
WORKER, AGAIN = "worker", "again"  # attributes of Optuna's trials
REPEATS = 50  # proposals in a row that were tried before: then all there is has been tried


def run(launcher: Launcher, config: DictConfig, arguments: list[str]) -> None:
    """A search as Hydra starts it. Raises UserError when the data base cannot be used.

    Args:
        config: the composed configuration, Hydra's part included.
        arguments: the command line's overrides.
    """
    fixed, swept = split(sweep_of(arguments, config.hydra))

    def launch(jobs: Sequence[Sequence[str]], number: int) -> None:
        launcher.launch([[*fixed, *words] for words in jobs], initial_job_idx=number)

    Search(Path(config.hydra.sweep.dir), swept, launch, config.hydra.sweeper).run()


@dataclass
class Search:
    """One process of a search, whose study all processes and starts share.

    Attributes:
        folder: the sweep's.
        swept: the overrides with ranges.
        launch: runs trials, each given by its swept overrides, and waits for them; the number is the first one's.
        settings: those of conf/hydra/sweeper/rmu_optuna.yaml.
    """

    folder: Path
    swept: Sequence[Override]
    launch: Callable[[Sequence[Sequence[str]], int], None]
    settings: Mapping[str, Any]

    def __post_init__(self) -> None:
        self.lock = FileLock(self.folder / ".study.lock")

    def run(self) -> None:
        """Ask for trials, launch them and report their results until the study has all.

        What is cut off, by a launcher that breaks, is asked for again at the next start.
        """
        with self.lock:  # two processes must not both make the tables
            self.study = self._open()
            self._ask_again()
        count, wanted = self._count(), self.settings["n_trials"]
        print(f"search: {count} of {wanted} trials done before: {self.folder}", file=sys.stderr)
        while batch := self._ask():
            self.launch([words for _, words in batch], batch[0][0])
            for number, words in batch:
                self._report(number, trial_name(words))

    def _open(self) -> optuna.Study:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        address = self.settings["storage"] or f"sqlite:///{self.folder / 'study.db'}"
        ways = optuna.study.StudyDirection
        directions = [ways.MAXIMIZE if n in objectives.UP else ways.MINIMIZE for n in self.settings["objectives"]]
        name = self.settings["study"]
        try:
            return optuna.create_study(storage=address, study_name=name, directions=directions, load_if_exists=True)
        except Exception as error:  # whatever the data base's driver raises
            raise UserError(f"hydra.sweeper.storage: {address} cannot be used ({first_line(error)})") from error

    def _listed(self, *states: str) -> list[optuna.trial.FrozenTrial]:
        return [t for t in self.study.get_trials(deepcopy=False) if t.state.name in states or not states]

    def _count(self) -> int:
        """Trials that were asked for; one that was cut off and asked again counts once."""
        return sum(t.state.name != "WAITING" and AGAIN not in t.user_attrs for t in self._listed())

    def _ask(self) -> list[tuple[int, list[str]]]:
        """The next trials, no more than are missing; under a lock, since other processes ask too."""
        batch = []
        with self.lock:
            missing = self.settings["n_trials"] - self._count() + len(self._listed("WAITING"))
            for _ in range(min(self.settings["n_jobs"], missing)):
                if (found := self._next()) is None:
                    print("search: all that the ranges hold was tried", file=sys.stderr)
                    break
                batch.append(found)
        return batch

    def _next(self) -> tuple[int, list[str]] | None:
        """A trial that is new; None: the sampler finds none. A repeated one gets the values of the first."""
        for _ in range(REPEATS):
            self.study.sampler = self._sampler()
            trial = self.study.ask()
            words = [self._suggest(trial, override) for override in self.swept]
            name = trial_name(words)
            before = [t for t in self._listed() if t.user_attrs.get("trial") == name and t.number != trial.number]
            trial.set_user_attr("trial", name)
            if AGAIN in trial.user_attrs or not before:
                trial.set_user_attr(WORKER, f"{socket.gethostname()}:{os.getpid()}")
                return trial.number, words
            trial.set_user_attr(AGAIN, True)
            self._report(trial.number, name)
        return None

    def _sampler(self) -> optuna.samplers.BaseSampler:
        """A sampler seeded anew for each trial: a search that is resumed must not draw the same numbers again."""
        from optuna.samplers import NSGAIISampler, RandomSampler, TPESampler

        seed = int.from_bytes(sha256(f"{self.settings['seed']}:{len(self._listed())}".encode()).digest()[:4])
        if self.settings["sampler"] == "tpe":
            return TPESampler(seed=seed, constant_liar=True)
        return NSGAIISampler(seed=seed) if self.settings["sampler"] == "nsga2" else RandomSampler(seed=seed)

    def _suggest(self, trial: optuna.Trial, override: Override) -> str:
        key = override.get_key_element()
        if override.is_choice_sweep():
            return f"{key}={trial.suggest_categorical(key, list(override.sweep_string_iterator()))}"
        if override.is_range_sweep():  # the numbers' places, so that Optuna knows of their order
            values = list(override.sweep_string_iterator())
            return f"{key}={values[trial.suggest_int(key, 0, len(values) - 1)]}"
        interval = cast(IntervalSweep, override.value())
        log, start, end = "log" in interval.tags, interval.start, interval.end
        if isinstance(start, int) and isinstance(end, int):
            return f"{key}={trial.suggest_int(key, start, end, log=log)}"
        low, high = float(cast(float, start)), float(cast(float, end))
        return f"{key}={rounded(trial.suggest_float(key, low, high, log=log), low, high)!r}"

    def _report(self, number: int, name: str) -> bool:
        """Tell Optuna a trial's objectives, or that it failed. Returns whether it has them.

        One that was given up has them on its part of the questions. Being beaten there beyond doubt, it cannot be on
        the front; but its numbers teach the sampler.
        """
        from optuna.trial import TrialState

        trial, values = trials.read_one(self.folder / name, {}), list[float]()
        names, asked = self.settings["objectives"], {key: self.settings[key] for key in ("forget", "general")}
        if trial.results and trial.state in ("done", "pruned"):
            axes = objectives.choose(names, [trial.results], asked)
            values = [m.value for axis in axes if (m := axis.of(trial.results))]
        if len(values) == len(names):
            self._bound(number, trial.results)
            self.study.tell(number, values)
            return True
        self.study.tell(number, state=TrialState.FAIL)
        return False

    def _bound(self, number: int, results: Results | None) -> None:
        """Tell Optuna by how much an attack exceeds its bound on general accuracy; 0 or less: it keeps it."""
        from optuna.trial import Trial

        bound, kept = self.settings.get("bound"), worst_case.kept(results)
        if bound is not None and kept is not None:
            (asked,) = (t for t in self._listed() if t.number == number)
            Trial(self.study, asked._trial_id).set_constraint("general", bound - kept)

    def _ask_again(self) -> None:
        """Trials of processes of this machine that are gone: reported, if they went through; else asked again."""
        for old in self._listed("RUNNING"):
            host, _, pid = old.user_attrs.get(WORKER, ":0").rpartition(":")
            gone = host in ("", socket.gethostname()) and not _alive(int(pid))
            if gone and not self._report(old.number, old.user_attrs.get("trial", "")):
                self.study.enqueue_trial(old.params, user_attrs={AGAIN: True})


def rounded(value: float, low: float, high: float) -> float:
    """A number to four digits, inside its interval."""
    short = float(f"{value:.{DIGITS}g}")
    return short if low <= short <= high else min(max(value, low), high)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return True
