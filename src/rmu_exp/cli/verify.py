"""Verify a run: recompute everything in its folder that can be recomputed, and compare.

``python -m rmu_exp verify DIR`` reads the folder, the model and the texts, and changes none of them; ``--answers``
puts the questions again, ``--training`` trains again in a temporary folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmu_exp import data
from rmu_exp.evaluate import statistics
from rmu_exp.model.delta import Delta
from rmu_exp.record import provenance
from rmu_exp.record.results import QaRow, State
from rmu_exp.record.rundir import WHO, RunDir, close, read, summary_differs
from rmu_exp.settings import Run, digest_of
from rmu_exp.support.errors import RunError, UserError
from rmu_exp.support.redaction import redact

if TYPE_CHECKING:
    from rmu_exp.evaluate.harness import Answers
    from rmu_exp.pipeline.job import Job

AGREES, DIFFERS, UNCHECKED, NOTE = "agrees", "differs", "unchecked", "note"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        state: ``agrees``, ``differs``, ``unchecked`` (it cannot be checked here), or ``note`` (nothing to check).
        what: such as ``settings`` or ``questions lore_forget``.
        detail: values, or why not.
    """

    state: str
    what: str
    detail: str


def verify(folder: Path, answers: bool = False, training: bool = False) -> Iterator[Check]:
    """Look at everything in a run's or a judgement's folder.

    Args:
        answers: put the questions again.
        training: train again, and compare the Delta byte for byte.

    Raises:
        UserError: it is not the folder of a run with results.
    """
    run = read(folder)
    yield from _settings(run)
    yield from _here(run)
    yield from _guarded(folder, "weights of the base", lambda: _weights(run))
    origin = run.results.provenance
    for source, digest in origin.data_hashes.items() if origin else ():
        yield from _guarded(folder, f"texts {source}", lambda s=source, d=digest: _texts(run, s, d))  # type: ignore[misc]
    yield from _guarded(folder, "Delta", lambda: _delta(run))
    yield from _guarded(folder, "questions", lambda: _questions(run))
    yield from _attacks(run)
    yield from _guarded(folder, "metrics.jsonl", lambda: _metrics(run))
    if (folder / "model").is_dir():
        yield from _guarded(folder, "model/", lambda: _exported(run))
    if answers:
        yield from _guarded(folder, "questions put again", lambda: _asked_again(run))
    if training:
        yield from _guarded(folder, "training again", lambda: _trained_again(run))


def _guarded(folder: Path, what: str, checks: Callable[[], Iterable[Check]]) -> Iterator[Check]:
    """The checks; what is wrong in the folder itself differs, what else keeps a check from being made is told."""
    try:
        yield from checks()
    except (UserError, RunError) as error:
        yield Check(DIFFERS if str(error).startswith(str(folder)) else UNCHECKED, what, str(error))


def _same(what: str, here: str, there: str, told: str = "") -> Check:
    if here == there:
        return Check(AGREES, what, told or there)
    return Check(DIFFERS, what, f"recorded {there}, found {here}")


def _right(what: str, wrong: str | None, told: str) -> Check:
    return Check(DIFFERS, what, wrong) if wrong else Check(AGREES, what, told)


def _settings(run: RunDir) -> Iterator[Check]:
    try:
        found = digest_of(run.config)
    except TypeError as error:
        found = f"none ({error})"
    yield _same("settings", found, run.digest, f"config.yaml has the digest {run.digest}")
    origin = run.results.provenance
    if origin:
        yield _same("settings of the results", found, origin.config_hash, "results.json has the same digest")
    if origin and origin.config:
        try:
            copied = digest_of(origin.config)
        except TypeError as error:
            copied = f"none ({error})"
        yield _same("settings in results.json", copied, run.digest, "the copy has the same digest")
    try:
        _ = run.settings
    except UserError as error:
        yield Check(DIFFERS, "settings as this version reads them", str(error))


def _here(run: RunDir) -> Iterator[Check]:
    """What is another here than where the run was made; numbers may differ in their last digits by it."""
    if not run.results.provenance:
        yield Check(UNCHECKED, "provenance", "results.json has none")
        return
    for what, there, here in differences(run):
        yield Check(NOTE, what, f"made with {there}, here is {here}")


def differences(run: RunDir) -> Iterator[tuple[str, Any, Any]]:
    """Versions, code and hardware that are another here: what, there, here."""
    here = {"versions": provenance.versions(), "git": provenance.git_state() or {}}
    here["hardware"] = provenance.hardware("cpu")
    told = {"device", "switches", "gpu", "cuda"}  # of another kind, or told by the settings
    if (run.config.get("model") or {}).get("threads") is not None:
        told.add("threads")
    origin = run.results.provenance
    made = origin.model_dump(include=set(here), exclude_none=True) if origin else {}
    for group, values in here.items():
        there = made.get(group, {})
        for key in sorted(set(there) - told):
            if there[key] != values.get(key):
                yield f"{group} {key}", there[key], values.get(key)


