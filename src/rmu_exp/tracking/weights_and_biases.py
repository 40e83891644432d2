"""Weights & Biases through its own SDK: online when a key is found, files in the run's folder otherwise.

A run's folder has one W&B run: its id lies in wandb/run.json, a resumed run goes on in it, and a finished one opens
it again only if there is something new.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel

from rmu_exp.record import rundir
from rmu_exp.record.results import Qa, Results, RippleLevel
from rmu_exp.report.objectives import score
from rmu_exp.settings import Tracking
from rmu_exp.support.errors import UserError, first_line
from rmu_exp.support.files import write_atomic
from rmu_exp.support.redaction import redact

if TYPE_CHECKING:
    import wandb

log = logging.getLogger("rmu_exp")
OFF = "off"
Line = Mapping[str, object]
INIT_SECONDS = 30  # how long the server may take before the run goes on offline


class Tracker:
    """Tracks nothing; the base of those that do."""

    def log(self, metrics: Line, step: int) -> None:
        """One training step's metrics."""

    def finish(self, results: Results, plots: Sequence[Path], folder: Path) -> None:
        """The results of the run in a folder, once everything is measured; ends tracking."""

    def send(self, values: Line, tables: Mapping[str, Sequence[Line]], files: Mapping[str, Path]) -> None:
        """Log values, tables (whose lines need not have the same keys), pictures and pages once; ends tracking."""

    def close(self) -> bool:
        """End tracking, also when the run failed; may be called twice. Returns whether all has arrived."""
        return True


def switched(mode: str) -> str:
    """What is wanted of W&B: its own WANDB_MODE wins over ``mode``; ``off`` when that says disabled."""
    wanted = os.environ.get("WANDB_MODE", "").strip().lower() or mode
    return {"disabled": OFF, "dryrun": "offline", "run": "online"}.get(wanted, wanted)


class Known(BaseModel):
    """What is kept of W&B's run of a folder: its id, and the fingerprint of what it was last finished with."""

    id: str | None = None
    finished: str = ""


def open_tracker(
    settings: Tracking,
    folder: Path,
    config: Mapping[str, object],
    name: str,
    tags: Sequence[str],
    *,
    kind: str = "train",
    quiet: bool = False,
) -> Tracker:
    """The tracker that the settings and W&B's own variables ask for.

    Args:
        config, name, tags: what W&B shows of the run; a name in the settings or in WANDB_NAME wins, tags are added to.
        kind: W&B's job type.
        quiet: whether somebody else says how to upload what is tracked offline.
    """
    if OFF in (settings.kind, switched(settings.mode)):
        return Tracker()
    given: dict[str, object] = {
        "config": plain(config),
        "name": settings.name or os.environ.get("WANDB_NAME") or name,
        "tags": [*settings.tags, *filter(None, os.environ.get("WANDB_TAGS", "").split(",")), *tags],
        "job_type": os.environ.get("WANDB_JOB_TYPE") or kind,
    }
    return WandbTracker(settings, folder, given, quiet)


def refuse(settings: Tracking, sweep: bool = False) -> None:
    """Raise UserError where W&B's variables contradict each other, the settings, or a sweep."""
    if settings.kind == OFF:
        return
    mode, off = switched(settings.mode), os.environ.get("WANDB_DISABLED", "").strip().lower() in ("true", "1")
    if mode not in ("auto", "online", "offline", OFF):
        raise UserError(f"WANDB_MODE: got {mode!r}, allowed is online, offline, disabled, dryrun or run")
    if off and mode == "online":
        raise UserError("WANDB_DISABLED: contradicts the mode online; unset one of the two")
    if sweep and os.environ.get("WANDB_RUN_ID"):
        raise UserError("WANDB_RUN_ID: one run of W&B cannot hold the trials of a sweep; unset it")


def plain(config: Mapping[str, object]) -> dict[str, object]:
    """Settings as W&B's columns can sort and filter them.

    One value for all topics is a number, different ones are named by topic.
    """
    data = config.get("data")
    topics = data.get("topics") or [] if isinstance(data, Mapping) else []
    found = dict(config)
    for key in ("steer", "alpha"):
        values = config.get(key)
        if isinstance(values, list) and values:
            each = {str(topic): value for topic, value in zip(topics, values, strict=False)}
            found[key] = values[0] if len(set(values)) == 1 else each or values
    return found


