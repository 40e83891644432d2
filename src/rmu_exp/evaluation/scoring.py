"""Questions put to a model in memory, many at once: prompts and options in, the options' log-likelihoods out.

Axes: N questions, K options, R rows, B rows of a batch, T positions, V vocabulary, D hidden size.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from rmu_exp.evaluation.correction import KIND, Asked, Pair, correction
from rmu_exp.evaluation.harness import quiet
from rmu_exp.evaluation.questions import Question, ordered
from rmu_exp.model.hooks import BLOCK, watching
from rmu_exp.support import memory
from rmu_exp.support.errors import RunError
from rmu_exp.support.progress import stage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("rmu_exp")
BUDGET = {"cpu": 1024, "cuda": 32768}
Kept = Callable[[Tensor, Tensor], Tensor]
Ids = list[int]
Put = Callable[[Sequence[Question]], list[list[float]]]
"""Puts questions to a model; gives the log-likelihoods of their options."""
AT_ONCE = 8  # options at most of one question that a correction asks


def likeliest(scores_NK: Tensor) -> list[int]:
    """Index of the likeliest option of each question; -inf stands where a question has no more options.

    Raises:
        RunError: a score is not a number, so that there is no answer.
    """
    if scores_NK.isnan().any() or not scores_NK.isfinite().any(dim=-1).all():
        raise RunError("the model's logits are not finite; it gives no answers")
    return [int(choice) for choice in scores_NK.argmax(dim=-1)]


@dataclass(frozen=True)
class Answered:
    """What a model answers to some questions, in their order.

    Attributes:
        right: 1 or 0 for each.
        corrected: the same by scores without answer bias.
        prob, among: probability of the right option after the prompt, and among the options.
            What is empty was not measured.
    """

    right: list[int] = field(default_factory=list)
    corrected: list[int] = field(default_factory=list)
    prob: list[float] = field(default_factory=list)
    among: list[float] = field(default_factory=list)


def answered(put: Put, items: Sequence[Question], unbiased: bool = True) -> Answered:
    """The answers to the items by the option that is likeliest.

    Args:
        unbiased: ask what the corrected scores need as well, task by task.

    Raises:
        RunError: a score is not a number, so that there is no answer.
    """
    scores, right = put(items), [item.answer for item in items]
    chosen = likeliest(_table(scores))
    logs = [row[a] for row, a in zip(scores, right, strict=True)]
    among = torch.softmax(_table(scores), dim=-1)[range(len(items)), right].tolist() if items else []
    corrected = _corrected(put, items, scores) if unbiased else []
    correct = [int(a == b) for a, b in zip(chosen, right, strict=True)]
    return Answered(correct, corrected, [math.exp(min(0.0, log)) for log in logs], among)


def _table(scores: Sequence[Sequence[float]]) -> Tensor:
    """Scores (N, K), fp64; -inf where a question has fewer options."""
    if not scores:
        return torch.zeros(0, 1)
    rows = [torch.tensor(row, dtype=torch.float64) for row in scores]
    return pad_sequence(rows, batch_first=True, padding_value=-math.inf)


def _corrected(put: Put, items: Sequence[Question], scores: Sequence[list[float]]) -> list[int]:
    """1 or 0 for each item, by scores without answer bias; the other questions of all tasks are put at once."""
    plans = []
    for task in dict.fromkeys(item.task for item in items):
        mine = [i for i, item in enumerate(items) if item.task == task]
        asked = [
            Asked(
                {"item": i, "choices": list(items[i].choices), KIND: items[i].relation},
                items[i].context,
                items[i].options,
                scores[i],
                [1.0] * len(scores[i]),
            )
            for i in mine
        ]
        plans.append((mine, correction(asked, partial(_in_order, items))))
    found = _likelihoods(put, [pair for _, plan in plans if plan for pair in plan.pairs])
    correct = [0] * len(items)
    for mine, plan in plans:
        rows = plan.scores(found) if plan else [scores[i] for i in mine]
        for i, row in zip(mine, rows, strict=True):
            correct[i] = int(row.index(max(row)) == items[i].answer)
    return correct


def _likelihoods(put: Put, pairs: Sequence[Pair]) -> dict[Pair, float]:
    """The log-likelihood of each prompt's continuation, put as questions with some options each."""
    options: dict[str, list[str]] = {}
    for prompt, option in dict.fromkeys(pairs):
        options.setdefault(prompt, []).append(option)
    asked = [
        Question("", "", "", prompt, tuple(mine[at : at + AT_ONCE]), 0)
        for prompt, mine in options.items()
        for at in range(0, len(mine), AT_ONCE)
    ]
    found: dict[Pair, float] = {}
    for question, row in zip(asked, put(asked) if asked else [], strict=True):
        found |= {(question.context, option): score for option, score in zip(question.options, row, strict=True)}
    return found


