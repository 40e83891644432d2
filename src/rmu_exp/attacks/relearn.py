"""Relearning: finetune the unlearned model a little and ask again.

Sources of text, all with the same number of steps:

* ``forget``: n texts of the forget corpora;
* ``benign``: n texts of the retain corpora, which say nothing of the forget topics (arXiv 2409.18025);
* ``split``: the most questions with their answers, about one half of the facts (T); scored on the other half (V), which
  the finetuning never shows. What comes back on V was uncovered, not relearned (arXiv 2410.08827).

Where the items name their facts, texts of ``forget`` that tell of a fact of V are left out too, so that every
accuracy stands for T and V apart. Controls: a model that never knew, finetuned on the most texts of each kind;
on V nothing can come back in it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rmu_exp.attacks.frame import NEVER, UNLEARNED, Context, Correct, Curve, Finding, share, take
from rmu_exp.attacks.registry import one_of
from rmu_exp.errors import UserError

FORGET, BENIGN, SPLIT = SOURCES = ("forget", "benign", "split")
LORA, FULL = HOW = ("lora", "full")
V = "V: facts not told"


@dataclass
class Settings:
    """Finetuning."""

    sources: list[str]
    """Texts to finetune on: forget, benign, split (questions on one half of the facts)."""
    samples: list[int]
    """How many texts, each a run of its own; no more than there are."""
    steps: int
    """Optimizer steps, the same for every number of texts."""
    batch_size: int
    """Texts a step."""
    lr: float
    """Peak learning rate of AdamW; it falls to nothing linearly."""
    how: str
    """full (every weight) or lora (through peft)."""
    rank: int
    """Rank of LoRA's matrices, on every linear layer of the blocks; full does not use it."""
    points: int
    """How often the accuracy is measured on the way, in the runs with the most texts."""
    max_length: int
    """Tokens a text is cut to."""

    def check(self, key: str) -> None:
        """Refuse words that are no choice."""
        one_of(f"{key}.sources", self.sources, SOURCES)
        one_of(f"{key}.how", self.how, HOW)


def run(context: Context, settings: Settings) -> Finding:
    texts = {source: _texts(context, source) for source in settings.sources}
    most = {source: min(max(settings.samples), len(texts[source])) for source in settings.sources}
    over_steps: dict[str, list[tuple[float, float]]] = {}
    over_n: dict[str, list[tuple[float, float]]] = {}
    reached: dict[tuple[str, str, int], Correct] = {}
    told, untold = context.halves
    for state in context.attacked:
        for source in settings.sources:
            for n in _counts(settings, state, source, len(texts[source])):
                points = settings.points if n == most[source] else 1
                path = finetune(context, state, texts[source][:n], settings, points, f"{state}/{source}/{n}")
                correct = reached[state, source, n] = path[-1][1]
                name = source if state == UNLEARNED else f"{source}, {state}"
                over_n.setdefault(name, []).append((n, share(take(correct, untold))))
                if n == most[source]:
                    over_steps[name] = [(step, share(take(c, untold))) for step, c in path]
    plain = context.plain(UNLEARNED)
    rows = [_row(*key, correct, told, untold) for key, correct in reached.items()]
    best = max((k for k in reached if k[0] == UNLEARNED), key=lambda k: share(take(reached[k], untold)))
    untouched = {f"{NEVER}, {source}": take(reached[NEVER, source, most[source]], untold) for source in settings.sources
                 if (NEVER, source, most[source]) in reached}  # fmt: skip
    title = f"Relearning in {settings.steps} steps ({settings.how})"
    return Finding(
        before=take(plain, untold),
        after=take(reached[best], untold),
        control=untouched,
        budget={
            "source": best[1],
            "samples": best[2],
            "steps": settings.steps,
            "batch_size": settings.batch_size,
            "lr": settings.lr,
            "finetunings": len(reached),
        },  # fmt: skip
        curves={
            "steps": Curve(
                f"{title}, most texts", "step", "questions on untold facts right", {V: over_steps}, context.chance
            ),
            "samples": Curve(title, "texts", "questions on untold facts right", {V: over_n}, context.chance),
        },
        more={"runs": rows},
    )


