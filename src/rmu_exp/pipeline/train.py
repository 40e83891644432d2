"""Training: the few tensors that unlearning changes."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rmu_exp.config import plugins
from rmu_exp.data import batches as batching
from rmu_exp.data.batches import Batch
from rmu_exp.evaluation.questions import Question
from rmu_exp.evaluation.scoring import Ids
from rmu_exp.model import parameters
from rmu_exp.model.delta import Delta
from rmu_exp.model.parameters import TrainedTensor
from rmu_exp.model.split import layers_of, refuse_unknown_flow
from rmu_exp.pipeline.checks import accuracy_of, check_questions, neutral_rows
from rmu_exp.pipeline.models import Models, Texts, once
from rmu_exp.record import provenance, rundir
from rmu_exp.record.results import Published, Results, RunInfo, Training
from rmu_exp.report import published
from rmu_exp.settings import AUTO, AUTO_STEER, Run
from rmu_exp.support import progress, signals
from rmu_exp.support.errors import UserError
from rmu_exp.support.files import write_atomic
from rmu_exp.unlearning import experts, lora, optimizers
from rmu_exp.unlearning import method as methods
from rmu_exp.unlearning.activation_cache import ActivationCache, shared
from rmu_exp.unlearning.budget import Budget
from rmu_exp.unlearning.gradients import Wrap
from rmu_exp.unlearning.guards import Guard
from rmu_exp.unlearning.loop import frozen_norms, root_mean_square, unlearn
from rmu_exp.unlearning.snapshot import Snapshots

log = logging.getLogger("rmu_exp")
NORM_BATCHES = 4  # per topic, whose frozen norms a relative steer takes the median of, and whose routes are looked at
PUBLISHED_LR, LR_PER_RMS = 5e-5, 0.01
Metrics = dict[str, Any]


@dataclass(frozen=True)
class TrainPlan:
    """A training that can be started.

    Attributes:
        settings: the method's own.
        depth: how many layers are loaded.
        notes: what the log says about the texts.
        asked: questions that are asked while training.
        neutral: texts that KL to the base is measured on; none: it is not.
        memory: what training takes of it, in words.
    """

    run: Run
    models: Models
    texts: Texts
    method: type[methods.Method]
    settings: object
    trained: list[TrainedTensor]
    depth: int
    steps: int
    batches: Iterator[Batch]
    notes: list[str]
    asked: list[Question]
    neutral: list[Ids]
    memory: str = ""

    @property
    def loads(self) -> int | None:
        """How many layers are loaded; None: the whole model, with its head."""
        return None if self.method.logits or self.neutral else self.depth


@dataclass(frozen=True)
class Trained:
    """What a training gave: the changed tensors, and what it took."""

    delta: Delta
    took: Training


def prepare_training(run: Run, models: Models, texts: Texts) -> TrainPlan:
    """Everything that training needs but the weights.

    Raises UserError: the model, the method, the layers and the texts do not fit together.
    """
    base, module = models.base, plugins.module("method", run.method.name)
    settings = plugins.settings_of(run.method)
    if run.layer >= base.depth:
        allowed = f"allowed is 0 to {base.depth - 1} ({base.name} has {base.depth} layers)"
        raise UserError(f"layer: got {run.layer}, {allowed}")
    targets = list(module.Method.targets(settings, run.layer))
    if max(targets) >= base.depth or min(targets) < 0:
        raise UserError(f"method: {run.method.name} looks at layers {targets}, {base.name} has {base.depth} layers")
    if module.Method.logits and not base.has_head:
        raise UserError(f"method: {run.method.name} needs logits, but {base.name} has no language-model head")
    depth = base.depth if module.Method.logits else max(targets) + 1
    refuse_unknown_flow(base.skeleton(depth))
    trained = trained_tensors(run, models, targets, depth, module.Method.linear)
    module.Method.refuse(settings, run.layer, min(t.layer for t in trained), run.train.max_batches)
    module.Method.refuse_tensors(settings, base, trained)
    if run.layers.lora and (module.Method.at_once or module.Method.linear):
        raise UserError(f"layers.lora: {run.method.name} changes the tensors themselves; use layers=all")
    around = run.train.around
    if module.Method.optimizer is methods.Method.optimizer:  # undo's second phase takes steps, down another loss
        around = [key for key in around if key != "optimizer"] if module.Method.at_once else []
    if around:
        raise UserError(
            f"train.{around[0]}: {run.method.name} takes no steps down a loss on forget texts; leave it out"
        )
    optimizers.refuse(run.train.optimizer, models.device)
    chosen = [
        key for key, on in (("train.checkpointing", run.train.checkpointing), ("model.device_map", models.over)) if on
    ]
    if chosen and module.Method.inside:
        raise UserError(f"{chosen[0]}: {run.method.name} looks into the layers as they run; leave it out")
    steps, batches, notes = order_of_texts(run, models, texts, 2 if module.Method.logits else 1)
    if relative(run) and steps < len(run.topics):
        raise UserError(
            f"steering.kind: relative takes a step of each of the {len(run.topics)} topics, but train.max_batches and "
            f"the texts give {steps}; allow more steps, or use steering=absolute with a number for steer"
        )
    asked = check_questions(run) if run.train.check_every else []
    neutral = neutral_rows(run, models, texts) if run.train.kl_budget else []
    return TrainPlan(run, models, texts, module.Method, settings, trained, depth, steps, batches, notes, asked, neutral)


def trained_tensors(
    run: Run, models: Models, targets: list[int], depth: int, linear: bool = False
) -> list[TrainedTensor]:
    """The trained tensors, by name; ``linear``: of linear modules only.

    Raises UserError: a name that no layer has, or that the checkpoint on disk spells otherwise.
    """
    model, names = models.base.skeleton(depth), run.parameters
    if names is None and run.faithful:
        names = parameters.published(model)
    if run.layers.param_ids is not None:
        names = parameters.by_index(model, run.layer, run.layers.param_ids)
    found = parameters.resolve(model, run.trained_layers(targets, depth), names)
    found = experts.listed(found, run.layers.experts, run.faithful)
    if run.layers.lora or linear:
        found = lora.matrices(model, found, "layers.rank" if run.layers.lora else "layers.parameters")
    if lacking := models.base.lacking(t.name for t in found):
        raise UserError(
            f"layers.parameters: {lacking[0]} is not in the files of {models.base.name} under this name, so its new "
            "value could not be saved; choose other tensors"
        )
    return found


def order_of_texts(run: Run, models: Models, texts: Texts, least: int) -> tuple[int, Iterator[Batch], list[str]]:
    """How many steps, their batches, and what the log says about the texts.

    Args:
        least: tokens that a text must have to be of use: two where losses are over next tokens.

    Raises UserError: too few texts, or a tokenizer that the published loop cannot pad with.
    """
    (forget, retain), size, steps = texts.corpora, run.train.batch_size, run.train.max_batches
    different = {c.source: c for c in (*forget, *retain)}
    for corpus in different.values():
        batching.check_enough(len(corpus.texts), size, corpus.source)
    base, notes = models.base, [c.describe() for c in different.values()]
    tokenizer = base.tokenizer()
    if run.faithful:
        if tokenizer.eos_token is None:
            raise UserError(
                f"method.faithful: the published loop pads with the eos token, and {base.name}'s "
                "tokenizer has none; add one to its folder, or use method.faithful=false"
            )
        both = [c.texts for c in forget], [c.texts for c in retain]
        batches = batching.published(*both, tokenizer, size, steps)
        return batching.published_steps(*both, size, steps), batches, notes
    known: dict[str, batching.Tokens] = {}
    for source, corpus in different.items():
        make = partial(batching.tokenize, corpus.texts, tokenizer, run.data.max_length, source, least)
        key = (base, corpus.digest, corpus.texts, run.data.max_length, least)
        known[source] = once(f"tokens of {source}", key, make) if models.shared else make()
    if run.data.max_length > base.context and any(len(ids) > base.context for t in known.values() for ids in t.ids):
        raise UserError(f"data.max_length: got {run.data.max_length}, but {base.name} has {base.context} positions")
    tokens = ([known[c.source] for c in forget], [known[c.source] for c in retain])
    order = batching.layered(*tokens, size, steps, run.seed, tokenizer.pad_token_id, folds=run.train.folds)
    return steps, order, notes


def train(plan: TrainPlan, folder: Path, made_from: str, on_step: Callable[[Metrics], None] | None = None) -> Trained:
    """Train, or go on with a training that was interrupted; writes metrics.jsonl.

    Args:
        folder: the run's; its ``state`` keeps what an interrupted training is resumed from.
        made_from: fingerprint of what such a state belongs to.
        on_step: called with each step's metrics.

    Raises:
        RunError: training has gone wrong.
        Stopped: somebody asked for it; the state is kept.
    """
    run, models, began = plan.run, plan.models, time.perf_counter()
    for note in plan.notes:
        log.info("%s", note)
    log.info("trained: %s", ", ".join(t.name for t in plan.trained))
    if plan.memory:
        log.info("%s", plan.memory)
        print(plan.memory, flush=True)
    model = models.open(plan.loads)
    batches = plan.batches
    if run.layers.experts == experts.USED:
        first = list(itertools.islice(batches, NORM_BATCHES * len(run.topics)))
        plan = dataclasses.replace(plan, trained=experts.used(model, plan.trained, first))
        batches = itertools.chain(first, batches)
    layers, adapters = run.layers, None
    if layers.lora:
        adapters = lora.Adapters(model, plan.trained, layers.rank, layers.rank_alpha, run.seed)
    lengths, medians, batches = lengths_of_targets(run, model, batches)
    trained = adapters.trained if adapters else plan.trained
    lr = learning_rate(run, model, plan.trained)
    method = plan.method(plan.settings, context_of(plan, lengths))
    snapshots = Snapshots(folder / rundir.STATE / "training.safetensors", made_from, run.train.save_every)
    accuracy = accuracy_of(plan.asked, models, plan.trained, adapters) if plan.asked else None
    budget = None
    if run.train.kl_budget:
        budget = Budget(run.train.kl_budget, plan.neutral, plan.steps, plan.method.at_once)
    with metrics_log(folder / rundir.METRICS, snapshots.steps, plan.steps, on_step) as seen:
        cache = _activations(plan, len(layers_of(model)))
        with signals.deferred():
            values = unlearn(
                model,
                trained,
                repeated(batching.ahead(batches), plan.method.repeats(plan.settings), plan.steps),
                method,
                lr,
                wrap=Wrap(run.train.sam, run.train.sign_mask),
                recompute=run.train.checkpointing,
                decay_over=plan.steps if run.train.schedule == "linear" else None,
                on_metrics=seen.add,
                cache=cache,
                snapshots=snapshots,
                guard=Guard(accuracy, run.train.check_every, run.train.collapse, plan.steps),
                budget=budget,
            )
        values = adapters.merged(values) if adapters else values
    took = Training(
        steps=len(seen.seconds),
        seconds=snapshots.seconds + time.perf_counter() - began,
        seconds_saving=snapshots.spent,
        seconds_per_step=statistics.median(seen.seconds),
        peak_memory_bytes=provenance.peak_memory(models.device, models.over),
        lr=lr,
        norms=medians,
        targets=dict(zip(run.topics, lengths, strict=True)),
        reached=seen.reached,
        **_kept(budget),
    )
    return Trained(Delta.from_trained(plan.trained, values, method.control_KD, run.topics, models.base), took)


def repeated(batches: Iterator[Batch], times: int, steps: int) -> Iterator[Batch]:
    """Each batch as many times in a row as the method has it, for so many steps."""
    return itertools.islice((batch for batch in batches for _ in range(times)), steps)


def _kept(budget: Budget | None) -> dict[str, Any]:
    """What results.json says of a budget."""
    if budget is None:
        return {}
    kept = {f"kl_{name}": value for name, value in vars(budget.kept).items() if name != "kl"}
    return {"kl_budget": budget.limit, "kl": budget.kept.kl, "seconds_measuring": budget.spent} | kept


def relative(run: Run) -> bool:
    """Whether steer counts in median norms of the frozen model's forget activations."""
    return run.steers_by_length and (run.steer == AUTO or run.steering.kind == "relative")


