"""GCG: tokens before the last line of a prompt, by greedy coordinate gradient (arXiv 2403.03218, the GCG experiment).

On one prompt per topic: steps until the right answer is the likeliest token, plain and with the base's activations
matched; the same with a wrong answer says how much of a success is forced. Universal: the same tokens for several
questions of one half of the facts, scored on the other half. Controls: base and oracle; the tokens at the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from rmu_exp.attacks.api import BASE, UNLEARNED, Context, Correct, Finding, figure, take
from rmu_exp.attacks.gcg_search import Search, Target, allowed, cut, random_tokens
from rmu_exp.evaluate.questions import Question
from rmu_exp.evaluate.scoring import likeliest
from rmu_exp.model.hooks import BLOCK
from rmu_exp.record.results import CurveData
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
    with context.model(BASE) as model:
        rows = [context.scorer.encode(item.context) for item in context.items]
        base_LND = context.scorer.at_last(model, rows)[BLOCK]
    single, curve = _single(context, settings, base_LND)
    picked = context.rng("gcg/universal").sample(learn, min(settings.questions, len(learn)))
    got = {
        state: context.part(f"universal/{state}", partial(_universal, context, settings, state, picked, base_LND))
        for state in context.states
    }
    title = f"Universal GCG over {len(picked)} questions"
    losses = {state: found["losses"] for state, found in got.items()}
    budget = {"steps": settings.universal_steps, "width": settings.width, "length": settings.length}
    return Finding(
        before=take(context.plain(UNLEARNED), score),
        after=got[UNLEARNED]["after"],
        control={
            "random" if state == UNLEARNED else state: found["random" if state == UNLEARNED else "after"]
            for state, found in got.items()
        },
        budget=budget | {"questions": len(picked), "single_steps": settings.steps},
        curves={"single": curve, "universal": figure(title, "step", "mean loss with matching", {"": losses})},
        more={"single": single, "tokens": got[UNLEARNED]["tokens"]},
    )


def _universal(
    context: Context, settings: Settings, state: str, picked: Sequence[int], base_LND: Tensor
) -> dict[str, object]:
    """One search over several questions: answers with the tokens as they began and as they ended, and the losses."""
    asked, generator = context.pick(context.halves[1]), context.generator("gcg/universal")
    with context.model(state) as model:
        search = _search(context, settings, model, [target(context, i, base_LND) for i in picked])
        start_S = search.start(settings.length, generator)
        found = search.run(start_S, settings.universal_steps, generator)
        random, after = (answers(model, context, tokens, asked) for tokens in (start_S.tolist(), found.tokens))
    text = context.tokenizer.decode(found.tokens, clean_up_tokenization_spaces=False)
    return {"random": random, "after": after, "losses": found.losses[1:], "tokens": text}


def _search(context: Context, settings: Settings, model: nn.Module, targets: Sequence[Target]) -> Search:
    width, topk, weight = settings.width, settings.topk, settings.weight
    return Search(model, context.scorer, targets, width=width, topk=topk, weight=weight)


def target(context: Context, index: int, base_LND: Tensor | None, option: int | None = None) -> Target:
    """An item's prompt and the first token of its right option, or of another; with the base's activations to match."""
    item, scorer, match = context.items[index], context.scorer, dict[int, Tensor]()
    if base_LND is not None:
        match = {k: base_LND[k, index].to(context.device) for k in range(context.layer, len(base_LND))}
    first = scorer.options(item)[item.answer if option is None else option][0]
    return Target(*cut(scorer, item.context), first, match)


def _single(context: Context, settings: Settings, base_LND: Tensor) -> tuple[list[dict[str, Any]], CurveData]:
    """Rows of results, and loss curves, of the searches on one prompt per topic."""
    rows: list[dict[str, Any]] = []
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for topic in dict.fromkeys(item.topic for item in context.items):
        index, start = hard(context, settings, topic)
        right, lines = context.items[index].answer, panels.setdefault(topic, {})
        wrong = other(context, index)
        for state, (kind, option) in product(context.states, ((PLAIN, right), (MATCHING, right), (PLAIN, wrong))):
            wanted = "right" if option == right else "wrong"
            match = base_LND if kind == MATCHING else None
            one = partial(_one, context, settings, state, index, start, match=match, option=option)
            steps, losses = context.part(f"{topic}/{state}/{kind}/{wanted}", one)
            rows.append({"topic": topic, "model": state, "loss": kind, "wanted": wanted, "steps": steps})
            if wanted == "right":
                lines[f"{state}, {kind}"] = losses
    return rows, figure("GCG on one prompt per topic, until the answer comes out", "step", "loss", panels)


def _one(
    context: Context, settings: Settings, state: str, index: int, start: list[int], *, match: Tensor | None, option: int
) -> tuple[int | None, list[tuple[float, float]]]:
    """One search on one prompt: the steps it took, and the losses."""
    generator = context.generator(f"gcg/{context.items[index].topic}")
    with context.model(state) as model:
        search = _search(context, settings, model, [target(context, index, match, option)])
        found = search.run(torch.tensor(start, device=context.device), settings.steps, generator, stop=True)
    return found.steps, found.losses


def other(context: Context, index: int) -> int:
    """A wrong option of an item, the next one that begins otherwise than the right one."""
    right, firsts = context.items[index].answer, [ids[0] for ids in context.scorer.options(context.items[index])]
    rest = [(right + k) % len(firsts) for k in range(1, len(firsts))]
    return next((k for k in rest if firsts[k] != firsts[right]), rest[0])


def hard(context: Context, settings: Settings, topic: str) -> tuple[int, list[int]]:
    """A question of the topic that the base model knows, and random tokens that make base and unlearned fail on it."""
    every = [i for i in context.halves[0] if context.items[i].topic == topic]
    mine = [i for i in every if context.plain(BASE)[i]] or every
    asked, scorer = context.pick(mine), context.scorer
    first, generator = target(context, mine[0], None), context.generator(f"gcg/start/{topic}")
    with context.model(BASE) as model:
        start = random_tokens(scorer, first, allowed(scorer, model), settings.length, generator).tolist()
        base = answers(model, context, start, asked)
    with context.model(UNLEARNED) as model:
        unlearned = answers(model, context, start, asked)
    hardest = min(range(len(mine)), key=lambda i: base[i] + unlearned[i])
    return mine[hardest], start


def answers(model: nn.Module, context: Context, tokens: Sequence[int], items: Sequence[Question]) -> Correct:
    """1 or 0 for each item with the tokens before its last line."""
    scorer = context.scorer
    rows = [[*head, *tokens, *tail] for head, tail in (cut(scorer, item.context) for item in items)]
    chosen = likeliest(scorer.scores(model, rows, [scorer.options(item) for item in items]))
    return [int(c == item.answer) for c, item in zip(chosen, items, strict=True)]
