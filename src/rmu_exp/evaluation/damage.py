"""How far a changed model's next tokens are from the base's: KL, top-1 agreement and perplexity over texts.

Both models read the same batches. The layers below the first changed one are run once for both, and the head sees
only positions that predict a token of a text, some at a time. Texts in, numbers out; where texts come from is not
known here.

Axes: B texts, T positions, N positions that predict a token of the text, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from rmu_exp.evaluation.scoring import Ids, Scorer
from rmu_exp.model.delta import Delta
from rmu_exp.model.split import SplitModel
from rmu_exp.model.weight_files import LAYER
from rmu_exp.record.results import Rate
from rmu_exp.support.errors import UserError

BUDGET = {"cpu": 1024, "cuda": 8192}  # tokens of a batch
POSITIONS = 256  # of which the logits are there at a time, twice
HELD, SHORT, FEW = 64, 32, 8  # texts that a budget may read, tokens of them, how many it reads
Z95 = 1.959964


@dataclass(frozen=True)
class Compared:
    """Sums over the predicted tokens of each text; a text that has none is left out.

    Attributes:
        tokens: how many there are.
        kl: KL(base || unlearned) in nats.
        agree: at how many both models find the same token likeliest.
        base, unlearned: negative log-likelihood of the text, in nats.
    """

    tokens: list[int]
    kl: list[float]
    agree: list[float]
    base: list[float]
    unlearned: list[float]

    def pooled(self, other: Compared) -> Compared:
        """Those of two sources together."""
        return Compared(
            *(mine + theirs for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True))
        )

    def per_token(self, sums: Sequence[float]) -> Rate:
        """The mean per token; its 95 % interval takes the text as the independent unit."""
        count, texts = sum(self.tokens), len(self.tokens)
        mean = math.fsum(sums) / count
        half = 0.0
        if texts > 1:
            squares = math.fsum((s - mean * n) ** 2 for s, n in zip(sums, self.tokens, strict=True))
            half = Z95 * math.sqrt(squares * texts / (texts - 1)) / count
        return Rate(mean=mean, ci95=(mean - half, mean + half), tokens=count)

    def perplexity(self, sums: Sequence[float]) -> float:
        """exp of the mean negative log-likelihood per token."""
        mean = math.fsum(sums) / sum(self.tokens)
        return math.exp(mean) if mean < 700 else math.inf


def encode(tokenizer: Any, texts: Sequence[str], source: str, count: int, length: int) -> list[Ids]:
    """The first ``count`` texts that have two tokens or more, truncated to ``length`` tokens.

    Raises UserError: there is none.
    """
    rows: list[Ids] = []
    for text in texts:
        ids = tokenizer(text)["input_ids"][:length]
        if len(ids) > 1:
            rows.append(list(ids))
        if len(rows) == count:
            break
    if not rows:
        raise UserError(f"data: {source}: no text has a token to predict; give more or longer texts")
    return rows


def held(texts: Sequence[str]) -> int:
    """How many texts at the end of neutral text are kept for a budget of KL, which damage does not read then."""
    return min(HELD, len(texts) // 2)


def encode_held(tokenizer: Any, texts: Sequence[str], source: str, length: int) -> list[Ids]:
    """The few longest of the texts held for a budget, truncated alike. Raises UserError: there is none."""
    kept = list(texts[len(texts) - held(texts) :])
    rows = encode(tokenizer, kept, source, len(kept), min(SHORT, length))
    return sorted(rows, key=len, reverse=True)[:FEW]


def compare(model: nn.Module, delta: Delta, tokenizer: Any, rows: Sequence[Ids]) -> Compared:
    """Read texts by the base and by the base with a Delta; every token but a text's first is predicted.

    Args:
        model: the base; it is left as it is.
        rows: token ids, two or more per text.
    """
    device = next(model.parameters()).device
    scorer = Scorer(tokenizer, device)
    scorer.budget = BUDGET["cpu" if device.type == "cpu" else "cuda"]
    changed = (int(match[1]) for name in delta.tensors if (match := LAYER.search(name)))
    split = SplitModel(model, min(changed, default=0))
    found: dict[int, tuple[float, ...]] = {}

    def read(batch: list[int]) -> None:
        for i, sums in zip(batch, _batch(split, delta, [rows[i] for i in batch], device), strict=True):
            found[i] = (len(rows[i]) - 1, *sums)

    scorer.in_batches(read, [len(row) for row in rows], "texts for KL")
    tokens, *sums = (list(column) for column in zip(*(found[i] for i in range(len(rows))), strict=True))
    return Compared([int(n) for n in tokens], *sums)


@torch.no_grad()
def _batch(split: SplitModel, delta: Delta, rows: Sequence[Ids], device: torch.device) -> list[tuple[float, ...]]:
    """KL, agreement and both negative log-likelihoods of each row, summed over its predicted tokens."""
    ids_BT = pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(device)  # the end reaches nothing
    trunk = split.trunk(ids_BT)
    base_BTD = split.upper(trunk, {})
    with delta.applied(split.model):
        unlearned_BTD = split.upper(trunk, {})
    counts = [len(row) - 1 for row in rows]
    predicts_BT = torch.arange(ids_BT.shape[1], device=device) < torch.tensor(counts, device=device)[:, None]
    ids_N, next_N = ids_BT[predicts_BT], ids_BT.roll(-1, 1)[predicts_BT]
    both_2ND = torch.stack([base_BTD[predicts_BT], unlearned_BTD[predicts_BT]])
    parts = []
    for some in torch.arange(len(ids_N), device=device).split(POSITIONS):
        base_NV, unlearned_NV = (split.logits(h_ND[some, None], ids_N[some, None])[:, 0] for h_ND in both_2ND)
        parts.append(_positions(base_NV, unlearned_NV, next_N[some]))
    values_4N = torch.cat(parts, dim=1)
    return [tuple(part_4N.sum(dim=1).tolist()) for part_4N in values_4N.split(counts, dim=1)]


def _positions(base_NV: Tensor, unlearned_NV: Tensor, next_N: Tensor) -> Tensor:
    """KL, agreement and both negative log-likelihoods (4, N) at positions with these logits, in double precision."""
    base_NV, unlearned_NV = (logits_NV.float().log_softmax(dim=-1) for logits_NV in (base_NV, unlearned_NV))
    agree_N = base_NV.argmax(dim=-1) == unlearned_NV.argmax(dim=-1)
    losses = [-logs_NV.gather(1, next_N[:, None])[:, 0] for logs_NV in (base_NV, unlearned_NV)]
    less_NV = unlearned_NV.sub_(base_NV)  # in place: one of these is 50 MB for a vocabulary of 50,000
    kl_N = -torch.linalg.vecdot(base_NV.exp_(), less_NV)
    return torch.stack([kl_N.double(), agree_N.double(), *(loss_N.double() for loss_N in losses)])
