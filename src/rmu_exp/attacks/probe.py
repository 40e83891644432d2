"""The paper's linear probe: is the answer still written in the activations? (arXiv 2403.03218, the probing experiment)

At every layer a logistic regression is trained on one half of the facts and scored on the other: where questions have
letters, to name the right one from the question's last token; otherwise to tell, from the last token of question and
option, whether the option is right, of which the likeliest is the answer. Strength and layer are chosen by
cross-validation, by fact, inside the training half. Controls: the base model; the oracle; shuffled answers.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from rmu_exp.attacks.api import UNLEARNED, Context, Finding, Outcome, accuracy, figure
from rmu_exp.evaluation.questions import Question
from rmu_exp.evaluation.scoring import Answered, Put, answered
from rmu_exp.model.hooks import BLOCK
from rmu_exp.support.errors import RunError
from rmu_exp.support.setting import setting

SHUFFLED = "shuffled"
LEAST = -100.0  # log-probability of an answer that a probe never saw
Probed = tuple[list[list[int]], list[float], dict[str, Any]]
"""Of each layer: right or wrong on the held-out facts, accuracy in cross-validation; and the best layer's answers."""


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
    items = context.items
    topics = list(dict.fromkeys(item.topic for item in items))
    found: dict[str, dict[str, Probed]] = {}
    for state in [*context.states, SHUFFLED]:
        with context.model(UNLEARNED if state == SHUFFLED else state) as model:
            h_LND = _activations(context, model, items)
            make = partial(_probe, context, settings, model, h_LND, shuffled=state == SHUFFLED)
            found[state] = {topic: context.part(f"{state}/{topic}", partial(make, topic)) for topic in topics}
    best = {state: {t: int(np.argmax(values)) for t, (_, values, _) in of.items()} for state, of in found.items()}
    chosen = {state: _together([Answered(**best) for _, _, best in of.values()]) for state, of in found.items()}
    lines = {
        topic: {state: [(layer, accuracy(c)) for layer, c in enumerate(of[topic][0])] for state, of in found.items()}
        for topic in topics
    }
    right = "held-out facts answered right"
    curve = figure("Linear probe of the answer at the last token", "layer", right, lines, context.chance)
    classifiers = len(topics) * len(found[UNLEARNED][topics[0]][0]) * len(found)
    return context.finding(
        chosen.pop(UNLEARNED),
        chosen,
        {"training_questions": len(context.unscored), "classifiers": classifiers},
        curves={"layers": curve},
        more={"layer": best},
        top={"probe": {topic: {s: [y for _, y in points] for s, points in of.items()} for topic, of in lines.items()}},
    )


def _together(parts: Sequence[Answered]) -> Outcome:
    """The answers to the scored questions of all topics."""
    names = ("right", "corrected", "prob", "among")
    return Outcome(scored=Answered(**{name: [v for part in parts for v in getattr(part, name)] for name in names}))


def _activations(context: Context, model: nn.Module, items: Sequence[Question]) -> np.ndarray:
    """Activations at each question's last token (layers, N, D), or at those of its options (layers, N, K, D)."""
    rows, options = _rows(context, items)
    h_LRD = context.scorer.at_last(model, rows)[BLOCK].numpy()
    return h_LRD if options == 1 else h_LRD.reshape(len(h_LRD), len(items), options, -1)


def _rows(context: Context, items: Sequence[Question]) -> tuple[list[list[int]], int]:
    """Token ids of each question, or of each question with each of its options, and the number of rows per question."""
    scorer = context.scorer
    if _lettered(context):
        return [scorer.encode(item.context) for item in items], 1
    options = len(items[0].options)
    if any(len(item.options) != options for item in items):
        raise RunError("attacks.probe: the questions have different numbers of options")
    return [scorer.encode(text) for item in items for text in _keys(context, item)], options


