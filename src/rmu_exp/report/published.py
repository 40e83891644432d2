"""Measured accuracies beside published ones: a table of report.md."""

from __future__ import annotations

from rmu_exp.record.results import Accuracy, Results, State
from rmu_exp.report.table import Table, interval, numbers, percent
from rmu_exp.report.tables import rows
from rmu_exp.settings import AUTO, Run

SUBJECTS = (
    "mmlu_virology",
    "mmlu_college_biology",
    "mmlu_computer_security",
    "mmlu_college_computer_science",
)
"""The MMLU subjects that the paper looks at: two near the forgotten topics, two a little farther."""
STATES: tuple[State, ...] = ("base", "unlearned")
DTYPE = "bfloat16"
"""What the published runs computed in."""
FORGET = ["cais/wmdp-bio-forget-corpus", "cais/wmdp-corpora:cyber-forget-corpus"]
RETAIN = ["Salesforce/wikitext:wikitext-2-raw-v1:test"]
"""The corpora that all published numbers belong to (``data=wmdp``)."""


def table(results: Results) -> Table:
    """Each task that is both measured and published, and the paper's subjects of MMLU where they are measured.

    No rows when nothing is published, or nothing of it was measured.
    """
    qa, sources = results.qa, results.published
    shared = [name for _, name in rows(qa) if any(name in s.of(state) for s in sources for state in STATES)]
    subjects = [name for name in SUBJECTS if name in qa and name not in shared] if shared else []
    body = []
    for name in [*shared, *subjects]:
        for state in STATES:
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
    """Settings of a run that are not its model's preset on WMDP's corpora, such as ``steer 20 (preset: 6.5)``.

    They go into results.json as ``run.changed``: published numbers belong to the preset. Those that change no number
    in this run are left out. A model in a folder (``model.path``) is taken for a copy of the preset's.
    """
    preset, usual = run.model.preset, Run()
    pairs: dict[str, tuple[object, object]] = {
        "layer": (run.layer, preset.layer),
        "steer": (run.steer, preset.steer),
        "alpha": (run.alpha, preset.alpha),
        "seed": (run.seed, preset.seed),
        "model.dtype": (run.model.dtype, DTYPE),
        "model.revision": (run.model.revision, usual.model.revision),
        "train.lr": (run.train.lr, preset.lr),
        "train.batch_size": (run.train.batch_size, preset.batch_size),
        "train.max_batches": (run.train.max_batches, preset.max_batches),
        "train.schedule": (run.train.schedule, preset.schedule),
        "data.forget": (run.data.forget, FORGET),
        "data.retain": (run.data.retain, RETAIN),
        "data.min_len": (run.data.min_len, preset.min_len),
        "data.on_bad_line": (run.data.on_bad_line, usual.data.on_bad_line),
        "method.name": (run.method.name, "rmu"),
        "method.faithful": (run.faithful, preset.faithful),
        "steering.kind": (run.steering.kind, usual.steering.kind),
        "steering.distribution": (run.steering.distribution, usual.steering.distribution),
        "retain.kind": (run.retain.kind, usual.retain.kind),
        "layers.span": (run.layers.span, usual.layers.span),
        "layers.parameters": (run.parameters, preset.parameters),
        "layers.param_ids": (run.layers.param_ids, None),
        "layers.lora": (run.layers.lora, preset.lora),
    }
    if run.steer == AUTO:
        pairs["steering.factor"] = (run.steering.factor, usual.steering.factor)
    if run.layers.lora:
        pairs["layers.rank"] = (run.layers.rank, usual.layers.rank)
        pairs["layers.rank_alpha"] = (run.layers.rank_alpha, usual.layers.rank_alpha)
    if not run.faithful:  # the published loop has lengths of its own
        pairs["data.max_length"] = (run.data.max_length, usual.data.max_length)
    spelled = {key: (_plain(mine), _plain(theirs)) for key, (mine, theirs) in pairs.items()}
    return [f"{key} {mine} (preset: {theirs})" for key, (mine, theirs) in spelled.items() if mine != theirs]


def _plain(value: object) -> str:
    """One spelling of a number, or of one number for every topic."""
    values = value if isinstance(value, list) else [value]
    spelled = [f"{v:g}" if isinstance(v, float) else str(v) for v in values]
    return ", ".join(dict.fromkeys(spelled))
