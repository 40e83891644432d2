"""Relearning: finetune the unlearned model a little and ask again.

Sources of text, all with the same number of steps:

* ``forget``: n texts of the forget corpora;
* ``benign``: n texts of the retain corpora, which say nothing of the forget topics (arXiv 2409.18025);
* ``split``: questions with their answers, about a quarter of the facts (told); scored on the half V, which
  the finetuning never shows. What comes back on V was uncovered, not relearned (arXiv 2410.08827).

The best run is chosen by the quarter that is neither told nor scored, and its accuracy is V's. Where the items name
their facts, texts of ``forget`` that tell of a fact of these three quarters are left out too. Controls: a model that
never knew, finetuned on the most texts of each kind, on V nothing can come back in it; and the base model, finetuned
as the best run was.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from rmu_exp.attacks.api import BASE, ORACLE, UNLEARNED, Context, Correct, Curve, Finding, share, take
from rmu_exp.evaluate.questions import halves
from rmu_exp.model.parameters import on_disk
from rmu_exp.model.split import layers_path
from rmu_exp.support import memory
from rmu_exp.support.errors import RunError, UserError
from rmu_exp.support.setting import setting

log = logging.getLogger("rmu_exp")
FORGET, BENIGN, SPLIT = ("forget", "benign", "split")
LORA, FULL = ("lora", "full")
CHANGED, EVERYWHERE = ("changed", "all")
V = "V: facts not told"
CLIP = 1.0  # greatest length of a step's gradient
ANSWER = re.compile(r"Answer:([^\n]*)")
Row = tuple[list[int], list[bool]]
"""Tokens, and which of them the loss runs over."""


@dataclass
class Settings:
    """Finetuning."""

    sources: list[str] = setting(choices=("forget", "benign", "split"), filled=True)
    """Texts to finetune on: forget, benign, split (questions on one half of the facts)."""
    samples: list[int] = setting(least=1, filled=True)
    """How many texts, each number a finetuning of its own; no more than there are."""
    steps: int = setting(least=1)
    """Optimizer steps, the same for every number of texts."""
    batch_size: int = setting(least=1)
    """Texts per step."""
    lr: float = setting(above=0)
    """Peak learning rate of AdamW; it falls linearly to nothing."""
    where: str = setting(choices=("changed", "all"))
    """changed (the matrices that unlearning changed, which a look at the weights gives away) or all."""
    how: str = setting(choices=("full", "lora"))
    """full (the matrices themselves) or lora (through peft)."""
    rank: int = setting(least=1)
    """Rank of LoRA's matrices; full does not use it."""
    points: int = setting(least=1)
    """How often the accuracy is measured on the way, with the largest number of texts."""
    max_length: int = setting(least=1)
    """Texts are truncated to this many tokens."""
    answers_only: bool = setting()
    """In a text with "Answer:" in it, train only on the rest of that line."""


def run(context: Context, settings: Settings) -> Finding:
    told, choice, untold = parts_of(context)
    texts = {source: _texts(context, source) for source in settings.sources}
    most = {source: min(max(settings.samples), len(texts[source])) for source in settings.sources}
    over_steps: dict[str, list[tuple[float, float]]] = {}
    over_n: dict[str, list[tuple[float, float]]] = {}
    reached: dict[tuple[str, str, int], Correct] = {}
    for state in context.attacked:
        for source in settings.sources:
            for n in _counts(settings, state, source, len(texts[source])):
                points = settings.points if n == most[source] else 1
                path = _run(context, state, source, texts[source][:n], settings, points)
                correct = reached[state, source, n] = path[-1][1]
                name = source if state == UNLEARNED else f"{source}, {state}"
                over_n.setdefault(name, []).append((n, share(take(correct, untold))))
                if n == most[source]:
                    over_steps[name] = [(step, share(take(c, untold))) for step, c in path]
    ours = [key for key in reached if key[0] == UNLEARNED]
    best = max(ours, key=lambda key: share(take(reached[key], choice)))
    control = {
        ORACLE if source == best[1] else f"{ORACLE}, {source}": take(correct, untold)
        for (state, source, _), correct in reached.items()
        if state == ORACLE
    }
    path = _run(context, BASE, best[1], texts[best[1]][: best[2]], settings, 1)
    control[BASE] = take(path[-1][1], untold)
    budget = {"source": best[1], "samples": best[2], "steps": settings.steps, "batch_size": settings.batch_size}
    title = f"Relearning: {settings.steps} steps, {settings.how}, {settings.where} weights"
    right = "questions on untold facts right"
    return Finding(
        before=take(context.plain(UNLEARNED), untold),
        after=take(reached[best], untold),
        control=control,
        budget=budget | {"lr": settings.lr, "finetunings": len(reached)},
        curves={
            "steps": Curve(f"{title}, most texts", "step", right, {V: over_steps}, context.chance),
            "samples": Curve(title, "texts", right, {V: over_n}, context.chance),
        },
        more={"runs": [_row(*key, correct, told, choice, untold) for key, correct in reached.items()]},
    )


