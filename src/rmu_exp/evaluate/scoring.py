"""Letter questions put to a model in memory, many at once: prompts in, the chosen letters out.

Axes: N questions, K letters, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from rmu_exp.evaluate.forward import Forward
from rmu_exp.evaluate.questions import Question
from rmu_exp.model.hooks import BLOCK, watching
from rmu_exp.support import memory
from rmu_exp.support.errors import RunError, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("rmu_exp")
BUDGET = {"cpu": 1024, "cuda": 32768}
Kept = Callable[[Tensor, Tensor], Tensor]


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
        self.budget = BUDGET["cpu" if device.type == "cpu" else "cuda"]  # tokens per forward pass

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, with the special tokens that the tokenizer puts in front."""
        return list(self.tokenizer(text)["input_ids"])

    def letters(self, item: Question) -> list[int]:
        """The token of each letter after the item's prompt.

        Raises:
            UserError: a letter is more than one token.
        """
        known = len(self.encode(item.context))
        rest = [self.encode(item.context + letter)[known:] for letter in item.letters]
        if any(len(ids) != 1 for ids in rest):
            raise UserError(f"data.forget_tasks: {item.task}: {item.letters[0]!r} is not one token of this tokenizer")
        return [ids[0] for ids in rest]

    def chosen(self, model: nn.Module, items: Sequence[Question]) -> list[int]:
        """Index of the letter that the model finds likeliest, for each item."""
        return self.chosen_rows(model, [self.encode(i.context) for i in items], [self.letters(i) for i in items])

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
        """Let ``work`` do all rows, in batches of like lengths: as many as the budget of tokens holds with padding.

        When memory runs out, batches are smaller from there on. ``work`` is given the rows' indices, longest first.

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

        while left:
            left = left[memory.until_it_fits(some, smaller, self.device) :]

    def correct(self, model: nn.Module, items: Sequence[Question]) -> list[int]:
        """1 or 0 for each item: whether the chosen letter is the right one."""
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


def _last(h_BTD: Tensor, real_BT: Tensor) -> Tensor:
    return h_BTD[torch.arange(len(h_BTD), device=h_BTD.device), real_BT.sum(dim=1) - 1]
