"""The paper's linear probe: is the answer still written in the activations? (arXiv 2403.03218, the probing experiment)

At the last token of each question, at every layer, a four-way logistic regression is trained on one half of the facts
to name the right letter, and scored on the other. Strength and layer are chosen by cross-validation, by fact, inside
the training half. Controls: the base model; the oracle; the same probe trained on shuffled letters.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from rmu_exp.attacks.api import UNLEARNED, Context, Correct, Finding, accuracy, figure, take
from rmu_exp.evaluate.questions import Question
from rmu_exp.model.hooks import BLOCK
from rmu_exp.support.errors import RunError
from rmu_exp.support.setting import setting

SHUFFLED = "shuffled"
Probed = tuple[list[Correct], list[float]]
"""Of each layer: right or wrong on the held-out facts, and the accuracy in cross-validation."""


@dataclass
class Settings:
    """The linear probe."""

    strengths: list[float] = setting(above=0, filled=True)
    """Candidates for the inverse regularisation strength C of the logistic regression."""
    folds: int = setting(least=2)
    """Folds of the cross-validation that chooses C inside the training half."""
    iterations: int = setting(least=1)
    """Most iterations of its solver."""


def run(context: Context, settings: Settings) -> Finding:
    scorer, items = context.scorer, context.items
    rows = [scorer.encode(item.context) for item in items]
    learn, score = context.halves
    topics = list(dict.fromkeys(item.topic for item in items))
    found: dict[str, dict[str, Probed]] = {}
    for state in [*context.states, SHUFFLED]:
        with context.model(UNLEARNED if state == SHUFFLED else state) as model:
            h_LND = scorer.at_last(model, rows)[BLOCK].numpy()
        make = partial(_probe, context, settings, h_LND, shuffled=state == SHUFFLED)
        found[state] = {topic: context.part(f"{state}/{topic}", partial(make, topic)) for topic in topics}
    best = {state: {t: int(np.argmax(values)) for t, (_, values) in of.items()} for state, of in found.items()}
    chosen = {
        state: [c for topic, (correct, _) in of.items() for c in correct[best[state][topic]]]
        for state, of in found.items()
    }
    lines = {
        topic: {state: [(layer, accuracy(c)) for layer, c in enumerate(of[topic][0])] for state, of in found.items()}
        for topic in topics
    }
    right = "held-out facts answered right"
    curve = figure("Linear probe of the answer at the last token", "layer", right, lines, context.chance)
    return Finding(
        before=take(context.plain(UNLEARNED), [i for topic in topics for i in score if items[i].topic == topic]),
        after=chosen.pop(UNLEARNED),
        control=chosen,
        budget={"training_questions": len(learn), "classifiers": len(topics) * len(h_LND) * len(found)},
        curves={"layers": curve},
        more={"layer": best},
        top={"probe": {topic: {s: [y for _, y in points] for s, points in of.items()} for topic, of in lines.items()}},
    )


def _probe(context: Context, settings: Settings, h_LND: np.ndarray, topic: str, shuffled: bool) -> Probed:
    """A topic's probes, one per layer."""
    items = context.items
    mine, theirs = ([i for i in half if items[i].topic == topic] for half in context.halves)
    labels = np.array([items[i].answer for i in mine])
    if shuffled:
        labels = labels[torch.randperm(len(labels), generator=context.generator(f"probe/{topic}")).numpy()]
    right = np.array([items[i].answer for i in theirs])
    fitted = [fit(h_ND[mine], labels, context.pick(mine), settings) for h_ND in h_LND]
    hits = [probe.predict(h_ND[theirs]) == right for (probe, _), h_ND in zip(fitted, h_LND, strict=True)]
    return [hit.astype(int).tolist() for hit in hits], [value for _, value in fitted]


def fit(h_ND: np.ndarray, labels: np.ndarray, items: Sequence[Question], settings: Settings) -> tuple[Any, float]:
    """A probe, and its accuracy in the cross-validation that chose its strength."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, GroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    facts = [item.fact for item in items]
    if len(set(facts)) < 2:
        raise RunError(f"attacks.probe: {items[0].topic} has too few facts to train on; raise eval.limit")
    folds = GroupKFold(min(settings.folds, len(set(facts))))
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=settings.iterations))
    search = GridSearchCV(model, {"logisticregression__C": settings.strengths}, cv=folds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a probe that has not converged is a probe all the same
        search.fit(h_ND, labels, groups=facts)
    return search.best_estimator_, float(search.best_score_)
