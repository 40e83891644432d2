"""lm-eval's Hugging Face model, made fast for multiple-choice questions.

The answers are the stock class's; what is left out is work that does not reach them. Texts are tokenized in
batches, requests with one input are one row, a prefix that many rows begin with is run once and its keys and
values are handed to all of them, and the head sees the scored positions only. Generation is the stock class's own.

Axes: N scored positions of a batch, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate, chain
from typing import Any, NoReturn

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import has_bos_prefix
from torch import Tensor

from rmu_exp.evaluation import batching
from rmu_exp.evaluation.batching import Prefix, Row
from rmu_exp.evaluation.forward import Forward, Layers, Work
from rmu_exp.record.store import Store, fingerprint
from rmu_exp.support import memory
from rmu_exp.support.errors import RunError
from rmu_exp.support.progress import stage

log = logging.getLogger(__name__)

TEXTS = 1024  # tokenized in one call: the tokenizer keeps far more than the ids until the call is over
KEY = 1 / 8  # memory of a prefix's token in a row, in tokens that are run: two copies of its keys and values
BUDGET = {"cpu": 4096, "cuda": 16384}
OVERHEAD = {"cpu": 32, "cuda": 256}  # a batch reads every weight once: worth about so many tokens' arithmetic
SAVING = 8  # a shared prefix must save so many times the overhead, as it also splits batches

Request = tuple[tuple[str, str] | None, list[int], list[int]]
Answer = tuple[float, bool]
Found = list[tuple[int, float, bool]]
"""Index of a request, and its answer."""


class Engine(HFLM):
    """HFLM with shared work done once.

    Args:
        max_batch_tokens: tokens per forward pass, padding counted; None: by the device.
            Halved by itself when memory runs out. ``batch_size`` keeps its meaning for generation.
        journal: where the answers of batches that are done are kept, and found again; None: nowhere.
        kwargs: those of HFLM.
    """

    def __init__(
        self,
        *args: Any,
        max_batch_tokens: int | None = None,
        journal: Store | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._journal = journal or Store()
        self._forward = Forward(self.model, self.device)
        kind = "cpu" if self.device.type == "cpu" else "cuda"
        self.max_batch_tokens = max_batch_tokens or BUDGET[kind]
        self._overhead = OVERHEAD[kind]

    @property
    def work(self) -> Work:
        """Counts of what has been run so far."""
        return self._forward.work

    def scores(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[float]:
        """Log-likelihood of each continuation after its context, of token ids."""
        found = self._loglikelihood_tokens([(None, context, rest) for context, rest in pairs], disable_tqdm=True)
        return [score for score, _ in found]

    # What the stock class does as it is, without its bars

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each text, in windows; their tokens are scored as all others."""
        found: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=True)
        return found

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each prompt."""
        found: list[str] = super().generate_until(requests, disable_tqdm=True)
        return found

    # Texts to ids

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[Answer]:
        """Log-likelihood of each continuation after its context, and whether greedy decoding gives it."""
        pairs = [request.args for request in requests]
        bos = self.tokenizer.decode(self.prefix_token_id)  # the stock class puts none before one of the text's own
        strange = [not context or has_bos_prefix(context, bos) for context, _ in pairs]
        odd = [i for i, so in enumerate(strange) if so]
        usual = [i for i, so in enumerate(strange) if not so]
        found = self._loglikelihood_tokens(self._encode_pairs([pairs[i] for i in usual])) if usual else []
        if odd:
            found += super().loglikelihood([requests[i] for i in odd], disable_tqdm=True)
        return [answer for _, answer in sorted(zip(usual + odd, found, strict=True), key=lambda pair: pair[0])]

    def _encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Request]:
        """The stock class's ids of every pair; each different text is tokenized once."""
        kept = [context.rstrip() for context, _ in pairs]  # spaces at its end belong to the continuation
        moved = [(k, context[len(k) :] + rest) for k, (context, rest) in zip(kept, pairs, strict=True)]
        contexts = list(dict.fromkeys(context for context, _ in moved))
        ids_of = dict(zip(contexts, self._encode(contexts), strict=True))
        wholes = list(dict.fromkeys(moved))
        whole_ids = self._encode([context + rest for context, rest in wholes])
        rest_of = {pair: ids[len(ids_of[pair[0]]) :] for pair, ids in zip(wholes, whole_ids, strict=True)}
        return [(pair, ids_of[m[0]], rest_of[m]) for pair, m in zip(pairs, moved, strict=True)]

    def _encode(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """``tok_encode`` of each text, many per call."""
        usual = {} if self.add_bos_token is None else {"add_special_tokens": self.add_bos_token}
        for start in range(0, len(texts), TEXTS):
            yield from self.tokenizer(list(texts[start : start + TEXTS]), return_attention_mask=False, **usual)[
                "input_ids"
            ]

    # Ids to answers

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Answer]:
        """As the stock class's, which also takes what is not handled here; batches are sized by tokens.

        Raises:
            RunError: a single row does not fit into memory.
        """
        if not all(context and 0 < len(rest) <= self.max_length for _, context, rest in requests):
            return super()._loglikelihood_tokens(requests, disable_tqdm=disable_tqdm, override_bs=override_bs)
        answers: dict[int, Answer] = {}
        questions = len({tuple(context) for _, context, _ in requests})
        with stage("questions", questions) as shown:
            for prefix, cache in self._prefixes(self._rows(requests)):
                for found in self._of_prefix(prefix, cache, requests):
                    answers |= {index: (score, greedy) for index, score, greedy in found}
                    shown.advance(len(found) * questions / len(requests))
        return [answers[index] for index in range(len(requests))]

    def _rows(self, requests: Sequence[Request]) -> list[Row]:
        """One row for each different input, cut from the left at ``max_length``; one for each context that forks."""
        rows: dict[tuple[int, ...], Row] = {}
        forked: list[Row] = []
        contexts: dict[tuple[int, ...], list[int]] = {}
        for index, request in enumerate(requests):
            contexts.setdefault(tuple(request[1]), []).append(index)
        cut = 0
        for context, indices in contexts.items():
            rests = {index: tuple(requests[index][2][:-1]) for index in indices}
            branches = list(dict.fromkeys(rest for rest in rests.values() if rest))
            if len(branches) > 1 and self._forks((*context, *chain.from_iterable(branches))):
                forked.append(_forked(context, branches, rests))
                continue
            for index in indices:
                whole = (*context, *rests[index])
                cut += len(whole) > self.max_length
                row = rows.setdefault(whole[-self.max_length :], Row(whole[-self.max_length :]))
                row.scored = max(row.scored, len(rests[index]) + 1)
                row.asked_by.append((index, range(-len(rests[index]) - 1, 0)))
        if cut:
            log.warning("%d questions are longer than the model's %d tokens: cut from the left", cut, self.max_length)
        return [*rows.values(), *forked]

    def _forks(self, ids: Sequence[int]) -> bool:
        return len(ids) <= self.max_length and self._forward.can_fork(ids)

    def _of_prefix(self, prefix: Prefix, cache: Layers, requests: Sequence[Request]) -> Iterator[Found]:
        known = len(prefix.ids)
        todo = self._batches(sorted(prefix.rows, key=lambda row: -len(row.ids)), known)  # the same order always

        def first() -> Found:
            key = _key(prefix, todo[0], requests)
            return self._journal.get(key, lambda: self._ask(todo[0], known, cache, requests))

        def smaller() -> None:
            nonlocal todo
            longest = len(todo[0][0].ids)
            if len(todo[0]) == 1:
                _too_large(longest)
            self.max_batch_tokens = max(1, min(self.max_batch_tokens, len(todo[0]) * (longest - known)) // 2)
            log.info("out of memory: batches of questions now have %d tokens", self.max_batch_tokens)
            todo = self._batches([row for batch in todo for row in batch], known)

        while todo:
            yield memory.until_it_fits(first, smaller, self.device)
            todo.pop(0)

    def _ask(self, batch: Sequence[Row], known: int, cache: Layers, requests: Sequence[Request]) -> Found:
        """Run a batch, of whose rows the first ``known`` tokens are in the cache, and read its answers."""
        ids = [row.ids[known:] for row in batch]
        spots = [(i, t) for i, row in enumerate(ids) for t in range(len(row) - batch[i].scored, len(row))]
        logits_NV = self._forward.logits(ids, spots, cache, [row.forks for row in batch])
        return _read(batch, torch.log_softmax(logits_NV, dim=-1, dtype=self.softmax_dtype), requests)

    def _prefixes(self, rows: list[Row]) -> Iterator[tuple[Prefix, Layers]]:
        """Each shared prefix with its keys and values, layer by layer; a longer one continues a shorter one."""
        tree = batching.share(rows, SAVING * self._overhead)
        if tree.longer and not self._forward.can_reuse(max((row.ids for row in rows), key=len)):
            tree = Prefix(rows=rows)
        open_prefixes: list[tuple[Prefix, Prefix, Layers]] = [(tree, tree, [])]
        while open_prefixes:
            prefix, shorter, cache = open_prefixes.pop()
            if prefix is not shorter:
                extend = partial(self._forward.extend, cache, prefix.ids[len(shorter.ids) :])
                cache = memory.until_it_fits(extend, partial(_too_large, len(prefix.ids)), self.device)
            if prefix.rows:
                yield prefix, cache
            open_prefixes += [(longer, prefix, cache) for longer in prefix.longer]

    def _batches(self, rows: list[Row], known: int) -> list[list[Row]]:
        """Rows, longest first, in batches within the budget."""
        config = self.model.config.get_text_config()
        head = config.vocab_size / (10 * config.hidden_size)  # a scored position's logits, in tokens' memory
        lengths = [len(row.ids) - known for row in rows]
        extra = [KEY * known + head * row.scored for row in rows]
        return [rows[part] for part in batching.batches(lengths, extra, self.max_batch_tokens, self._overhead)]


def _forked(context: Sequence[int], branches: Sequence[tuple[int, ...]], rests: Mapping[int, tuple[int, ...]]) -> Row:
    """A context with all its continuations in one row; what every request reads of it."""
    row = Row((*context, *chain.from_iterable(branches)), 1 + sum(map(len, branches)), forks=tuple(map(len, branches)))
    starts = dict(zip(branches, accumulate((0, *row.forks)), strict=False))
    for index, rest in rests.items():
        own = range(1 + starts[rest], 1 + starts[rest] + len(rest)) if rest else range(0)
        row.asked_by.append((index, [place - row.scored for place in (0, *own)]))
    return row


def _key(prefix: Prefix, batch: Sequence[Row], requests: Sequence[Request]) -> str:
    """What a batch is in the journal: its tokens, and the requests that it answers."""
    known = len(prefix.ids)
    asked = [(row.ids[known:], [(index, requests[index][2]) for index, _ in row.asked_by]) for row in batch]
    return fingerprint(prefix.ids, asked)[:32]


def _read(batch: Sequence[Row], scores_NV: Tensor, requests: Sequence[Request]) -> Found:
    """A batch's answers from the log-probabilities at its scored positions."""
    spots: list[int] = []
    ends = 0
    for row in batch:
        ends += row.scored
        spots += [ends + place for _, places in row.asked_by for place in places]
    asked = [request for row in batch for request in row.asked_by]
    tokens = [token for index, _ in asked for token in requests[index][2]]
    at, token = torch.tensor([spots, tokens]).to(scores_NV.device)
    values, hits = scores_NV[at, token].cpu(), (scores_NV.argmax(dim=-1)[at] == token).cpu()
    parts = (x.split([len(places) for _, places in asked]) for x in (values, hits))
    return [(index, float(value.sum()), bool(hit.all())) for (index, _), value, hit in zip(asked, *parts, strict=True)]


def _too_large(tokens: int) -> NoReturn:
    raise RunError(f"out of memory at one question of {tokens} tokens: take a smaller dtype or fewer examples")
