"""The model card of an exported checkpoint: what was done to it, what was measured, what that does not show.

Made from results.json alone; what was not measured is not mentioned, except that it was not.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from rmu_exp.record.results import Provenance, Results, RunInfo
from rmu_exp.report import tables
from rmu_exp.report.markdown import listed, render
from rmu_exp.report.table import Table, numbers

NAMES = {
    "rmu": "representation misdirection for unlearning (RMU, [arXiv 2403.03218](https://arxiv.org/abs/2403.03218))"
}


def card(results: Results) -> str:
    """README.md of a checkpoint in Hugging Face's format."""
    run = results.run
    origin = results.provenance or Provenance(config_hash="", versions={}, command="")
    return render(
        "card.md.jinja",
        results=results,
        run=run,
        origin=origin,
        front=_front_matter(run, origin),
        name=Path(run.model).name or "a model",
        method=NAMES.get(run.method or "rmu", run.method),
        settings=_settings(results),
        corpora=[(_role(run, source), source, digest) for source, digest in origin.data_hashes.items()],
        measured=[tables.accuracies(results.qa), tables.perplexities(results), tables.attacks(results)],
        listed=listed,
        all_settings=yaml.safe_dump(origin.config, sort_keys=False, allow_unicode=True),
    )


def _front_matter(run: RunInfo, origin: Provenance) -> str:
    tags = dict.fromkeys(["unlearning", "rmu", *([run.method] if run.method else [])])
    facts: dict[str, object] = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": list(tags)}
    if origin.model_revision:  # only a model of the hub can be linked
        facts |= {"base_model": run.model, "base_model_relation": "finetune"}
    return yaml.safe_dump(facts, sort_keys=True, allow_unicode=True)


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
