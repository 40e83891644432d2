"""Texts to batches of tokens, in the two orders that the method knows.

*Default*: texts are drawn in a random order that depends on the seed alone; the forget and the retain
texts of a step are packed together into rows, each text with its own positions and its own causal
mask, so that one forward pass serves both and next to nothing is padding.

*Faithful*: the published loop (github.com/centerforaisafety/wmdp, ``rmu/unlearn.py``): file order,
forget and retain texts in two forward passes, padded on the left with the padding counted in the loss,
forget texts truncated to 512 tokens for the first topic and 768 for the others.

This module knows tokens; it knows nothing of models or losses.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from typing import TYPE_CHECKING, overload

import torch
from torch import Tensor

from rmu_exp.support.errors import UserError
from rmu_exp.support.randomness import named_generator

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORGET, RETAIN = "forget", "retain"
PUBLISHED_LENGTHS = (512, 768)  # tokens: the first topic's forget texts, the other topics'
CHUNK, BEGINNING = 1024, 64  # texts whose beginnings are looked at together, and letters of each
LETTERS, MARGIN = 16, 64  # letters of a long text per token wanted, and tokens beyond these that make the cut harmless


@dataclass
class PackedRows:
    """One forward pass."""

    ids_RT: Tensor  # int64
    mask_RT: Tensor | None  # 1 for text and 0 for padding; None when rows are packed
    positions_RT: Tensor | None  # of each token in its text; None for the model's own
    tokens: dict[str, Tensor]  # role to indices into the flattened (R·T) tokens that the role's loss runs over
    alone: bool = False  # each text has a row of its own, so that a model's own positions do

    @cached_property
    def digest(self) -> str:
        """sha256 of everything that the model is given."""
        total = hashlib.sha256()
        for tensor in (self.ids_RT, self.mask_RT, self.positions_RT):
            total.update(b"-" if tensor is None else f"{list(tensor.shape)}".encode() + tensor.cpu().numpy().tobytes())
        return total.hexdigest()

    def to(self, device: torch.device) -> PackedRows:
        """The same on a device."""
        if self.ids_RT.device == device:
            return self
        ids, mask, positions = (
            None if t is None else t.to(device, non_blocking=True)
            for t in (self.ids_RT, self.mask_RT, self.positions_RT)
        )
        assert ids is not None
        tokens = {role: index.to(device, non_blocking=True) for role, index in self.tokens.items()}
        moved = PackedRows(ids, mask, positions, tokens, self.alone)
        vars(moved)["digest"] = self.digest  # reading it off the device would wait for the device
        return moved


@dataclass
class Batch:
    """One step's texts of one topic. ``text_tokens`` counts tokens without padding."""

    topic: int
    passes: list[PackedRows]
    text_tokens: int


@dataclass
class Tokens:
    """A tokenized corpus: token ids of each text."""

    ids: Sequence[list[int]]
    source: str = ""


