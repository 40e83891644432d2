"""A causal model's logits at chosen positions, after a shared prefix that is run once.

Rows are padded on the right: what comes after a position does not reach it, so no padding mask is needed and
positions count from the first token, whatever kind of positions the architecture has. The head sees the scored
positions only. Ids in, logits out; this module knows nothing of questions.

Axes: B rows, T positions, N scored positions, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

log = logging.getLogger(__name__)

PROBE = 32  # tokens before and after the cut in the probe of the cache
STRETCHED = ("dynamic", "longrope")  # rotary positions in which every angle depends on the text's length

Layers = list[tuple[Tensor, Tensor]]
"""Keys and values of a prefix for each layer, (1, heads, tokens, head size)."""


@dataclass
class Work:
    """What has been run so far."""

    forwards: int = 0  # calls of the model
    tokens: int = 0  # padding counted
    text: int = 0  # tokens that are no padding
    pairs: int = 0  # query-key pairs that attention needs, padding counted, a causal half only
    scored: int = 0  # positions that reached the head


class Forward:
    """Runs a causal language model of transformers."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.model, self.device = model, device
        self.work = Work()
        self._reuses: bool | None = None  # not known before the probe
        self._forked: bool | None = None

    def logits(
        self,
        rows: Sequence[Sequence[int]],
        spots: Sequence[tuple[int, int]],
        prefix: Layers | None = None,
        forks: Sequence[Sequence[int]] = (),
    ) -> Tensor:
        """Logits (N, V) at ``spots``.

        Args:
            rows: tokens of each row, without the prefix.
            spots: (row, position), positions counted without the prefix.
            prefix: what :meth:`extend` gave for the tokens before all rows; empty or None: there are none.
            forks: of each row, lengths of the continuations at its end, none of which sees another; see
                :meth:`can_fork`.
        """
        return self._run(rows, spots, shared(prefix) if prefix else None, forks)

    def extend(self, prefix: Layers, ids: Sequence[int]) -> Layers:
        """Keys and values after further tokens; ``prefix`` stays as it is."""
        cache = shared(prefix, DynamicLayer)
        self._run([ids], [(0, len(ids) - 1)], cache)
        return [(layer.keys, layer.values) for layer in cache.layers]  # type: ignore[union-attr,misc]

    @torch.no_grad()
    def _run(
        self,
        rows: Sequence[Sequence[int]],
        spots: Sequence[tuple[int, int]],
        cache: DynamicCache | None,
        forks: Sequence[Sequence[int]] = (),
    ) -> Tensor:
        ids_BT = pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(self.device)
        longest = ids_BT.shape[1]
        spots_2N = torch.tensor(spots).T.to(self.device)
        known = 0 if cache is None else cache.get_seq_length()
        self.work.forwards += 1
        self.work.tokens += ids_BT.numel()
        self.work.text += sum(map(len, rows))
        self.work.pairs += len(rows) * longest * (2 * known + longest + 1) // 2
        self.work.scored += len(spots)
        prefix: dict[str, Any] = {} if cache is None else {"past_key_values": cache}
        if any(forks):
            prefix |= self._apart(rows, forks, known, longest)
        with _head_at(self.model, spots_2N, ids_BT.shape) as cut:
            logits = self.model(ids_BT, use_cache=cache is not None, **prefix).logits
        return logits[0] if cut else logits[spots_2N[0], spots_2N[1]]

    def _apart(
        self, rows: Sequence[Sequence[int]], forks: Sequence[Sequence[int]], known: int, longest: int
    ) -> dict[str, Tensor]:
        """Positions (B, T) and a mask (B, 1, T, known + T) by which no continuation sees another."""
        branch_BT = torch.zeros(len(rows), longest, dtype=torch.long)  # 0: the context
        positions_BT = torch.arange(known, known + longest).repeat(len(rows), 1)
        for b, (row, lengths) in enumerate(zip(rows, forks, strict=True)):
            at = context = len(row) - sum(lengths)
            for k, length in enumerate(lengths, 1):
                branch_BT[b, at : at + length] = k
                positions_BT[b, at : at + length] = torch.arange(known + context, known + context + length)
                at += length
        seen_BTT = (branch_BT[:, None] == 0) | (branch_BT[:, None] == branch_BT[:, :, None])
        seen_BTT &= torch.ones(longest, longest, dtype=torch.bool).tril()
        seen_BTT = torch.cat([torch.ones(len(rows), longest, known, dtype=torch.bool), seen_BTT], dim=-1)
        dtype = next(self.model.parameters()).dtype
        mask_BTT = torch.zeros(seen_BTT.shape, dtype=dtype).masked_fill(~seen_BTT, torch.finfo(dtype).min)
        return {"attention_mask": mask_BTT[:, None].to(self.device), "position_ids": positions_BT.to(self.device)}

    def can_fork(self, ids: Sequence[int]) -> bool:
        """Whether this model gives several continuations in one row what it gives each alone; asked of it once.

        Not where a layer has a window that the row does not fit into, since the mask does not know of windows.
        """
        config = self.model.config.get_text_config()  # type: ignore[operator,union-attr]
        window = getattr(config, "sliding_window", None)
        if window is not None and len(ids) > window:
            return False
        if self._forked is None:
            third = min(len(ids), 2 * PROBE) // 3
            parts = [list(ids[k * third : (k + 1) * third]) for k in range(3)]
            self._forked = third > 0 and self._probe_of_forks(*parts)
            if not self._forked:
                log.info("%s: continuations of one prompt are run one by one", type(self.model).__name__)
        return self._forked

    def _probe_of_forks(self, context: list[int], one: list[int], other: list[int]) -> bool:
        row, ends = context + one + other, (len(context + one) - 1, len(context + one + other) - 1)
        before = replace(self.work)
        try:
            apart = self.logits([row, row], [(1, at) for at in ends], None, [(len(one), len(other))] * 2)
            alone = torch.cat([self.logits([context + rest], [(0, len(context + rest) - 1)]) for rest in (one, other)])
            mixed = self.logits([row], [(0, at) for at in ends])
        except Exception as error:  # whatever a foreign architecture raises, the plain way is still open
            log.debug("no forks: %s", error)
            return False
        finally:
            self.work = before
        apart, alone, mixed = (x.float().log_softmax(dim=-1) for x in (apart, alone, mixed))
        allowed = 0.01 if next(self.model.parameters()).dtype.itemsize >= 4 else 0.5
        return bool((apart - alone).norm() <= allowed * (mixed - alone).norm() + 1e-4)

    def can_reuse(self, ids: Sequence[int]) -> bool:
        """Whether this model gives the same with a prefix's keys and values as without.

        Asked of the model itself, once, with a few tokens: what a cut changes must be small beside what
        leaving the first part out changes. So an architecture that keeps something else than keys and values,
        or keeps them elsewhere, is run without reuse. ``ids`` is the longest row there is.
        """
        config = self.model.config.get_text_config()  # type: ignore[operator,union-attr]
        rope = getattr(config, "rope_parameters", None) or {}
        if rope.get("rope_type") in STRETCHED:
            reach = rope.get("original_max_position_embeddings") or config.max_position_embeddings
            if len(ids) > reach:
                return False
        if self._reuses is None:
            half = min(len(ids), 2 * PROBE) // 2
            self._reuses = self._probe(ids[:half], ids[half : 2 * half])
            if not self._reuses:
                log.info("%s: shared prefixes are not reused", type(self.model).__name__)
        return self._reuses

    def _probe(self, first: Sequence[int], second: Sequence[int]) -> bool:
        def last(ids: Sequence[int], prefix: Layers | None = None) -> Tensor:  # of two rows: a batch is what is asked
            at = len(ids) - 1
            return self.logits([ids, ids], [(0, at), (1, at)], prefix).float().log_softmax(dim=-1)

        before = replace(self.work)
        try:
            whole, alone = last([*first, *second]), last(second)
            cut = last(second, self.extend([], first))
        except Exception as error:  # whatever a foreign architecture raises, the plain way is still open
            log.debug("no reuse of prefixes: %s", error)
            return False
        finally:
            self.work = before
        allowed = 0.01 if next(self.model.parameters()).dtype.itemsize >= 4 else 0.5  # eight bits round coarsely
        return bool((cut - whole).norm() <= allowed * (alone - whole).norm() + 1e-4)