class WandbTracker(Tracker):
    """Config, every step, tables, plots, and the Delta as an artifact.

    All calls after the start are made by one thread, so that none holds the run up; only the end is waited for, and
    not for long. ``run`` is W&B's run: None before the start, and once tracking is over (it has ended or failed).
    """

    def __init__(self, settings: Tracking, folder: Path, given: dict[str, object], quiet: bool) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")  # read on import; what matters is said here
        self.settings, self.folder, self.given, self.quiet = settings, folder, given, quiet
        self.run: wandb.Run | None = None
        self.mode: Literal["online", "offline"] = "offline"
        self.over = False
        self.file, self.known = folder / "wandb" / "run.json", Known()
        with suppress(OSError, ValueError):
            self.known = Known.model_validate_json(self.file.read_text(encoding="utf-8"))
        self.waiting: SimpleQueue[tuple[Callable[[wandb.Run], object], Event]] = SimpleQueue()
        if not self.known.finished:
            self._start()

    def _start(self) -> None:
        """Start W&B's run: offline, if the server does not answer well; not at all, if that does not work either."""
        why = ""
        for mode in dict.fromkeys((self._wanted(), "offline")):
            self.mode = mode
            try:
                self.run = self._open()
                break
            except Exception as error:
                why = first_line(error)
        if self.run is None:
            self.over = True
            return _say(f"W&B cannot start ({why}); the run goes on without it")
        for handler in logging.getLogger("wandb").handlers:  # its log on a full disk would print a traceback per line
            handler.handleError = lambda record: None  # type: ignore[method-assign]
        self.sync = f"upload later with: wandb sync {shlex.quote(str(Path(self.run.dir).parent))}"
        self.run.define_metric("*", step_metric="step")
        self._keep(Known(id=self.run.id))
        Thread(target=self._work, args=(self.run,), daemon=True).start()
        if self.mode == "offline" and (why or not self.quiet):
            _say(f"W&B is offline{f' ({why})' if why else ''}; {self.sync}")

    def _wanted(self) -> Literal["online", "offline"]:
        import wandb

        wanted = switched(self.settings.mode)
        if wanted == "auto":
            with suppress(Exception):  # only whether there is a key: the server is asked by init, for a limited time
                return "online" if wandb.login(prompt=False, verify=False) else "offline"
        return "online" if wanted == "online" else "offline"

    def _open(self) -> wandb.Run:
        import wandb

        own = wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            disable_code=True,
            x_disable_stats=not self.settings.system,
            x_disable_meta=True,
            init_timeout=INIT_SECONDS,
            finish_timeout=0.6 * self.settings.wait,
            finish_timeout_raises=True,
        )
        return wandb.init(
            mode=self.mode,
            settings=own,
            dir=os.environ.get("WANDB_DIR") or str(self.folder),
            project=self.settings.project or os.environ.get("WANDB_PROJECT") or "rmu_exp",
            entity=self.settings.entity,
            group=self.settings.group,
            id=os.environ.get("WANDB_RUN_ID") or self.known.id,  # an agent gives the first
            resume="allow" if self.mode == "online" else None,
            **self.given,  # type: ignore[arg-type]
        )

    def _keep(self, known: Known) -> None:
        """Remember W&B's run, if the disk takes it."""
        self.known = known
        try:
            write_atomic(self.file, known.model_dump_json() + "\n")
        except OSError as error:
            log.info("W&B's id is not kept (%s)", first_line(error))

    def log(self, metrics: Line, step: int) -> None:
        named = {"step": step, **_named(metrics)}
        self._do(lambda run: run.log(named))

    def finish(self, results: Results, plots: Sequence[Path], folder: Path) -> None:
        reached = score(results)
        tables: dict[str, Sequence[Line]] = {"tables/accuracy": _accuracy(results.qa)} if results.qa else {}
        for name, file in (("answers", folder / rundir.ANSWERS), ("samples", folder / rundir.SAMPLES)):
            if file.is_file():
                tables[f"tables/{name}"] = list(rundir.lines(file))
        if results.ripple:
            tables["tables/ripple"] = [_level(level) for level in results.ripple.levels]
        files = {f"plots/{p.stem}": p for p in plots}
        if (page := folder / rundir.PAGE).is_file():
            files["report"] = page
        kind = self.settings.artifact
        if kind != OFF and (weights := folder / {"delta": rundir.DELTA, "export": rundir.MODEL}[kind]).exists():
            files[kind] = weights
        self.send({} if reached is None else {"score": reached}, tables, files, summary(results), about(results))

    def send(
        self,
        values: Line,
        tables: Mapping[str, Sequence[Line]],
        files: Mapping[str, Path],
        numbers: Line = MappingProxyType({}),
        about: Line = MappingProxyType({}),
    ) -> None:
        """As :meth:`Tracker.send`; nothing is done if W&B's run was finished with the same numbers before.

        Args:
            files: pictures, pages, and what becomes an artifact: the Delta, or the folder of a checkpoint.
            numbers: for the run's summary.
            about: where the results come from, for the run's config and the artifact's metadata.
        """
        said = json.dumps([values, tables, numbers], sort_keys=True, default=str)
        fingerprint = sha256(said.encode()).hexdigest()
        if self.run is None and self.known.finished == fingerprint:
            return

        def send(run: wandb.Run) -> None:
            import wandb

            run.config.update(dict(about), allow_val_change=True)
            run.summary.update(dict(numbers))
            ended: dict[str, object] = {name: _table(lines) for name, lines in tables.items()}
            for key, file in files.items():
                if file.is_dir() or file.suffix == ".safetensors":
                    artifact = wandb.Artifact(f"{key}-{run.id}", type=key, metadata=dict(about))
                    (artifact.add_dir if file.is_dir() else artifact.add_file)(str(file))
                    run.log_artifact(artifact)
                else:
                    ended[key] = (wandb.Html if file.suffix == ".html" else wandb.Image)(str(file))
            if values or ended:
                run.log({**values, **ended})

        self._do(send, limit=0.3 * self.settings.wait)
        if self.close():
            self._keep(Known(id=self.known.id, finished=fingerprint))

    def close(self) -> bool:
        if self.run is not None:
            self._do(lambda run: run.finish(), limit=0.7 * self.settings.wait)
        well, self.run, self.over = self.run is not None, None, True
        self.waiting.put((lambda run: None, Event()))  # so that the thread sees it
        return well

    def _do(self, action: Callable[[wandb.Run], object], limit: float | None = None) -> None:
        """Let the thread do something, and wait for it if there is a limit.

        Tracking never ends a run, nor holds it up: the first failure is reported once, and tracking stops.
        """
        if self.run is None and not self.over:
            self._start()
        if self.run is not None:
            done = Event()
            self.waiting.put((action, done))
            if limit is not None and not done.wait(limit):
                self._fail(TimeoutError(f"no answer within {limit:g} s"))

    def _work(self, run: wandb.Run) -> None:
        while not self.over:
            action, done = self.waiting.get()
            try:
                if not self.over:
                    action(run)
            except Exception as error:
                self._fail(error)
            done.set()

    def _fail(self, error: Exception) -> None:
        if not self.over:
            self.run, self.over = None, True
            later = f"; {self.sync}" if self.mode == "online" else ""
            _say(
                f"W&B failed ({first_line(error)}); the run goes on without it; what it had by then is in wandb/{later}"
            )