class Lazily(Sequence[list[int]]):
    """Token ids of texts, truncated to ``max_length``, each made when it is first asked for.

    Texts of fewer than ``least`` tokens are left out, for which the beginning of each is looked at. Of a long text so
    much is tokenized that the rest is far beyond what is kept.
    """

    def __init__(self, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int, least: int) -> None:
        self.tokenizer, self.max_length, self.least = tokenizer, max_length, least
        self.texts = [text for at in range(0, len(texts), CHUNK) for text in self._with_tokens(texts[at : at + CHUNK])]
        self.made: dict[int, list[int]] = {}

    def _with_tokens(self, texts: Sequence[str]) -> list[str]:
        heads = self.tokenizer([text[:BEGINNING] for text in texts])["input_ids"]
        return [
            text
            for text, head in zip(texts, heads, strict=True)
            if len(head) >= self.least or len(self.tokenizer(text)["input_ids"]) >= self.least
        ]

    def __len__(self) -> int:
        return len(self.texts)

    @overload
    def __getitem__(self, index: int) -> list[int]: ...
    @overload
    def __getitem__(self, index: slice) -> list[list[int]]: ...
    def __getitem__(self, index: int | slice) -> list[int] | list[list[int]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if index not in self.made:
            self.made[index] = self._first(self.texts[index])
        return self.made[index]

    def _first(self, text: str) -> list[int]:
        size = LETTERS * self.max_length
        while len(text) > size:
            ids: list[int] = self.tokenizer(text[:size])["input_ids"]
            if len(ids) >= self.max_length + MARGIN:
                return ids[: self.max_length]
            size *= 2
        return list(self.tokenizer(text)["input_ids"])[: self.max_length]


def tokenize(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int, source: str = "", least: int = 1
) -> Tokens:
    """Token ids of each text, truncated to ``max_length``; texts of fewer than ``least`` tokens are left out."""
    return Tokens(Lazily(texts, tokenizer, max_length, least), source)


def check_enough(count: int, batch_size: int, source: str) -> None:
    """Refuse a corpus of fewer texts than a batch has."""
    if count < batch_size:
        raise UserError(
            f"train.batch_size: got {batch_size}, but {source or 'the corpus'} has only {count} usable "
            f"text{'s' if count != 1 else ''}; give more text or a smaller train.batch_size"
        )


def shuffled(
    forget: Sequence[Tokens], retain: Sequence[Tokens], batch_size: int, steps: int, seed: int, pad: int
) -> Iterator[Batch]:
    """The default order: topics alternate, each corpus is drawn without replacement, again and again.

    Args:
        forget, retain: one corpus per topic; the same retain corpus may stand more than once.
        pad: id that fills what is left of a row.

    Raises:
        UserError: a corpus is shorter than a batch; at the call, not at the first batch.
    """
    for corpus in (*forget, *retain):
        check_enough(len(corpus.ids), batch_size, corpus.source)
    return _shuffled(forget, retain, batch_size, steps, seed, pad)


def layered(
    forget: Sequence[Tokens], retain: Sequence[Tokens], batch_size: int, steps: int, seed: int, pad: int, *, folds: int
) -> Iterator[Batch]:
    """Layered unlearning (arXiv 2505.09500, Algorithm 1): the default order in stages of equal length.

    Each topic's forget corpus is split at random into F₁ … F_k. Stage i forgets F₁ ∪ … ∪ F_i and retains
    R ∪ F_i₊₁ ∪ … ∪ F_k, each drawn as one corpus; one fold is :func:`shuffled`.

    Raises:
        UserError: a fold is shorter than a batch, or there are more folds than rounds of the topics.
    """
    if folds == 1:
        return shuffled(forget, retain, batch_size, steps, seed, pad)
    if folds > (rounds := steps // len(forget)):
        raise UserError(
            f"train.folds: got {folds}, but {steps} steps are {rounds} rounds of the topics; take fewer folds"
        )
    for corpus in forget:
        if len(corpus.ids) // folds < batch_size:
            few = f"{corpus.source or 'the corpus'} has {len(corpus.ids)} texts, fewer than train.batch_size per fold"
            raise UserError(f"train.folds: got {folds}, but {few}; take fewer folds")
    parts = [_folds(corpus, folds, seed, k) for k, corpus in enumerate(forget)]
    ends = [steps * i // folds // len(forget) * len(forget) for i in range(folds)] + [
        steps
    ]  # whole rounds of the topics
    stages = []
    for i, (begin, end) in enumerate(pairwise(ends), 1):
        gone = [Tokens(list(chain(*own[:i])), source=f.source) for own, f in zip(parts, forget, strict=True)]
        kept = [Tokens(list(chain(r.ids, *own[i:])), source=r.source) for own, r in zip(parts, retain, strict=True)]
        stages.append(shuffled(gone, kept, batch_size, end - begin, seed, pad))
    return chain(*stages)


def _folds(corpus: Tokens, folds: int, seed: int, topic: int) -> list[list[list[int]]]:
    """A corpus in parts of nearly equal numbers of texts, at random."""
    order = torch.randperm(len(corpus.ids), generator=named_generator(seed, f"folds/{topic}")).tolist()
    return [[corpus.ids[i] for i in order[part::folds]] for part in range(folds)]


def _shuffled(
    forget: Sequence[Tokens], retain: Sequence[Tokens], batch_size: int, steps: int, seed: int, pad: int
) -> Iterator[Batch]:
    draws = [
        (_draw(f, batch_size, seed, f"{FORGET}/{k}"), _draw(r, batch_size, seed, f"{RETAIN}/{k}"))
        for k, (f, r) in enumerate(zip(forget, retain, strict=True))
    ]
    for step in range(steps):
        topic = step % len(draws)
        halves = {FORGET: next(draws[topic][0]), RETAIN: next(draws[topic][1])}
        yield Batch(topic, [pack(halves, pad)], sum(len(t) for texts in halves.values() for t in texts))


def _draw(corpus: Tokens, batch_size: int, seed: int, name: str) -> Iterator[list[list[int]]]:
    generator = named_generator(seed, name)
    order: list[int] = []
    while True:
        if len(order) < batch_size:
            order += torch.randperm(len(corpus.ids), generator=generator).tolist()
        picked, order = order[:batch_size], order[batch_size:]
        yield [corpus.ids[i] for i in picked]


def pack(halves: dict[str, list[list[int]]], pad: int, alone: bool = False) -> PackedRows:
    """All texts of a step in as few rows of the longest text's length as first fit finds; ``alone``: each in its own.

    What is left of a row comes after its texts, so that it reaches none of them in a model that reads in one direction.
    """
    pieces = [(role, text) for role, texts in halves.items() for text in texts]
    pieces.sort(key=lambda piece: -len(piece[1]))
    width = len(pieces[0][1])
    rows: list[list[tuple[str, list[int]]]] = []
    room: list[int] = []
    for piece in pieces:
        for i, left in enumerate(room):
            if len(piece[1]) <= left and not alone:
                rows[i].append(piece)
                room[i] -= len(piece[1])
                break
        else:
            rows.append([piece])
            room.append(width - len(piece[1]))
    ids = torch.full((len(rows), width), pad)
    positions = torch.zeros((len(rows), width), dtype=torch.long)
    tokens: dict[str, list[int]] = {role: [] for role in halves}
    for r, row in enumerate(rows):
        at = 0
        for role, text in row:
            end = at + len(text)
            ids[r, at:end] = torch.tensor(text)
            positions[r, at:end] = torch.arange(len(text))
            tokens[role] += range(r * width + at, r * width + end)
            at = end
        positions[r, at:] = torch.arange(width - at)  # the rest is a text of its own that nobody reads
    return PackedRows(ids, None, positions, {role: torch.tensor(index) for role, index in tokens.items()}, alone)


def spread(batch: Batch) -> Batch:
    """The same texts, those of packed rows each in a row of its own: for models that would mix the texts of a row."""
    passes = [
        p if p.positions_RT is None or p.alone else pack({role: texts(p, role) for role in p.tokens}, 0, alone=True)
        for p in batch.passes
    ]
    return Batch(batch.topic, passes, batch.text_tokens)


def texts(packed: PackedRows, role: str) -> list[list[int]]:
    """Packed rows taken apart: the token ids of each text of a role."""
    ids = packed.ids_RT.flatten()[packed.tokens[role]].tolist()
    found: list[list[int]] = []
    for token, first in zip(ids, starts(packed, role).tolist(), strict=True):
        if first:
            found.append([])
        found[-1].append(token)
    return found


def starts(packed: PackedRows, role: str) -> Tensor:
    """Which of a role's tokens in packed rows are a text's first."""
    assert packed.positions_RT is not None, "only packed rows have positions, which say where a text begins"
    return packed.positions_RT.flatten()[packed.tokens[role]] == 0


def inside(packed: PackedRows, role: str) -> Tensor:
    """Which of a role's tokens are text and not a text's first, (N) bool; rows are packed or padded."""
    if packed.positions_RT is not None:
        return packed.positions_RT.flatten()[packed.tokens[role]] > 0
    assert packed.mask_RT is not None
    return (packed.mask_RT * packed.mask_RT.cumsum(-1) > 1).flatten()[packed.tokens[role]]


def split(batch: Batch, parts: int) -> list[Batch]:
    """A batch in parts, each with texts of every role; none when a role has too few texts."""
    found: list[Batch] = []
    for part in range(parts):
        passes = []
        for p in batch.passes:
            if p.positions_RT is None:
                rows = slice(part, None, parts)
                ids, mask = p.ids_RT[rows], None if p.mask_RT is None else p.mask_RT[rows]
                passes.append(PackedRows(ids, mask, None, {role: torch.arange(ids.numel()) for role in p.tokens}))
            else:
                halves = {role: texts(p, role)[part::parts] for role in p.tokens}
                passes.append(pack(halves, 0) if all(halves.values()) else PackedRows(p.ids_RT[:0], None, None, {}))
        if any(p.ids_RT.numel() == 0 for p in passes):
            return []
        found.append(Batch(batch.topic, passes, sum(len(i) for p in passes for i in p.tokens.values())))
    return found


def published(
    forget: Sequence[Sequence[str]],
    retain: Sequence[Sequence[str]],
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int,
    steps: int,
) -> Iterator[Batch]:
    """The published order: batch i of topic i mod topics, at most as many as the shortest corpus has."""
    tokenizer.pad_token = tokenizer.eos_token  # even where it has a padding token of its own
    tokenizer.padding_side, tokenizer.truncation_side = "left", "right"
    for step in range(published_steps(forget, retain, batch_size, steps)):
        topic, first = step % len(forget), step // len(forget) * batch_size
        cut = {FORGET: PUBLISHED_LENGTHS[min(topic, 1)], RETAIN: PUBLISHED_LENGTHS[0]}
        passes, count = [], 0
        for role, corpora in ((FORGET, forget), (RETAIN, retain)):
            texts = list(corpora[topic][first : first + batch_size])
            rows = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=cut[role])
            ids, mask = rows["input_ids"], rows["attention_mask"]
            passes.append(PackedRows(ids, mask, None, {role: torch.arange(ids.numel())}))
            count += int(mask.sum())
        yield Batch(topic, passes, count)


def published_steps(
    forget: Sequence[Sequence[str]], retain: Sequence[Sequence[str]], batch_size: int, steps: int
) -> int:
    """How many steps :func:`published` takes."""
    return min(steps, *(-(-len(texts) // batch_size) for texts in (*forget, *retain)))


def ahead(batches: Iterator[Batch], count: int = 4) -> Iterator[Batch]:
    """The same batches, some made by a thread while earlier ones are used: tokenizing and packing cost no step."""
    with ThreadPoolExecutor(1) as pool:
        made = deque(pool.submit(next, batches, None) for _ in range(count))
        while (batch := made.popleft().result()) is not None:
            made.append(pool.submit(next, batches, None))
            yield batch
