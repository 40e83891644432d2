"""One run from start to end: unlearn, judge, report. A stage whose result is already there is skipped.

Data flows one way: each stage reads what earlier ones left in the run's folder and writes its own part.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import yaml

from rmu_exp import corpora, provenance, share
from rmu_exp.attacks import items, suite
from rmu_exp.attacks.frame import Context
from rmu_exp.corpora import batches as batching
from rmu_exp.errors import RunError, UserError
from rmu_exp.judge import base, pair, qa
from rmu_exp.judge.perplexity import perplexity
from rmu_exp.model import parameters
from rmu_exp.model.anatomy import layers_of
from rmu_exp.model.checkpoint import Checkpoint, locate, named
from rmu_exp.model.delta import Delta
from rmu_exp.model.weights import LAYER
from rmu_exp.paths import write_atomic
from rmu_exp.report import attacks as attacks_report
from rmu_exp.report import markdown, plots, progress, published, tables
from rmu_exp.report.card import card
from rmu_exp.run import AUTO, Run
from rmu_exp.sweep.prune import Hopeless
from rmu_exp.tracking import Tracker, open_tracker
from rmu_exp.unlearn import lora
from rmu_exp.unlearn import method as methods
from rmu_exp.unlearn.loop import frozen_norms, unlearn
from rmu_exp.unlearn.trunks import Trunks, shared

log = logging.getLogger("rmu_exp")
AUTO_BATCHES = 4  # a topic, whose frozen norms steer=auto takes the mean of
THREADS = torch.get_num_threads()  # what this process may use
PERPLEXITY_TOKENS = 4096  # a forward pass; its logits are what takes memory


def execute(run: Run, folder: Path, hopeless: Hopeless | None = None) -> None:
    """Carry out a run in its folder.

    Args:
        hopeless: the rule by which a search gives the run up on a part of the questions.

    Raises:
        UserError: what the run asks for does not exist or does not fit; nothing has been written.
        RunError: it failed on the way.
    """
    job = Job(run, folder, hopeless)
    torch.set_num_threads(run.model.threads or THREADS)
    with warned():
        job.preflight()
    with warned(), job.logged(), job.tracked() as tracker:
        job.unlearn(tracker)
        job.export()
        job.judge()
        job.attack()
        job.report(tracker)


@contextmanager
def warned() -> Iterator[None]:
    """Show warnings of the project on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("rmu_exp: %(message)s"))
    handler.addFilter(lambda record: not record.exc_info)  # the log has it; the screen gets one line at the end
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