class _SharedLayer(DynamicLayer):
    """Gives every row of a batch one prefix's keys and values before its own, and keeps the prefix only.

    All of the prefix is kept in layers with a sliding window too: the models' own masks leave out what is too far.
    """

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        assert self.keys is not None
        assert self.values is not None
        keys, values = (kept.expand(len(key_states), -1, -1, -1) for kept in (self.keys, self.values))
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)


def shared(prefix: Layers, kind: type[DynamicLayer] = _SharedLayer) -> DynamicCache:
    """A cache that gives every row of a batch the prefix's keys and values, and stays as it is."""
    cache = DynamicCache()
    for keys, values in prefix:
        layer = kind()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache


@contextmanager
def _head_at(model: nn.Module, spots_2N: Tensor, shape: torch.Size) -> Iterator[list[bool]]:
    """Let the head see the hidden states at ``spots_2N`` only, as one row of N; the list is filled when it did.

    Unlike the models' own ``logits_to_keep`` this takes other positions in every row, and any architecture.
    """
    done: list[bool] = []

    def keep(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if done or not args or args[0].dim() != 3 or args[0].shape[:2] != shape:
            return None
        done.append(True)
        return (args[0][spots_2N[0], spots_2N[1]][None], *args[1:])

    head = getattr(model, "get_output_embeddings", lambda: None)()
    hook = head.register_forward_pre_hook(keep) if isinstance(head, nn.Module) else None
    try:
        yield done
    finally:
        if hook is not None:
            hook.remove()