def _weights(run: RunDir) -> Iterator[Check]:
    recorded = run.results.provenance.model_digest if run.results.provenance else ""
    if not recorded:
        yield Check(UNCHECKED, "weights of the base", "results.json has no digest of them")
        return
    found = job_of(run).checkpoint.digest()
    if found.partition(":")[0] != recorded.partition(":")[0]:
        yield Check(UNCHECKED, "weights of the base", f"recorded {recorded}, known here {found}")
    else:
        yield _same("weights of the base", found, recorded)


def _texts(run: RunDir, source: str, digest: str) -> Iterator[Check]:
    yield _same(f"texts {source}", data.one(source, run.settings.data).digest, digest)


def _delta(run: RunDir) -> Iterator[Check]:
    delta = job_of(run).changes if run.judged else run.delta
    origin, about = run.results.provenance, run.results.run
    recorded = origin.delta_digest if origin else ""
    if not recorded:
        yield Check(UNCHECKED, "Delta", "results.json has no digest of it")
    else:
        yield _same("Delta", delta.digest(), recorded)
    told = about.trained_parameters or about.changed_tensors
    yield _same("tensors of the Delta", ", ".join(sorted(delta.tensors)), ", ".join(sorted(told)), f"{len(told)}")
    bad = [name for name, value in delta.tensors.items() if not value.isfinite().all()]
    yield _right("numbers of the Delta", f"not finite: {', '.join(bad)}" if bad else None, "finite")
    if origin and origin.model_digest and delta.base.get("digest"):
        yield _same("base of the Delta", delta.base["digest"], origin.model_digest)


def _questions(run: RunDir) -> Iterator[Check]:
    qa = run.results.qa
    if qa and not run.answers:
        yield Check(UNCHECKED, "questions", "there is no answers.jsonl")
        return
    left = [task for task in run.answers if task not in qa]
    if left:
        yield Check(DIFFERS, f"questions {left[0]}", "in answers.jsonl, and not in results.json")
    for name, row in qa.items():
        right = {who: run.correct(name, who) for who in WHO if row.of(who)}
        if any(correct is None for correct in right.values()):
            yield Check(DIFFERS, f"questions {name}", "in results.json, and not all in answers.jsonl")
            continue
        wrong = _row_differs(row, right)  # type: ignore[arg-type]
        yield _right(f"questions {name}", wrong, f"{row.base.n} answers give the same numbers")


def _row_differs(row: QaRow, right: dict[State, list[int]]) -> str | None:
    for state, correct in right.items():
        if (given := row.of(state)) and (wrong := summary_differs(given, correct)):
            return f"{state}: {wrong}"
    if "unlearned" not in right:
        return None
    made = statistics.mcnemar(right["base"], right["unlearned"])
    if row.mcnemar and not all(close(getattr(row.mcnemar, key), made[key]) for key in made):
        return f"mcnemar {row.mcnemar}, the answers give {made}"
    p = statistics.against_chance(right["unlearned"], row.chance)
    if row.p_chance is not None and not close(row.p_chance, p):
        return f"p_chance {row.p_chance:g}, the answers give {p:g}"
    return None


def _attacks(run: RunDir) -> Iterator[Check]:
    """Intervals follow from accuracy and n; the accuracies themselves can only be had by attacking again."""
    for name, entry in run.results.attacks.items():
        if not (entry.forget_acc and entry.ci95 and entry.n):
            continue
        wrong = None
        for when in ("before", "after"):
            acc, ci95 = getattr(entry.forget_acc, when), getattr(entry.ci95, when)
            correct = round(acc * entry.n)
            if not close(acc, correct / entry.n):
                wrong = f"{when}: {acc:g} is no accuracy over {entry.n} questions"
            elif wrong is None and not all(map(close, ci95, statistics.wilson(correct, entry.n))):
                wrong = f"{when}: the interval of {correct} of {entry.n} is another than {list(ci95)}"
        yield _right(f"attack {name}", wrong, "accuracies and intervals fit together")


def _metrics(run: RunDir) -> Iterator[Check]:
    if not run.results.train:
        return
    metrics, steps = run.metrics, run.results.train.steps
    if not metrics:
        yield Check(UNCHECKED, "metrics.jsonl", "there is none")
        return
    whole = [m.get("step") for m in metrics] == list(range(1, steps + 1))
    yield _right("steps in metrics.jsonl", None if whole else f"not 1 to {steps}", f"1 to {steps}")
    losses = [m["loss"] for m in metrics if "loss" in m]
    finite = all(isinstance(v, (int, float)) and math.isfinite(v) for v in losses)
    yield _right("losses in metrics.jsonl", None if finite else "not all are finite", "finite")


def _exported(run: RunDir) -> Iterator[Check]:
    from rmu_exp.model import diff
    from rmu_exp.model.checkpoint import locate

    changed = diff.changes(job_of(run).checkpoint, locate(None, str(run.folder / "model"))).tensors
    other = [name for name, value in changed.items() if not _equal(run.delta.tensors.get(name), value)]
    wrong = f"{other[0]} is neither the base's nor the Delta's" if other else None
    yield _right("model/", wrong, "the base with the Delta in it, bit for bit")


