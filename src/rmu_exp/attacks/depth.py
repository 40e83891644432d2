"""Unlearning depth: at which layers do hidden states still hold the answer? (arXiv 2605.24614)

Every question is put with its right answer. At the positions that predict the answer's tokens, one layer's output in a
host model is replaced by what a source model has there. s is the mean log-probability of the tokens, in nats:

    lost_l = s(base) - s(base, layer l from the unlearned model)       what the unlearned state lacks
    oracle_l: the same with the oracle's state                         what a model that never saw it lacks
    restored_l = s(unlearned, layer l from the base) - s(unlearned)    what the layers above l still make of the answer

Where there is an oracle, a question's depth is the mean of min(1, max(0, lost_l / oracle_l)), weighted by oracle_l,
over the layers with oracle_l above a threshold: 1, as much is missing as in the oracle; 0, all of it is there.
Control: the oracle's state at other questions, whose answers it knows (``apart``). What it costs there is no missing
knowledge, but that of two models which were trained apart.

Axes: L layers, T positions that predict the answer, D hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rmu_exp.attacks.api import BASE, ORACLE, UNLEARNED, Context, Finding, figure
from rmu_exp.evaluation import statistics
from rmu_exp.evaluation.forward import Forward, Layers
from rmu_exp.evaluation.harness import quiet
from rmu_exp.evaluation.questions import Question
from rmu_exp.model.hooks import changing, watching
from rmu_exp.model.split import layers_of
from rmu_exp.support.errors import RunError
from rmu_exp.support.setting import setting

PATCHES = {"lost": (UNLEARNED, BASE), "oracle": (ORACLE, BASE), "restored": (BASE, UNLEARNED)}  # source, host
LINES = {
    "lost": "unlearned, lost",
    "oracle": "oracle, lost",
    "restored": "base, gained",
}


@dataclass
class Settings:
    """Unlearning depth."""

    threshold: float = setting(above=0)
    """Nats that the oracle's state must cost at a layer for the layer to count."""


class Asked(NamedTuple):
    """A question with its right answer, as tokens: ``row`` ends before the answer's last token."""

    row: list[int]
    answer: list[int]

    @property
    def begin(self) -> int:
        """The position that predicts the answer's first token."""
        return len(self.row) - len(self.answer)


def run(context: Context, settings: Settings) -> Finding:
    rows = [_asked(context, item) for item in context.items]
    costs: dict[str, list[list[float]]] = {}
    for name, (source, host) in PATCHES.items():
        if ORACLE not in (source, host) or ORACLE in context.states:
            found = context.part(name, partial(_patched, context, source, host, rows))
            sign = -1 if name == "restored" else 1
            costs[name] = [[sign * (plain - s) for s in per_layer] for plain, per_layer in found]
    means = {name: [statistics.mean(values) for values in zip(*of, strict=True)] for name, of in costs.items()}
    about: dict[str, object] = {"threshold": settings.threshold, "n": len(rows), **means}
    if "oracle" in costs:
        pairs = zip(costs["lost"], costs["oracle"], strict=True)
        scores = [s for lost, lacks in pairs if (s := score(lost, lacks, settings.threshold)) is not None]
        about["scored"] = len(scores)
        if scores:
            about["score"] = {"mean": statistics.mean(scores), "ci95": statistics.bootstrap(scores)}
    panels = {"forget questions": {LINES[name]: list(enumerate(values)) for name, values in means.items()}}
    others = [item for items in context.others.values() for item in items]
    if "oracle" in costs and others:
        some = [_asked(context, item) for item in others[:: max(1, len(others) // len(rows))]]
        found = context.part("apart", partial(_patched, context, ORACLE, BASE, some))
        apart = [statistics.mean(values) for values in zip(*([p - s for s in each] for p, each in found), strict=True)]
        about["apart"] = apart
        panels["other questions"] = {LINES["oracle"]: list(enumerate(apart))}
    title = "Hidden states of one model in another, at the answer"
    return Finding(
        control={ORACLE: "patched beside it"} if "oracle" in costs else {},
        budget={"questions": len(rows), "layers": len(means["lost"]), "patches": len(costs)},
        curves={"layers": figure(title, "layer", "nats per token of the answer", panels)},
        more={"depth": about},
    )


def score(lost_L: Sequence[float], oracle_L: Sequence[float], threshold: float) -> float | None:
    """A question's unlearning depth, 0 to 1; None: the oracle's state costs more than the threshold at no layer."""
    counts = [(lost, lacks) for lost, lacks in zip(lost_L, oracle_L, strict=True) if lacks > threshold]
    if not counts:
        return None
    return sum(min(lacks, max(0.0, lost)) for lost, lacks in counts) / sum(lacks for _, lacks in counts)


def _asked(context: Context, item: Question) -> Asked:
    answer = context.scorer.options(item)[item.answer]
    return Asked(context.scorer.encode(item.context) + answer[:-1], answer)


def _patched(context: Context, source: str, host: str, rows: Sequence[Asked]) -> list[tuple[float, list[float]]]:
    """For each question the host's log-probability of the answer, and that with each layer from the source."""
    with context.model(source) as model, quiet():
        forward = Forward(model, context.device)
        states = [_states(forward, row) for row in rows]
    with context.model(host) as model, quiet():
        forward = Forward(model, context.device)
        longest = max(rows, key=lambda row: len(row.row)).row
        cuts = [row.begin if forward.can_reuse(longest) else 0 for row in rows]
        return [_with_each(forward, row, cut, h_LTD) for row, cut, h_LTD in zip(rows, cuts, states, strict=True)]


def _states(forward: Forward, asked: Asked) -> Tensor:
    """Every layer's output (L, T, D) at the positions that predict the answer."""
    seen: list[Tensor] = []
    with watching(forward.model, lambda _place, _index, h_BTD: seen.append(h_BTD[0, asked.begin :])):
        forward.logits([asked.row], [(0, len(asked.row) - 1)])
    return torch.stack([h_TD.to(seen[-1].device) for h_TD in seen])


def _with_each(forward: Forward, asked: Asked, cut: int, h_LTD: Tensor) -> tuple[float, list[float]]:
    """The answer's mean log-probability as it is, and with each layer's output replaced: a row per layer, and one more.

    Args:
        cut: tokens that are run once, before all rows; no replaced position is among them.
    """
    prefix: Layers = forward.extend([], asked.row[:cut]) if cut else []
    rows, at = [asked.row[cut:]] * (len(h_LTD) + 1), range(asked.begin - cut, len(asked.row) - cut)
    with _replaced(forward.model, h_LTD):
        logits_NV = forward.logits(rows, [(r, t) for r in range(len(rows)) for t in at], prefix)
    tokens_N = torch.tensor(asked.answer * len(rows), device=logits_NV.device)
    logs_N = logits_NV.float().log_softmax(dim=-1).gather(1, tokens_N[:, None])[:, 0]
    *patched, plain = logs_N.view(len(rows), -1).mean(dim=1).tolist()
    if not math.isfinite(sum(patched, plain)):
        raise RunError("attacks.depth: the model's logits are not finite; it gives no answers")
    return plain, patched


@contextmanager
def _replaced(model: nn.Module, h_LTD: Tensor) -> Iterator[None]:
    """In row l of a batch, layer l gives ``h_LTD[l]`` at the last T positions."""

    def put(index: int, h_BTD: Tensor) -> Tensor:
        changed = h_BTD.clone()
        changed[index, -h_LTD.shape[1] :] = h_LTD[index].to(h_BTD)
        return changed

    with changing(model, {index: partial(put, index) for index in range(len(layers_of(model)))}):
        yield