class Job:
    """The stages of one run, over its folder.

    Attributes:
        run: the settings.
        folder: the run's folder.
        results: what has been measured so far; the content of results.json.
    """

    def __init__(self, run: Run, folder: Path, hopeless: Hopeless | None = None) -> None:
        self.run, self.folder, self.hopeless = run, folder, hopeless
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
            return torch.float32 if self.device == "cpu" else self.checkpoint.dtype
        return getattr(torch, wanted)

    @property
    def delta(self) -> Path:
        """Where the changed tensors are."""
        return self.folder / "delta.safetensors"

    @property
    def trained(self) -> bool:
        """Whether an earlier start has done the training."""
        return "train" in self.results and self.delta.is_file()

    def preflight(self) -> None:
        """Refuse what cannot work before anything is written."""
        run, depth = self.run, self.checkpoint.depth
        if run.layer >= depth:
            raise UserError(
                f"layer: got {run.layer}, allowed is 0 to {depth - 1} ({self.checkpoint.name} has {depth} layers)"
            )
        self._check_device()
        self._preflight_questions()
        self._take_up()
        if not self.trained:
            self._needs()
            self._resolve(self.checkpoint.skeleton(self.layers_loaded))
            _ = self.batches
        self._preflight_attacks()

    def _check_device(self) -> None:
        if not re.fullmatch(r"cpu|cuda(:\d+)?|mps", self.device):
            raise UserError(f"model.device: got {self.device!r}, allowed is auto, cpu, cuda, cuda:1, …")
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise UserError(f"model.device: got {self.device!r}, but no GPU is visible; allowed here is cpu")

    def _preflight_questions(self) -> None:
        if self.run.eval.tasks:
            qa.task_manager(self.run.eval.tasks)

    def _preflight_attacks(self) -> None:
        """What is read after training: held-out texts, the attacks' questions and texts, the model that never knew."""
        if self.run.eval.perplexity is not None and "perplexity" not in self.results:
            _ = self.held_out
        if self.attacks:
            if self.run.model.never is not None:
                self._refuse_other(self.never)
            _, _ = self.questions, self.texts

    @cached_property
    def method(self) -> Any:
        """The module of the run's method."""
        return methods.find(self.run.method.name)

    @cached_property
    def settings(self) -> Any:
        """The method's settings."""
        given = dataclasses.asdict(self.run.method)
        given.pop("name")
        return self.method.Settings(**given)

    @property
    def targets(self) -> list[int]:
        """The layers that the method's loss is about."""
        return list(self.method.Method.targets(self.settings, self.run.layer))

    @property
    def layers_loaded(self) -> int:
        """How deep a model the method needs."""
        return self.checkpoint.depth if self.method.Method.logits else max(self.targets) + 1

    def _needs(self) -> None:
        """Refuse a model that the method cannot work with."""
        depth, name = self.checkpoint.depth, self.run.method.name
        if max(self.targets) >= depth or min(self.targets) < 0:
            raise UserError(f"method: {name} looks at layers {self.targets}, {self.checkpoint.name} has {depth} layers")
        if self.method.Method.logits and not self.checkpoint.has_head:
            raise UserError(f"method: {name} needs logits, but {self.checkpoint.name} has no language-model head")

    def _take_up(self) -> None:
        """What an earlier start of the same run has measured."""
        before, results = self.folder / "config.yaml", self.folder / "results.json"
        if not before.is_file():
            return
        if yaml.safe_load(before.read_text()).get("digest") != self.run.digest:
            raise UserError(f"output: {self.folder} holds a run with other settings; choose another folder")
        if results.is_file():
            self.results = json.loads(results.read_text())

    @property
    def attacks(self) -> dict[str, dict[str, Any]]:
        """The attacks that are still to be carried out."""
        return suite.missing(self.run.attacks, self.results)

    @cached_property
    def never(self) -> Checkpoint:
        """The model that never knew the forget topics."""
        return named(str(self.run.model.never), "model.never", self.run.model)

    @cached_property
    def questions(self) -> tuple[list[items.Item], dict[str, list[items.Item]]]:
        """What attacks ask: about the forget topics, and about everything else, by task or group."""
        data, settings = self.run.data, self.run.eval
        others = [task for task in settings.tasks if task not in {*data.forget_tasks, "wmdp"}]
        asked = items.needed(data.forget_tasks, self.run.topics, settings.limit)
        return asked, {k: v for k, v in items.load(others, self.run.topics, settings.limit).items() if v}

    def _refuse_other(self, other: Checkpoint, key: str = "model.never") -> None:
        """Refuse a checkpoint that is not of the base model's shape and tokenizer."""
        if difference := pair.difference(self.checkpoint, other):
            raise UserError(f"{key}: {other.name} does not match {self.checkpoint.name}: {difference}")

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
        t, (name, tags) = self.run.tracking, self._name()
        tracker = open_tracker(
            t.kind,
            self.folder,
            dataclasses.asdict(self.run),
            t.name or name,
            t.group,
            [*t.tags, *tags],
            t.project,
            t.entity,
            t.mode,
        )
        try:
            yield tracker
        finally:
            tracker.close()

    def _name(self) -> tuple[str, list[str]]:
        """What tracking calls the run, and its tags."""
        run, model = self.run, self.checkpoint.name.rstrip("/").split("/")[-1]
        setting = f"layer{run.layer}-steer{_short(run.steer)}-alpha{_short(run.alpha)}-seed{run.seed}"
        return f"{model}-{run.method.name}-{setting}", [run.method.name, run.data.name]

    @cached_property
    def texts(self) -> tuple[list[corpora.Corpus], list[corpora.Corpus]]:
        """The forget and the retain corpora, one a topic."""
        return corpora.load(self.run.data)

    @cached_property
    def held_out(self) -> corpora.Corpus:
        """The texts that perplexity is measured on."""
        return corpora.held_out(self.run.data, self.run.eval)

    @cached_property
    def batches(self) -> tuple[int, Iterator[batching.Batch], list[str]]:
        """How many steps, their batches, and what the log says about the texts."""
        run, size, steps = self.run, self.run.train.batch_size, self.run.train.max_batches
        forget, retain = self.texts
        different = {c.source: c for c in (*forget, *retain)}
        for corpus in different.values():
            batching.check_enough(len(corpus.texts), size, corpus.source)
        tokenizer, lines = self.checkpoint.tokenizer(), [c.describe() for c in different.values()]
        if run.faithful:
            if tokenizer.eos_token is None:
                raise UserError(
                    f"method.faithful: the published loop pads with the eos token, and {self.checkpoint.name}'s "
                    "tokenizer has none; add one to its folder, or use method.faithful=false"
                )
            texts = ([c.texts for c in forget], [c.texts for c in retain])
            order = batching.published(*texts, tokenizer, size, steps)
            return batching.published_steps(*texts, size, steps), order, lines
        known = {s: self._tokenized(c, tokenizer) for s, c in different.items()}
        lines += [f"{s}: {t.truncated} texts cut to {run.data.max_length} tokens" for s, t in known.items()]
        tokens = ([known[c.source] for c in forget], [known[c.source] for c in retain])
        return steps, batching.shuffled(*tokens, size, steps, run.seed, tokenizer.pad_token_id), lines

    def _tokenized(self, corpus: corpora.Corpus, tokenizer: Any) -> batching.Tokens:
        length, source = self.run.data.max_length, corpus.source
        key = (self.checkpoint, corpus.digest, corpus.texts, length)
        return self._once(
            f"tokens of {source}", key, lambda: batching.tokenize(corpus.texts, tokenizer, length, source)
        )

    def _once(self, kind: str, key: object, make: Callable[[], Any]) -> Any:
        """What a sweep's trials in one process share; a run alone keeps nothing."""
        return share.once(kind, key, make) if share.wanted(self.run.share) else make()

    def _open(self, depth: int | None) -> torch.nn.Module:
        """The model, left as it is by whoever uses it."""
        where = (self.checkpoint, self.checkpoint.digest(), depth, self.dtype, self.device)
        make = partial(self.checkpoint.open, depth, self.dtype, torch.device(self.device))
        return self._once("full model" if depth is None else "cut model", where, make)

    def _trunks(self, first: int, depth: int) -> AbstractContextManager[Trunks]:
        """Activations that do not depend on what is learnt; adapters make another model of the frozen one."""
        run, budget = self.run, int(self.run.share.gigabytes * 1e9)
        if not budget or run.layers.lora or not share.wanted(run.share):
            return nullcontext(Trunks())
        return shared(self.checkpoint, first, depth, self.dtype, self.device, budget)

    def unlearn(self, tracker: Tracker) -> None:
        """Train the few tensors; writes delta.safetensors and metrics.jsonl."""
        if self.trained:
            return
        run, began = self.run, time.perf_counter()
        steps, batches, lines = self.batches
        for line in lines:
            log.info("%s", line)
        model = self._open(None if self.method.Method.logits else self.layers_loaded)
        trained = self._resolve(model)
        log.info("trained: %s", ", ".join(t.name for t in trained))
        adapters = None
        if run.layers.lora:
            adapters = lora.Adapters(model, trained, run.layers.rank, run.layers.rank_alpha, run.seed)
        self.steer, batches = self._steer(model, batches)
        method = self.method.Method(self.settings, self._context(steps))
        decay = steps if run.train.schedule == "linear" else None
        seconds = []
        with (self.folder / "metrics.jsonl").open("w") as file, progress.training_progress(steps) as bar:

            def on_metrics(metrics: dict[str, Any]) -> None:
                file.write(json.dumps(metrics) + "\n")
                tracker.log(metrics, metrics["step"])
                bar.update(metrics)
                seconds.append(metrics["seconds"])

            learnt, texts = adapters.trained if adapters else trained, batching.ahead(batches)
            with self._trunks(min(t.layer for t in trained), len(layers_of(model))) as trunks:
                values = unlearn(model, learnt, texts, method, run.train.lr or 0.0, decay, on_metrics, trunks)
            values = adapters.merged(values) if adapters else values
        Delta.from_trained(trained, values, method.control_KD, run.topics, self.checkpoint).save(self.delta)
        self.results = self._about([t.name for t in trained]) | {
            "train": {
                "steps": len(seconds),
                "seconds": time.perf_counter() - began,
                "seconds_per_step": statistics.median(seconds),
                "peak_memory_bytes": provenance.peak_memory(self.device),
            }
        }
        self._save()

    def _steer(
        self, model: torch.nn.Module, batches: Iterator[batching.Batch]
    ) -> tuple[list[float], Iterator[batching.Batch]]:
        """The length of each topic's forget target, and the batches again: steer=auto looks at the first of them."""
        run, topics = self.run, self.run.topics
        if run.steer != AUTO:
            return list(run.steer), batches
        first = list(itertools.islice(batches, AUTO_BATCHES * len(topics)))
        norms = frozen_norms(model, run.layer, first)
        steer = [float(f"{run.steering.factor * norms[k]:.4g}") for k in range(len(topics))]
        told = ", ".join(f"{c:.3g} for {topic}" for topic, c in zip(topics, steer, strict=True))
        log.info("steer=auto: %s, %g times the frozen norm at layer %d", told, run.steering.factor, run.layer)
        return steer, itertools.chain(first, batches)

    def _context(self, steps: int) -> methods.Context:
        run, tokenizer = self.run, self.checkpoint.tokenizer()
        return methods.Context(
            layer=run.layer,
            topics=run.topics,
            steer=self.steer,
            alpha=run.alpha,
            hidden=self.checkpoint.hidden_size,
            device=torch.device(self.device),
            steps=steps,
            seed=run.seed,
            faithful=run.faithful,
            dtype=self.dtype if run.faithful else torch.float32,
            distribution=run.steering.distribution,
            tokenizer=tokenizer,
            marker=tokenizer(run.data.answer, add_special_tokens=False)["input_ids"] if run.data.answer else (),
        )

    def _resolve(self, model: torch.nn.Module) -> list[parameters.Trained]:
        """The trained tensors, by name."""
        run, names = self.run, self.run.parameters
        if names is None and run.faithful:
            names = parameters.published(model)
        if run.layers.param_ids is not None:
            names = parameters.by_index(model, run.layer, run.layers.param_ids)
            log.info("layers.param_ids %s: %s", run.layers.param_ids, ", ".join(names))
        found = parameters.resolve(model, run.trained_layers(self.targets, self.layers_loaded), names)
        return lora.matrices(model, found) if run.layers.lora else found

    def _about(self, trained: Sequence[str]) -> dict[str, Any]:
        """The parts of results.json that say what was run, on what."""
        run = self.run
        about: dict[str, Any] = {
            "schema": 1,
            "run": {
                "model": self.checkpoint.name,
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
            "provenance": provenance.describe(self.device)
            | {
                "config_hash": run.digest,
                "data_hashes": {c.source: c.digest for side in self.texts for c in side},
                "model_revision": self.checkpoint.revision,
                "model_digest": self.checkpoint.digest(),
            },
        }
        if run.model.published:
            about["run"]["changed"] = published.changed(run)
            about["published"] = [dataclasses.asdict(p) for p in run.model.published]
        return about

    def export(self) -> None:
        """Write the full checkpoint to model/, when asked for."""
        if self.run.export and not (self.folder / "model").exists():
            from rmu_exp.model.export import export

            export(self.checkpoint, self.changes, self.folder / "model")

    def judge(self) -> None:
        """Ask the questions and measure perplexity, before and after; writes answers.jsonl."""
        run = self.run
        ask = bool(run.eval.tasks) and "qa" not in self.results
        read = run.eval.perplexity is not None and "perplexity" not in self.results
        if ask and run.eval.backend not in qa.IN_MEMORY:
            before = base.judged(self.checkpoint, run.eval, self.dtype, self.device, self._ask_outside)
            self._answered(before, self._ask_outside(self.folder / "model"))
            ask = False
        if not (ask or read):
            return
        tokenizer = self.checkpoint.tokenizer()
        model = self._open(None)
        changed = self.changes.applied

        def in_memory(_folder: Path | None = None) -> qa.Answers:
            return qa.ask(model, tokenizer, run.eval)

        if ask:
            before = base.judged(self.checkpoint, run.eval, self.dtype, self.device, in_memory)
            with changed(model):
                if self.hopeless is not None and self._given_up(self.hopeless, before, model, tokenizer):
                    return
                self._answered(before, in_memory())
        if read:
            size = {"max_length": self.checkpoint.context, "max_batch_tokens": PERPLEXITY_TOKENS}
            measured = {"base": perplexity(model, tokenizer, self.held_out.texts, **size)}
            with changed(model):
                measured["unlearned"] = perplexity(model, tokenizer, self.held_out.texts, **size)
            self.results["perplexity"] = {self.held_out.source: measured}
            self._save()

    def attack(self) -> None:
        """What adversaries with stated budgets get out; one part of results.json an attack."""
        if not self.attacks:
            return
        run, device = self.run, torch.device(self.device)
        asked, others = self.questions
        delta, (forget, retain) = self.changes, self.texts
        span = sorted({int(m[1]) for name in delta.tensors if (m := LAYER.search(name))})
        context = Context(
            items=asked,
            others=others,
            forget=[text for corpus in forget for text in corpus.texts],
            retain=list(dict.fromkeys(text for corpus in retain for text in corpus.texts)),
            layer=span[-1] if span else self.checkpoint.depth - 1,
            span=span,
            seed=run.seed,
            tokenizer=self.checkpoint.tokenizer(),
            device=device,
            delta=delta,
            load=lambda: self.checkpoint.open(None, self.dtype, device),
            load_never=(lambda: self.never.open(None, self.dtype, device)) if run.model.never else None,
        )
        for _, found in suite.carry_out(context, self.attacks):
            suite.merge(self.results, found)
            self._save()

    @cached_property
    def changes(self) -> Delta:
        """What unlearning changed."""
        return Delta.load(self.delta)

    def _given_up(self, hopeless: Hopeless, before: qa.Answers, model: Any, tokenizer: Any) -> bool:
        """Whether the first questions of each task already show that the run is beaten."""
        count = min(hopeless.questions, self.run.eval.limit or hopeless.questions)
        after = qa.ask(model, tokenizer, dataclasses.replace(self.run.eval, limit=count))
        partly = {"questions": count, "qa": qa.compare(before.first(count), after)}
        because = hopeless({"pruned": partly})
        if because is not None:
            self.results["pruned"] = partly | {"because": because}
            self._save()
        return because is not None

    def _ask_outside(self, folder: Path) -> qa.Answers:
        """Let one of lm-eval's own backends judge a checkpoint on disk."""
        return qa.ask_backend(folder, self.run.eval, self.run.model)

    def _answered(self, before: qa.Answers, after: qa.Answers) -> None:
        lines = [
            json.dumps({"task": task, "question": i, "target": target, "base": b, "unlearned": u})
            for task in before.targets
            for i, (target, b, u) in enumerate(
                zip(before.targets[task], before.chosen[task], after.chosen[task], strict=True)
            )
        ]
        write_atomic(self.folder / "answers.jsonl", "\n".join(lines) + "\n")
        self.results["qa"] = qa.compare(before, after)
        self._save()

    def report(self, tracker: Tracker) -> None:
        """Plots, report.md, W&B, and the table on the screen."""
        from rich.console import Console

        drawn = plots.draw_all(self.folder)
        markdown.write_report(self.folder)
        if (self.folder / "model").is_dir():
            write_atomic(self.folder / "model" / "README.md", card(self.results))
        tracker.finish(self.results, drawn, self.delta)
        console = Console(width=None if sys.stdout.isatty() else 100)
        if "qa" in self.results:
            console.print(tables.qa_table(self.results))
        if line := attacks_report.sentence(self.results):
            console.print(line.replace("**", ""), highlight=False, soft_wrap=True)
        console.print(f"Results and plots: {self.folder}", highlight=False)

    def _save(self) -> None:
        write_atomic(self.folder / "results.json", json.dumps(self.results, indent=2) + "\n")


def _short(values: list[float] | str) -> str:
    return values if isinstance(values, str) else "-".join(f"{v:g}" for v in dict.fromkeys(values))
