"""One run from start to end: unlearn, judge, report. A stage whose result is already there is skipped.

Data flows one way: each stage reads what earlier ones left in the run's folder and writes its own part.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml

from rmu_exp import corpora, provenance
from rmu_exp.corpora import batches as batching
from rmu_exp.errors import RunError, UserError
from rmu_exp.judge import qa
from rmu_exp.judge.base import judged
from rmu_exp.model import parameters
from rmu_exp.model.checkpoint import Checkpoint, locate
from rmu_exp.model.delta import Delta
from rmu_exp.paths import write_atomic
from rmu_exp.report import markdown, plots, progress, tables
from rmu_exp.run import Run
from rmu_exp.tracking import Tracker, open_tracker
from rmu_exp.unlearn import rmu
from rmu_exp.unlearn.loop import Settings, unlearn

log = logging.getLogger("rmu_exp")


def execute(run: Run, folder: Path) -> None:
    """Carry out a run in its folder.

    Raises:
        UserError: what the run asks for does not exist or does not fit; nothing has been written.
        RunError: it failed on the way.
    """
    job = Job(run, folder)
    job.preflight()
    with job.logged(), job.tracked() as tracker:
        job.unlearn(tracker)
        job.judge()
        job.export()
        job.report(tracker)


class Job:
    """The stages of one run, over its folder.

    Attributes:
        run: the settings.
        folder: the run's folder.
        results: what has been measured so far; the content of results.json.
    """

    def __init__(self, run: Run, folder: Path) -> None:
        self.run, self.folder = run, folder
        self.results: dict[str, Any] = {}
        self.device = run.model.device
        if self.device == "auto":
            self.device = "cuda" if torch.cuda.is_available() else "cpu"

    @cached_property
    def checkpoint(self) -> Checkpoint:
        model = self.run.model
        return locate(model.name, model.path, model.revision, model.trust_remote_code)

    @property
    def dtype(self) -> torch.dtype:
        """The run's precision: fp32 on a CPU, where bf16 is slow; the checkpoint's own on a GPU."""
        wanted = self.run.model.dtype
        if wanted == "auto":
            own = getattr(self.checkpoint.config, "dtype", None)
            return torch.float32 if self.device == "cpu" or own is None else own
        return getattr(torch, wanted)

    def preflight(self) -> None:
        """Refuse what cannot work before anything is written."""
        run, depth = self.run, self.checkpoint.depth
        if run.layer >= depth:
            raise UserError(
                f"layer: got {run.layer}, allowed is 0 to {depth - 1} ({self.checkpoint.name} has {depth} layers)"
            )
        if not re.fullmatch(r"cpu|cuda(:\d+)?|mps", self.device):
            raise UserError(f"model.device: got {self.device!r}, allowed is auto, cpu, cuda, cuda:1, …")
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise UserError(f"model.device: got {self.device!r}, but no GPU is visible; allowed here is cpu")
        if run.eval.tasks:
            qa.task_manager(run.eval.tasks)
        before = self.folder / "config.yaml"
        if before.is_file():
            earlier = (
                json.loads((self.folder / "results.json").read_text())
                if (self.folder / "results.json").is_file()
                else {}
            )
            if yaml.safe_load(before.read_text()).get("digest") != run.digest:
                raise UserError(f"output: {self.folder} holds a run with other settings; choose another folder")
            self.results = earlier

    @contextmanager
    def logged(self) -> Iterator[None]:
        """run.log for the time of the run, and config.yaml."""
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = {k: v for k, v in dataclasses.asdict(self.run).items() if k != "output"}
        write_atomic(
            self.folder / "config.yaml", yaml.safe_dump(settings | {"digest": self.run.digest}, sort_keys=False)
        )
        handler = logging.FileHandler(self.folder / "run.log", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        try:
            yield
        except (UserError, KeyboardInterrupt):
            raise
        except RunError as error:
            raise RunError(f"{error} (log: {self.folder / 'run.log'})") from error
        except Exception as error:
            log.exception("the run failed")
            raise RunError(f"{type(error).__name__}: {error} (log: {self.folder / 'run.log'})") from error
        finally:
            log.removeHandler(handler)
            handler.close()

    @contextmanager
    def tracked(self) -> Iterator[Tracker]:
        run, t = self.run, self.run.tracking
        model = self.checkpoint.name.rstrip("/").split("/")[-1]
        setting = f"layer{run.layer}-steer{_short(run.steer)}-alpha{_short(run.alpha)}-seed{run.seed}"
        name = t.name or f"{model}-{run.method.name}-{setting}"
        tags = [*t.tags, run.method.name, run.data.name]
        tracker = open_tracker(
            t.kind, self.folder, dataclasses.asdict(run), name, t.group, tags, t.project, t.entity, t.mode
        )
        try:
            yield tracker
        finally:
            tracker.close()

    def unlearn(self, tracker: Tracker) -> None:
        """Train the few tensors; writes delta.safetensors and metrics.jsonl."""
        if "train" in self.results and (self.folder / "delta.safetensors").is_file():
            return
        run, began = self.run, time.perf_counter()
        forget, retain = corpora.load(run.data)
        for corpus in {c.source: c for c in (*forget, *retain)}.values():
            log.info("%s", corpus.describe())
        tokenizer = self.checkpoint.tokenizer()
        model = self.checkpoint.open(run.layer + 1, self.dtype, torch.device(self.device))
        trained = self._trained(model)
        steps, batches = self._batches(forget, retain, tokenizer)
        source = self.device if run.method.faithful else "cpu"
        control = rmu.control_vectors(
            run.steer,
            int(self.checkpoint.config.hidden_size),
            torch.Generator(source).manual_seed(run.seed),
            self.dtype if run.method.faithful else torch.float32,
            run.steering.distribution,
        )
        settings = Settings(run.train.lr or 0.0, run.alpha, run.steer, run.topics, run.method.faithful)
        seconds = []
        with (self.folder / "metrics.jsonl").open("w") as lines, progress.training_progress(steps) as bar:

            def on_metrics(metrics: dict[str, Any]) -> None:
                lines.write(json.dumps(metrics) + "\n")
                tracker.log(metrics, metrics["step"])
                bar.update(metrics)
                seconds.append(metrics["seconds"])

            values = unlearn(model, trained, batches, control.to(self.device), settings, on_metrics)
        about = {
            "name": self.checkpoint.name,
            "revision": self.checkpoint.revision or "",
            "digest": self.checkpoint.digest(),
        }
        tensors = {t.name: v.to(self.dtype) for t, v in zip(trained, values, strict=True)}
        Delta(tensors, control, run.topics, about).save(self.folder / "delta.safetensors")
        self.results = {
            "schema": 1,
            "run": {
                "model": self.checkpoint.name,
                "layer": run.layer,
                "steer": run.steer,
                "alpha": run.alpha,
                "method": run.method.name,
                "faithful": run.method.faithful,
                "seed": run.seed,
                "topics": run.topics,
                "trained_parameters": [t.name for t in trained],
            },
            "train": {
                "steps": len(seconds),
                "seconds": time.perf_counter() - began,
                "seconds_per_step": statistics.median(seconds),
                "peak_memory_bytes": provenance.peak_memory(self.device),
            },
            "provenance": provenance.describe(self.device)
            | {
                "config_hash": run.digest,
                "data_hashes": {c.source: c.digest for c in (*forget, *retain)},
                "model_revision": self.checkpoint.revision,
                "model_digest": about["digest"],
            },
        }
        self._save()

    def _trained(self, model: torch.nn.Module) -> list[parameters.Trained]:
        run = self.run
        names = run.parameters
        if run.layers.param_ids is not None:
            names = parameters.by_index(model, run.layer, run.layers.param_ids)
            log.info("layers.param_ids %s: %s", run.layers.param_ids, ", ".join(names))
        trained = parameters.resolve(model, run.trained_layers, names)
        log.info("trained: %s", ", ".join(t.name for t in trained))
        return trained

    def _batches(
        self, forget: list[corpora.Corpus], retain: list[corpora.Corpus], tokenizer: Any
    ) -> tuple[int, Iterator[batching.Batch]]:
        run, size, steps = self.run, self.run.train.batch_size, self.run.train.max_batches
        if run.method.faithful:
            texts = ([c.texts for c in forget], [c.texts for c in retain])
            return batching.published_steps(*texts, size, steps), batching.published(*texts, tokenizer, size, steps)
        known: dict[str, batching.Tokens] = {}
        for corpus in (*forget, *retain):
            if corpus.source not in known:
                known[corpus.source] = batching.tokenize(corpus.texts, tokenizer, run.data.max_length, corpus.source)
                log.info(
                    "%s: %d texts cut to %d tokens", corpus.source, known[corpus.source].truncated, run.data.max_length
                )
        tokens = ([known[c.source] for c in forget], [known[c.source] for c in retain])
        return steps, batching.shuffled(*tokens, size, steps, run.seed, tokenizer.pad_token_id)

    def judge(self) -> None:
        """Ask the questions before and after; writes answers.jsonl."""
        run = self.run
        if not run.eval.tasks or "qa" in self.results:
            return
        tokenizer = self.checkpoint.tokenizer()
        model = self.checkpoint.open(None, self.dtype, torch.device(self.device))
        base = judged(self.checkpoint, model, tokenizer, run.eval, str(self.dtype), self.device)
        with Delta.load(self.folder / "delta.safetensors").applied(model):
            unlearned = qa.ask(model, tokenizer, run.eval.tasks, limit=run.eval.limit, batch_size=run.eval.batch_size)
        lines = [
            json.dumps({"task": task, "question": i, "target": target, "base": b, "unlearned": u})
            for task in base.targets
            for i, (target, b, u) in enumerate(
                zip(base.targets[task], base.chosen[task], unlearned.chosen[task], strict=True)
            )
        ]
        write_atomic(self.folder / "answers.jsonl", "\n".join(lines) + "\n")
        self.results["qa"] = qa.compare(base, unlearned)
        self._save()

    def export(self) -> None:
        """Write the full checkpoint to model/, when asked for."""
        if self.run.export and not (self.folder / "model").exists():
            from rmu_exp.model.export import export

            export(self.checkpoint, Delta.load(self.folder / "delta.safetensors"), self.folder / "model")

    def report(self, tracker: Tracker) -> None:
        """Plots, report.md, W&B, and the table on the screen."""
        from rich.console import Console

        drawn = plots.draw_all(self.folder)
        markdown.write_report(self.folder)
        tracker.finish(self.results, drawn, self.folder / "delta.safetensors")
        console = Console(width=None if sys.stdout.isatty() else 100)
        if "qa" in self.results:
            console.print(tables.qa_table(self.results))
        console.print(f"Results and plots: {self.folder}", highlight=False)

    def _save(self) -> None:
        write_atomic(self.folder / "results.json", json.dumps(self.results, indent=2) + "\n")


def _short(values: list[float]) -> str:
    return "-".join(f"{v:g}" for v in dict.fromkeys(values))
