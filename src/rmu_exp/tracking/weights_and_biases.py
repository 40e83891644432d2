"""Weights & Biases through its own SDK: online when a key is found, files in the run's folder otherwise."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any, Literal

from rmu_exp.support.errors import first_line
from rmu_exp.support.redaction import redact
from rmu_exp.sweep import axes
from rmu_exp.tracking import Tracker, switched

log = logging.getLogger("rmu_exp")
INIT_SECONDS = 30  # how long the server may take before the run goes on offline


class WandbTracker(Tracker):
    """Config, every step, tables, plots, and the Delta as an artifact.

    Attributes:
        mode: ``online`` or ``offline``, as it turned out.
        run: W&B's run, or None once tracking has ended or failed.
    """

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        name: str,
        group: str | None,
        tags: list[str],
        project: str,
        entity: str | None,
        mode: str,
        wait: float,
    ) -> None:
        logging.raiseExceptions = False  # its log file on a full disk would print a traceback a line
        os.environ.setdefault("WANDB_SILENT", "true")  # read on import; what matters is told here
        import wandb

        self.wandb, self.wait = wandb, wait
        self.run: Any = None
        self.files = folder / "wandb"
        self.mode: Literal["online", "offline"] = self._mode(switched(mode))
        given = {"dir": str(folder), "config": config, "name": name, "group": group, "tags": tags}
        given |= {"project": project, "entity": entity}
        why = self._begin(given)
        if self.run is None:
            return _say(f"W&B cannot start ({why}); the run goes on without it")
        self.files = Path(self.run.dir).parent
        self.run.define_metric("*", step_metric="step")
        if self.mode == "offline":
            _say(f"W&B is offline{f' ({why})' if why else ''}; upload later with: {self._sync}")

    def _begin(self, given: dict[str, Any]) -> str:
        """Start W&B's run: offline, if the server does not answer well; not at all, if that does not work either.

        Returns:
            Why it is not as wanted.
        """
        why = ""
        for mode in dict.fromkeys((self.mode, "offline")):
            self.mode = mode
            try:
                self.run = self._init(given)
                break
            except Exception as error:
                why = first_line(error)
        return why

    @property
    def _sync(self) -> str:
        """What uploads W&B's files."""
        return f"wandb sync {shlex.quote(str(self.files))}"

    def _mode(self, wanted: str) -> Literal["online", "offline"]:
        if wanted == "online":
            return "online"
        if wanted == "offline":
            return "offline"
        try:  # only whether there is a key: the server is asked by init, for a limited time
            return "online" if self.wandb.login(prompt=False, verify=False) else "offline"
        except Exception:
            return "offline"

    def _init(self, given: dict[str, Any]) -> Any:
        settings = self.wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            disable_code=True,
            x_disable_stats=True,
            x_disable_meta=True,
            init_timeout=INIT_SECONDS,
            finish_timeout=0.6 * self.wait,
            finish_timeout_raises=True,
        )
        return self.wandb.init(mode=self.mode, settings=settings, **given)

    def log(self, metrics: dict[str, Any], step: int) -> None:
        topic = metrics.get("topic", "all")
        named: dict[str, Any] = {"step": step}
        for key, value in metrics.items():
            if key.startswith("norm_"):
                role, state = key.split("_")[1:]
                named[f"norm/{topic}/{role}_{state}"] = value
            elif key.startswith("cos_"):
                named[f"cosine/{topic}/{key.removeprefix('cos_')}"] = value
            elif key not in ("step", "topic", "steer", "alpha"):
                named[f"train/{key}"] = value
        if "cos_forget" in metrics and "cos_retain" in metrics:
            named["score"] = metrics["cos_retain"] - metrics["cos_forget"]
        self._try(lambda run: run.log(named))

    def finish(self, results: dict[str, Any], plots: list[Path], delta: Path) -> None:
        def send(run: Any) -> None:
            run.summary.update(_summary(results))
            ended: dict[str, Any] = {f"plots/{p.stem}": self.wandb.Image(str(p)) for p in plots}
            if "qa" in results:
                ended["tables/accuracy"] = self._accuracy(results["qa"])
            answers = delta.parent / "answers.jsonl"
            if answers.is_file():
                ended["tables/answers"] = self.table([json.loads(line) for line in answers.read_text().splitlines()])
            reached = score(results)
            if reached is not None:
                ended["score"] = reached
            if ended:
                run.log(ended)
            if delta.is_file():
                named = ("model", "method", "layer", "steer", "alpha", "seed")
                about = {k: results["run"][k] for k in named if k in results["run"]}
                artifact = self.wandb.Artifact(f"delta-{run.id}", type="delta", metadata=about)
                artifact.add_file(str(delta))
                run.log_artifact(artifact)

        self._try(send)
        self.close()

    def send(self, values: dict[str, Any]) -> None:
        """Log values once, and end."""
        self._try(lambda run: run.log(values))
        self.close()

    def close(self) -> None:
        self._try(lambda run: run.finish(), limit=0.7 * self.wait)
        self.run = None

    def _accuracy(self, qa: dict[str, Any]) -> Any:
        lines = []
        for name, row in qa.items():
            line: dict[str, Any] = {"questions": name, "chance": row["chance"]}
            for who in ("base", "unlearned"):
                if who in row:
                    low, high = row[who]["ci95"]
                    line |= {who: row[who]["acc"], f"{who}_low": low, f"{who}_high": high, "n": row[who]["n"]}
            lines.append(line)
        return self.table(lines)

    def table(self, lines: list[dict[str, Any]]) -> Any:
        """A table of W&B's from lines that need not have the same keys."""
        columns: list[Any] = list(dict.fromkeys(key for line in lines for key in line))
        return self.wandb.Table(columns=columns, data=[[line.get(c) for c in columns] for line in lines])

    def _try(self, action: Callable[[Any], object], limit: float | None = None) -> None:
        """Tracking never ends a run, nor holds it up: the first failure is told once, and tracking stops."""
        if self.run is None:
            return
        error = _within(limit or 0.3 * self.wait, lambda: action(self.run))
        if error is not None:
            self.run = None
            later = f"; upload later with: {self._sync}" if self.mode == "online" else ""
            _say(f"W&B failed ({first_line(error)}); the run goes on without it, its files are complete{later}")


