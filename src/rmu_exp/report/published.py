"""Measured accuracies beside published ones: a section of report.md."""

from __future__ import annotations

import dataclasses
from typing import Any

from rmu_exp.record.rundir import flat
from rmu_exp.report.tables import interval, percent, rows
from rmu_exp.settings import AUTO, Run

SUBJECTS = (
    "mmlu_virology",
    "mmlu_college_biology",
    "mmlu_computer_security",
    "mmlu_college_computer_science",
)
"""The MMLU subjects that the paper looks at: two near the forgotten topics, two a little farther."""
STATES = ("base", "unlearned")
PUBLISHED: dict[str, object] = {
    "model.dtype": "bfloat16",
    "data.forget": ["cais/wmdp-bio-forget-corpus", "cais/wmdp-corpora:cyber-forget-corpus"],
    "data.retain": ["Salesforce/wikitext:wikitext-2-raw-v1:test"],
    "method.name": "rmu",
}
"""What all published numbers have in common; what is special to a model is its `model.published_settings`."""
UNCHANGED = (
    *("model.revision", "train.schedule", "data.on_bad_line", "data.max_length", "retain.kind"),
    *("steering.kind", "steering.factor", "steering.distribution"),
    *("layers.span", "layers.param_ids", "layers.lora", "layers.rank", "layers.rank_alpha"),
)
"""Settings of which they have the defaults."""


def section(results: dict[str, Any]) -> list[str]:
    """Each task that is both measured and published, and the paper's subjects of MMLU where they are measured.

    Args:
        results: needs ``qa`` and ``published``, a list of ``{source, questions, base, unlearned}`` with accuracies
            in 0..1; ``run.changed`` (see :func:`changed`) is told when it is there.

    Returns:
        Lines of Markdown; none when nothing is published, or nothing of it was measured.
    """
    qa, sources = results.get("qa") or {}, results.get("published") or []
    shared = [name for _, name in rows(qa) if any(name in s.get(state, {}) for s in sources for state in STATES)]
    if not shared:
        return []
    subjects = [name for name in SUBJECTS if name in qa and name not in shared]
    marks = [f"[{number}]" for number in range(1, len(sources) + 1)]
    lines = ["## Beside the published numbers", ""]
    if differing := results["run"].get("changed"):
        lines += [
            f"**Not the preset's settings: {'; '.join(differing)}.** The published numbers belong to the preset.",
            "",
        ]
    header = ["questions", "model", "n", "measured", "95 %", *marks]
    lines += ["| " + " | ".join(header) + " |", "|---|---|--:|--:|--:|" + "--:|" * len(sources)]
    for name in [*shared, *subjects]:
        for state in STATES:
            if state in qa[name]:
                measured = qa[name][state]
                cells = [name, state, str(measured["n"]), percent(measured["acc"]), interval(measured)]
                cells += [_compared(measured, s.get(state, {}).get(name)) for s in sources]
                lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "A cell of a source: the published accuracy; measured minus published, in points; whether the published",
    ]
    lines += ["value lies *in* the measured 95 % interval or *outside*. Equal question sets have equal n.", ""]
    return lines + [
        f"- {mark} {source['source']}; questions: {source.get('questions') or 'not stated'}"
        for mark, source in zip(marks, sources, strict=True)
    ]


def _compared(measured: dict[str, Any], published: float | None) -> str:
    if published is None:
        return ""
    low, high = measured["ci95"]
    where = "in" if low <= published <= high else "outside"
    return f"{percent(published)}; {100 * (measured['acc'] - published):+.1f}; {where}"


def changed(run: Run) -> list[str]:
    """Settings of a run that are not those of the published numbers, such as ``steer 20 (preset: 6.5)``.

    They go into results.json as ``run.changed``. Those that change no number in this run are left out. A model in a
    folder (``model.path``) is taken for a copy of the preset's.
    """
    mine, usual = flat(dataclasses.asdict(run)), flat(dataclasses.asdict(Run()))
    mine |= {"layers.parameters": run.parameters, "method.faithful": run.faithful}
    theirs = run.model.published_settings | PUBLISHED | {key: usual[key] for key in UNCHANGED}
    if run.steer != AUTO:
        theirs.pop("steering.factor")
    if not run.layers.lora:
        del theirs["layers.rank"], theirs["layers.rank_alpha"]
    if run.faithful:  # the published loop has lengths of its own
        theirs.pop("data.max_length")
    spelled = {key: (_plain(mine.get(key)), _plain(value)) for key, value in theirs.items()}
    return [f"{key} {mine} (preset: {value})" for key, (mine, value) in spelled.items() if mine != value]


def _plain(value: Any) -> str:
    """One spelling of a number, or of one number for every topic."""
    values = value if isinstance(value, list) else [value]
    spelled = [f"{v:g}" if isinstance(v, float) else str(v) for v in values]
    return ", ".join(dict.fromkeys(spelled))
