"""A sweep between Hydra's sweeper and its launcher: what to run, what is done already, what went wrong.

The launcher is any of Hydra's (one after another, joblib, Slurm, Ray); trials tell by the files in their folders
how they went, so that it does not matter where they ran or whether whoever started them is still there.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from rmu_exp.settings import Tracking
from rmu_exp.support.errors import UserError
from rmu_exp.support.files import write_atomic
from rmu_exp.sweep import trials

NOTES = "sweep.yaml"
ELSEWHERE = ("output", "export", "tracking", "hydra")  # keys that change no result


@dataclass(frozen=True)
class Planned:
    """A trial before it starts.

    Attributes:
        name: the name of its folder.
        words: its swept overrides, ``key=value``.
    """

    name: str
    words: tuple[str, ...]

    @property
    def settings(self) -> dict[str, Any]:
        """Swept key to value."""
        pairs = (word.split("=", 1) for word in self.words)
        return {key.lstrip("+"): yaml.safe_load(value) for key, value in pairs}


class Session:
    """One start of a sweep, over its folder.

    Attributes:
        folder: the sweep's folder, one sub-folder a trial.
        fixed: the overrides that all trials share.
        swept: the overrides with several values.
        mine: names of the trials that this start is to see done.
        broken: why the launcher gave up, if it did.
    """

    def __init__(self, hydra_context: Any, task_function: Any, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        self.folder = Path(config.hydra.sweep.dir).absolute()
        self.fixed: list[str] = []
        self.swept: list[Override] = []
        self.mine: set[str] = set()
        self.broken = ""
        self._number = 0

    def begin(self, arguments: Sequence[str], params: DictConfig | None, sweeper: str) -> None:
        """Sort the overrides, and claim the folder.

        Args:
            arguments: the command line's overrides.
            params: the sweeper's own, as in experiment files; the command line wins.

        Raises:
            UserError: the folder belongs to something else.
        """
        given = [f"{key!s}={value}" for key, value in (params or {}).items()]
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = {o.key_or_group: o for o in parser.parse_overrides([*given, *arguments])}
        self.swept = [o for o in overrides.values() if o.is_sweep_override()]
        self.fixed = [str(o.input_line) for o in overrides.values() if not o.is_sweep_override()]
        self._claim(sweeper)

    def _claim(self, sweeper: str) -> None:
        fixed = sorted(w for w in self.fixed if re.split(r"[./=@]", w.lstrip("+~"))[0] not in ELSEWHERE)
        notes = {"sweeper": sweeper, "fixed": fixed, "swept": sorted(o.key_or_group for o in self.swept)}
        file = self.folder / NOTES
        if (self.folder / "config.yaml").is_file():
            raise UserError(f"output: {self.folder} holds a single run; choose another folder")
        if not file.is_file():
            write_atomic(file, yaml.safe_dump(notes, sort_keys=False))
            return
        before = yaml.safe_load(file.read_text(encoding="utf-8"))
        for key, value in notes.items():
            if before.get(key) != value:
                had, has = (", ".join(v) if isinstance(v, list) else v for v in (before.get(key), value))
                raise UserError(
                    f"output: {self.folder} holds another sweep ({key}: {had or 'nothing'}; now: {has or 'nothing'}); "
                    "choose another folder"
                )

    def name(self, words: Sequence[str]) -> str:
        """A short name for a trial's folder: its swept keys and values; other values have other names."""
        keys = [o.key_or_group for o in self.swept]
        short = [key.split(".")[-1].split("/")[-1] for key in keys]
        names = {k: s if short.count(s) == 1 else k.replace("/", ".") for k, s in zip(keys, short, strict=True)}
        parts = []
        for key, value in (word.lstrip("+").split("=", 1) for word in words):
            plain = re.sub(", *", "+", value).strip("[]'\"{}")
            clean = re.sub(r"[^-+.=~A-Za-z0-9_]", "-", plain.replace(" ", ""))
            exact = clean == plain and "+" not in value
            parts.append(f"{names[key]}={clean}" + ("" if exact else f"-{sha256(value.encode()).hexdigest()[:8]}"))
        name = ",".join(parts) or "trial"
        return name if len(name) <= 120 else f"{name[:100]}-{sha256(name.encode()).hexdigest()[:8]}"

    def planned(self, words: Iterable[str]) -> Planned:
        """A trial of these swept values."""
        words = tuple(words)
        return Planned(self.name(words), words)

    def waiting(self, planned: Sequence[Planned]) -> list[Planned]:
        """Those that are not done yet; the rest is recognised by the digest of its resolved configuration.

        Raises:
            UserError: a folder holds a trial with other settings.
        """
        left = []
        self.mine |= {trial.name for trial in planned}
        for trial in planned:
            folder = self.folder / trial.name
            digest = trials.digest_in(folder)
            if digest is not None and digest != self._digest(trial):
                raise UserError(f"output: {folder} holds a run with other settings; choose another folder")
            if digest is None or not trials.is_done(folder):
                left.append(trial)
        return left

    def _digest(self, trial: Planned) -> str:
        from rmu_exp.config.parse import parse

        config = self.hydra_context.config_loader.load_sweep_config(self.config, [*self.fixed, *trial.words])
        config = OmegaConf.create(config)
        with read_write(config), open_dict(config):
            del config["hydra"]
        return parse(config).digest

    def launch(self, planned: Sequence[Planned]) -> None:
        """Run trials, and wait for them. A trial that fails, or a launcher that breaks, is noted and ends nothing."""
        if not planned:
            return
        jobs: list[list[str]] = []
        known = trials.numbers(self.folder)
        for trial in planned:  # one that was planned before keeps its place
            number = known.setdefault(trial.name, 1 + max(known.values(), default=-1))
            trials.plan(self.folder / trial.name, number, trial.settings)
            jobs.append([*self.fixed, *trial.words, f"hydra.sweep.subdir='{trial.name}'"])
        try:
            returned = self.launcher.launch(jobs, initial_job_idx=self._number)
        except Exception as error:  # a worker that died, a scheduler that went away
            self.broken = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            print(f"rmu_exp: the launcher gave up ({self.broken})", file=sys.stderr)
            returned = []
        self._number += len(jobs)
        for trial, job in zip(planned, returned, strict=False):
            _note_failure(self.folder / trial.name, job)


