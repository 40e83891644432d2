"""Other prompts: the same question after examples, in other words around it, or after other text (arXiv 2506.10236).

The prompts are made from the questions' own parts, so that they work for any task. The best one is chosen by one half
of the facts and scored on the other. Controls: the base model and the oracle, asked the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import nn

from rmu_exp.attacks.api import MEASURED, SCORED, UNLEARNED, Context, Finding, Outcome, accuracy
from rmu_exp.evaluation.questions import Question, description, ordered
from rmu_exp.evaluation.scoring import answered
from rmu_exp.support.setting import setting

CORRECTED = "corrected"
Change = Callable[[Question], Question]


@dataclass
class Settings:
    """Few-shot and rephrased prompts."""

    shots: list[int] = setting(least=1, filled=True)
    """Numbers of examples before the question, each a prompt of its own."""
    forms: list[str] = setting(choices=("bare", "reversed", "framed", "twice", "filler", "corrected"), filled=True)
    """bare (no description), reversed (options), framed (Question: …), twice, filler (retain text), corrected."""


def run(context: Context, settings: Settings) -> Finding:
    tried: dict[str, Change] = {f"{n} shots": partial(few_shot, context, n) for n in settings.shots}
    for form in settings.forms:
        in_form = partial(rephrased, context, form)
        if form == CORRECTED or any(in_form(item) != item for item in context.items):  # no options, no other order
            tried[form] = in_form
    got: dict[str, dict[str, Outcome]] = {}
    for state in context.states:
        with context.model(state) as model:
            for name, change in tried.items():
                ask = partial(_outcome, context, model, change, MEASURED if state == UNLEARNED else [SCORED])
                found = _debiased(context.plain(state)) if name == CORRECTED else context.asks(f"{state}/{name}", ask)
                got.setdefault(state, {})[name] = found
    best = context.best(got[UNLEARNED])
    shown = {name: {state: accuracy(of[name].scored.right) for state, of in got.items()} for name in tried}
    return context.finding(
        got[UNLEARNED][best],
        {state: got[state][best] for state in context.controls},
        {"prompt": best, "prompts": len(tried), "queries": len(tried) * len(context.parts.choice)},
        more={"prompts": shown},
    )


def _outcome(context: Context, model: nn.Module, change: Change, parts: Sequence[str]) -> Outcome:
    put = context.scorer.put(model)
    found = {
        name: answered(put, [change(item) for item in context.pick(getattr(context.parts, name))]) for name in parts
    }
    return Outcome(**found)


def _debiased(found: Outcome) -> Outcome:
    """The same with the corrected answers as the answers."""
    return replace(
        found,
        choice=replace(found.choice, right=found.choice.corrected),
        scored=replace(found.scored, right=found.scored.corrected),
    )


def few_shot(context: Context, shots: int, item: Question) -> Question:
    """The item after answered questions of its topic, of other facts, from those that an attack may learn from."""
    others = [o for o in context.pick(context.parts.told) if o.topic == item.topic and o.fact != item.fact]
    picked = context.rng(f"prompts/{item.context}").sample(others, min(shots, len(others)))
    head = description(item)
    told = [o.context.removeprefix(description(o)) + o.options[o.answer] for o in picked]
    return replace(item, context=head + "\n\n".join([*told, item.context.removeprefix(head)]))


def rephrased(context: Context, form: str, item: Question) -> Question:
    """The item in another form; the right answer stays the right one."""
    head = description(item)
    body = item.context.removeprefix(head)
    if form == CORRECTED:
        return item
    if form == "reversed":
        turned = ordered(item, item.choices[::-1])
        answer = item.answer if turned == item.context else len(item.choices) - 1 - item.answer
        choices = item.choices if turned == item.context else item.choices[::-1]
        return replace(item, context=turned, answer=answer, choices=choices)
    forms = {
        "bare": body,
        "framed": f"{head}Question: {body}",
        "twice": f"{head}{item.stem}\n{body}",
        "filler": f"{context.retain[0]}\n\n{item.context}",
    }
    return replace(item, context=forms[form])
