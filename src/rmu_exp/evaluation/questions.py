"""The questions that attacks ask: lm-eval's multiple-choice tasks, answered by letters or by likelihood.

A task's documents may have a field ``entity`` or ``fact``, which texts about it name: questions with the same one are
never on both sides of a split; without it every question is a fact of its own. A field ``topic`` names the forget
topic; otherwise the task's name does. A field ``relation`` says what kind of question it is.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Any

from rmu_exp.evaluation import catalogue
from rmu_exp.settings import Eval
from rmu_exp.support.errors import UserError

LETTERS = tuple("ABCDEFGHIJ")


@dataclass(frozen=True)
class Question:
    """One question."""

    task: str  # lm-eval's name
    topic: str  # the forget topic that the task belongs to, or the task's name
    fact: str  # what the question asks about; splits are by fact
    context: str  # the whole prompt, ending in "Answer:" or the like
    options: tuple[str, ...]  # the possible continuations, such as " A" or " Paris"
    answer: int  # index of the right one
    stem: str = ""  # the question alone, as it stands in the context
    choices: tuple[str, ...] = ()  # the options' texts; empty when the documents do not have them
    named: bool = False  # whether the documents name the fact, as the texts about it do
    relation: str = ""  # what kind of question it is; empty when the documents do not say

    @property
    def lettered(self) -> bool:
        """Whether it is answered by letters that stand for options in its prompt."""
        return all(option.strip() in LETTERS for option in self.options)


def load(tasks: Sequence[str], topics: Sequence[str], settings: Eval | None = None) -> dict[str, list[Question]]:
    """Items of every task or group in ``tasks``, by the name given there; those without options are left out.

    Args:
        topics: names of the forget topics, see :func:`topic_of`.
        settings: which of a task's questions are asked, and where own tasks lie; None: all of them, nowhere.

    Raises:
        UserError: an unknown task.
        RunError: the questions cannot be loaded.
    """
    settings = settings or Eval()
    manager = catalogue.find(tasks, settings.include_path)
    with catalogue.loading(tasks), catalogue.seeded():
        return {
            name: [i for task in manager.load([name])["tasks"].values() for i in _items(task, topics, settings)]
            for name in tasks
        }


def topic_of(task: str, topics: Sequence[str]) -> str:
    """The longest topic that is a whole part of a task's name (``bio`` of ``wmdp_bio``); else the task's name."""
    parts = [topic for topic in topics if f"_{topic}_" in f"_{task}_"]
    return max(parts, key=len, default=task)


def _items(task: Any, topics: Sequence[str], settings: Eval) -> list[Question]:
    name = task.config.task
    if task.OUTPUT_TYPE != "multiple_choice" or getattr(task, "multiple_input", True):
        return []
    named = topic_of(name, topics)
    task.build_all_requests(samples=catalogue.places(task, settings), rank=0, world_size=1)
    items = []
    in_order = sorted(task.instances, key=lambda i: (i.doc_id, i.idx))
    for number, group in groupby(in_order, key=lambda i: i.doc_id):
        instances = list(group)
        if (answer := catalogue.right_option(task, instances[0].doc)) is None:
            continue
        instances = instances[: len(task.doc_to_choice(instances[0].doc))]
        doc, options = instances[0].doc, tuple(i.args[1] for i in instances)
        topic = str(doc["topic"]) if doc.get("topic") in topics else named
        listed = doc.get("choices")
        choices = tuple(map(str, listed)) if isinstance(listed, list) else ()
        stem = str(doc.get("question", "")).strip()
        about, kind = doc.get("entity", doc.get("fact")), str(doc.get("relation", ""))
        fact = f"{name}/{number}" if about is None else str(about)
        asked, named_so = instances[0].args[0], about is not None
        items.append(Question(name, topic, fact, asked, options, answer, stem, choices, named_so, kind))
    return items


def needed(
    tasks: Sequence[str],
    topics: Sequence[str],
    settings: Eval | None = None,
    most: int | None = None,
    seed: int = 0,
) -> list[Question]:
    """The questions about what was to be forgotten.

    Args:
        settings: see :func:`load`.
        most: questions per topic: those on facts drawn with ``seed``, in their order; None: all.

    Raises:
        UserError: no such tasks are named, or they have too few questions.
    """
    if not tasks:
        raise UserError("data.questions.forget: not given; attacks need questions about the forget topics")
    items = [item for group in load(tasks, topics, settings).values() for item in group]
    if len({item.fact for item in items}) < 4:
        named = ", ".join(tasks)
        raise UserError(
            f"data.questions.forget: {named} have too few multiple-choice questions (4 facts are needed; eval.limit "
            "may leave them out)"
        )
    return items if most is None else _some(items, most, random.Random(f"{seed}/attacks/questions"))


def _some(items: list[Question], most: int, rng: random.Random) -> list[Question]:
    """At most so many questions per topic, whole facts as long as they fit."""
    kept: list[Question] = []
    for topic in dict.fromkeys(item.topic for item in items):
        mine = [item for item in items if item.topic == topic]
        facts, left = list(dict.fromkeys(item.fact for item in mine)), most
        rng.shuffle(facts)
        chosen = set()
        for fact in facts:
            size = sum(item.fact == fact for item in mine)
            if size <= left:
                chosen.add(fact)
                left -= size
        kept += [item for item in mine if item.fact in chosen]
    return kept


def halves(items: Sequence[Question], rng: random.Random) -> tuple[list[int], list[int]]:
    """Indices of the items in two halves of the facts, topic by topic; no fact is in both."""
    first: set[str] = set()
    for topic in dict.fromkeys(item.topic for item in items):
        facts = list(dict.fromkeys(item.fact for item in items if item.topic == topic))
        rng.shuffle(facts)
        first |= set(facts[: len(facts) // 2])
    sides: tuple[list[int], list[int]] = ([], [])
    for index, item in enumerate(items):
        sides[item.fact not in first].append(index)
    return sides


def description(item: Question) -> str:
    """What stands before the question itself; empty when the question cannot be found in the prompt."""
    return item.context[: max(0, item.context.find(item.stem))] if item.stem else ""


def ordered(item: Question, choices: Sequence[str]) -> str:
    """The item's prompt with its choices in another order; as it is when they cannot be found in it."""
    head = description(item)
    body = item.context.removeprefix(head)
    around = "(.*?)".join(["", *map(re.escape, item.choices), ""])  # the last group takes nothing
    found = re.compile(around, re.DOTALL).match(body, len(item.stem))
    if found is None or not item.choices:
        return item.context
    parts = zip(found.groups(), [*choices, ""], strict=True)
    return head + body[: found.start()] + "".join(chain.from_iterable(parts)) + body[found.end() :]
