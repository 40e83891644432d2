"""What an attack gets, and what it gives back. It knows nothing of other attacks, of files, or of the run."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import nn

from rmu_exp.evaluate.questions import Question, halves
from rmu_exp.evaluate.scoring import Scorer
from rmu_exp.model.delta import Delta
from rmu_exp.record.results import CurveData
from rmu_exp.record.store import Store
from rmu_exp.support.errors import RunError
from rmu_exp.support.randomness import named_generator

BASE, UNLEARNED, ORACLE = "base", "unlearned", "oracle"
K = TypeVar("K")
Correct = list[int]
"""1 or 0 for each question."""


@dataclass
class Finding:
    """What an attack found.

    Attributes:
        before: the unlearned model's plain answers to the questions that the attack is scored on.
        after: its answers under attack, to the same questions.
        control: name to answers (or, where there is nothing to find, what was found all the same).
        budget: what it took: steps, samples, queries.
        curves: name to a figure's lines.
        more: what else belongs into results.json under the attack's name.
        top: what belongs into results.json beside the attacks, by key.
        taught: the answers under attack to what it was taught: an attack that did not learn that shows nothing.
    """

    before: Correct | None = None
    after: Correct | None = None
    control: dict[str, Any] = field(default_factory=dict)
    budget: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, CurveData] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    top: dict[str, Any] = field(default_factory=dict)
    taught: Correct | None = None


def figure(
    title: str,
    x: str,
    y: str,
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
    chance: float | None = None,
) -> CurveData:
    """Lines for one figure: title of a panel to name of a line to its points; ``chance`` is a blind guess's height."""
    return CurveData.model_validate({"title": title, "x": x, "y": y, "panels": panels, "chance": chance})


@dataclass
class Context:
    """The models and texts of an attack.

    Attributes:
        items: the questions about what was to be forgotten.
        others: name to questions that are not about it, such as adjacent and general topics.
        forget, retain: texts.
        layer: the highest layer that unlearning changed; its activations are what was steered.
        span: the layers that unlearning changed.
        seed: of every random choice.
        load: opens the base model.
        load_oracle: opens the oracle; None: there is none.
        journal: the parts of the attack that are done.
        progress: is given the name of each part when it begins.
    """

    items: list[Question]
    others: dict[str, list[Question]]
    forget: list[str]
    retain: list[str]
    layer: int
    span: list[int]
    seed: int
    tokenizer: Any
    device: torch.device
    delta: Delta
    load: Callable[[], nn.Module]
    load_oracle: Callable[[], nn.Module] | None = None
    journal: Store = field(default_factory=Store)
    progress: Callable[[str], None] = lambda part: None
    _plain: dict[str, Correct] = field(default_factory=dict)

    @cached_property
    def scorer(self) -> Scorer:
        return Scorer(self.tokenizer, self.device)

    @cached_property
    def _base(self) -> nn.Module:
        return self.load()

    @cached_property
    def _oracle(self) -> nn.Module:
        assert self.load_oracle is not None
        return self.load_oracle()

    @property
    def states(self) -> list[str]:
        """``base``, ``unlearned``, and ``oracle`` where there is one."""
        return [BASE, UNLEARNED, *([ORACLE] if self.load_oracle else [])]

    @property
    def controls(self) -> list[str]:
        """The states but ``unlearned``."""
        return [state for state in self.states if state != UNLEARNED]

    @contextmanager
    def model(self, state: str) -> Iterator[nn.Module]:
        """A model, to be left as it is. Base and unlearned are one model in memory: one of them at a time."""
        if state == ORACLE:
            yield self._oracle
            return
        with self.delta.applied(self._base) if state == UNLEARNED else nullcontext():
            yield self._base

    def copy(self, state: str) -> nn.Module:
        """A copy of a model, to do anything with."""
        with self.model(state) as model:
            return copy.deepcopy(model)

    def plain(self, state: str) -> Correct:
        """A model's answers to all items, asked plainly."""
        if state not in self._plain:
            with self.model(state) as model:
                self._plain[state] = self.scorer.correct(model, self.items)
        return self._plain[state]

    def part(self, name: str, make: Callable[[], Any]) -> Any:
        """One costly part of an attack, done once however often the run is cut off; as JSON gives it back."""
        self.progress(name)
        return self.journal.get(name, make)

    def generator(self, name: str) -> torch.Generator:
        """A generator of its own for each use of chance."""
        return named_generator(self.seed, f"attacks/{name}")

    def rng(self, name: str) -> random.Random:
        """The same, as Python's own generator."""
        return random.Random(f"{self.seed}/attacks/{name}")

    @cached_property
    def halves(self) -> tuple[list[int], list[int]]:
        """Indices of items: those that an attack may learn or choose by, and those that it is scored on."""
        learn, score = halves(self.items, self.rng("halves"))
        if not learn or not score:
            raise RunError("attacks: the questions cannot be split by fact")
        return learn, score

    @cached_property
    def quarters(self) -> tuple[list[int], list[int]]:
        """The first of the halves in two, by fact: items that an attack is taught, and those that it is chosen by."""
        learn, _ = self.halves
        known = self.pick(learn)
        taught, choice = halves(known, self.rng("quarters"))
        if not taught:  # one fact per topic
            taught = [i for i, item in enumerate(known) if item.fact == known[0].fact]
            choice = [i for i in choice if i not in taught]
        if not choice:
            raise RunError("attacks: too few questions on different facts; see eval.limit")
        return take(learn, taught), take(learn, choice)

    def accuracies(self, correct: Sequence[int]) -> dict[str, float]:
        """Accuracy on the half to choose by, ``learn``, and on the scored one, ``score``, of answers to all items."""
        learn, score = (accuracy(take(correct, half)) for half in self.halves)
        return {"learn": learn, "score": score}

    def best(self, variants: Mapping[K, Sequence[int]], by: Sequence[int] | None = None) -> K:
        """The variant of an attack that is best on some items (the half to choose by), from its answers to all."""
        return max(variants, key=lambda name: accuracy(take(variants[name], self.halves[0] if by is None else by)))

    def scored(self, correct: Sequence[int]) -> Correct:
        """The scored half of answers to all items, asked once or several times over."""
        return [correct[at + i] for at in range(0, len(correct), len(self.items)) for i in self.halves[1]]

    def finding(self, after: Correct, control: Mapping[str, Correct], budget: dict[str, Any], **parts: Any) -> Finding:
        """A finding from answers to all items."""
        controls = {name: self.scored(correct) for name, correct in control.items()}
        return Finding(self.scored(self.plain(UNLEARNED)), self.scored(after), controls, budget, **parts)

    @property
    def chance(self) -> float:
        """Accuracy of a blind guess."""
        return sum(1 / len(item.options) for item in self.items) / len(self.items)

    def pick(self, indices: Sequence[int]) -> list[Question]:
        return [self.items[i] for i in indices]


def accuracy(correct: Sequence[int]) -> float:
    """Accuracy."""
    return sum(correct) / len(correct)


def take(values: Sequence[int], indices: Sequence[int]) -> list[int]:
    return [values[i] for i in indices]
