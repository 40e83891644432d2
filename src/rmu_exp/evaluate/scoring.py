"""Letter questions put to a model in memory, many at once: prompts in, the chosen letters out.

Axes: N questions, K letters, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from rmu_exp.evaluate.forward import Forward
from rmu_exp.evaluate.questions import Question
from rmu_exp.model.hooks import BLOCK, watching
from rmu_exp.model.split import layers_of
from rmu_exp.support import memory
from rmu_exp.support.errors import RunError, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("rmu_exp")
BUDGET = {"cpu": 1024, "cuda": 32768}  # tokens per forward pass


def likeliest(logits_NK: Tensor) -> list[int]:
    """Index of the likeliest option of each question.

    Raises:
        RunError: a logit is not finite, so that there is no answer.
    """
    if not logits_NK.isfinite().all():
        raise RunError("the model's logits are not finite; it gives no answers")
    return [int(choice) for choice in logits_NK.argmax(dim=-1)]


class Scorer:
    """Asks letter questions of models on a device, with their tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, device: torch.device) -> None:
        self.tokenizer, self.device = tokenizer, device
        self.budget = BUDGET["cpu" if device.type == "cpu" else "cuda"]

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, with the special tokens that the tokenizer puts in front."""
        return list(self.tokenizer(text)["input_ids"])

    def letters(self, item: Question, context: str | None = None) -> list[int]:
        """The token of each letter after the item's prompt, or after ``context``.

        Raises:
            UserError: a letter is more than one token.
        """
        context = item.context if context is None else context
        known = len(self.encode(context))
        rest = [self.encode(context + letter)[known:] for letter in item.letters]
        if any(len(ids) != 1 for ids in rest):
            raise UserError(f"data.forget_tasks: {item.task}: {item.letters[0]!r} is not one token of this tokenizer")
        return [ids[0] for ids in rest]

    def chosen(self, model: nn.Module, items: Sequence[Question], contexts: Sequence[str] | None = None) -> list[int]:
        """Index of the letter that the model finds likeliest, for each item.

        Args:
            contexts: prompts to use in place of the items' own.
        """
        prompts = [item.context for item in items] if contexts is None else list(contexts)
        rows = [self.encode(prompt) for prompt in prompts]
        return self.chosen_rows(model, rows, [self.letters(i, p) for i, p in zip(items, prompts, strict=True)])

    def chosen_rows(self, model: nn.Module, rows: Sequence[Sequence[int]], at: Sequence[Sequence[int]]) -> list[int]:
        """The same for tokens: index of the likeliest of the tokens ``at[n]`` after ``rows[n]``."""
        forward = Forward(model, self.device)
        picked = [0] * len(rows)

        def pick(batch: list[int]) -> None:
            logits_NV = forward.logits([rows[i] for i in batch], [(b, len(rows[i]) - 1) for b, i in enumerate(batch)])
            for logits_V, index in zip(logits_NV, batch, strict=True):
                (picked[index],) = likeliest(logits_V[at[index]][None])

        self.in_batches(pick, [len(row) for row in rows])
        return picked

    def in_batches(self, work: Callable[[list[int]], None], lengths: Sequence[int]) -> None:
        """Let ``work`` do all rows, batch by batch; when memory runs out, in smaller ones from there on.

        Raises:
            RunError: a single row does not fit.
        """
        left = _longest_first(lengths)

        def smaller() -> None:
            batch = self._first(left, lengths)
            if len(batch) == 1:
                raise RunError(f"out of memory at one question of {lengths[batch[0]]} tokens; take a smaller dtype")
            self.budget = len(batch) * lengths[batch[0]] // 2
            log.info("out of memory: batches of questions now have %d tokens", self.budget)

        def first() -> int:
            batch = self._first(left, lengths)
            work(batch)
            return len(batch)

        while left:
            left = left[memory.until_it_fits(first, smaller, self.device) :]

    def correct(self, model: nn.Module, items: Sequence[Question], contexts: Sequence[str] | None = None) -> list[int]:
        """1 or 0 for each item: whether the chosen letter is the right one."""
        chosen = self.chosen(model, items, contexts)
        return [int(c == item.answer) for c, item in zip(chosen, items, strict=True)]

    def batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Indices in batches of like lengths, as many as the budget of tokens holds with padding."""
        left = _longest_first(lengths)
        while left:
            batch = self._first(left, lengths)
            yield batch
            left = left[len(batch) :]

    def _first(self, rows: list[int], lengths: Sequence[int]) -> list[int]:
        """The first of some rows, longest first: as many as the budget holds, one at least."""
        return rows[: max(1, self.budget // max(1, lengths[rows[0]]))]

    def padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Rows padded on the right, and the index of each row's last token; no mask is needed for what comes before."""
        ids_BT = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        return ids_BT.to(self.device), torch.tensor([len(row) - 1 for row in rows], device=self.device)

    @torch.no_grad()
    def at_last(
        self, model: nn.Module, rows: Sequence[Sequence[int]], places: Sequence[str] = (BLOCK,)
    ) -> dict[str, Tensor]:
        """Activations at the last token of each row: place to (layers, rows, hidden size), fp32, on the CPU."""
        kept: dict[str, list[list[Tensor]]] = {place: [[] for _ in layers_of(model)] for place in places}
        order: list[int] = []
        for batch in self.batches([len(row) for row in rows]):
            ids_BT, last_B = self.padded([rows[i] for i in batch])
            rows_B = torch.arange(len(batch), device=self.device)

            def seen(place: str, layer: int, h_BTD: Tensor, rows_B: Tensor = rows_B, last_B: Tensor = last_B) -> None:
                kept[place][layer].append(h_BTD[rows_B, last_B].float().cpu())

            with watching(model, seen, places):
                model(input_ids=ids_BT, use_cache=False, logits_to_keep=1)
            order += batch
        back = torch.tensor(order).argsort()
        return {place: torch.stack([torch.cat(parts)[back] for parts in layers]) for place, layers in kept.items()}


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
