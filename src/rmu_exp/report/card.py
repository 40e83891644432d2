"""The model card of an exported checkpoint: what was done to it, what was measured, what that does not show.

Made from results.json alone; what was not measured is not mentioned, except that it was not.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml

from rmu_exp.record.results import Provenance, Results, RunInfo
from rmu_exp.report import tables
from rmu_exp.report.markdown import listed, render
from rmu_exp.report.table import Table, numbers

Entry = dict[str, object]
README = "README.md"
NAMES = {
    "rmu": "representation misdirection for unlearning (RMU, [arXiv 2403.03218](https://arxiv.org/abs/2403.03218))"
}


def card(results: Results, delta: bool = False) -> str:
    """README.md of a checkpoint in Hugging Face's format, or of a Delta."""
    run = results.run
    origin = results.provenance or Provenance(config_hash="", versions={}, command="")
    return render(
        "card.md.jinja",
        results=results,
        run=run,
        origin=origin,
        front=_front_matter(results, origin, delta),
        delta=delta,
        name=Path(run.model).name or "a model",
        method=NAMES.get(run.method or "rmu", run.method),
        settings=_settings(results),
        corpora=[(_role(run, source), source, digest) for source, digest in origin.data_hashes.items()],
        measured=[tables.accuracies(results.qa), tables.perplexities(results), tables.attacks(results)],
        listed=listed,
        all_settings=yaml.safe_dump(origin.config, sort_keys=False, allow_unicode=True),
    )


def _front_matter(results: Results, origin: Provenance, delta: bool) -> str:
    run = results.run
    tags = dict.fromkeys(["unlearning", "rmu", *([run.method] if run.method else [])])
    library = "rmu_exp" if delta else "transformers"
    facts: dict[str, object] = {"library_name": library, "pipeline_tag": "text-generation", "tags": list(tags)}
    if origin.model_revision:  # only a model of the hub can be linked
        facts |= {"base_model": run.model, "base_model_relation": "adapter" if delta else "finetune"}
    if measured := [*_questions(results), *_perplexities(results), *_attacks(results)]:
        facts["model-index"] = [{"name": f"{Path(run.model).name}, unlearned", "results": measured}]
    return yaml.safe_dump(facts, sort_keys=True, allow_unicode=True)


def _questions(results: Results) -> Iterator[Entry]:
    for task, row in results.qa.items():
        if after := row.unlearned:
            values = {"accuracy": after.acc, "accuracy of the base model": row.base.acc}
            if after.corrected:
                values["accuracy, corrected for answer bias"] = after.corrected.acc
            yield _entry(task, "accuracy", values)


def _perplexities(results: Results) -> Iterator[Entry]:
    for source, row in results.perplexity.items():
        if after := row.unlearned:
            values = {"perplexity": after.perplexity, "perplexity of the base model": row.base.perplexity}
            yield _entry(Path(source).name, "perplexity", values)


def _attacks(results: Results) -> Iterator[Entry]:
    found = {name: entry.forget_acc.after for name, entry in results.attacks.items() if entry.forget_acc}
    if found:
        yield _entry(
            "forget questions, under attack",
            "accuracy",
            {f"accuracy under {name}": accuracy for name, accuracy in found.items()},
        )


def _entry(data: str, kind: str, values: dict[str, float]) -> Entry:
    """What was measured on some data, as the hub's ``model-index`` has it; accuracies in 0..1."""
    return {
        "task": {"type": "text-generation"},
        "dataset": {"name": data, "type": data},
        "metrics": [{"type": kind, "name": name, "value": round(value, 6)} for name, value in values.items()],
    }


def _settings(results: Results) -> Table:
    run = results.run
    loop = {True: "the published one to the letter", False: "the project's own", None: None}[run.faithful]
    facts = {
        "method": run.method,
        "loop": loop,
        "layer": run.layer,
        "steer": _per_topic(run, run.steer),
        "alpha": _per_topic(run, run.alpha),
        "steps": results.train.steps if results.train else None,
        "seed": run.seed,
    }
    return Table(["setting", *numbers("value")], [[key, str(v)] for key, v in facts.items() if v is not None])


def _per_topic(run: RunInfo, values: list[float]) -> str | None:
    return ", ".join(f"{value:g} ({topic})" for topic, value in zip(run.topics, values, strict=bool(values))) or None


def _role(run: RunInfo, source: str) -> str:
    roles = [role for role, sources in (("forget", run.forget), ("retain", run.retain)) if source in sources]
    return f"{' and '.join(roles)}: " if roles else ""