def _run(
    context: Context, state: str, source: str, texts: Sequence[str], settings: Settings, points: int
) -> list[tuple[int, Correct]]:
    """One finetuning, done once however often the attack is cut off."""
    name = f"{state}/{source}/{len(texts)}"
    found: list[tuple[int, Correct]] = context.part(
        name, lambda: finetune(context, state, texts, settings, points, name)
    )
    return found


def _counts(settings: Settings, state: str, source: str, there: int) -> list[int]:
    """Numbers of texts to finetune on: all of them the unlearned model on texts; otherwise the largest alone."""
    counts = sorted({min(n, there) for n in settings.samples})
    if state == UNLEARNED and source != SPLIT:
        return counts
    return counts[-1:]


def parts_of(context: Context) -> tuple[list[int], list[int], list[int]]:
    """Indices of the items whose facts are told, by which the best run is chosen, and on which it is scored (V)."""
    learn, score = context.halves
    known = context.pick(learn)
    told, choice = halves(known, context.rng("relearn/choice"))
    if not told:  # one fact a topic
        told = [i for i, item in enumerate(known) if item.fact == known[0].fact]
        choice = [i for i in choice if i not in told]
    if not choice:
        raise RunError("attacks.relearn: too few questions on different facts; see eval.limit")
    return take(learn, told), take(learn, choice), score


def _row(
    state: str, source: str, n: int, correct: Correct, told: list[int], choice: list[int], untold: list[int]
) -> dict[str, Any]:
    sides = {name: share(take(correct, part)) for name, part in (("T", told), ("choice", choice), ("V", untold))}
    return {"model": state, "source": source, "samples": n, "acc": share(correct)} | sides


def _texts(context: Context, source: str) -> list[str]:
    """The source's texts in a random order that depends on the seed alone.

    Raises:
        UserError: none are left.
    """
    told, choice, untold = parts_of(context)
    if source == SPLIT:
        texts = [item.context + item.letters[item.answer] for item in context.pick(told)]
    elif source == BENIGN:
        texts = list(context.retain)
    else:
        hidden = {item.fact for item in context.pick([*choice, *untold]) if item.named}
        texts = [text for text in context.forget if not any(fact in text for fact in hidden)]
    if not texts:
        raise UserError(f"attacks.relearn.sources: no text for {source!r}")
    context.rng(f"relearn/{source}").shuffle(texts)
    return texts


