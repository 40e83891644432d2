"""Verify a run: recompute everything in its folder that can be recomputed, and compare.

Settings, hashes of data and weights and the numbers that follow from answers: line by line what agrees, differs, or
cannot be checked here. Changes nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import filecmp
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

from pydantic import JsonValue

from rmu_exp import data
from rmu_exp.evaluation import harness, statistics
from rmu_exp.model import diff
from rmu_exp.model.checkpoint import locate, named
from rmu_exp.model.delta import Delta
from rmu_exp.pipeline.judgement import is_run
from rmu_exp.pipeline.models import Models, Texts, refuse_device
from rmu_exp.pipeline.session import computing
from rmu_exp.pipeline.train import prepare_training, train
from rmu_exp.record import provenance
from rmu_exp.record.results import SCHEMA, AttackEntry, BeforeAfter, Intervals, Part, Provenance
from rmu_exp.record.rundir import DELTA, MODEL, WHO, Object, RunDir, flat, read
from rmu_exp.settings import Data, Eval, Model, Run, digest_of
from rmu_exp.support.errors import RunError, UserError
from rmu_exp.support.redaction import redact

AGREES, DIFFERS, UNCHECKED, NOTE = "agrees", "differs", "unchecked", "note"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    state: str  # agrees, differs, unchecked (it cannot be checked here), or note (nothing to check)
    what: str  # such as ``settings`` or ``questions lore_forget``
    detail: str  # values, or why not


Look = Callable[[RunDir, Provenance], Iterator[Check]]


def verify(folder: Path, answers: bool = False, training: bool = False) -> Iterator[Check]:
    """Look at everything in a run's or a judgement's folder.

    What is wrong in the folder itself differs; what else keeps a check from being made is reported as unchecked.

    Args:
        answers: ask the questions again.
        training: train again, and compare the Delta byte for byte.

    Raises:
        UserError: it is not the folder of a run with results.
    """
    run = read(folder)
    origin = run.results.provenance or Provenance(config_hash="", versions={}, command="")
    looks: dict[str, Look] = {"settings": _settings, "provenance": _here, "weights of the base": _weights}
    looks |= {f"texts {source}": partial(_texts, source) for source in origin.data_hashes}
    looks |= {"Delta": _delta, "questions": _questions, "attacks": _attacks, "metrics.jsonl": _metrics}
    looks |= {"model/": _exported} if (folder / MODEL).is_dir() else {}
    looks |= {"questions asked again": _asked_again} if answers else {}
    looks |= {"training again": _trained_again} if training else {}
    for what, look in looks.items():
        try:
            yield from look(run, origin)
        except (UserError, RunError) as error:
            yield Check(DIFFERS if str(error).startswith(str(folder)) else UNCHECKED, what, str(error))


def _same(what: str, here: str, there: str, agreed: str = "") -> Check:
    if not there:
        return Check(UNCHECKED, what, "not recorded")
    return _fits(what, None if here == there else f"recorded {there}, found {here}", agreed or there)


def _fits(what: str, wrong: str | None, agreed: str) -> Check:
    return Check(DIFFERS, what, wrong) if wrong else Check(AGREES, what, agreed)


def _settings(run: RunDir, origin: Provenance) -> Iterator[Check]:
    found = _digest_of(run.config)
    here = _same("settings", found, run.digest, f"config.yaml has the digest {run.digest}")
    if here.state == DIFFERS and run.results.schema_number < SCHEMA:
        here = Check(NOTE, "settings", "of another version, whose digest is made in another way")
    yield here
    if run.results.provenance is not None:
        yield _same("settings of the results", origin.config_hash, run.digest, "results.json has the same digest")
    if origin.config:
        yield _same("settings in results.json", _digest_of(origin.config), found, "the copy has the same digest")
    try:
        _ = run.settings
    except UserError as error:  # with the digest that they were written with they are as they were
        state = DIFFERS if here.state == DIFFERS else NOTE
        yield Check(state, "settings as this version reads them", f"they are of another version ({error})")


def _digest_of(config: Mapping[str, object]) -> str:
    try:
        return digest_of(config)
    except TypeError as error:
        return f"none ({error})"


def _here(run: RunDir, _: Provenance) -> Iterator[Check]:
    """What is another here than where the run was made; numbers may differ in their last digits by it."""
    if run.results.provenance is None:
        yield Check(UNCHECKED, "provenance", "results.json has none")
    for what, there, here in differences(run):
        yield Check(NOTE, what, f"made with {there}, here is {here}")


def differences(run: RunDir) -> Iterator[tuple[str, object, object]]:
    """Versions, code and hardware that are another here: what, there, here."""
    there, git = run.results.provenance, provenance.git_state()
    found = {"versions": provenance.versions(), "git": dict(git or {}), "hardware": provenance.hardware("cpu")}
    recorded = flat(there.model_dump(include=set(found), exclude_none=True)) if there else {}
    here = flat(cast(Object, found))
    apart = [f"hardware.{key}" for key in ("device", "switches", "gpu", "cuda")]  # of another kind, or in the settings
    apart += ["hardware.threads"] if run.part("model", Model).threads is not None else []
    for key, value in recorded.items():
        if not key.startswith(tuple(apart)) and value != here.get(key):
            yield key, value, here.get(key)


def models_of(run: RunDir) -> Models:
    """The base model of a run, by its settings and, from the hub, at the commit that it began with."""
    settings, base, origin = run.part("model", Model), run.config.get("base"), run.results.provenance
    return Models.find(settings, base if isinstance(base, str) else None, origin.model_revision if origin else None)


def _delta_of(run: RunDir, models: Models | None) -> Delta:
    """The changed tensors; of a judgement, of what was judged."""
    if models is None or not run.judged:
        return Delta.load(run.folder / DELTA)
    judged = str(run.config.get("unlearned"))
    if is_run(judged):
        return Delta.load(Path(judged).expanduser() / DELTA)
    return diff.changes(models.base, named(judged, "unlearned", models.settings))


def _weights(run: RunDir, origin: Provenance) -> Iterator[Check]:
    recorded, what = origin.model_digest, "weights of the base"
    found = models_of(run).base.digest() if recorded else ""
    if found.partition(":")[0] != recorded.partition(":")[0]:
        yield Check(UNCHECKED, what, f"recorded {recorded}, known here {found}")
    else:
        yield _same(what, found, recorded)


def _texts(source: str, run: RunDir, origin: Provenance) -> Iterator[Check]:
    yield _same(f"texts {source}", data.one(source, run.part("data", Data)).digest, origin.data_hashes[source])


def _delta(run: RunDir, origin: Provenance) -> Iterator[Check]:
    delta, info = _delta_of(run, models_of(run) if run.judged else None), run.results.run
    yield _same("Delta", delta.digest(), origin.delta_digest)
    names = info.changed_tensors if run.judged else info.trained_parameters
    yield _same("tensors of the Delta", ", ".join(sorted(delta.tensors)), ", ".join(sorted(names)), f"{len(names)}")
    bad = [name for name, value in delta.tensors.items() if not value.isfinite().all()]
    yield _fits("numbers of the Delta", f"not finite: {', '.join(bad)}" if bad else None, "finite")
    if origin.model_digest and delta.base.get("digest"):
        yield _same("base of the Delta", delta.base["digest"], origin.model_digest)


def _questions(run: RunDir, _: Provenance) -> Iterator[Check]:
    qa = run.results.qa
    if qa and not run.answers:
        yield Check(UNCHECKED, "questions", "there is no answers.jsonl")
        return
    if left := [task for task in run.answers if task not in qa]:
        yield Check(DIFFERS, f"questions {left[0]}", "in answers.jsonl, and not in results.json")
    for name, row in qa.items():
        base, after = run.correct(name, "base"), run.correct(name, "unlearned")
        if not base or not after:
            yield Check(DIFFERS, f"questions {name}", "in results.json, and not all in answers.jsonl")
            continue
        wrong = _differs(row, statistics.row(base, after, row.chance, row.blind))
        yield _fits(f"questions {name}", wrong, f"{row.base.n} answers give the same numbers")


def _attacks(run: RunDir, _: Provenance) -> Iterator[Check]:
    """Intervals follow from accuracy and n; the accuracies themselves can only be had by attacking again."""
    for name, entry in run.results.attacks.items():
        if entry.forget_acc is not None and entry.n:
            found = entry.forget_acc.before, entry.forget_acc.after
            made = [statistics.summary([1] * (k := round(acc * entry.n)) + [0] * (entry.n - k)) for acc in found]
            right = AttackEntry(
                fingerprint="",
                budget={},
                forget_acc=BeforeAfter(before=made[0].acc, after=made[1].acc),
                ci95=Intervals(before=made[0].ci95, after=made[1].ci95),
                n=entry.n,
                chance=entry.chance,
            )
            yield _fits(f"attack {name}", _differs(entry, right), "accuracies and intervals fit together")


def _differs(given: Part, right: Part) -> str | None:
    """The first number in a part of results.json that is another than ``right`` has, but for its last digits."""
    mine, made = (flat(part.model_dump(mode="json", exclude_none=True)) for part in (given, right))
    for key, value in made.items():
        pairs = zip(_numbers(mine.get(key, value)), _numbers(value), strict=True)
        if not all(math.isclose(x, y, rel_tol=1e-9, abs_tol=1e-300) for x, y in pairs):
            return f"{key} {mine[key]}, computed again {value}"
    return None


def _numbers(value: JsonValue) -> list[float]:
    return [x for x in (value if isinstance(value, list) else [value]) if isinstance(x, (int, float))]


def _metrics(run: RunDir, _: Provenance) -> Iterator[Check]:
    if run.results.train is None:
        return
    metrics, steps = run.metrics, run.results.train.steps
    if not metrics:
        yield Check(UNCHECKED, "metrics.jsonl", "there is none")
        return
    whole = [m.get("step") for m in metrics] == list(range(1, steps + 1))
    yield _fits("steps in metrics.jsonl", None if whole else f"not 1 to {steps}", f"1 to {steps}")
    losses = [x for m in metrics for x in _numbers(m.get("loss", 0.0)) or [math.nan]]
    yield _fits("losses in metrics.jsonl", None if all(map(math.isfinite, losses)) else "not all are finite", "finite")


def _exported(run: RunDir, _: Provenance) -> Iterator[Check]:
    mine = Delta.load(run.folder / DELTA).tensors
    changed = diff.changes(models_of(run).base, locate(None, str(run.folder / MODEL))).tensors
    other = [n for n, value in changed.items() if n not in mine or not bool((mine[n] == value).all())]
    wrong = f"{other[0]} is neither the base's nor the Delta's" if other else None
    yield _fits("model/", wrong, "the base with the Delta in it, bit for bit")


def _asked_again(run: RunDir, origin: Provenance) -> Iterator[Check]:
    settings, what = run.part("eval", Eval), "questions asked again"
    if not run.answers:
        yield Check(UNCHECKED, what, "none were put")
        return
    if settings.backend not in harness.IN_MEMORY:
        yield Check(UNCHECKED, what, f"eval.backend={settings.backend} evaluates in a program of its own")
        return
    models = models_of(run)
    tokenizer, model = models.base.tokenizer(), models.open(None)
    again = {"base": harness.ask(model, tokenizer, settings)}
    with _delta_of(run, models).applied(model):
        again["unlearned"] = harness.ask(model, tokenizer, settings)
    for task, asked in run.answers.items():
        what, put = f"answers {task}", again["base"].hashes.get(task)
        others = {who: sum(map(int.__ne__, again[who].chosen.get(task, []), asked.chosen(who))) for who in WHO}
        n, lengths = len(asked.target), {len(again[who].chosen.get(task, [])) for who in WHO}
        if origin.question_hashes.get(task, put) != put:
            yield Check(DIFFERS, what, "the questions are others than those that were put")
        elif lengths == {n} and not any(others.values()):
            yield Check(AGREES, what, f"{n} questions, the same options chosen by base and unlearned")
        else:
            counts = f"{others['base']} others by base, {others['unlearned']} by unlearned, of {n}"
            yield Check(DIFFERS, what, counts + _because(run))


def _trained_again(run: RunDir, origin: Provenance) -> Iterator[Check]:
    settings, what = run.settings, "training again"
    if not isinstance(settings, Run):
        yield Check(UNCHECKED, what, "a judgement trains nothing")
        return
    threads = settings.model.threads or origin.hardware.get("threads")
    model = dataclasses.replace(settings.model, threads=threads if isinstance(threads, int) else None)
    refuse_device(models_of(run).device)
    with tempfile.TemporaryDirectory(prefix="rmu_exp-verify-") as name, computing(model):
        file = Path(name) / DELTA
        again = train(prepare_training(settings, models_of(run), Texts(settings.data)), Path(name), "").delta
        again.save(file)
        if filecmp.cmp(run.folder / DELTA, file, shallow=False):
            yield Check(AGREES, what, "the same Delta, byte for byte")
            return
    distance = max(diff.distances(Delta.load(run.folder / DELTA), again).values(), default=math.inf)
    yield Check(DIFFERS, what, f"another Delta (relative L2 distance {distance:.2g}){_because(run)}")


def _because(run: RunDir) -> str:
    """What is another here, as a reason."""
    others = [f"{what} {there} → {here}" for what, there, here in differences(run)]
    return f"; another here: {', '.join(others)}" if others else "; versions and hardware are the same"


def add(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="the folder of a run or a judgement")
    parser.add_argument("--answers", action="store_true", help="ask the questions again, of base and base with Delta")
    parser.add_argument("--training", action="store_true", help="train again, and compare the Delta byte for byte")


def run(args: argparse.Namespace) -> int:
    """Verify a run. Returns 1 when something differs."""
    states = []
    for check in verify(args.folder, args.answers, args.training):
        states.append(check.state)
        print(redact(f"{check.state:<9}  {check.what}: {check.detail}"), flush=True)
    print("; ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)))
    return int(DIFFERS in states)