def _counts(settings: Settings, state: str, source: str, there: int) -> list[int]:
    """Numbers of texts to finetune on: all of them the unlearned model on texts; otherwise the largest alone."""
    counts = sorted({min(n, there) for n in settings.samples})
    if state == UNLEARNED and source != SPLIT:
        return counts
    return [] if state == NEVER and source == BENIGN else counts[-1:]


def _row(state: str, source: str, n: int, correct: Correct, told: list[int], untold: list[int]) -> dict[str, Any]:
    sides = {"T": share(take(correct, told)), "V": share(take(correct, untold))}
    return {"model": state, "source": source, "samples": n, "acc": share(correct)} | sides


def _texts(context: Context, source: str) -> list[str]:
    """The source's texts in a random order that depends on the seed alone.

    Raises:
        UserError: none are left.
    """
    told, untold = context.halves
    if source == SPLIT:
        texts = [item.context + item.letters[item.answer] for item in context.pick(told)]
    elif source == BENIGN:
        texts = list(context.retain)
    else:
        hidden = {item.fact for item in context.pick(untold)}
        texts = [text for text in context.forget if not any(fact in text for fact in hidden)]
    if not texts:
        raise UserError(f"attacks.relearn.sources: no text for {source!r}")
    context.rng(f"relearn/{source}").shuffle(texts)
    return texts


def finetune(
    context: Context, state: str, texts: Sequence[str], settings: Settings, points: int, name: str
) -> list[tuple[int, Correct]]:
    """Finetune a copy of a model with the transformers Trainer.

    Returns:
        Steps done and the answers to all items, from before the first step to behind the last.
    """
    rows = [context.scorer.encode(text)[: settings.max_length] for text in texts]
    generator = context.generator(f"relearn/{name}")
    count = settings.steps * settings.batch_size
    order = [
        i for _ in range(math.ceil(count / len(rows))) for i in torch.randperm(len(rows), generator=generator).tolist()
    ]
    model = context.copy(state)
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        if settings.how == LORA:
            model = _with_lora(model, settings.rank)
        else:
            model.requires_grad_(True)
        path = [(0, context.plain(state))]
        ask: Callable[[int], None] = lambda step: path.append(
            (step, context.scorer.correct(_inner(model), context.items))
        )
        _train(model, [rows[i] for i in order[:count]], settings, points, ask)
    return path


def _inner(model: nn.Module) -> nn.Module:
    """The causal model inside of peft's wrapper, whose forward has LoRA's matrices in it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


def _with_lora(model: nn.Module, rank: int) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    wanted = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, wanted)  # type: ignore[arg-type]


def _train(
    model: nn.Module, rows: list[list[int]], settings: Settings, points: int, ask: Callable[[int], None]
) -> None:
    import tempfile

    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    every = max(1, settings.steps // points)

    class Ask(TrainerCallback):
        """Measures on the way."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % every == 0 or state.global_step == settings.steps:
                model.eval()
                ask(state.global_step)

    class InOrder(Trainer):
        """Takes the rows in the order they are given."""

        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(rows)

    logging.getLogger("transformers.trainer").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="rmu_exp-") as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=settings.steps, per_device_train_batch_size=settings.batch_size,
            learning_rate=settings.lr, lr_scheduler_type="linear", weight_decay=0.0, save_strategy="no",
            logging_strategy="no", report_to=[], disable_tqdm=True, use_cpu=next(model.parameters()).device.type == "cpu",
            dataloader_pin_memory=False, remove_unused_columns=False,
        )  # fmt: skip
        trainer = InOrder(model=model, args=arguments, train_dataset=rows, data_collator=_collate, callbacks=[Ask()])
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def _collate(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    """Rows padded on the right, which causal attention keeps out of the text; padding has no label."""
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *([0] * (longest - len(row)))] for row in rows])
    length = torch.tensor([len(row) for row in rows])[:, None]
    labels = ids.masked_fill(torch.arange(longest)[None] >= length, -100)
    return {"input_ids": ids, "labels": labels}