def finetune(
    context: Context, state: str, texts: Sequence[str], settings: Settings, points: int, name: str
) -> list[tuple[int, Correct]]:
    """Finetune a copy of a model.

    Returns:
        Steps done and the answers to all items, from before the first step to behind the last.

    Raises:
        RunError: no text has a token to learn, the loss is not finite, or one text does not fit into memory.
    """
    rows = [row for text in texts if any((row := _row_of(context, text, settings))[1][1:])]
    if not rows:
        raise RunError("attacks.relearn: no text has anything to learn; try a larger attacks.relearn.max_length")
    generator = context.generator(f"relearn/{name}")
    count = settings.steps * settings.batch_size
    order = [
        i for _ in range(math.ceil(count / len(rows))) for i in torch.randperm(len(rows), generator=generator).tolist()
    ]
    model = context.copy(state)
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))  # LoRA's first values
        if settings.how == LORA:
            model = _with_lora(model, settings.rank, _changed(context, model) if settings.where == CHANGED else None)
        elif settings.where == CHANGED:
            for weight in _changed(context, model):
                model.get_parameter(weight).requires_grad_(True)
        else:
            model.requires_grad_(True)
    path = [(0, context.plain(state))]
    every = max(1, settings.steps // points)

    def ask(step: int) -> None:
        if step % every == 0 or step == settings.steps:
            path.append((step, context.scorer.correct(_inner(model), context.items)))

    _train(model, [rows[i] for i in order[:count]], settings, context.device, ask)
    return path


def _row_of(context: Context, text: str, settings: Settings) -> Row:
    """A text's tokens, and which of them the loss runs over."""
    found = context.tokenizer(text, return_offsets_mapping=True)
    spans = [m.span(1) for m in ANSWER.finditer(text)] if settings.answers_only else []
    wanted = [
        not spans or any(begin < stop and end > start for start, stop in spans)
        for begin, end in found["offset_mapping"]
    ]
    kept = slice(-settings.max_length, None) if spans else slice(settings.max_length)  # an answer stands at the end
    return found["input_ids"][kept], wanted[kept]


def _inner(model: nn.Module) -> nn.Module:
    """The causal model inside of peft's wrapper, whose forward has LoRA's matrices in it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


def _changed(context: Context, model: nn.Module) -> list[str]:
    """Names in memory of the parameters that hold the tensors that unlearning changed."""
    known, layers = on_disk(model), layers_path(model)
    places = (known[name] for name in context.delta.tensors if name in known)
    return sorted({f"{layers}.{place.layer}.{place.parameter}" for place in places})


def _with_lora(model: nn.Module, rank: int, names: list[str] | None) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    targets = "all-linear" if names is None else [name.removesuffix(".weight") for name in names]
    wanted = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM")
    return get_peft_model(model, wanted)


def _train(
    model: nn.Module, rows: Sequence[Row], settings: Settings, device: torch.device, ask: Callable[[int], None]
) -> None:
    """AdamW on fp32 masters, with the rate falling to nothing; ``batch_size`` rows a step, in order."""
    weights = [w for w in model.parameters() if w.requires_grad]
    masters = [w.detach().float() for w in weights]  # of an fp32 model the weights themselves
    optimizer = torch.optim.AdamW(masters, lr=settings.lr, weight_decay=0.0)
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / settings.steps)
    parts = 1
    for step in range(settings.steps):
        batch = rows[step * settings.batch_size : (step + 1) * settings.batch_size]
        parts, loss = _gradients(model, weights, batch, parts, device)
        if not math.isfinite(loss):
            raise RunError(f"attacks.relearn: the loss is not finite at step {step + 1}; try a smaller lr")
        for w, master in zip(weights, masters, strict=True):
            master.grad, w.grad = w.grad.float() if w.grad is not None else None, None
        if not torch.isfinite(nn.utils.clip_grad_norm_(masters, CLIP)):
            raise RunError(f"attacks.relearn: the gradient is not finite at step {step + 1}; try a smaller lr")
        optimizer.step()
        falling.step()
        with torch.no_grad():
            for w, master in zip(weights, masters, strict=True):
                w.copy_(master)
        ask(step + 1)


def _gradients(
    model: nn.Module, weights: Sequence[nn.Parameter], batch: Sequence[Row], parts: int, device: torch.device
) -> tuple[int, float]:
    """Leave a batch's gradients in the weights; in more parts than before when memory runs out.

    Returns:
        In how many parts it went through, and the loss: the mean over the batch's labels.
    """
    while True:
        try:
            count = sum(sum(wanted[1:]) for _, wanted in batch)
            cuts = [len(batch) * k // parts for k in range(parts + 1)]
            return parts, sum(_part(model, batch[a:b], count, device) for a, b in pairwise(cuts))
        except (RuntimeError, MemoryError) as error:
            if not memory.ran_out(error):
                raise
        for w in weights:
            w.grad = None
        memory.let_go(device)
        if parts >= len(batch):
            raise RunError("attacks.relearn: out of memory at one text; try a smaller attacks.relearn.max_length")
        parts = min(2 * parts, len(batch))
        log.info("out of memory: a batch of %d texts now goes through in %d parts", len(batch), parts)


def _part(model: nn.Module, rows: Sequence[Row], count: int, device: torch.device) -> float:
    """Add some rows' gradients, and give their loss; nothing outlives a failure, so that the next try has the room."""
    ids_BT, labels_BT = (x.to(device) for x in _collate(rows))
    logits_BTV = model(input_ids=ids_BT, use_cache=False).logits[:, :-1].float()
    loss = nn.functional.cross_entropy(logits_BTV.flatten(0, 1), labels_BT[:, 1:].flatten(), reduction="sum") / count
    loss.backward()
    return loss.item()


def _collate(rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Ids and labels (B, T), padded on the right, where causal attention does not look; padding has no label."""
    longest = max(len(ids) for ids, _ in rows)
    ids_BT = torch.zeros(len(rows), longest, dtype=torch.long)
    labels_BT = torch.full_like(ids_BT, -100)
    for i, (ids, wanted) in enumerate(rows):
        ids_BT[i, : len(ids)] = torch.tensor(ids)
        labels_BT[i, : len(ids)] = torch.tensor([t if w else -100 for t, w in zip(ids, wanted, strict=True)])
    return ids_BT, labels_BT
