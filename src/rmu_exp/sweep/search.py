"""A search by Optuna over the ranges of the command line, with several objectives.

Hydra's published plugin for Optuna wants optuna < 3; this one asks a current Optuna for one trial after another and
tells it what became of each, so that everything else (launchers, folders, report) is that of any sweep. The study
lies in a data base: further processes with the same command share it, and a search that was cut off goes on.
"""

from __future__ import annotations

import os
import socket
import sys
from hashlib import sha256
from typing import TYPE_CHECKING, Any, cast

from filelock import FileLock
from hydra.core.override_parser.types import IntervalSweep, Override

from rmu_exp.report import objectives
from rmu_exp.support.errors import UserError, first_line
from rmu_exp.sweep import trials
from rmu_exp.sweep.engine import Planned, Session
from rmu_exp.sweep.trials import Trial

if TYPE_CHECKING:
    import optuna

DIGITS = 4  # of a number drawn from an interval, so that names stay short and a trial can be repeated by hand
WORKER, AGAIN = "worker", "again"  # attributes of Optuna's trials


class Search:
    """One process of a search.

    Attributes:
        study: Optuna's study, shared by all processes and starts.
    """

    def __init__(self, session: Session, **settings: Any) -> None:
        self.session, self.settings = session, settings
        self.objectives = list(settings["objectives"])
        self.asked = {key: list(settings.get(key) or []) for key in ("forget", "general")}

    def run(self) -> None:
        """Ask, launch and tell until the study has its trials."""
        self.study = self._open()
        self._take_back()
        total = self.settings["n_trials"]
        print(f"search: {self._count()} of {total} trials done before: {self.session.folder}", file=sys.stderr)
        while batch := self._ask(total):
            self.session.launch(self.session.waiting([planned for _, planned in batch]))
            if self.session.broken:
                return  # what was cut off is taken back at the next start
            for number, planned in batch:
                self._tell(number, planned.name)

    def _open(self) -> optuna.Study:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        address = self.settings["storage"] or f"sqlite:///{self.session.folder / 'study.db'}"
        ways = optuna.study.StudyDirection
        directions = [ways.MAXIMIZE if name == "general" else ways.MINIMIZE for name in self.objectives]
        try:
            with self._lock:  # two processes must not both make the tables
                return optuna.create_study(
                    storage=address, study_name=self.settings["study"], directions=directions, load_if_exists=True
                )
        except Exception as error:  # whatever the data base's driver raises
            raise UserError(f"hydra.sweeper.storage: {address} cannot be used ({first_line(error)})") from error

    @property
    def _lock(self) -> FileLock:
        return FileLock(self.session.folder / ".study.lock")

    def _count(self) -> int:
        """Trials that were asked for; one that was cut off and asked again counts once."""
        listed = self.study.get_trials(deepcopy=False)
        return sum(t.state.name != "WAITING" and AGAIN not in t.user_attrs for t in listed)

    def _ask(self, total: int) -> list[tuple[int, Planned]]:
        """The next trials, no more than are missing; under a lock, since other processes ask too."""
        from optuna.trial import TrialState

        batch = []
        with self._lock:
            again = len(self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))
            for _ in range(min(self.settings["n_jobs"], total - self._count() + again)):
                self.study.sampler = self._sampler()
                trial = self.study.ask()
                words = [self._suggest(trial, override) for override in self.session.swept]
                planned = self.session.planned(words)
                trial.set_user_attr(WORKER, f"{socket.gethostname()}:{os.getpid()}")
                trial.set_user_attr("trial", planned.name)
                batch.append((trial.number, planned))
        return batch

    def _sampler(self) -> optuna.samplers.BaseSampler:
        """A sampler seeded anew for each trial: a search that goes on must not draw the same numbers again."""
        import optuna

        place = f"{self.settings['seed']}:{len(self.study.get_trials(deepcopy=False))}"
        seed = int.from_bytes(sha256(place.encode()).digest()[:4])
        kinds = {
            "tpe": lambda: optuna.samplers.TPESampler(seed=seed, constant_liar=True),
            "nsga2": lambda: optuna.samplers.NSGAIISampler(seed=seed),
            "random": lambda: optuna.samplers.RandomSampler(seed=seed),
        }
        return cast("optuna.samplers.BaseSampler", kinds[self.settings["sampler"]]())

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

    def _tell(self, number: int, name: str) -> None:
        """What became of a trial: its objectives, or that it failed."""
        from optuna.trial import TrialState

        values = self._values(trials.read_one(self.session.folder / name, {}))
        if values is None:
            self.study.tell(number, state=TrialState.FAIL)
        else:
            self.study.tell(number, values)

    def _values(self, trial: Trial) -> list[float] | None:
        """A trial's objectives; of one that was given up those on its part of the questions.

        Being beaten there beyond doubt, it cannot be on the front; but its numbers teach the sampler.
        """
        if trial.state not in ("done", "pruned"):
            return None
        runs = [trial.results] if trial.results else []
        measures = [axis.of(trial.results) for axis in objectives.choose(self.objectives, runs, self.asked)]
        values = [m.value for m in measures if m is not None]
        return values if len(values) == len(measures) else None

    def _take_back(self) -> None:
        """Trials of processes of this machine that are gone: told, if their run went through; else asked again."""
        from optuna.trial import TrialState

        with self._lock:
            for old in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                host, _, pid = old.user_attrs.get(WORKER, ":0").rpartition(":")
                if host not in ("", socket.gethostname()) or _alive(int(pid)):
                    continue
                self._tell(old.number, old.user_attrs.get("trial", ""))
                if self.study.get_trials(deepcopy=False)[old.number].state == TrialState.FAIL:
                    self.study.enqueue_trial(old.params, user_attrs={AGAIN: True})


def rounded(value: float, low: float, high: float) -> float:
    """A number to four digits, inside its interval."""
    short = float(f"{value:.{DIGITS}g}")
    return short if low <= short <= high else min(max(value, low), high)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
