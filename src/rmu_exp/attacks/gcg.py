"""GCG: tokens before the last line of a prompt, by greedy coordinate gradient (:mod:`rmu_exp.attacks.gcg_search`).

* *One prompt*, as in the paper (arXiv 2403.03218, the GCG experiment): the question of each topic that the base model
  gets wrong once random tokens stand in it; how many steps until the right answer is the likeliest token, on the base
  and the unlearned model, plain and with the base model's activations matched. The same with a wrong answer wanted
  says how much of a success is forced.
* *Universal*: the same tokens for several questions of one half of the facts, with matching; scored on the other
  half. Controls: the tokens as they were at the start, and the same search on the base model and on the oracle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from rmu_exp.attacks.api import BASE, UNLEARNED, Context, Correct, Curve, Finding, take
from rmu_exp.attacks.gcg_search import Found, Options, Target, allowed, cut, random_tokens, search
from rmu_exp.evaluate.questions import Question
from rmu_exp.model.hooks import BLOCK
from rmu_exp.model.split import embedding_of
from rmu_exp.support.setting import setting

PLAIN, MATCHING = "plain", "matching"


@dataclass
class Settings:
    """Greedy coordinate gradient."""

    length: int = setting(least=1)
    """Searched tokens."""
    steps: int = setting(least=1)
    """Most gradient steps on one prompt."""
    universal_steps: int = setting(least=1)
    """Gradient steps of the universal search."""
    questions: int = setting(least=1)
    """Questions that the universal search sees."""
    width: int = setting(least=1)
    """Candidates per step."""
    topk: int = setting(least=1)
    """Tokens that the gradient proposes per position."""
    weight: float = setting(above=0)
    """Weight of the matching loss beside the cross-entropy."""


def run(context: Context, settings: Settings) -> Finding:
    learn, score = context.halves
    base_activations = _matched(context, context.items)
    single, curves = _single(context, settings, base_activations)
    picked = context.rng("gcg/universal").sample(learn, min(settings.questions, len(learn)))
    after: dict[str, Correct] = {}
    losses: dict[str, list[tuple[float, float]]] = {}
    for state in context.states:
        got = context.part(
            f"universal/{state}", partial(_universal, context, settings, state, picked, base_activations)
        )
        after[state], losses[state] = got["after"], got["losses"]
        if state == UNLEARNED:
            after["random"], found = got["random"], got["tokens"]
    curves["universal"] = Curve(
        f"Universal GCG over {len(picked)} questions", "step", "mean loss with matching", {"": losses}
    )
    budget = {
        "steps": settings.universal_steps,
        "width": settings.width,
        "length": settings.length,
        "questions": len(picked),
    }
    return Finding(
        before=take(context.plain(UNLEARNED), score),
        after=after.pop(UNLEARNED),
        control=after,
        budget=budget | {"single_steps": settings.steps},
        curves=curves,
        more={"single": single, "tokens": found},
    )


def _universal(
    context: Context, settings: Settings, state: str, picked: Sequence[int], base_LND: Tensor
) -> dict[str, object]:
    """One search over several questions: answers with the tokens as they began and as they ended, and the losses."""
    asked = context.pick(context.halves[1])
    with context.model(state) as model:
        found = _search(context, settings, model, picked, base_LND, name="gcg/universal")
        random, after = (answers(model, context, tokens, asked) for tokens in (found.start, found.tokens))
    return {"random": random, "after": after, "losses": found.losses[1:], "tokens": found.text}


def _search(
    context: Context,
    settings: Settings,
    model: nn.Module,
    picked: Sequence[int],
    base_LND: Tensor | None,
    *,
    name: str,
    letter: int | None = None,
    start: Sequence[int] | None = None,
) -> Found:
    """A search over some items for their right letters, or for another one until it comes out."""
    items, single = context.pick(picked), start is not None
    layers = range(context.layer, len(base_LND)) if base_LND is not None else range(0)
    return search(
        model,
        context.tokenizer,
        [item.context for item in items],
        [item.letters[item.answer if letter is None else letter] for item in items],
        Options(
            settings.length,
            settings.steps if single else settings.universal_steps,
            settings.width,
            settings.topk,
            settings.weight,
            stop=single,
        ),
        match=[{k: base_LND[k, i] for k in layers} for i in picked] if base_LND is not None else (),
        start=start,
        generator=context.generator(name),
    )


def _matched(context: Context, items: Sequence[Question]) -> Tensor:
    """The base model's activations (L, N, D) at the last token of each untouched prompt."""
    with context.model(BASE) as model:
        return context.scorer.at_last(model, [context.scorer.encode(item.context) for item in items])[BLOCK]