def _within(seconds: float, action: Callable[[], object]) -> Exception | None:
    """Do something for a limited time. Returns how it failed; None: it did not."""
    failed: list[Exception] = [TimeoutError(f"no answer within {seconds:g} s")]

    def carry_out() -> None:
        try:
            action()
            failed.clear()
        except Exception as error:
            failed[:] = [error]

    thread = Thread(target=carry_out, daemon=True)
    thread.start()
    thread.join(seconds)
    return failed[0] if failed else None


def _summary(results: dict[str, Any]) -> dict[str, Any]:
    """Numbers for W&B's tables and scatter plots: a run's settings (a judgement has none), accuracies, attacks."""
    numbers: dict[str, Any] = {}
    for key in ("layer", "steer", "alpha"):
        if (value := results["run"].get(key)) is not None:  # a list, one a topic, is what no panel can draw
            numbers[f"setting/{key}"] = sum(value) / len(value) if isinstance(value, list) else value
    for name, row in results.get("qa", {}).items():
        numbers |= {f"qa/{name}/{who}": row[who]["acc"] for who in ("base", "unlearned") if who in row}
    for name, row in results.get("attacks", {}).items():
        numbers |= {f"attacks/{name}/{when}": value for when, value in row.get("forget_acc", {}).items()}
    return numbers


def score(results: dict[str, Any]) -> float | None:
    """One number for W&B's sweeps: the accuracy forgotten less the general accuracy lost.

    While training the same key has the retain cosine less the forget cosine, so that a sweep can stop a run early.
    """
    changes = []
    for axis in axes.choose(("forget", "general"), [results]):
        before, after = axis.of(results, "base"), axis.of(results)
        if before is None or after is None:
            return None
        changes.append(before.value - after.value)
    return changes[0] - changes[1]


def _say(line: str) -> None:
    log.info("%s", line)
    print(redact(line), file=sys.stderr)