def _named(metrics: Line) -> dict[str, object]:
    """A step's metrics by the names of W&B's panels."""
    topic = metrics.get("topic", "all")
    named: dict[str, object] = {}
    for key, value in metrics.items():
        kind, _, rest = key.partition("_")
        if kind in ("norm", "cos"):
            named[f"{kind.replace('cos', 'cosine')}/{topic}/{rest}"] = value
        elif key not in ("step", "topic", "steer", "alpha"):
            named[f"train/{key}"] = value
    forget, retain = metrics.get("cos_forget"), metrics.get("cos_retain")
    if isinstance(forget, float) and isinstance(retain, float):
        named["score"] = retain - forget
    return named


def summary(results: Results) -> dict[str, object]:
    """Numbers for W&B's scatter plots: a run's settings (a judgement has none), accuracies, attacks."""
    run, numbers = results.run, dict[str, object]()
    if run.layer is not None:
        numbers["setting/layer"] = run.layer
    for key, values in (("steer", run.steer), ("alpha", run.alpha)):
        if len(set(values)) == 1:
            numbers[f"setting/{key}"] = values[0]
        else:  # a list is what no panel can draw, and a mean would be a setting that nobody ran
            numbers |= {f"setting/{key}/{topic}": value for topic, value in zip(run.topics, values, strict=False)}
    for name, row in results.qa.items():
        for state in ("base", "unlearned"):
            if found := row.of(state):
                numbers[f"qa/{name}/{state}"] = found.acc
                if found.corrected:
                    numbers[f"qa/{name}/{state}_corrected"] = found.corrected.acc
    if results.damage:
        for kind, kl in results.damage.kl.items():
            numbers |= {f"damage/kl/{kind}": kl.mean, f"damage/agreement/{kind}": results.damage.agreement[kind].mean}
        for source, both in results.damage.perplexity.items():
            numbers |= {f"damage/perplexity/{source}/{state}": value for state, value in both}
    for role, pair in results.samples.items():
        for who, rates in (("base", pair.base), ("unlearned", pair.unlearned)):
            shares = {"empty": rates.empty, "refusal": rates.refusal, "match": rates.match}
            numbers |= {f"samples/{role}/{key}/{who}": rate.mean for key, rate in shares.items() if rate}
            numbers |= {f"samples/{role}/repeat/{who}": rates.repeat, f"samples/{role}/nll/{who}": rates.nll}
    if results.verdict:
        numbers["verdict"] = results.verdict.word
    if results.train:
        numbers["seconds"] = results.train.seconds
    for name, entry in results.attacks.items():
        if entry.forget_acc:
            numbers |= {f"attacks/{name}/{when}": value for when, value in entry.forget_acc}
    return numbers