@dataclass(frozen=True)
class Layout:
    """Questions as rows of tokens, and where the log-probabilities of their options stand.

    A row is a prompt where all its options are single tokens, otherwise a prompt and an option without its last token.

    Attributes:
        rows: token ids.
        places: for each token of each option: row, position of the token before it, its id, question, option.
        shape: questions and most options.
    """

    rows: list[Ids]
    places: list[tuple[int, int, int, int, int]]
    shape: tuple[int, int]

    def scores(self, logits_RTV: Tensor, shift: int = 0) -> Tensor:
        """Log-likelihoods (N, K) of the options; -inf where a question has fewer.

        Args:
            logits_RTV: of the rows, padded on the right.
            shift: tokens that were put before each row.
        """
        row, position, token, question, option = torch.tensor(self.places, device=logits_RTV.device).T
        logs_M = torch.log_softmax(logits_RTV[row, position + shift].float(), dim=-1).gather(1, token[:, None])[:, 0]
        cell = question * self.shape[1] + option
        total = logs_M.new_zeros(self.shape).flatten().index_add(0, cell, logs_M)
        return total.where(torch.isin(torch.arange(len(total), device=cell.device), cell), -math.inf).view(self.shape)


class Scorer:
    """Asks questions of models on a device, with their tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, device: torch.device) -> None:
        self.tokenizer, self.device = tokenizer, device
        self.budget = BUDGET["cpu" if device.type == "cpu" else "cuda"]  # tokens per forward pass

    def encode(self, text: str) -> Ids:
        """Token ids of a prompt, with the special tokens that the tokenizer puts in front."""
        return list(self.tokenizer(text)["input_ids"])

    def options(self, item: Question) -> list[Ids]:
        """The tokens of each option after the item's prompt."""
        return [ids for _, ids in self._pairs((item.context, option) for option in item.options)]

    def _pairs(self, pairs: Iterable[Pair]) -> list[tuple[Ids, Ids]]:
        """The tokens of prompts, and of their continuations."""
        prompts: dict[str, Ids] = {}
        found = []
        for prompt, option in pairs:
            if prompt not in prompts:
                prompts[prompt] = self.encode(prompt)
            found.append((prompts[prompt], self.encode(prompt + option)[len(prompts[prompt]) :]))
        return found

    def layout(self, items: Sequence[Question]) -> Layout:
        """Questions as rows of tokens."""
        rows: list[Ids] = []
        places: list[tuple[int, int, int, int, int]] = []
        for n, item in enumerate(items):
            prompt, options = self.encode(item.context), self.options(item)
            single = all(len(ids) == 1 for ids in options)
            rows += [prompt] if single else [prompt + ids[:-1] for ids in options]
            first = len(rows) - (1 if single else len(options))
            for k, ids in enumerate(options):
                row = first if single else first + k
                places += [(row, len(prompt) - 1 + at, token, n, k) for at, token in enumerate(ids)]
        return Layout(rows, places, (len(items), max(len(item.options) for item in items)))

    def scores(self, model: nn.Module, rows: Sequence[Ids], options: Sequence[Sequence[Ids]]) -> Tensor:
        """Log-likelihoods (N, K) of the continuations ``options[n]`` of ``rows[n]``; -inf where there are fewer."""
        from rmu_exp.evaluation.engine import Engine

        pairs = [(list(row), list(ids)) for row, mine in zip(rows, options, strict=True) for ids in mine]
        with quiet():
            found = iter(Engine(pretrained=model, tokenizer=self.tokenizer).scores(pairs))
        each = [torch.tensor([next(found) for _ in mine]) for mine in options]
        return pad_sequence(each, batch_first=True, padding_value=-math.inf)

    def chosen(self, model: nn.Module, items: Sequence[Question]) -> list[int]:
        """Index of the option that the model finds likeliest, for each item."""
        rows, options = [self.encode(i.context) for i in items], [self.options(i) for i in items]
        return likeliest(self.scores(model, rows, options))

    def put(self, model: nn.Module) -> Put:
        """Puts questions to the model as it is then."""

        def ask(items: Sequence[Question]) -> list[list[float]]:
            rows, options = [self.encode(i.context) for i in items], [self.options(i) for i in items]
            found = self.scores(model, rows, options).tolist()
            return [row[: len(mine)] for row, mine in zip(found, options, strict=True)]

        return ask

    def in_batches(self, work: Callable[[list[int]], None], lengths: Sequence[int], what: str = "texts") -> None:
        """Let ``work`` do all rows, in batches of like lengths: as many as the budget of tokens holds with padding.

        When memory runs out, batches are smaller from there on. ``work`` is given the rows' indices, longest first;
        ``what`` they are is shown with their progress.

        Raises:
            RunError: a single row does not fit.
        """
        left = sorted(range(len(lengths)), key=lambda i: -lengths[i])

        def first() -> list[int]:
            return left[: max(1, self.budget // max(1, lengths[left[0]]))]

        def smaller() -> None:
            count, longest = len(first()), lengths[left[0]]
            if count == 1:
                raise RunError(f"out of memory at one row of {longest} tokens; take a smaller model.dtype")
            self.budget = count * longest // 2
            log.info("out of memory: batches now have %d tokens", self.budget)

        def some() -> int:
            work(batch := first())
            return len(batch)

        with stage(what, len(left)) as shown:
            while left:
                count = memory.until_it_fits(some, smaller, self.device)
                left = left[count:]
                shown.advance(count)

    def correct(self, model: nn.Module, items: Sequence[Question]) -> list[int]:
        """1 or 0 for each item: whether the chosen option is the right one."""
        return [int(c == item.answer) for c, item in zip(self.chosen(model, items), items, strict=True)]

    def padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Rows padded on the right, and the index of each row's last token; no mask is needed for what comes before."""
        ids_BT = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        return ids_BT.to(self.device), torch.tensor([len(row) - 1 for row in rows], device=self.device)

    @torch.no_grad()
    def activations(
        self, model: nn.Module, rows: Sequence[Sequence[int]], kept: Kept, places: Sequence[str] = (BLOCK,)
    ) -> tuple[dict[str, Tensor], list[int]]:
        """Place to what is kept of every layer's activations, (layers, kept, D), fp32, on the CPU; and the rows' order.

        Args:
            kept: from activations (B, T, D), and which of them are no padding (B, T), those to keep (kept, D).
        """
        parts: list[dict[str, Tensor]] = []
        order: list[int] = []

        def run(batch: list[int]) -> None:
            ids_BT, last_B = self.padded([rows[i] for i in batch])
            real_BT = torch.arange(ids_BT.shape[1], device=self.device)[None] <= last_B[:, None]
            seen: dict[str, list[Tensor]] = {place: [] for place in places}
            with watching(model, lambda p, _, h_BTD: seen[p].append(kept(h_BTD, real_BT).float().cpu()), places):
                model(input_ids=ids_BT, use_cache=False, logits_to_keep=1)
            parts.append({place: torch.stack(layers) for place, layers in seen.items()})
            order.extend(batch)

        self.in_batches(run, [len(row) for row in rows])
        return {place: torch.cat([part[place] for part in parts], dim=1) for place in places}, order

    def at_last(
        self, model: nn.Module, rows: Sequence[Sequence[int]], places: Sequence[str] = (BLOCK,)
    ) -> dict[str, Tensor]:
        """Activations at the last token of each row: place to (layers, rows, hidden size), fp32, on the CPU."""
        found, order = self.activations(model, rows, _last, places)
        return {place: h_LND[:, torch.tensor(order).argsort()] for place, h_LND in found.items()}


def _in_order(items: Sequence[Question], doc: Mapping[str, Any]) -> str:
    return ordered(items[doc["item"]], doc["choices"])


def _last(h_BTD: Tensor, real_BT: Tensor) -> Tensor:
    return h_BTD[torch.arange(len(h_BTD), device=h_BTD.device), real_BT.sum(dim=1) - 1]
