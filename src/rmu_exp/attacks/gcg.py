"""GCG: tokens before the last line of a prompt, by greedy coordinate gradient (:mod:`rmu_exp.attacks.gcg_search`).

* *One prompt*, as in the paper (arXiv 2403.03218, the GCG experiment): the question of each topic that the base model
  gets wrong once random tokens stand in it; how many steps until the right answer is the likeliest token, on the base
  and the unlearned model, plain and with the base model's activations matched. The same with a wrong answer wanted
  says how much of a success is forced.
* *Universal*: the same tokens for several questions of one half of the facts, with matching; scored on the other
  half. Controls: the tokens as they were at the start, and the same search on the base model and on one that never
  knew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rmu_exp.attacks.api import BASE, UNLEARNED, Context, Correct, Curve, Finding, take
from rmu_exp.attacks.gcg_search import Search, Target, cut
from rmu_exp.evaluate.questions import Question
from rmu_exp.model.hooks import BLOCK, at_last
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
) -> dict[str, Any]:
    """One search over several questions: answers with the tokens as they began and as they ended, and the losses."""
    asked = context.pick(context.halves[1])
    with context.model(state) as model:
        targets = [_target(context, i, base_LND) for i in picked]
        search = Search(model, context.scorer, targets, settings.width, settings.topk, settings.weight)
        generator = context.generator("gcg/universal")
        tokens_S = search.start(settings.length, generator)
        random = answers(model, context, tokens_S, asked)
        losses = []
        for step in range(settings.universal_steps):
            tokens_S, loss = search.step(tokens_S, generator)
            losses.append((step + 1.0, loss))
        after, words = (
            answers(model, context, tokens_S, asked),
            context.tokenizer.decode(tokens_S.tolist(), clean_up_tokenization_spaces=False),
        )
    return {"random": random, "after": after, "losses": losses, "tokens": words}


def _matched(context: Context, items: Sequence[Question]) -> Tensor:
    """The base model's activations (L, N, D) at the last token of each untouched prompt."""
    with context.model(BASE) as model:
        return at_last(model, context.scorer, [context.scorer.encode(item.context) for item in items])[BLOCK]


def _target(context: Context, index: int, base_LND: Tensor | None, letter: int | None = None) -> Target:
    """An item as a target: its right letter, or another one."""
    item = context.items[index]
    head, tail = cut(context.scorer, item.context)
    token = context.scorer.letters(item)[item.answer if letter is None else letter]
    layers = range(context.layer, len(base_LND)) if base_LND is not None else range(0)
    match = {layer: base_LND[layer, index].to(context.device) for layer in layers} if base_LND is not None else {}
    return Target(head, tail, token, match)


def _single(context: Context, settings: Settings, base_LND: Tensor) -> tuple[list[dict[str, Any]], dict[str, Curve]]:
    """Rows of results, and loss curves, of the searches on one prompt a topic."""
    rows, panels = [], {}
    for topic in dict.fromkeys(item.topic for item in context.items):
        index, start_S = _hard(context, settings, topic)
        lines: dict[str, list[tuple[float, float]]] = {}
        right = context.items[index].answer
        wrong = (right + 1) % len(context.items[index].letters)
        for state in context.states:
            for kind, letter in ((PLAIN, right), (MATCHING, right), (PLAIN, wrong)):
                target = _target(context, index, base_LND if kind == MATCHING else None, letter)
                wanted = "right" if letter == right else "wrong"
                steps, losses = context.part(
                    f"{topic}/{state}/{kind}/{wanted}",
                    partial(_search, context, settings, state, target, start_S, f"gcg/{topic}"),
                )
                rows.append({"topic": topic, "model": state, "loss": kind, "wanted": wanted, "steps": steps})
                if wanted == "right":
                    lines[f"{state}, {kind}"] = losses
        panels[topic] = lines
    return rows, {"single": Curve("GCG on one prompt a topic, until the answer comes out", "step", "loss", panels)}


def _search(
    context: Context, settings: Settings, state: str, target: Target, start_S: Tensor, name: str
) -> tuple[int | None, list[tuple[float, float]]]:
    """One search on one prompt."""
    with context.model(state) as model:
        search = Search(model, context.scorer, [target], settings.width, settings.topk, settings.weight)
        return until_reached(search, start_S, settings.steps, context.generator(name))


def _hard(context: Context, settings: Settings, topic: str) -> tuple[int, Tensor]:
    """A question of the topic that the base model knows, and random tokens that make base and unlearned fail on it."""
    mine = [i for i in context.halves[0] if context.items[i].topic == topic and context.plain(BASE)[i]] or [
        i for i in context.halves[0] if context.items[i].topic == topic
    ]
    asked = context.pick(mine)
    generator = context.generator(f"gcg/start/{topic}")
    with context.model(BASE) as model:
        search = Search(model, context.scorer, [_target(context, mine[0], None)], 1, 1, 1.0)
        start_S = search.start(settings.length, generator)
        base = answers(model, context, start_S, asked)
    with context.model(UNLEARNED) as model:
        unlearned = answers(model, context, start_S, asked)
    hardest = min(range(len(mine)), key=lambda i: base[i] + unlearned[i])
    return mine[hardest], start_S


@torch.no_grad()
def until_reached(
    search: Search, tokens_S: Tensor, most: int, generator: torch.Generator
) -> tuple[int | None, list[tuple[float, float]]]:
    """Steps until the wanted token is the likeliest of all (None: not within ``most``), and the loss at each."""
    losses: list[tuple[float, float]] = [(0.0, float(search.losses(tokens_S[None])))]
    for step in range(most + 1):
        if search_reached(search, tokens_S):
            return step, losses
        if step == most:
            break
        with torch.enable_grad():
            tokens_S, loss = search.step(tokens_S, generator)
        losses.append((step + 1.0, loss))
    return None, losses


def search_reached(search: Search, tokens_S: Tensor) -> bool:
    """Whether the only target's token is the likeliest of the whole vocabulary."""
    target = search.targets[0]
    row = target.head + tokens_S.tolist() + target.tail
    return int(search.forward.logits([row], [(0, len(row) - 1)]).argmax()) == target.token


def answers(model: nn.Module, context: Context, tokens_S: Tensor, items: Sequence[Question]) -> Correct:
    """1 or 0 for each item with the tokens before its last line."""
    scorer = context.scorer
    rows = [head + tokens_S.tolist() + tail for head, tail in (cut(scorer, item.context) for item in items)]
    chosen = scorer.chosen_rows(model, rows, [scorer.letters(item) for item in items])
    return [int(c == item.answer) for c, item in zip(chosen, items, strict=True)]
