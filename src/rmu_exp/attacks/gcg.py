"""GCG: tokens before the last line of a prompt, by greedy coordinate gradient (arXiv 2403.03218, the GCG experiment).

On one prompt per topic: steps until the right answer is the likeliest token, plain and with the base's activations
matched; the same with a wrong answer says how much of a success is forced. Universal: the same tokens for several
questions of one half of the facts, scored on the other half. Controls: base and oracle; the tokens at the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from rmu_exp.attacks.api import BASE, SCORED, UNLEARNED, Context, Finding, Outcome, figure
from rmu_exp.attacks.gcg_search import Search, Target, allowed, cut, random_tokens
from rmu_exp.evaluation.questions import Question
from rmu_exp.evaluation.scoring import Put, answered
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
    with context.model(BASE) as model:
        rows = [context.scorer.encode(item.context) for item in context.items]
        base_LND = context.scorer.at_last(model, rows)[BLOCK]
    single, curve = _single(context, settings, base_LND)
    told = context.parts.told
    picked = context.rng("gcg/universal").sample(told, min(settings.questions, len(told)))
    got = {
        state: context.part(f"universal/{state}", partial(_universal, context, settings, state, picked, base_LND))
        for state in context.states
    }
    title = f"Universal GCG over {len(picked)} questions"
    losses = {state: found["losses"] for state, found in got.items()}
    budget = {"steps": settings.universal_steps, "width": settings.width, "length": settings.length}
    control = {state: Outcome.of(got[state]["after"]) for state in context.controls}
    return context.finding(
        Outcome.of(got[UNLEARNED]["after"]),
        control | {"random": Outcome.of(got[UNLEARNED]["random"])},
        budget | {"questions": len(picked), "single_steps": settings.steps},
        curves={"single": curve, "universal": figure(title, "step", "mean loss with matching", {"": losses})},
        more={"single": single, "tokens": got[UNLEARNED]["tokens"]},
        taught=got[UNLEARNED]["taught"],
    )


def _universal(
    context: Context, settings: Settings, state: str, picked: Sequence[int], base_LND: Tensor
) -> dict[str, Any]:
    """One search over several questions: outcomes with the tokens as they began and as they ended, and the losses."""
    generator = context.generator("gcg/universal")
    with context.model(state) as model:
        search = _search(context, settings, model, [target(context, i, base_LND) for i in picked])
        start_S = search.start(settings.length, generator)
        found = search.run(start_S, settings.universal_steps, generator)
        random = context.outcome(put(model, context, start_S.tolist()), [SCORED], unbiased=False)
        with_them = put(model, context, found.tokens)
        after, taught = context.outcome(with_them, [SCORED]), answered(with_them, context.pick(picked), False).right
    text = context.tokenizer.decode(found.tokens, clean_up_tokenization_spaces=False)
    told = {"taught": taught, "losses": found.losses[1:], "tokens": text}
    return told | {"random": asdict(random), "after": asdict(after)}


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
    every = [i for i in context.unscored if context.items[i].topic == topic]
    mine = [i for i in every if i in context.known(BASE)] or every
    asked, scorer = context.pick(mine), context.scorer
    first, generator = target(context, mine[0], None), context.generator(f"gcg/start/{topic}")
    with context.model(BASE) as model:
        start = random_tokens(scorer, first, allowed(scorer, model), settings.length, generator).tolist()
        base = answered(put(model, context, start), asked, unbiased=False).right
    with context.model(UNLEARNED) as model:
        unlearned = answered(put(model, context, start), asked, unbiased=False).right
    hardest = min(range(len(mine)), key=lambda i: base[i] + unlearned[i])
    return mine[hardest], start


def put(model: nn.Module, context: Context, tokens: Sequence[int]) -> Put:
    """Puts questions with the tokens before their last line."""
    scorer = context.scorer

    def ask(items: Sequence[Question]) -> list[list[float]]:
        rows = [[*head, *tokens, *tail] for head, tail in (cut(scorer, item.context) for item in items)]
        found = scorer.scores(model, rows, [scorer.options(item) for item in items]).tolist()
        return [row[: len(item.options)] for row, item in zip(found, items, strict=True)]

    return ask