def about(results: Results) -> dict[str, object]:
    """Where results come from: settings that were resolved, the commit, versions, and hashes of data and weights."""
    kept = {"model", "method", "layer", "steer", "alpha", "seed"}
    found: dict[str, object] = {"resolved": results.run.model_dump(include=kept, exclude_none=True)}
    if (origin := results.provenance) is not None:
        found |= {"versions": origin.versions, "config_hash": origin.config_hash, "command": origin.command}
        found |= {"data_hashes": origin.data_hashes, "model_digest": origin.model_digest, "delta": origin.delta_digest}
        if origin.git:
            found |= {"commit": origin.git.commit, "dirty": origin.git.dirty}
    return found


def _accuracy(qa: Qa) -> list[Line]:
    lines: list[Line] = []
    for name, row in qa.items():
        line: dict[str, object] = {"questions": name, "chance": row.chance}
        for state in ("base", "unlearned"):
            if found := row.of(state):
                line |= dict(zip((state, f"{state}_low", f"{state}_high"), (found.acc, *found.ci95), strict=True))
                line["n"] = found.n
        lines.append(line)
    return lines


def _level(level: RippleLevel) -> Line:
    low, high = level.lost.ci95
    kept = level.model_dump(include={"name", "n", "base", "unlearned", "distance"}, exclude_none=True)
    return {**kept, "lost": level.lost.mean, "lost_low": low, "lost_high": high}


def _table(lines: Sequence[Line]) -> wandb.Table:
    import wandb

    columns = list(dict.fromkeys(key for line in lines for key in line))
    return wandb.Table(columns=columns, data=[[line.get(c) for c in columns] for line in lines])  # type: ignore[arg-type]


def sync_line(folder: Path) -> str:
    """How to upload what a sweep's trials and report have tracked offline; empty: nothing."""
    kept = [
        f"{pattern}/wandb/offline-run-*" for pattern in (".", "*") if any(folder.glob(f"{pattern}/wandb/offline-*"))
    ]
    return f"upload later with: (cd {shlex.quote(str(folder))} && wandb sync {' '.join(kept)})" if kept else ""


def _say(line: str) -> None:
    log.info("%s", line)
    print(redact(line), file=sys.stderr)
