"""Training: the few tensors that unlearning changes."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from rmu_exp import data
from rmu_exp.data import batches as batching
from rmu_exp.model import parameters
from rmu_exp.model.delta import Delta
from rmu_exp.model.split import layers_of
from rmu_exp.pipeline import process_cache
from rmu_exp.pipeline.checks import Checking
from rmu_exp.pipeline.job import Job
from rmu_exp.record import provenance
from rmu_exp.report import published
from rmu_exp.settings import AUTO
from rmu_exp.support import progress, signals
from rmu_exp.support.errors import UserError
from rmu_exp.support.files import write_atomic
from rmu_exp.tracking import Tracker
from rmu_exp.unlearn import lora
from rmu_exp.unlearn import method as methods
from rmu_exp.unlearn.activation_cache import ActivationCache, shared
from rmu_exp.unlearn.guards import Guard
from rmu_exp.unlearn.loop import frozen_norms, unlearn
from rmu_exp.unlearn.snapshot import Snapshots

log = logging.getLogger("rmu_exp")
AUTO_BATCHES = 4  # a topic, whose frozen norms steer=auto takes the mean of


class Training:
    """Writes delta.safetensors, metrics.jsonl, and the parts of results.json that say what was run."""

    def __init__(self, job: Job) -> None:
        self.job = job

    @property
    def done(self) -> bool:
        """Whether an earlier start has done the training."""
        return "train" in self.job.results and self.job.delta.is_file()

    @cached_property
    def method(self) -> Any:
        """The module of the run's method."""
        return methods.find(self.job.run.method.name)

    @cached_property
    def settings(self) -> Any:
        """The method's settings."""
        given = dataclasses.asdict(self.job.run.method)
        given.pop("name")
        return self.method.Settings(**given)

    @property
    def targets(self) -> list[int]:
        """The layers that the method's loss is about."""
        return list(self.method.Method.targets(self.settings, self.job.run.layer))

    @property
    def layers_loaded(self) -> int:
        """How deep a model the method needs."""
        return self.job.checkpoint.depth if self.method.Method.logits else max(self.targets) + 1

    def preflight(self) -> None:
        run, checkpoint = self.job.run, self.job.checkpoint
        if run.layer >= checkpoint.depth:
            raise UserError(
                f"layer: got {run.layer}, allowed is 0 to {checkpoint.depth - 1} "
                f"({checkpoint.name} has {checkpoint.depth} layers)"
            )
        if not self.done:
            self._needs()
            trained = self._resolve(checkpoint.skeleton(self.layers_loaded))
            lowest = min(t.layer for t in trained)
            self.method.Method.refuse(self.settings, run.layer, lowest, run.train.max_batches)
            steps, topics = self.batches[0], len(run.topics)
            if run.steer == AUTO and steps < topics:
                raise UserError(
                    f"steer: got auto, which takes a step of each of the {topics} topics, but train.max_batches and "
                    f"the texts give {steps}; give a number, or more steps"
                )
            if run.train.check_every:
                _ = self.checking.asked

    def _needs(self) -> None:
        """Refuse a model that the method cannot work with."""
        depth, name = self.job.checkpoint.depth, self.job.run.method.name
        if max(self.targets) >= depth or min(self.targets) < 0:
            raise UserError(
                f"method: {name} looks at layers {self.targets}, {self.job.checkpoint.name} has {depth} layers"
            )
        if self.method.Method.logits and not self.job.checkpoint.has_head:
            raise UserError(f"method: {name} needs logits, but {self.job.checkpoint.name} has no language-model head")

    @cached_property
    def batches(self) -> tuple[int, Iterator[batching.Batch], list[str]]:
        """How many steps, their batches, and what the log says about the texts."""
        run, size, steps = self.job.run, self.job.run.train.batch_size, self.job.run.train.max_batches
        forget, retain = self.job.texts
        different = {c.source: c for c in (*forget, *retain)}
        for corpus in different.values():
            batching.check_enough(len(corpus.texts), size, corpus.source)
        tokenizer, lines = self.job.checkpoint.tokenizer(), [c.describe() for c in different.values()]
        if run.faithful:
            if tokenizer.eos_token is None:
                raise UserError(
                    f"method.faithful: the published loop pads with the eos token, and {self.job.checkpoint.name}'s "
                    "tokenizer has none; add one to its folder, or use method.faithful=false"
                )
            texts = ([c.texts for c in forget], [c.texts for c in retain])
            order = batching.published(*texts, tokenizer, size, steps)
            return batching.published_steps(*texts, size, steps), order, lines
        known = {s: self._tokenized(c, tokenizer) for s, c in different.items()}
        lines += [f"{s}: {t.truncated} texts cut to {run.data.max_length} tokens" for s, t in known.items()]
        tokens = ([known[c.source] for c in forget], [known[c.source] for c in retain])
        return steps, batching.shuffled(*tokens, size, steps, run.seed, tokenizer.pad_token_id), lines

    def _tokenized(self, corpus: data.Corpus, tokenizer: Any) -> batching.Tokens:
        length, source = self.job.run.data.max_length, corpus.source
        key = (self.job.checkpoint, corpus.digest, corpus.texts, length)
        return self.job.once(
            f"tokens of {source}", key, lambda: batching.tokenize(corpus.texts, tokenizer, length, source)
        )

    @cached_property
    def checking(self) -> Checking:
        """Questions that are asked while training."""
        return Checking(self.job)

    def _trunks(self, first: int, depth: int) -> ActivationCache:
        """Activations that do not depend on what is learnt; adapters make another model of the frozen one."""
        run, budget = self.job.run, int(self.job.run.share.gigabytes * 1e9)
        if not budget or run.layers.lora or not process_cache.wanted(run.share):
            return ActivationCache()
        return shared(self.job.checkpoint, first, depth, self.job.dtype, self.job.device, budget)

    def carry_out(self, tracker: Tracker) -> None:
        if self.done:
            return
        run, began = self.job.run, time.perf_counter()
        file = self.job.folder / "metrics.jsonl"
        steps, batches, lines = self.batches
        for line in lines:
            log.info("%s", line)
        model = self.job.open(None if self.method.Method.logits else self.layers_loaded)
        trained = self._resolve(model)
        log.info("trained: %s", ", ".join(t.name for t in trained))
        adapters = None
        if run.layers.lora:
            adapters = lora.Adapters(model, trained, run.layers.rank, run.layers.rank_alpha, run.seed)
        self.steer, batches = self._steer(model, batches)
        method = self.method.Method(self.settings, self._context(steps))
        decay = steps if run.train.schedule == "linear" else None
        snapshots = Snapshots(
            self.job.state / "training.safetensors", self.job.mark(self.job.text_digests), run.train.save_every
        )
        before = _first_lines(file, snapshots.steps)
        if before:
            log.info("going on behind step %d", snapshots.steps)
        accuracy = self.checking.accuracy(trained, adapters) if run.train.check_every else None
        guard = Guard(accuracy, run.train.check_every, run.train.collapse)
        seconds: list[float] = []
        with file.open("a", encoding="utf-8", buffering=1) as written, progress.training_progress(steps) as bar:

            def tell(metrics: dict[str, Any]) -> None:
                tracker.log(metrics, metrics["step"])
                bar.update(metrics)
                seconds.append(metrics["seconds"])

            def on_metrics(metrics: dict[str, Any]) -> None:
                written.write(json.dumps(metrics) + "\n")
                tell(metrics)

            for metrics in before:
                tell(metrics)

            learnt, texts = adapters.trained if adapters else trained, batching.ahead(batches)
            trunks = self._trunks(min(t.layer for t in trained), len(layers_of(model)))
            with signals.deferred():
                values = unlearn(
                    model,
                    learnt,
                    texts,
                    method,
                    run.train.lr or 0.0,
                    decay_over=decay,
                    on_metrics=on_metrics,
                    cache=trunks,
                    snapshots=snapshots,
                    guard=guard,
                )
            values = adapters.merged(values) if adapters else values
        delta = Delta.from_trained(trained, values, method.control_KD, run.topics, self.job.checkpoint)
        delta.save(self.job.delta)
        self.job.results = self._about([t.name for t in trained], delta) | {
            "train": {
                "steps": len(seconds),
                "seconds": snapshots.seconds + time.perf_counter() - began,
                "seconds_saving": snapshots.spent,
                "seconds_per_step": statistics.median(seconds),
                "peak_memory_bytes": provenance.peak_memory(self.job.device),
            }
        }
        self.job.save()

    def _steer(
        self, model: torch.nn.Module, batches: Iterator[batching.Batch]
    ) -> tuple[list[float], Iterator[batching.Batch]]:
        """The length of each topic's forget target, and the batches again: steer=auto looks at the first of them."""
        run, topics = self.job.run, self.job.run.topics
        if run.steer != AUTO:
            return list(run.steer), batches
        first = list(itertools.islice(batches, AUTO_BATCHES * len(topics)))
        norms = frozen_norms(model, run.layer, first)
        steer = [float(f"{run.steering.factor * norms[k]:.4g}") for k in range(len(topics))]
        told = ", ".join(f"{c:.3g} for {topic}" for topic, c in zip(topics, steer, strict=True))
        log.info("steer=auto: %s, %g times the frozen norm at layer %d", told, run.steering.factor, run.layer)
        return steer, itertools.chain(first, batches)

    def _context(self, steps: int) -> methods.Context:
        run, tokenizer = self.job.run, self.job.checkpoint.tokenizer()
        return methods.Context(
            layer=run.layer,
            topics=run.topics,
            steer=self.steer,
            alpha=run.alpha,
            hidden=self.job.checkpoint.hidden_size,
            device=torch.device(self.job.device),
            steps=steps,
            seed=run.seed,
            faithful=run.faithful,
            dtype=self.job.dtype if run.faithful else torch.float32,
            distribution=run.steering.distribution,
            tokenizer=tokenizer,
            marker=tokenizer(run.data.answer, add_special_tokens=False)["input_ids"] if run.data.answer else (),
        )

    def _resolve(self, model: torch.nn.Module) -> list[parameters.TrainedTensor]:
        """The trained tensors, by name."""
        run, names = self.job.run, self.job.run.parameters
        if names is None and run.faithful:
            names = parameters.published(model)
        if run.layers.param_ids is not None:
            names = parameters.by_index(model, run.layer, run.layers.param_ids)
            log.info("layers.param_ids %s: %s", run.layers.param_ids, ", ".join(names))
        found = parameters.resolve(model, run.trained_layers(self.targets, self.layers_loaded), names)
        return lora.matrices(model, found) if run.layers.lora else found

    def _about(self, trained: Sequence[str], delta: Delta) -> dict[str, Any]:
        """The parts of results.json that say what was run, on what."""
        run = self.job.run
        about: dict[str, Any] = {
            "schema": 1,
            "run": {
                "model": self.job.checkpoint.name,
                "layer": run.layer,
                "steer": self.steer,
                "alpha": run.alpha,
                "method": run.method.name,
                "settings": dataclasses.asdict(self.settings),
                "faithful": run.faithful,
                "seed": run.seed,
                "topics": run.topics,
                "forget": run.data.forget,
                "retain": run.data.retain,
                "trained_parameters": list(trained),
            },
            "provenance": provenance.describe(run, self.job.device)
            | {
                "command": self.job.command,
                "data_hashes": self.job.text_digests,
                "model_revision": self.job.checkpoint.revision,
                "model_digest": self.job.checkpoint.digest(),
                "delta_digest": delta.digest(),
            },
        }
        if run.model.published:
            about["run"]["changed"] = published.changed(run)
            about["published"] = [dataclasses.asdict(p) for p in run.model.published]
        return about


def _first_lines(file: Path, steps: int) -> list[dict[str, Any]]:
    """The metrics of the first steps, to which the file is cut; what was written behind a snapshot is done again."""
    found: dict[int, dict[str, Any]] = {}
    if steps and file.is_file():
        for line in file.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):  # the last line may have been cut off
                metrics = json.loads(line)
                if metrics["step"] <= steps:
                    found[metrics["step"]] = metrics
    write_atomic(file, "".join(json.dumps(metrics) + "\n" for metrics in found.values()))
    return list(found.values())