def lengths_of_targets(
    run: Run, model: torch.nn.Module, batches: Iterator[Batch]
) -> tuple[list[float], dict[str, float], Iterator[Batch]]:
    """The length of each topic's forget target, its frozen model's median norm, and the batches again.

    The median is over the tokens of the topic's first batches but each text's first one, whose norm is ten to a
    thousand times that of the others in many models. Warns of a target that is shorter than the activations.
    """
    first = list(itertools.islice(batches, NORM_BATCHES * len(run.topics)))
    norms = frozen_norms(model, run.layer, first)
    medians = {topic: norms[k] for k, topic in enumerate(run.topics) if k in norms}
    steer = [AUTO_STEER] * len(run.topics) if run.steer == AUTO else list(run.steer)
    if relative(run):
        steer = [float(f"{c * medians[topic]:.4g}") for c, topic in zip(steer, run.topics, strict=True)]
    for c, (topic, median) in zip(steer, medians.items(), strict=False):
        goal = "forget target of length" if run.steers_by_length else "ablated by a factor of"
        log.info("%s: %s %.4g, frozen median norm %.4g at layer %d", topic, goal, c, median, run.layer)
        if 0 < c < median and getattr(run.method, "target", "constant") == "constant":
            log.warning("steer: %s: %.4g is below the frozen norm %.4g, so it shortens activations", topic, c, median)
    return steer, medians, itertools.chain(first, batches)


