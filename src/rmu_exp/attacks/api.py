"""What an attack gets, and what it gives back. It knows nothing of other attacks, of files, or of the run."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from rmu_exp.evaluation.questions import Question, halves
from rmu_exp.evaluation.scoring import Answered, Put, Scorer, answered
from rmu_exp.model.delta import Delta
from rmu_exp.record.results import CurveData
from rmu_exp.record.store import Store, cached, fingerprint
from rmu_exp.support.errors import RunError
from rmu_exp.support.randomness import named_generator

BASE, UNLEARNED, ORACLE = "base", "unlearned", "oracle"
K = TypeVar("K")


class Parts(NamedTuple):
    """Indices of questions on three sets of facts: those that an attack may learn from, is chosen by, is scored on."""

    told: list[int]
    choice: list[int]
    scored: list[int]


TOLD, CHOICE, SCORED = Parts._fields
MEASURED = (CHOICE, SCORED)


@dataclass(frozen=True)
class Outcome:
    """What a model answers under attack, by part of the questions, and to general questions; empty: not asked."""

    told: Answered = field(default_factory=Answered)
    choice: Answered = field(default_factory=Answered)
    scored: Answered = field(default_factory=Answered)
    general: Answered = field(default_factory=Answered)

    @classmethod
    def of(cls, values: Mapping[str, Mapping[str, Any]]) -> Outcome:
        """From its form in JSON."""
        return cls(**{name: Answered(**value) for name, value in values.items()})

    def rates(self) -> dict[str, float]:
        """Plain accuracy on the questions to choose by, ``learn``, and on the scored ones, ``score``."""
        return {"learn": accuracy(self.choice.right), "score": accuracy(self.scored.right)}


@dataclass
class Finding:
    """What an attack found.

    Attributes:
        before: the unlearned model, asked plainly.
        after: the same under attack.
        control: name to the outcome (or, where there is nothing to find, what was found all the same).
        budget: what it took: steps, samples, queries.
        curves: name to a figure's lines.
        more: what else belongs into results.json under the attack's name.
        top: what belongs into results.json beside the attacks, by key.
        taught: the answers under attack to what it was taught, 1 or 0: an attack that did not learn that shows nothing.
        idle: why it shows nothing, where no answers tell; None: it did what it was to do.
    """

    before: Outcome | None = None
    after: Outcome | None = None
    control: dict[str, Any] = field(default_factory=dict)
    budget: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, CurveData] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    top: dict[str, Any] = field(default_factory=dict)
    taught: Sequence[int] | None = None
    idle: str | None = None


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
        general: questions that an attack must not unlearn; empty: not asked.
        neighbours: questions on adjacent topics, from which texts are made.
        bound: the part of the accuracy on ``general`` that an attack must leave.
        forget, retain: texts.
        layer: the highest layer that unlearning changed; its activations are what was steered.
        span: the layers that unlearning changed.
        seed: of every random choice.
        load: opens the base model.
        load_oracle: opens the oracle; None: there is none.
        journal: the parts of the attack that are done.
        progress: is given the name of each part when it begins.
        asked: state to what it answers, asked plainly; filled in when it is first wanted.
        origin: fingerprint of all above but what unlearning made (``delta``, ``layer``, ``span``); "": unknown.
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
    general: list[Question] = field(default_factory=list)
    neighbours: list[Question] = field(default_factory=list)
    bound: float = 0.0
    journal: Store = field(default_factory=Store)
    progress: Callable[[str], None] = lambda part: None
    asked: dict[str, Outcome] = field(default_factory=dict)
    origin: str = ""

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

    def plain(self, state: str) -> Outcome:
        """What a model answers to all questions, asked plainly."""
        if state not in self.asked:
            with self.model(state) as model:
                self.asked[state] = self.outcome(self.scorer.put(model), Parts._fields)
        return self.asked[state]

    def known(self, state: str) -> set[int]:
        """The items that a model answers correctly when it is asked plainly."""
        found = self.plain(state)
        parts = zip(self.parts, (found.told, found.choice, found.scored), strict=True)
        return {i for part, answers in parts for i, right in zip(part, answers.right, strict=True) if right}

    def outcome(self, put: Put, parts: Sequence[str] = MEASURED, unbiased: bool = True) -> Outcome:
        """Ask the items of some parts, and the general questions wherever attacks are chosen.

        Args:
            unbiased: of the parts to choose by and to score on, measure the corrected accuracy as well.
        """
        found = {name: answered(put, self.pick(getattr(self.parts, name)), unbiased and name != TOLD) for name in parts}
        if self.general and CHOICE in parts:
            found["general"] = answered(put, self.general, unbiased=False)
        return Outcome(**found)

    def asks(self, name: str, make: Callable[[], Outcome]) -> Outcome:
        """An outcome as one part of an attack, see :meth:`part`."""
        return Outcome.of(self.part(name, lambda: asdict(make())))

    def part(self, name: str, make: Callable[[], Any]) -> Any:
        """One costly part of an attack, done once however often the run is cut off; as JSON gives it back."""
        self.progress(name)
        return self.journal.get(name, make)

    def of_base(self, name: str, make: Callable[[], Any], *made_from: object) -> Any:
        """A part that is the same for every model unlearned from this base, done once for all of them.

        Args:
            made_from: what it depends on beside ``origin`` and its name.
        """
        if not self.origin:
            return self.part(name, make)
        key = fingerprint(self.origin, name, *made_from)
        return self.part(name, lambda: cached("attacks_on_base", key, make))

    def generator(self, name: str) -> torch.Generator:
        """A generator of its own for each use of chance."""
        return named_generator(self.seed, f"attacks/{name}")

    def rng(self, name: str) -> random.Random:
        """The same, as Python's own generator."""
        return random.Random(f"{self.seed}/attacks/{name}")

    @cached_property
    def parts(self) -> Parts:
        """The three parts, the same for every attack: half of the facts is scored, a quarter told, a quarter chosen by.

        Raises:
            RunError: there are too few facts.
        """
        seen, scored = halves(self.items, self.rng("halves"))
        if not seen or not scored:
            raise RunError("attacks: the questions cannot be split by fact")
        known = self.pick(seen)
        told, choice = halves(known, self.rng("quarters"))
        if not told:  # one fact per topic
            told = [i for i, item in enumerate(known) if item.fact == known[0].fact]
            choice = [i for i in choice if i not in told]
        if not choice:
            raise RunError("attacks: too few questions on different facts; see eval.limit")
        return Parts(take(seen, told), take(seen, choice), scored)

    @property
    def unscored(self) -> list[int]:
        """The items that are not scored, in their order."""
        return sorted(self.parts.told + self.parts.choice)

    def keeps(self, outcome: Outcome) -> bool:
        """Whether an attack leaves as much of the general accuracy as it must."""
        general = outcome.general.right
        return not general or sum(general) >= round(self.bound * sum(self.plain(UNLEARNED).general.right), 9)

    def best(self, variants: Mapping[K, Outcome]) -> K:
        """The variant of an attack to take, by the questions to choose by.

        Of those that keep general accuracy the one with the highest accuracy, corrected where that was measured; at a
        tie, with the highest probability of the right option.
        """

        def rank(name: K) -> tuple[bool, float, float]:
            found = variants[name].choice
            return self.keeps(variants[name]), accuracy(found.corrected or found.right), sum(found.prob)

        return max(variants, key=rank)

    def finding(self, after: Outcome, control: Mapping[str, Outcome], budget: dict[str, Any], **parts: Any) -> Finding:
        """A finding beside the plain answers."""
        return Finding(self.plain(UNLEARNED), after, dict(control), budget, **parts)

    @property
    def chance(self) -> float:
        """Accuracy of a blind guess."""
        return sum(1 / len(item.options) for item in self.items) / len(self.items)

    def pick(self, indices: Sequence[int]) -> list[Question]:
        return [self.items[i] for i in indices]


def pooled(outcomes: Sequence[Outcome]) -> Outcome:
    """The scored questions of several outcomes together, plain."""
    return Outcome(scored=Answered(list(chain.from_iterable(o.scored.right for o in outcomes))))


def accuracy(correct: Sequence[int]) -> float:
    """Accuracy."""
    return sum(correct) / len(correct)


def take(values: Sequence[int], indices: Sequence[int]) -> list[int]:
    return [values[i] for i in indices]