def _probe(
    context: Context, settings: Settings, model: nn.Module, h_LND: np.ndarray, topic: str, shuffled: bool
) -> Probed:
    """A topic's probes, one per layer, on activations (layers, N, D) or (layers, N, K, D)."""
    items = context.items
    halves = context.unscored, context.parts.scored
    mine, theirs = ([i for i in half if items[i].topic == topic] for half in halves)
    labels = np.array([items[i].answer for i in mine])
    if shuffled:
        labels = labels[torch.randperm(len(labels), generator=context.generator(f"probe/{topic}")).numpy()]
    right = np.array([items[i].answer for i in theirs])
    fitted = [fit(h_ND[mine], labels, context.pick(mine), settings) for h_ND in h_LND]
    hits = [predicted(probe, h_ND[theirs]) == right for (probe, _), h_ND in zip(fitted, h_LND, strict=True)]
    values = [value for _, value in fitted]
    layer = int(np.argmax(values))
    h_RD = h_LND[layer][theirs].reshape(-1, h_LND.shape[-1])
    known = dict(zip((key for i in theirs for key in _keys(context, items[i])), h_RD, strict=True))
    put = _put(context, model, fitted[layer][0], layer, known)
    return [hit.astype(int).tolist() for hit in hits], values, asdict(answered(put, context.pick(theirs)))


def _lettered(context: Context) -> bool:
    return all(item.lettered for item in context.items)


def _keys(context: Context, item: Question) -> list[str]:
    """The texts of a question at whose ends its activations are read."""
    return [item.context] if _lettered(context) else [item.context + option for option in item.options]


def _put(context: Context, model: nn.Module, probe: Any, layer: int, known: dict[str, np.ndarray]) -> Put:
    """Puts questions to a probe; an option's score is the log-probability that it is right, as the probe sees it.

    Args:
        known: text to its activations (D) at the layer; those of other texts are added.
    """
    labels = {option: k for item in context.items for k, option in enumerate(item.options)}

    def ask(items: Sequence[Question]) -> list[list[float]]:
        texts = [_keys(context, item) for item in items]
        if new := list(dict.fromkeys(text for mine in texts for text in mine if text not in known)):
            h_LRD = context.scorer.at_last(model, [context.scorer.encode(text) for text in new])[BLOCK]
            known.update(zip(new, h_LRD[layer].numpy(), strict=True))
        scored = [likelihoods(probe, np.stack([known[text] for text in mine])) for mine in texts]
        if not _lettered(context):
            return [[row[True] for row in rows] for rows in scored]
        return [[rows[0].get(labels[o], LEAST) for o in item.options] for item, rows in zip(items, scored, strict=True)]

    return ask


def likelihoods(probe: Any, h_ND: np.ndarray) -> list[dict[Any, float]]:
    """Label to its log-probability, for each row of activations."""
    logs = np.maximum(probe.predict_log_proba(h_ND), LEAST)
    return [dict(zip(probe.classes_.tolist(), map(float, row), strict=True)) for row in logs]


def fit(h_ND: np.ndarray, labels: np.ndarray, items: Sequence[Question], settings: Settings) -> tuple[Any, float]:
    """A probe, and its accuracy in the cross-validation that chose its strength."""
    from sklearn.model_selection import GroupKFold

    facts = [item.fact for item in items]
    if len(set(facts)) < 2:
        raise RunError(f"attacks.probe: {items[0].topic} has too few facts to train on; raise eval.limit")
    folds = list(GroupKFold(min(settings.folds, len(set(facts)))).split(labels, groups=facts))
    reached = {}
    for strength in settings.strengths:
        probes = [(trained(h_ND[a], labels[a], strength, settings), b) for a, b in folds]
        reached[strength] = float(np.mean([np.mean(predicted(p, h_ND[b]) == labels[b]) for p, b in probes]))
    best = max(reached, key=lambda strength: reached[strength])
    return trained(h_ND, labels, best, settings), reached[best]


def trained(h_ND: np.ndarray, labels: np.ndarray, strength: float, settings: Settings) -> Any:
    """A logistic regression from (N, D) to the label, or from (N, K, D) to whether option k is the labelled one."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=settings.iterations))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a probe that has not converged is a probe all the same
        if h_ND.ndim == 2:
            return model.fit(h_ND, labels)
        right_NK = np.arange(h_ND.shape[1])[None] == labels[:, None]
        return model.fit(h_ND.reshape(-1, h_ND.shape[-1]), right_NK.ravel())


def predicted(probe: Any, h_ND: np.ndarray) -> np.ndarray:
    """The label that a probe finds for each question."""
    if h_ND.ndim == 2:
        return np.asarray(probe.predict(h_ND))
    scores = probe.decision_function(h_ND.reshape(-1, h_ND.shape[-1]))
    return np.asarray(scores.reshape(h_ND.shape[:2]).argmax(axis=1))