def learning_rate(run: Run, model: torch.nn.Module, trained: Sequence[TrainedTensor]) -> float:
    """The one of the settings; otherwise in proportion to the trained tensors, since AdamW's steps are as long as it.

    1 % of their root mean square was chosen on SmolLM2 (docs/methods.md).
    """
    if run.train.lr is not None:
        return run.train.lr
    if run.faithful:
        return PUBLISHED_LR
    lr = float(f"{LR_PER_RMS * root_mean_square(model, trained):.2g}")
    log.info("train.lr: %g, %g of the trained tensors' root mean square", lr, LR_PER_RMS)
    return lr


def context_of(plan: TrainPlan, steer: list[float]) -> methods.Context:
    """What the method may know of the run; ``steer`` is the length of each topic's forget target."""
    run, models, tokenizer = plan.run, plan.models, plan.models.base.tokenizer()
    return methods.Context(
        layer=run.layer,
        topics=run.topics,
        steer=steer,
        alpha=run.alpha,
        hidden=models.base.hidden_size,
        device=torch.device(models.device),
        steps=plan.steps,
        seed=run.seed,
        faithful=run.faithful,
        dtype=models.dtype if run.faithful else torch.float32,
        distribution=run.steering.distribution,
        tokenizer=tokenizer,
        marker=tokenizer(run.data.answer, add_special_tokens=False)["input_ids"] if run.data.answer else (),
        optimizer=run.train.optimizer,
    )


