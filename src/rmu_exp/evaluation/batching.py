"""Which rows share a prefix, and which rows make a batch.

Token ids in, a tree of shared prefixes and slices of rows out. This module knows neither models nor tensors of one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(eq=False)
class Row:
    """One input of the model.

    Attributes:
        ids: its tokens.
        scored: how many of the last positions are read.
        asked_by: each request's index, and which of the scored positions it reads, from -scored to -1.
        forks: lengths of the continuations that stand one after the other at the end, none of which sees another.
    """

    ids: tuple[int, ...]
    scored: int = 1
    asked_by: list[tuple[int, Sequence[int]]] = field(default_factory=list)
    forks: tuple[int, ...] = ()


@dataclass(eq=False)
class Prefix:
    """A prefix that is computed once."""

    ids: tuple[int, ...] = ()  # all of its tokens, its parent's included
    rows: list[Row] = field(default_factory=list)  # those that begin with it and with no longer shared prefix
    longer: list[Prefix] = field(default_factory=list)  # shared prefixes that begin with this one


def share(rows: Sequence[Row], least_saving: int) -> Prefix:
    """The tree of prefixes that are worth computing once.

    A prefix is worth it when the tokens that its rows need not run again number at least ``least_saving``,
    counted beyond the nearest shorter prefix that is shared already. The root that is returned has no tokens of its
    own; every row is in exactly one prefix of the tree.
    """
    bodies = [np.asarray(row.ids[: len(row.ids) - row.scored], dtype=">u4") for row in rows]  # what a cache may give
    order = sorted(range(len(rows)), key=lambda i: bodies[i].tobytes())  # big-endian bytes sort as the ids do
    rows, bodies = [rows[i] for i in order], [bodies[i] for i in order]
    common = np.array([0, *(_common(a, b) for a, b in itertools.pairwise(bodies))])  # with the row before
    root = Prefix()
    open_spans = [(0, len(rows), root)]
    while open_spans:
        start, stop, prefix = open_spans.pop()
        inner, others = common[start + 1 : stop], stop - start - 1
        known = len(prefix.ids)
        if others < 1 or others * (int(inner.max()) - known) < least_saving:
            prefix.rows += rows[start:stop]
            continue
        shortest = int(inner.min())
        if others * (shortest - known) >= least_saving:
            prefix.longer.append(Prefix(rows[start].ids[:shortest]))
            prefix = prefix.longer[-1]
        cuts = [start, *(start + 1 + np.flatnonzero(inner == shortest)).tolist(), stop]
        open_spans += [(a, b, prefix) for a, b in itertools.pairwise(cuts)][::-1]
    return root


def _common(a: np.ndarray, b: np.ndarray) -> int:
    shorter = min(len(a), len(b))
    unequal = np.flatnonzero(a[:shorter] != b[:shorter])
    return int(unequal[0]) if len(unequal) else shorter


def batches(lengths: Sequence[int], extra: Sequence[float], budget: float, overhead: float) -> list[slice]:
    """Cut rows into batches so that padding and the cost of a batch are least in sum.

    Args:
        lengths: tokens per row, longest first; a batch is padded to its first row.
        extra: what each row costs in memory beyond its tokens, in tokens.
        budget: tokens a batch may take, padding and extra counted; a row that is longer goes alone.
        overhead: what a batch costs beyond its tokens, in tokens.

    Returns:
        Slices, in order, that cover all rows.
    """
    n = len(lengths)
    sizes = np.asarray(lengths, dtype=float)
    extras = np.concatenate([[0.0], np.cumsum(extra)])
    cost, begins = np.zeros(n + 1), [0] * (n + 1)
    first = 0
    for stop in range(1, n + 1):
        while first < stop - 1 and (stop - first) * sizes[first] + extras[stop] - extras[first] > budget:
            first += 1
        costs = cost[first:stop] + overhead + (stop - np.arange(first, stop)) * sizes[first:stop]
        best = int(costs.argmin())
        cost[stop], begins[stop] = costs[best], first + best
    slices = []
    stop = n
    while stop:
        slices.append(slice(begins[stop], stop))
        stop = begins[stop]
    return slices[::-1]
