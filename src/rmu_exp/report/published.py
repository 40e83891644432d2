"""Measured accuracies beside published ones: a table of report.md."""

from __future__ import annotations

import dataclasses

from rmu_exp.record.results import Accuracy, Results
from rmu_exp.record.rundir import WHO, flat
from rmu_exp.report.table import Table, interval, numbers, percent
from rmu_exp.report.tables import rows
from rmu_exp.settings import Run

SUBJECTS = (
    *("mmlu_virology", "mmlu_college_biology"),
    *("mmlu_computer_security", "mmlu_college_computer_science"),
)
"""The MMLU subjects that the paper looks at: two near the forgotten topics, two a little farther."""
PUBLISHED: dict[str, object] = {
    "model.dtype": "bfloat16",
    "data.forget": ["cais/wmdp-bio-forget-corpus", "cais/wmdp-corpora:cyber-forget-corpus"],
    "data.retain": ["Salesforce/wikitext:wikitext-2-raw-v1:test"],
    "method.name": "rmu",
    "steering.kind": "absolute",
}
"""What all published numbers have in common; what is special to a model is its `model.published_settings`."""
UNCHANGED = (
    *("model.revision", "train.schedule", "data.on_bad_line", "data.max_length", "retain.kind"),
    "steering.distribution",
    *("layers.span", "layers.param_ids", "layers.lora", "layers.rank", "layers.rank_alpha"),
)
"""Settings of which they have the defaults."""


def table(results: Results) -> Table:
    """Each task that is both measured and published, and the paper's subjects of MMLU where they are measured.

    No rows when nothing is published, or nothing of it was measured.
    """
    qa, sources = results.qa, results.published
    shared = [name for _, name in rows(qa) if any(name in s.of(state) for s in sources for state in WHO)]
    subjects = [name for name in SUBJECTS if name in qa and name not in shared] if shared else []
    body = []
    for name in [*shared, *subjects]:
        for state in WHO:
            if measured := qa[name].of(state):
                cells = [name, state, str(measured.n), percent(measured.acc), interval(measured.ci95)]
                body.append([*cells, *(_compared(measured, s.of(state).get(name)) for s in sources)])
    marks = [f"[{number}]" for number in range(1, len(sources) + 1)]
    return Table(["questions", "model", *numbers("n", "measured", "95 %", *marks)], body)


def _compared(measured: Accuracy, published: float | None) -> str:
    if published is None:
        return ""
    low, high = measured.ci95
    where = "in" if low <= published <= high else "outside"
    return f"{percent(published)}; {100 * (measured.acc - published):+.1f}; {where}"


def changed(run: Run) -> list[str]:
    """Settings of a run that are not those of the published numbers, such as ``steer 20 (preset: 6.5)``.

    They go into results.json as ``run.changed``. Those that change no number in this run are left out. A model in a
    folder (``model.path``) is taken for a copy of the preset's.
    """
    usual = flat(dataclasses.asdict(Run()))
    mine = flat(dataclasses.asdict(run)) | {"layers.parameters": run.parameters, "method.faithful": run.faithful}
    theirs = run.model.published_settings | PUBLISHED | {key: usual[key] for key in UNCHANGED}
    if not run.layers.lora:
        del theirs["layers.rank"], theirs["layers.rank_alpha"]
    if run.faithful:  # the published loop has lengths of its own
        theirs.pop("data.max_length")
    spelled = {key: (_plain(mine.get(key)), _plain(value)) for key, value in theirs.items()}
    return [f"{key} {mine} (preset: {value})" for key, (mine, value) in spelled.items() if mine != value]


def _plain(value: object) -> str:
    """One spelling of a number, or of one number for every topic."""
    values = value if isinstance(value, list) else [value]
    spelled = [f"{v:g}" if isinstance(v, float) else str(v) for v in values]
    return ", ".join(dict.fromkeys(spelled))
