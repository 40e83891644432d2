"""Finetuning of a causal model on some texts: AdamW on fp32 masters, of the weights themselves or through LoRA.

It knows models, tokens and rates; it knows nothing of attacks, questions or runs.
Axes: B rows, T positions, V vocabulary.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from rmu_exp.support import memory
from rmu_exp.support.errors import RunError
from rmu_exp.support.progress import each

log = logging.getLogger("rmu_exp")
CLIP = 1.0  # greatest length of a step's gradient
ANSWER = re.compile(r"Answer:([^\n]*)")
Row = tuple[list[int], list[bool]]
"""Tokens, and which of them the loss runs over."""


def row_of(tokenizer: PreTrainedTokenizerBase, text: str, max_length: int, answers_only: bool) -> Row:
    """A text's tokens, at most ``max_length``, and which of them the loss runs over.

    Args:
        answers_only: of a text with "Answer:" in it only what follows that up to the end of the line.
    """
    found = tokenizer(text, return_offsets_mapping=True)
    spans = [m.span(1) for m in ANSWER.finditer(text)] if answers_only else []
    wanted = [
        not spans or any(begin < stop and end > start for start, stop in spans)
        for begin, end in found["offset_mapping"]
    ]
    kept = slice(-max_length, None) if spans else slice(max_length)  # an answer stands at the end
    return found["input_ids"][kept], wanted[kept]


def opened(model: nn.Module, names: Sequence[str] | None, rank: int | None) -> nn.Module:
    """The model with some weights open for training.

    Args:
        names: parameters; None: all, or every linear module with LoRA.
        rank: of LoRA's matrices; None: the weights themselves are trained.
    """
    if rank is None:
        for weight in model.parameters() if names is None else map(model.get_parameter, names):
            weight.requires_grad_(True)
        return model
    from peft import LoraConfig, get_peft_model

    targets = "all-linear" if names is None else [name.removesuffix(".weight") for name in names]
    wanted = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM")
    return get_peft_model(model, wanted)


def finetune(
    model: nn.Module, rows: Sequence[Row], batch_size: int, lr: float, after_step: Callable[[int], object]
) -> list[float]:
    """Train the open weights, ``batch_size`` rows per step, in order; ``after_step`` is called with each step's number.

    Args:
        lr: peak learning rate; it falls to nothing linearly.

    Returns:
        The loss of each step, before it.

    Raises:
        RunError: the loss or a gradient is not finite, or one row does not fit into memory.
    """
    steps = len(rows) // batch_size
    weights = [w for w in model.parameters() if w.requires_grad]
    masters = [w.detach().float() for w in weights]  # of an fp32 model the weights themselves
    optimizer = torch.optim.AdamW(masters, lr=lr, weight_decay=0.0)
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    parts, losses = 1, list[float]()
    for step in each("finetuning steps", range(steps)):
        batch = rows[step * batch_size : (step + 1) * batch_size]
        parts, loss = gradients(model, batch, parts)
        if not math.isfinite(loss):
            raise RunError(f"finetuning: the loss is not finite at step {step + 1}; try a smaller lr")
        for w, master in zip(weights, masters, strict=True):
            master.grad, w.grad = w.grad.float() if w.grad is not None else None, None
        if not torch.isfinite(nn.utils.clip_grad_norm_(masters, CLIP)):
            raise RunError(f"finetuning: the gradient is not finite at step {step + 1}; try a smaller lr")
        optimizer.step()
        falling.step()
        with torch.no_grad():
            for w, master in zip(weights, masters, strict=True):
                w.copy_(master)
        losses.append(loss)
        after_step(step + 1)
    return losses


def gradients(model: nn.Module, batch: Sequence[Row], parts: int = 1) -> tuple[int, float]:
    """Leave a batch's gradients in the open weights; in more parts than asked for when memory runs out.

    Returns:
        In how many parts it went through, and the loss: the mean over the batch's labels.
    """
    weights = [w for w in model.parameters() if w.requires_grad]
    device, count = weights[0].device, sum(sum(wanted[1:]) for _, wanted in batch)

    def in_parts() -> float:
        for w in weights:
            w.grad = None
        cuts = [len(batch) * k // parts for k in range(parts + 1)]
        return sum(_part(model, batch[a:b], count, device) for a, b in pairwise(cuts))

    def more_parts() -> None:
        nonlocal parts
        if parts >= len(batch):
            raise RunError("finetuning: out of memory at one text; try a smaller max_length")
        parts = min(2 * parts, len(batch))
        log.info("out of memory: a batch of %d texts now goes through in %d parts", len(batch), parts)

    loss = memory.until_it_fits(in_parts, more_parts, device)
    return parts, loss


def _part(model: nn.Module, rows: Sequence[Row], count: int, device: torch.device) -> float:
    """Add some rows' gradients, and give their loss; nothing outlives a failure, so that the next try has the room."""
    padded = partial(pad_sequence, batch_first=True)  # on the right, where causal attention does not look
    ids_BT = padded([torch.tensor(ids) for ids, _ in rows]).to(device)
    labels = [[t if w else -100 for t, w in zip(ids, wanted, strict=True)] for ids, wanted in rows]
    labels_BT = padded([torch.tensor(row) for row in labels], padding_value=-100).to(device)
    logits_BTV = model(input_ids=ids_BT, use_cache=False).logits[:, :-1].float()
    loss = nn.functional.cross_entropy(logits_BTV.flatten(0, 1), labels_BT[:, 1:].flatten(), reduction="sum") / count
    loss.backward()
    return loss.item()
