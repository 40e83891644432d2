"""Scores of options without answer bias.

A model may prefer an answer whatever it is asked, and an unlearned one often gives the same answer to everything.
Plain accuracy then measures that preference. Corrected scores take it out, and use no label:

* *rotations*: where every question has the same few options, such as letters, and its prompt lists what they stand for,
  the question is asked with the list in every rotation; an option's score is the mean over its places;
* *other questions*: otherwise an option's score is its log-likelihood minus the mean of its log-likelihoods after other
  questions of the same kind: of the same task, and of the same ``relation`` where its documents name one.

It knows prompts, options and scores; it knows nothing of models.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

OTHERS = 4  # questions at most that an option is scored after
KIND = "relation"  # the field of a document that says what kind of question it is
COST = 2  # requests at most for each of the task's own that other questions may cost
Pair = tuple[str, str]
"""A prompt and a continuation of it."""
Scores = list[list[float]]
"""One score per question and option."""


@dataclass(frozen=True)
class Asked:
    """One question as it was put to a model: its document, its prompt, its options and their scores.

    ``lengths`` is what the task divides log-likelihoods by before it compares them.
    """

    doc: Mapping[str, Any]
    prompt: str
    options: tuple[str, ...]
    scores: list[float]
    lengths: list[float]


@dataclass(frozen=True)
class Correction:
    """What else must be asked, and what the corrected scores are, given the log-likelihoods of that."""

    kind: str
    pairs: list[Pair]
    scores: Callable[[Mapping[Pair, float]], Scores]


def correction(asked: Sequence[Asked], text: Callable[[Any], object]) -> Correction | None:
    """The correction for a task's questions; None: there is but one question, and no rotation.

    Args:
        text: the part of the prompt that a document makes.
    """
    return _rotations(asked, text) or _others(asked)


def _rotations(asked: Sequence[Asked], text: Callable[[Any], object]) -> Correction | None:
    options = asked[0].options
    if any(question.options != options for question in asked):
        return None
    prompts: list[list[str]] = []
    for question in asked:
        own = text(question.doc)
        if not isinstance(own, str) or not own or not question.prompt.endswith(own):
            return None
        before = question.prompt.removesuffix(own)
        turned = [text(doc) for doc in _rotated(question.doc, own, len(options))]
        if len({own, *map(str, turned)}) != len(options):
            return None
        prompts.append([before + str(other) for other in turned])

    def scores(found: Mapping[Pair, float]) -> Scores:
        return [
            [
                sum(
                    (found[prompt, options[(k + by) % len(options)]] for by, prompt in enumerate(mine, 1)),
                    question.scores[k] * question.lengths[k],
                )
                / len(options)
                for k in range(len(options))
            ]
            for question, mine in zip(asked, prompts, strict=True)
        ]

    return Correction("rotations", [(p, o) for mine in prompts for p in mine for o in options], scores)


def _rotated(doc: Mapping[str, Any], text: str, count: int) -> Iterator[Mapping[str, Any]]:
    """The document with its list of options moved on by 1, 2, …: entry k goes to place k + 1, k + 2, …"""
    for name, value in doc.items():
        inner = value.get("text") if isinstance(value, dict) else value
        if isinstance(inner, list) and len(inner) == count and all(str(entry) in text for entry in inner):
            for by in range(1, count):
                moved = inner[-by:] + inner[:-by]
                other = dict(copy.deepcopy(dict(doc)))
                other[name] = value | {"text": moved} if isinstance(value, dict) else moved
                yield other
            return


def _others(asked: Sequence[Asked]) -> Correction | None:
    kinds: dict[object, list[int]] = {}
    for i, question in enumerate(asked):
        kinds.setdefault(question.doc.get(KIND), []).append(i)
    if min(map(len, kinds.values())) < 2:
        kinds = {None: list(range(len(asked)))}
    if len(asked) < 2:
        return None
    pairs: list[Pair] = []
    prompts: dict[int, list[str]] = {}
    for mine in kinds.values():
        options = list(dict.fromkeys(option for i in mine for option in asked[i].options))
        count = COST * sum(len(asked[i].options) for i in mine) // len(options)
        count = min(len(mine), max(2, min(OTHERS, count)))
        chosen = [asked[mine[round(i * (len(mine) - 1) / (count - 1))]].prompt for i in range(count)]
        pairs += [(prompt, option) for prompt in chosen for option in options]
        prompts |= {i: [prompt for prompt in chosen if prompt != asked[i].prompt] for i in mine}

    def scores(found: Mapping[Pair, float]) -> Scores:
        corrected: Scores = []
        for i, question in enumerate(asked):
            others = prompts[i] or [question.prompt]
            means = [sum(found[prompt, option] for prompt in others) / len(others) for option in question.options]
            parts = zip(question.scores, means, question.lengths, strict=True)
            corrected.append([score - mean / length for score, mean, length in parts])
        return corrected

    return Correction("other questions", pairs, scores)


def best_blind(options: Sequence[Sequence[str]], targets: Sequence[int]) -> float:
    """Accuracy of the best answer that does not look at the question: the option that is right most often in others.

    Args:
        options: of each question.
        targets: index of each question's right option.
    """
    right: dict[str, int] = {}
    for mine, target in zip(options, targets, strict=True):
        right[mine[target]] = right.get(mine[target], 0) + 1
    total = 0.0
    for mine, target in zip(options, targets, strict=True):
        counts = [right.get(option, 0) - (k == target) for k, option in enumerate(mine)]
        best = [k for k, count in enumerate(counts) if count == max(counts)]
        total += (target in best) / len(best)
    return total / len(targets)
