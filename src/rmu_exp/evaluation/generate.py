"""What a model writes after prompts, many at once, greedily or sampled; and how likely text is under a model.

Prompts are read without padding where the model keeps keys and values alone, and continued together, padded on the
left, by transformers' ``generate``. A sampled token does not depend on the batch: each prompt has random numbers of its
own, the same for every model. Text in, token ids out; this module knows nothing of unlearning.

Axes: B prompts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.cache_utils import DynamicLayer

from rmu_exp.evaluation.forward import shared
from rmu_exp.evaluation.scoring import Ids, Scorer
from rmu_exp.support.errors import UserError
from rmu_exp.support.randomness import named_generator

BUDGET = {"cpu": 16384, "cuda": 65536}  # tokens in a batch, what is still to be written counted
STRIDE = 4  # tokens that are written before rows that have ended are dropped


@dataclass(frozen=True)
class Written:
    """What a model wrote after one prompt: its tokens, an end of text among them, and the words.

    ``nll`` is the mean negative log-likelihood per token under the model that wrote it, in nats.
    """

    ids: Ids
    text: str
    nll: float


def write(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Ids],
    *,
    tokens: int,
    context: int,
    seeds: Sequence[int | None] = (),
) -> list[Written]:
    """At most ``tokens`` tokens after each prompt, up to an end of text.

    Args:
        prompts: token ids; of one that leaves no room in the context, only the end is read.
        context: tokens that the model takes.
        seeds: for each prompt the seed to sample from the model's distribution with, or None for the likeliest tokens;
            empty: the likeliest tokens for all.

    Raises:
        UserError: as :func:`refuse`.
    """
    refuse(prompts, tokens, context)
    rows = [list(ids[tokens - context :]) for ids in prompts]
    device = next(model.parameters()).device
    scorer = Scorer(tokenizer, device)
    scorer.budget = BUDGET["cpu" if device.type == "cpu" else "cuda"]
    found: dict[int, Written] = {}
    ends = end_tokens(model, tokenizer)

    def some(batch: list[int]) -> None:
        chooser = Chooser([rows[i] for i in batch], [seeds[i] if seeds else None for i in batch])
        new = _generate(model, [rows[i] for i in batch], tokens, ends, chooser, device)
        for b, (i, ids) in enumerate(zip(batch, new, strict=True)):
            text = tokenizer.decode(ids, skip_special_tokens=True)
            found[i] = Written(ids, text, -sum(chooser.logs[b][: len(ids)]) / len(ids))

    scorer.in_batches(some, [len(row) + tokens for row in rows], "samples")
    return [found[i] for i in range(len(rows))]


def refuse(prompts: Sequence[Ids], tokens: int, context: int) -> None:
    """Raises UserError: a prompt without a token, or no room for what is to be written."""
    if tokens >= context:
        raise UserError(f"eval.tokens: got {tokens}, but the model reads no more than {context}; take fewer")
    if not all(prompts):
        which = next(number for number, ids in enumerate(prompts, 1) if not ids)
        raise UserError(f"eval.samples: prompt {which} has no token for this model; leave it out, or write more in it")


@torch.inference_mode()
def _generate(
    model: Any, rows: list[Ids], tokens: int, ends: list[int], chooser: Chooser, device: torch.device
) -> list[Ids]:
    """What is written after each row, an end of text included; rows that have ended are dropped now and then."""
    longest, pad = max(map(len, rows)), ends[0] if ends else 0
    ids_BT = torch.tensor([[pad] * (longest - len(row)) + row for row in rows], device=device)
    mask_BT = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    new: list[Ids] = [[] for _ in rows]
    known = {} if (read := _read(model, rows, longest, device)) is None else {"past_key_values": read}
    for done in range(0, tokens, STRIDE):
        how = GenerationConfig(
            max_new_tokens=min(STRIDE, tokens - done), do_sample=False, use_cache=True, return_dict_in_generate=True,
            pad_token_id=pad, eos_token_id=ends or None,
        )  # fmt: skip
        with _own_defaults(model, how):
            out = model.generate(
                input_ids=ids_BT, attention_mask=mask_BT, logits_processor=LogitsProcessorList([chooser]), **known
            )
        fresh_BT = out.sequences[:, ids_BT.shape[1] :]
        going = []
        for b, ids in enumerate(fresh_BT.tolist()):
            end = next((at + 1 for at, token in enumerate(ids) if token in ends), None)
            new[chooser.rows[b]] += ids[:end]
            going += [b] if end is None else []
        if not going:
            break
        kept = torch.tensor(going)  # on the host: layers of a cache may be on several devices
        ids_BT = out.sequences[kept]
        mask_BT = torch.cat([mask_BT[kept], torch.ones_like(fresh_BT[kept])], dim=1)
        cache: Any = getattr(out, "past_key_values", None)
        known = {}
        if hasattr(cache, "batch_select_indices"):  # otherwise what is known is run once more
            cache.batch_select_indices(kept)
            known = {"past_key_values": cache}
        chooser.rows = [chooser.rows[b] for b in going]
    return new


def _read(model: Any, rows: list[Ids], longest: int, device: torch.device) -> DynamicCache | None:
    """Keys and values of all tokens but each row's last, at the end of ``longest - 1`` places.

    Rows of one length are run together, without padding and without the head. None: there is nothing to keep, or the
    model keeps something else than keys and values of every token.
    """
    lengths: dict[int, list[int]] = {}
    for b, row in enumerate(rows):
        lengths.setdefault(len(row) - 1, []).append(b)
    kept: list[tuple[Tensor, Tensor]] = []
    for length, group in lengths.items():
        cache = DynamicCache(config=model.config)
        if length and all(type(layer) is DynamicLayer for layer in cache.layers):
            ids_BT = torch.tensor([rows[b][:-1] for b in group], device=device)
            model.base_model(input_ids=ids_BT, past_key_values=cache, use_cache=True)
            if cache.get_seq_length() != length or not all(type(layer) is DynamicLayer for layer in cache.layers):
                return None
            layers = cast(list[DynamicLayer], cache.layers)
            parts = [cast(tuple[Tensor, Tensor], (layer.keys, layer.values)) for layer in layers]
            sizes = [[(len(rows), x.shape[1], longest - 1, x.shape[3]) for x in part] for part in parts]
            kept = kept or [(k.new_zeros(a), v.new_zeros(b)) for (k, v), (a, b) in zip(parts, sizes, strict=True)]
            for whole, part in zip(kept, parts, strict=True):
                for to, x in zip(whole, part, strict=True):
                    to[group, :, longest - 1 - length :] = x
    return shared(kept, DynamicLayer) if kept else None


@contextmanager
def _own_defaults(model: Any, how: GenerationConfig) -> Iterator[None]:
    """Generation as ``how`` says and no other way: checkpoints bring temperatures and penalties of their own."""
    before = model.generation_config
    model.generation_config = how
    try:
        yield
    finally:
        model.generation_config = before


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end a text: the checkpoint's own, or the tokenizer's."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    own = tokenizer.eos_token_id if own is None else own
    return [] if own is None else list(own) if isinstance(own, (list, tuple)) else [int(own)]


class Chooser(LogitsProcessor):
    """Samples where a prompt has a seed, and notes how likely the chosen tokens were.

    With Gumbel noise added, the likeliest token is a sample from the softmax of the logits.

    Attributes:
        rows: which prompts the rows of the batch are.
        logs: of each prompt, the log-probability of each token that was chosen, and of some after its end.
    """

    def __init__(self, prompts: Sequence[Ids], seeds: Sequence[int | None]) -> None:
        named = zip(prompts, seeds, strict=True)
        self.generators = [None if seed is None else named_generator(seed, f"samples/{ids}") for ids, seed in named]
        self.rows = list(range(len(prompts)))
        self.logs: list[list[float]] = [[] for _ in prompts]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.float()
        noised = scores.clone()
        for b, row in enumerate(self.rows):
            if (generator := self.generators[row]) is not None:
                uniform_V = torch.rand(scores.shape[-1], generator=generator, dtype=torch.float64)
                noised[b] -= (-uniform_V.clamp_min(1e-300).log()).log().to(scores.device, torch.float32)
        chosen_B1 = noised.argmax(dim=-1, keepdim=True)
        logs_B = scores.gather(1, chosen_B1)[:, 0] - scores.logsumexp(dim=-1)
        for row, value in zip(self.rows, logs_B.tolist(), strict=True):
            self.logs[row].append(value)
        return noised


def nll(model: nn.Module, tokenizer: Any, prompts: Sequence[Ids], written: Sequence[Ids]) -> list[float]:
    """Mean negative log-likelihood per token, in nats, of each continuation after its prompt; shared text runs once."""
    from rmu_exp.evaluation.engine import Engine
    from rmu_exp.evaluation.harness import quiet

    with quiet():
        engine = Engine(pretrained=model, tokenizer=tokenizer)
        sums = engine.scores([(list(p), list(w)) for p, w in zip(prompts, written, strict=True)])
    return [-total / len(ids) for total, ids in zip(sums, written, strict=True)]
