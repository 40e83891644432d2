"""Parts of a results.json, made up: what every one has, and rows of ``qa`` from counts."""

from __future__ import annotations

from rmu_exp.evaluation import statistics
from rmu_exp.record.results import Results

RUN = {"model": "m", "layer": 1, "steer": [1.0], "alpha": [1.0], "method": "rmu", "seed": 0, "topics": ["a"]}
HEAD = {"schema": 1, "run": RUN | {"trained_parameters": ["t"]}}
TRAIN = {"steps": 1, "seconds": 1.5, "seconds_per_step": 0.5, "peak_memory_bytes": 1}


def results(**parts) -> Results:
    """Results of a made-up run with these parts."""
    return Results.model_validate(HEAD | parts)


def row(right: int, n: int, base: int | None = None) -> dict:
    """``right`` of ``n`` questions after unlearning, ``base`` (or all) before."""
    base = n if base is None else base
    return {
        "base": statistics.summary([1] * base + [0] * (n - base)).model_dump(mode="json"),
        "unlearned": statistics.summary([1] * right + [0] * (n - right)).model_dump(mode="json"),
        "chance": 0.25,
    }


def attack(before: float, after: float) -> dict:
    """An attack's entry, on 100 questions."""
    ci95 = {"before": statistics.wilson(round(100 * before), 100), "after": statistics.wilson(round(100 * after), 100)}
    found = {"forget_acc": {"before": before, "after": after}, "ci95": ci95, "n": 100, "chance": 0.25}
    return found | {"control": {}, "budget": {"seconds": 1.0}}