def _single(context: Context, settings: Settings, base_LND: Tensor) -> tuple[list[dict[str, Any]], dict[str, Curve]]:
    """Rows of results, and loss curves, of the searches on one prompt per topic."""
    rows, panels = [], {}
    for topic in dict.fromkeys(item.topic for item in context.items):
        index, start = hard(context, settings, topic)
        lines: dict[str, list[tuple[float, float]]] = {}
        right = context.items[index].answer
        wrong = (right + 1) % len(context.items[index].letters)
        for state in context.states:
            for kind, letter in ((PLAIN, right), (MATCHING, right), (PLAIN, wrong)):
                match = base_LND if kind == MATCHING else None
                how: dict[str, Any] = {"name": f"gcg/{topic}", "letter": letter, "start": start}
                wanted = "right" if letter == right else "wrong"
                steps, losses = context.part(
                    f"{topic}/{state}/{kind}/{wanted}",
                    partial(_one, context, settings, state, index, match, **how),
                )
                rows.append({"topic": topic, "model": state, "loss": kind, "wanted": wanted, "steps": steps})
                if wanted == "right":
                    lines[f"{state}, {kind}"] = losses
        panels[topic] = lines
    return rows, {"single": Curve("GCG on one prompt a topic, until the answer comes out", "step", "loss", panels)}


def _one(
    context: Context, settings: Settings, state: str, index: int, base_LND: Tensor | None, **how: Any
) -> tuple[int | None, list[tuple[float, float]]]:
    """One search on one prompt: the steps it took, and the losses."""
    with context.model(state) as model:
        found = _search(context, settings, model, [index], base_LND, **how)
    return found.steps, found.losses


def hard(context: Context, settings: Settings, topic: str) -> tuple[int, list[int]]:
    """A question of the topic that the base model knows, and random tokens that make base and unlearned fail on it."""
    mine = [i for i in context.halves[0] if context.items[i].topic == topic and context.plain(BASE)[i]] or [
        i for i in context.halves[0] if context.items[i].topic == topic
    ]
    asked, scorer = context.pick(mine), context.scorer
    target, generator = Target(*cut(scorer, asked[0].context), 0, {}), context.generator(f"gcg/start/{topic}")
    with context.model(BASE) as model:
        known_V = allowed(scorer, len(embedding_of(model).weight))  # type: ignore[arg-type]
        start = random_tokens(scorer, target, known_V, settings.length, generator).tolist()
        base = answers(model, context, start, asked)
    with context.model(UNLEARNED) as model:
        unlearned = answers(model, context, start, asked)
    hardest = min(range(len(mine)), key=lambda i: base[i] + unlearned[i])
    return mine[hardest], start


def answers(model: nn.Module, context: Context, tokens: Sequence[int], items: Sequence[Question]) -> Correct:
    """1 or 0 for each item with the tokens before its last line."""
    scorer = context.scorer
    rows = [[*head, *tokens, *tail] for head, tail in (cut(scorer, item.context) for item in items)]
    chosen = scorer.chosen_rows(model, rows, [scorer.letters(item) for item in items])
    return [int(c == item.answer) for c, item in zip(chosen, items, strict=True)]