def _equal(a: Any, b: Any) -> bool:
    return a is not None and a.shape == b.shape and bool((a == b).all())


def job_of(run: RunDir, folder: Path | None = None) -> Job:
    """The job of a run's settings, in another folder: in none, as nothing of what is used of it writes."""
    from rmu_exp.pipeline.job import Job
    from rmu_exp.pipeline.judgement import Judgement

    where = folder or run.folder / "nowhere"
    return Judgement(run.settings, where) if run.judged else Job(run.settings, where)  # type: ignore[arg-type]


def _asked_again(run: RunDir) -> Iterator[Check]:
    from rmu_exp.evaluate import harness as qa

    settings = run.settings.eval
    if not run.answers:
        yield Check(UNCHECKED, "questions put again", "none were put")
        return
    if settings.backend not in qa.IN_MEMORY:
        yield Check(UNCHECKED, "questions put again", f"eval.backend={settings.backend} judges in a program of its own")
        return
    job = job_of(run)
    delta = job.changes if run.judged else run.delta
    tokenizer, model = job.checkpoint.tokenizer(), job.checkpoint.open(None, job.dtype, _device(job))
    again = {"base": qa.ask(model, tokenizer, settings)}
    with delta.applied(model):
        again["unlearned"] = qa.ask(model, tokenizer, settings)
    yield from _answers_differ(run, again)


def _answers_differ(run: RunDir, again: dict[str, Answers]) -> Iterator[Check]:
    hashes = run.results.provenance.question_hashes if run.results.provenance else {}
    for task, asked in run.answers.items():
        found = {who: answers.chosen.get(task) for who, answers in again.items()}
        what = f"answers {task}"
        if hashes.get(task, again["base"].hashes.get(task)) != again["base"].hashes.get(task):
            yield Check(DIFFERS, what, "the questions are others than those that were put")
        elif found == {who: getattr(asked, who) for who in WHO}:
            yield Check(AGREES, what, f"{len(asked.target)} questions, the same options chosen by base and unlearned")
        else:
            others = {w: sum(map(int.__ne__, c or [], getattr(asked, w))) for w, c in found.items()}
            told = f"{others['base']} others by base, {others['unlearned']} by unlearned, of {len(asked.target)}"
            yield Check(DIFFERS, what, told + _because(run))


def _device(job: Job) -> Any:
    import torch

    if job.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"model.device: {job.device}, and no GPU is visible here")
    return torch.device(job.device)


def _trained_again(run: RunDir) -> Iterator[Check]:
    from rmu_exp.pipeline import run as pipeline
    from rmu_exp.pipeline.train import Training

    if not isinstance(run.settings, Run):
        yield Check(UNCHECKED, "training again", "a judgement trains nothing")
        return
    made_on = run.results.provenance.hardware if run.results.provenance else {}
    there = made_on.get("threads")
    threads = run.settings.model.threads or (there if isinstance(there, int) else None)
    model = dataclasses.replace(run.settings.model, threads=threads)
    tracking = dataclasses.replace(run.settings.tracking, kind="off")
    settings = dataclasses.replace(run.settings, model=model, tracking=tracking, attacks={})
    with tempfile.TemporaryDirectory(prefix="rmu_exp-verify-") as name:
        job = job_of(dataclasses.replace(run), Path(name) / "run")
        job.run = settings
        _device(job)
        pipeline.carry_out(job, [Training(job)])
        mine, again = run.folder / "delta.safetensors", job.delta
        if _sha256(mine) == _sha256(again):
            yield Check(AGREES, "training again", "the same Delta, byte for byte")
            return
        distance = max(distances(run.delta, Delta.load(again)).values(), default=math.inf)
    yield Check(DIFFERS, "training again", f"another Delta (relative L2 distance {distance:.2g}){_because(run)}")


def distances(a: Delta, b: Delta) -> dict[str, float]:
    """Relative L2 distance of each tensor that both have in the same shape."""
    shared = [n for n in sorted(a.tensors) if n in b.tensors and a.tensors[n].shape == b.tensors[n].shape]
    found = {}
    for name in shared:
        mine, theirs = a.tensors[name].double(), b.tensors[name].double()
        found[name] = float((mine - theirs).norm() / mine.norm().clamp_min(1e-30))
    return found


def _because(run: RunDir) -> str:
    """What is another here, as a reason."""
    named = ("versions", "hardware", "git commit", "git diff")
    others = [f"{w} {there} → {here}" for w, there, here in differences(run) if w.startswith(named)]
    return f"; another here: {', '.join(others)}" if others else "; versions and hardware are the same"


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def add(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.description = (
        "Recompute what can be of a run's or a judgement's folder (settings, hashes of data and weights, numbers from "
        "answers), and report line by line what agrees, differs, or cannot be checked here. Changes nothing."
    )
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
