"""Other prompts: the same question after examples, in other words around it, or after other text (arXiv 2506.10236).

The prompts are made from the questions' own parts, so that they work for any task. The best one is chosen by one half
of the facts and scored on the other. Controls: the base model and the oracle, asked the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

from torch import nn

from rmu_exp.attacks.api import UNLEARNED, Context, Correct, Finding, accuracy
from rmu_exp.evaluate.questions import Question
from rmu_exp.support.setting import setting

CORRECTED = "corrected"
Change = Callable[[Question], Question]
Ask = Callable[[Context, nn.Module], Correct]


@dataclass
class Settings:
    """Few-shot and rephrased prompts."""

    shots: list[int] = setting(least=1, filled=True)
    """Numbers of examples before the question, each a prompt of its own."""
    forms: list[str] = setting(choices=("bare", "reversed", "framed", "twice", "filler", "corrected"), filled=True)
    """bare (no description), reversed (options), framed (Question: …), twice, filler (retain text), corrected."""


def run(context: Context, settings: Settings) -> Finding:
    tried: dict[str, Ask] = {f"{n} shots": partial(_changed, partial(few_shot, context, n)) for n in settings.shots}
    for form in settings.forms:
        change = partial(rephrased, context, form)
        if form != CORRECTED and any(change(item) != item for item in context.items):  # no options, no other order
            tried[form] = partial(_changed, change)
    if CORRECTED in settings.forms:
        tried[CORRECTED] = lambda context, model: context.scorer.corrected(model, context.items, ordered)
    answers: dict[str, dict[str, Correct]] = {}
    for state in context.states:
        with context.model(state) as model:
            for name, ask in tried.items():
                answers.setdefault(state, {})[name] = context.part(f"{state}/{name}", partial(ask, context, model))
    best = context.best(answers[UNLEARNED])
    shown = {name: {state: accuracy(context.scored(of[name])) for state, of in answers.items()} for name in tried}
    return context.finding(
        answers[UNLEARNED][best],
        {state: answers[state][best] for state in context.controls},
        {"prompt": best, "prompts": len(tried), "queries": len(tried) * len(context.halves[0])},
        more={"prompts": shown},
    )


def _changed(change: Change, context: Context, model: nn.Module) -> Correct:
    return context.scorer.correct(model, [change(item) for item in context.items])


def few_shot(context: Context, shots: int, item: Question) -> Question:
    """The item after answered questions of its topic, of other facts, from the half that is not scored."""
    others = [o for o in context.pick(context.halves[0]) if o.topic == item.topic and o.fact != item.fact]
    picked = context.rng(f"prompts/{item.context}").sample(others, min(shots, len(others)))
    head = description(item)
    told = [o.context.removeprefix(description(o)) + o.options[o.answer] for o in picked]
    return replace(item, context=head + "\n\n".join([*told, item.context.removeprefix(head)]))


def description(item: Question) -> str:
    """What stands before the question itself; empty when the question cannot be found in the prompt."""
    return item.context[: max(0, item.context.find(item.stem))] if item.stem else ""


def rephrased(context: Context, form: str, item: Question) -> Question:
    """The item in another form; the right answer stays the right one."""
    head = description(item)
    body = item.context.removeprefix(head)
    if form == "reversed":
        turned = ordered(item, item.choices[::-1])
        answer = item.answer if turned == item.context else len(item.choices) - 1 - item.answer
        return replace(item, context=turned, answer=answer)
    forms = {
        "bare": body,
        "framed": f"{head}Question: {body}",
        "twice": f"{head}{item.stem}\n{body}",
        "filler": f"{context.retain[0]}\n\n{item.context}",
    }
    return replace(item, context=forms[form])


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