def _activations(plan: TrainPlan, depth: int) -> ActivationCache:
    """Activations that do not depend on what is learnt; adapters make another model of the frozen one."""
    models, budget = plan.models, int(plan.run.share.gigabytes * 1e9)
    if not budget or not models.shared:
        return ActivationCache()
    return shared(models.base, min(t.layer for t in plan.trained), depth, models.dtype, models.device, budget)


@dataclass(frozen=True)
class Seen:
    """``add`` takes a step's metrics; each step's seconds, and how far each topic's forget activations have got."""

    add: Callable[[Metrics], None]
    seconds: list[float]
    reached: dict[str, float]


@contextmanager
def metrics_log(file: Path, done: int, steps: int, on_step: Callable[[Metrics], None] | None) -> Iterator[Seen]:
    """metrics.jsonl, the bar on the screen, and ``on_step``.

    Of ``steps``, the first ``done`` were done before: they are only reported again, and what was written after them
    goes.
    """
    written = {metrics["step"]: metrics for metrics in rundir.whole_lines(file) if metrics["step"] <= done}
    before = list(written.values())
    write_atomic(file, "".join(json.dumps(metrics) + "\n" for metrics in before))
    if before:
        log.info("resuming after step %d", done)
    seconds: list[float] = []
    reached: dict[str, float] = {}
    with file.open("a", encoding="utf-8", buffering=1) as lines, progress.training_progress(steps) as show:

        def report(metrics: Metrics) -> None:
            if on_step is not None:
                on_step(metrics)
            show(metrics)
            seconds.append(metrics["seconds"])
            if "reached_forget" in metrics:
                reached[metrics["topic"]] = metrics["reached_forget"]

        def add(metrics: Metrics) -> None:
            lines.write(json.dumps(metrics) + "\n")
            report(metrics)

        for metrics in before:
            report(metrics)
        yield Seen(add, seconds, reached)


def describe(plan: TrainPlan, trained: Trained, command: str) -> Results:
    """What was run, on what, and what it took, as results.json says it."""
    run, base = plan.run, plan.models.base
    info = RunInfo(
        model=base.name,
        layer=run.layer,
        steer=[AUTO_STEER] * len(run.topics) if run.steer == AUTO else run.steer,
        steering="relative" if relative(run) else "absolute",
        alpha=run.alpha,
        method=run.method.name,
        settings=dataclasses.asdict(plan.settings),  # type: ignore[call-overload]
        faithful=run.faithful,
        seed=run.seed,
        topics=run.topics,
        forget=run.data.forget,
        retain=run.data.retain,
        trained_parameters=list(trained.delta.tensors),
        changed=published.changed(run) if run.model.published else [],
    )
    origin = provenance.describe(
        run,
        plan.models.device,
        command=command,
        data_hashes=plan.texts.digests,
        model_revision=base.revision,
        model_digest=base.digest(),
        model_file=base.made_from,
        delta_digest=trained.delta.digest(),
    )
    theirs = [Published(**dataclasses.asdict(p)) for p in run.model.published]
    return Results(run=info, provenance=origin, train=trained.took, published=theirs)