def _note_failure(folder: Path, job: JobReturn | None) -> None:
    """What escaped the trial itself; what it could catch it has noted."""
    if job is not None and job.status != JobStatus.COMPLETED:
        error = job._return_value
        trials.failed(folder, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")


def grid(session: Session, max_batch_size: int | None) -> None:
    """Every combination of the swept values, in the order of the command line."""
    combinations: list[tuple[str, ...]] = [()]
    for override in session.swept:
        key = override.get_key_element()
        values = [f"{key}={value}" for value in override.sweep_string_iterator()]
        combinations = [(*before, value) for before in combinations for value in values]
    planned = [session.planned(words) for words in combinations]
    waiting = session.waiting(planned)
    done = len(planned) - len(waiting)
    there = f" ({done} done before)" if done else ""
    print(f"{len(planned)} trials{there}: {session.folder}", file=sys.stderr)
    size = max_batch_size or max(1, len(waiting))
    for start in range(0, len(waiting), size):
        session.launch(waiting[start : start + size])


def carry_out(session: Session, how: Callable[[], None], axes: Sequence[str], given: Any) -> int:
    """Carry out a sweep and write its report, whatever becomes of its trials. Returns the exit status."""
    from rmu_exp.sweep.report import write

    interrupted = False
    try:
        how()
    except KeyboardInterrupt:
        interrupted = True
    own = session.config.get("tracking")
    tracking: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Tracking), own)) if own else None
    listed = write(session.folder, axes, given, tracking)
    bad = [t for t in listed if t.name in session.mine and t.state in ("failed", "unfinished")]
    for trial in bad:
        print(f"rmu_exp: {trial.name}: {trial.state}{': ' * bool(trial.reason)}{trial.reason}", file=sys.stderr)
    if bad or interrupted or session.broken:
        what = "interrupted" if interrupted else f"{len(bad)} of {len(listed)} trials did not finish"
        print(f"rmu_exp: {what}; the same command with output={session.folder} takes the rest up", file=sys.stderr)
        return 1
    return 0
