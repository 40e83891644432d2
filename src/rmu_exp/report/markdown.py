"""report.md: a run for a person, section by section; a stage that did not run has no section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from rmu_exp.record.results import Results
from rmu_exp.record.rundir import Object
from rmu_exp.report import attacks, observed, published, tables
from rmu_exp.report.table import percent


def text(
    results: Results,
    plots: Sequence[str] = (),
    answers: Sequence[Mapping[str, Any]] = (),
    written: Sequence[Object] = (),
) -> str:
    """The report.

    Args:
        plots: names of the figures in plots/.
        answers, written: the lines of answers.jsonl and of samples.jsonl.
    """
    changes = [
        f"{name} {percent(row.base.acc)} → {percent(row.unlearned.acc)}"
        for depth, name in tables.rows(results.qa)
        if depth == 0 and (row := results.qa[name]).unlearned
    ]
    return render(
        "report.md.jinja",
        results=results,
        title=tables.title(results.run),
        headline="; ".join(changes),
        worst=attacks.sentence(results),
        depths=attacks.depths(results),
        questions=tables.accuracies(results.qa),
        details=tables.details(results.qa),
        probabilities=tables.answer_probabilities(results.qa),
        metrics=tables.metrics(results, everything=True),
        changed=tables.changed(results.qa, answers),
        corrections=tables.corrections(results.qa),
        attacks=tables.attacks(results),
        published=published.table(results),
        perplexity=tables.perplexities(results),
        damage=observed.damage(results),
        damage_perplexity=observed.perplexity(results),
        rates=observed.rates(results),
        samples=observed.samples(written),
        ripple=observed.ripple(results),
        listed=listed,
        plots=plots,
        attack_figures=attacks.figures(results),
    )


def render(template: str, **values: object) -> str:
    """A template of this package, filled in; its end is one line break."""
    return _templates().get_template(template).render(values).rstrip("\n") + "\n"


def listed(values: Mapping[str, object]) -> str:
    """``python 3.11, torch 2.13.0``; what has no value is left out."""
    return ", ".join(f"{key} {value}" for key, value in values.items() if value)


@cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("rmu_exp.report"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
