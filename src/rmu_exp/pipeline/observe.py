"""Beyond accuracy: what both models write, how far the unlearned one's next tokens are off, where accuracy was lost."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from torch import nn

from rmu_exp import worlds
from rmu_exp.data.sources import Corpus
from rmu_exp.evaluation import catalogue, damage, fluency, generate, questions, ripple
from rmu_exp.evaluation.damage import Compared
from rmu_exp.evaluation.generate import Written
from rmu_exp.evaluation.perplexity import LONGEST
from rmu_exp.evaluation.prompts import Prompt, evenly, from_file, from_questions
from rmu_exp.model.delta import Delta
from rmu_exp.pipeline.models import Models, Texts
from rmu_exp.pipeline.record import Record
from rmu_exp.record import rundir
from rmu_exp.record.results import Both, Damage, RatesRow, Results, Ripple
from rmu_exp.record.store import cached, fingerprint
from rmu_exp.settings import Judge, Run
from rmu_exp.support.errors import UserError
from rmu_exp.support.files import write_atomic

log = logging.getLogger("rmu_exp")
LENGTH = 128  # tokens of a text that both models are compared on
SAMPLED = 2  # prompts of each role after which a sampled text is written as well
MEASURED = 400  # questions of a role whose distance from the forget texts is measured


@dataclass(frozen=True)
class Observation:
    """What is still to be observed.

    Attributes:
        prompts: how many per role are taken from the questions, or those of a file; 0: nothing is written.
        neutral: held-out text, if some is named.
        compares: whether damage is measured.
        ripples: whether accuracy lost is set against distance.
    """

    run: Run | Judge
    models: Models
    texts: Texts
    prompts: int | list[Prompt]
    neutral: Corpus | None
    compares: bool
    ripples: bool

    @property
    def anything(self) -> bool:
        """Whether there is something to do."""
        return bool(self.prompts) or self.compares or self.ripples


def prepare_observation(run: Run | Judge, models: Models, texts: Texts, results: Results | None) -> Observation:
    """What an earlier start has not done. Raises UserError for prompts and texts that are not there."""
    done = results or Results.model_construct()
    over = done.pruned is not None
    asked, compares = run.prompts_asked, bool(run.texts_compared) and not over and done.damage is None
    prompts = from_file(asked) if isinstance(asked, str) else asked
    if run.eval.samples and isinstance(prompts, int) and not run.tasks_by_role:
        raise UserError(
            "eval.samples: there are no questions to take prompts from; give eval.tasks, or a file of prompts"
        )
    if not run.tasks_by_role and isinstance(prompts, int):
        prompts = 0
    prompts = 0 if over or done.samples else prompts
    if prompts:
        tokenizer, own = models.base.tokenizer(), prompts if isinstance(prompts, list) else []
        generate.refuse([tokenizer(p.text)["input_ids"] for p in own], run.eval.tokens, models.base.context)
    ripples = run.eval.ripple != "off" and bool(run.eval.tasks) and not over and done.ripple is None
    if run.eval.ripple == "auto" and ripples:
        ripples = bool(_levels(run)) or bool(run.texts_compared)
    if compares:
        _ = texts.corpora
    neutral = texts.neutral if compares else None
    if neutral and isinstance(run, Run) and run.train.kl_budget:
        neutral = dataclasses.replace(neutral, texts=neutral.texts[: len(neutral.texts) - damage.held(neutral.texts)])
    return Observation(run, models, texts, prompts, neutral, compares, ripples)


def observe(plan: Observation, delta: Delta, record: Record, results: Results) -> Iterator[Results]:
    """Write, compare and set against distance; gives the results each time a part is added. Writes samples.jsonl."""
    if results.pruned is not None:
        return
    began = time.perf_counter()
    model = plan.models.open(None) if plan.compares or plan.prompts else None
    if plan.compares and model is not None:
        results = results.model_copy(update={"damage": _damage(plan, model, delta, results)})
        log.info("damage: %.1f s", time.perf_counter() - began)
        yield results
    began = time.perf_counter()
    if plan.prompts and model is not None and (rates := _samples(plan, model, delta, record)):
        results = results.model_copy(update={"samples": rates})
        log.info("samples: %.1f s", time.perf_counter() - began)
        yield results
    if plan.ripples and results.qa and (found := _ripple(plan, record, results)):
        yield results.model_copy(update={"ripple": found})


def _damage(plan: Observation, model: nn.Module, delta: Delta, results: Results) -> Damage:
    """Both models over neutral, retain and forget texts."""
    base, count = plan.models.base, plan.run.texts_compared
    tokenizer = base.tokenizer()
    forget, retain = plan.texts.corpora
    kinds = {"neutral": [plan.neutral] if plan.neutral else [], "retain": retain, "forget": forget}
    length = min(LENGTH, base.context, LONGEST)
    kl, agreement, texts, perplexity, named = {}, {}, {}, {}, {}
    for kind, corpora in kinds.items():
        sources = {corpus.source: corpus for corpus in corpora}
        parts: list[Compared] = []
        for k, (source, corpus) in enumerate(sources.items()):
            share = count * (k + 1) // len(sources) - count * k // len(sources)
            rows = damage.encode(tokenizer, corpus.texts, source, max(1, share), length)
            parts.append(damage.compare(model, delta, tokenizer, rows))
            perplexity[source] = _both(parts[-1])
        if not parts:
            continue
        whole = parts[0]
        for part in parts[1:]:
            whole = whole.pooled(part)
        kl[kind], agreement[kind] = whole.per_token(whole.kl), whole.per_token(whole.agree)
        texts[kind], named[kind] = len(whole.tokens), list(sources)
    for source, row in results.perplexity.items():
        if row.unlearned is not None:
            perplexity[source] = Both(base=row.base.perplexity, unlearned=row.unlearned.perplexity)
    return Damage(kl=kl, agreement=agreement, perplexity=perplexity, texts=texts, sources=named, length=length)


def _both(part: Compared) -> Both:
    return Both(base=part.perplexity(part.base), unlearned=part.perplexity(part.unlearned))


def _samples(plan: Observation, model: nn.Module, delta: Delta, record: Record) -> dict[str, RatesRow]:
    """What both models write, and the rates over it, by role."""
    run, models, size = plan.run, plan.models, plan.run.eval
    tokenizer = models.base.tokenizer()
    prompts = plan.prompts
    if isinstance(prompts, int):
        prompts = from_questions(run.tasks_by_role, run.topics, prompts, size)
    if not prompts:
        return {}
    rows = [list(tokenizer(prompt.text)["input_ids"]) for prompt in prompts]
    roles = list(dict.fromkeys(prompt.role for prompt in prompts))
    sampled = [i for role in roles for i in [i for i, p in enumerate(prompts) if p.role == role][:SAMPLED]]
    how: dict[str, Any] = {"tokens": size.tokens, "context": models.base.context}

    asked = [*rows, *(rows[i] for i in sampled)]
    how |= {"seeds": [None] * len(rows) + [run.seed] * len(sampled)}

    def written() -> list[Written]:
        return generate.write(model, tokenizer, asked, **how)

    belongs = fingerprint(
        *(models.base.identity(), asked, how, str(models.dtype), models.device.partition(":")[0]),
        [version(name) for name in ("rmu_exp", "torch", "transformers")],
    )
    kept = cached("base_samples", belongs, lambda: [dataclasses.asdict(w) for w in written()])
    before = [Written(**line) for line in kept]
    with delta.applied(model):
        after = written()
    own = [w.nll for w in before[: len(rows)]]
    likely = [*own, *generate.nll(model, tokenizer, rows, [w.ids for w in after[: len(rows)]])]
    lines: list[dict[str, object]] = []
    for i, prompt in enumerate(prompts):
        line: dict[str, object] = {"role": prompt.role, "prompt": prompt.text}
        line |= {"answer": list(prompt.answers)} if prompt.answers else {}
        line |= {"base": before[i].text, "unlearned": after[i].text}
        line |= {"base_nll": likely[i], "unlearned_nll": likely[len(rows) + i]}
        if i in sampled:
            at = len(rows) + sampled.index(i)
            line |= {"base_sampled": before[at].text, "unlearned_sampled": after[at].text, "seed": run.seed}
        lines.append(line)
    write_atomic(record.folder / rundir.SAMPLES, "".join(json.dumps(n, ensure_ascii=False) + "\n" for n in lines))
    found = {}
    for role in roles:
        mine = [i for i, prompt in enumerate(prompts) if prompt.role == role]
        right = [prompts[i].answers for i in mine]
        base, unlearned = (
            fluency.rates([some[i] for i in mine], [likely[first + i] for i in mine], right)
            for some, first in ((before, 0), (after, len(rows)))
        )
        found[role] = RatesRow(base=base, unlearned=unlearned)
    return found


def _levels(run: Run | Judge) -> tuple[str, ...]:
    """The distances that the world of the questions knows by construction, nearest first; none: it knows none."""
    found = (worlds.levels(task) for task in run.eval.tasks or ())
    return next((levels for levels in found if levels), ())


def _ripple(plan: Observation, record: Record, results: Results) -> Ripple | None:
    """Accuracy lost by distance; None: no question has one."""
    run = plan.run
    answers = rundir.of(record.folder / rundir.CONFIG).answers
    levels = _levels(run) if run.eval.ripple == "auto" else ()
    rows: list[ripple.Question] = []
    if levels:
        tasks = catalogue.loaded(run.eval)["tasks"]
        for name, answered in answers.items():
            chance, every = results.qa[name].chance, tasks[name].eval_docs
            docs = (every[i] for i in catalogue.places(tasks[name], run.eval))
            for doc, before, after in zip(docs, answered.correct("base"), answered.correct("unlearned"), strict=False):
                if level := worlds.level(name, doc):
                    rows.append(ripple.Question(before, after, chance, level))
        return ripple.by_construction(rows, levels) if rows else None
    texts: list[str] = []
    for names in run.tasks_by_role.values():
        asked = [q for group in questions.load(names, run.topics, run.eval).values() for q in group]
        seen: dict[str, int] = {}
        for i, question in enumerate(asked):
            at = seen[question.task] = seen.get(question.task, -1) + 1
            if i in set(evenly(len(asked), MEASURED)) and question.task in answers:
                mine, right = answers[question.task], question.options[question.answer]
                chance = results.qa[question.task].chance
                rows.append(ripple.Question(mine.correct("base")[at], mine.correct("unlearned")[at], chance))
                stem = question.stem if question.lettered and question.stem else question.context
                right = question.choices[question.answer] if question.lettered and question.choices else right
                texts.append(f"{stem} {right.strip()}")
    if not rows:
        return None
    base = plan.models.base
    told = [text for corpus in plan.texts.corpora[0] for text in corpus.texts]
    told = [told[i] for i in evenly(len(told), MEASURED)]
    far = ripple.distances(plan.models.open(None), base.tokenizer(), texts, told, min(LENGTH, base.context))
    return ripple.by_distance([dataclasses.replace(q, distance=d) for q, d in zip(rows, far, strict=True)])
