"""Perplexity on held-out text: how well the model predicts ordinary language, a second measure of utility.

Texts in, one number with its error out. This module knows nothing of unlearning or of where texts come from.

Axes: B texts, T positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from rmu_exp.evaluation.scoring import Scorer
from rmu_exp.record.results import Perplexity
from rmu_exp.support.errors import UserError

CALL = 1024  # texts tokenized in one call
LONGEST = 4096  # tokens of a piece: the logits of 131072, the context of some models, would take tens of gigabytes


@dataclass(frozen=True)
class Piece:
    """A stretch of one text that fits the model."""

    ids: list[int]
    scored: list[bool]  # for each token but the first, whether its probability counts
    text: int  # index of the text that it is from


def perplexity(
    model: nn.Module, tokenizer: Any, texts: Sequence[str], *, max_length: int, max_batch_tokens: int
) -> Perplexity:
    """exp of the mean negative log-likelihood of the texts' tokens, every token of equal weight.

    Each text is alone: nothing of another one is in its context. A text longer than ``max_length``, or than 4096
    tokens, is cut into pieces that overlap by one token, so that every token is predicted exactly once, the first one
    of a later piece never without context. A text's first token is predicted only where the tokenizer puts a token
    before it; tokens that the tokenizer adds are never predicted.

    Args:
        max_length: tokens of context that the model takes, 2 or more; of more than 4096 only so many are used.
        max_batch_tokens: tokens per forward pass, padding counted; a longer piece goes alone.

    Returns:
        ``nll_stderr`` is the standard error of the mean negative log-likelihood (the logarithm of the perplexity), with
        the text as the independent unit, because the tokens of a text are not; None where there is but one text.

    Raises:
        UserError: no text has a token to predict.
    """
    if max_length < 2:
        raise ValueError(f"max_length: got {max_length}, allowed is 2 or more")
    pieces = list(_pieces(tokenizer, texts, min(max_length, LONGEST)))
    total, count = [0.0] * len(texts), [0] * len(texts)
    scorer = Scorer(tokenizer, next(model.parameters()).device)
    scorer.budget = max_batch_tokens

    def read(batch: list[int]) -> None:
        some = [pieces[i] for i in batch]
        for piece, nll in zip(some, _nll(model, some), strict=True):
            total[piece.text] += nll
            count[piece.text] += sum(piece.scored)

    scorer.in_batches(read, [len(piece.ids) for piece in pieces])
    used = [(s, n) for s, n in zip(total, count, strict=True) if n]
    if not used:
        raise UserError("eval.perplexity: no text has a token to predict; give longer texts")
    tokens = sum(n for _, n in used)
    mean = math.fsum(s for s, _ in used) / tokens
    stderr = None
    if len(used) > 1:
        squares = math.fsum((s - mean * n) ** 2 for s, n in used)
        stderr = math.sqrt(squares * len(used) / (len(used) - 1)) / tokens
    return Perplexity(perplexity=math.exp(mean), tokens=tokens, nll_stderr=stderr)


def _pieces(tokenizer: Any, texts: Sequence[str], max_length: int) -> Iterator[Piece]:
    for start in range(0, len(texts), CALL):
        rows = tokenizer(list(texts[start : start + CALL]), return_special_tokens_mask=True, verbose=False)
        for text, (ids, added) in enumerate(
            zip(rows["input_ids"], rows["special_tokens_mask"], strict=True), start=start
        ):
            for first in range(0, len(ids) - 1, max_length - 1):
                scored = [not special for special in added[first + 1 : first + max_length]]
                if any(scored):
                    yield Piece(ids[first : first + max_length], scored, text)


@torch.inference_mode()
def _nll(model: nn.Module, batch: Sequence[Piece]) -> list[float]:
    """Each piece's negative log-likelihood, in nats, summed over its scored tokens.

    Padded on the right, where a causal model's earlier positions do not see it.
    """
    device = next(model.parameters()).device
    ids_BT = pad_sequence([torch.tensor(p.ids) for p in batch], batch_first=True).to(device)
    mask_BT = pad_sequence([torch.ones(len(p.ids), dtype=torch.long) for p in batch], batch_first=True).to(device)
    logits_BTV: Tensor = model(input_ids=ids_BT, attention_mask=mask_BT).logits
    sums = []
    for b, piece in enumerate(batch):  # one text's logits at a time in fp32: all at once would take twice the memory
        end = len(piece.ids)
        losses_T = nn.functional.cross_entropy(logits_BTV[b, : end - 1].float(), ids_BT[b, 1:end], reduction="none")
        sums.append(losses_T[torch.tensor(piece.scored, device=device)].sum(dtype=torch.float32))
    return [float(value) for value in torch.stack(sums).tolist()]
