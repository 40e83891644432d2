"""Greedy coordinate gradient: the search for a few tokens that bring an answer out (arXiv 2307.15043).

Loss of one prompt: cross-entropy of the answer's token, and, with ``match``, the squared distance to the base model's
activations at the last token of the untouched prompt, from the steered layer on, relative to their size (arXiv
2409.18025: plain gradients are starved by RMU). Candidates that would be tokenized otherwise as text are left out.
Axes: C candidates, S searched tokens, V vocabulary, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rmu_exp.evaluation.forward import Forward, Layers, shared
from rmu_exp.evaluation.scoring import Scorer
from rmu_exp.model.hooks import Observer, watching
from rmu_exp.model.split import embeddings
from rmu_exp.support.errors import RunError
from rmu_exp.support.progress import each


@dataclass(frozen=True)
class Target:
    """A prompt and what should come out.

    Attributes:
        head, tail: tokens before and after the searched ones.
        token: the answer's first token.
        match: layer to the base model's activations (D) at the last token; empty: nothing is matched.
    """

    head: list[int]
    tail: list[int]
    token: int
    match: dict[int, Tensor]


def cut(scorer: Scorer, context: str) -> tuple[list[int], list[int]]:
    """A prompt's tokens before and from its last line break on.

    Raises:
        RunError: the tokenizer does not keep the two apart.
    """
    at = context.rfind("\n")
    head, whole = scorer.encode(context[: max(0, at)]), scorer.encode(context)
    if at <= 0 or whole[: len(head)] != head:
        raise RunError("attacks.gcg: the prompts cannot be cut before their last line with this tokenizer")
    return head, whole[len(head) :]


class Found(NamedTuple):
    """What a search found.

    Attributes:
        tokens: as they ended.
        losses: step and mean loss, from before the first step on.
        steps: after how many steps every target was the likeliest token; None: not reached, or not asked for.
    """

    tokens: list[int]
    losses: list[tuple[float, float]]
    steps: int | None


def allowed(scorer: Scorer, model: nn.Module) -> Tensor:
    """Which ids (V) may be searched: those of the tokenizer, without special ones."""
    special, known = set(scorer.tokenizer.all_special_ids), len(scorer.tokenizer)
    return torch.tensor([v < known and v not in special for v in range(len(embeddings(model)))], device=scorer.device)


def survives(scorer: Scorer, target: Target, tokens: Sequence[int]) -> bool:
    """Whether a prompt with the tokens in it, written as text, is tokenized as it is."""
    whole = [*target.head, *tokens, *target.tail]
    text = scorer.tokenizer.decode(whole, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return scorer.encode(str(text)) == whole


def random_tokens(scorer: Scorer, target: Target, allowed_V: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """Random allowed tokens (S) that survive being written as text in a prompt."""
    ids = allowed_V.nonzero().flatten().cpu()
    for _ in range(1000):
        tokens_S = ids[torch.randint(len(ids), (length,), generator=generator)]
        if survives(scorer, target, tokens_S.tolist()):
            return tokens_S.to(scorer.device)
    raise RunError("attacks.gcg: no random tokens survive this tokenizer")


class Search:
    """A search on one model; the model is left as it is.

    Args:
        targets: prompts, and what should come out of each.
        width: candidates per step.
        topk: tokens per place that the gradient proposes.
        weight: of the matching loss beside the cross-entropy.
    """

    def __init__(
        self, model: nn.Module, scorer: Scorer, targets: Sequence[Target], *, width: int, topk: int, weight: float
    ) -> None:
        self.model, self.scorer, self.targets = model, scorer, targets
        self.width, self.topk, self.weight = width, topk, weight
        self.forward = Forward(model, scorer.device)
        reuse = self.forward.can_reuse(max((t.head + t.tail for t in targets), key=len))
        self.heads: list[tuple[list[int], Layers]] = [
            ([], self.forward.extend([], t.head)) if reuse else (t.head, []) for t in targets
        ]
        self.allowed_V, self.embedded_VD = allowed(scorer, model), embeddings(model)

    def start(self, length: int, generator: torch.Generator) -> Tensor:
        """Random tokens (S) to begin with."""
        return random_tokens(self.scorer, self.targets[0], self.allowed_V, length, generator)

    def run(self, tokens_S: Tensor, steps: int, generator: torch.Generator, stop: bool = False) -> Found:
        """Search from some tokens on.

        Args:
            steps: most gradient steps.
            stop: end as soon as every target is the likeliest token of the whole vocabulary.

        Raises:
            RunError: one candidate does not fit into memory.
        """
        losses = [(0.0, float(self.losses(tokens_S[None])))]
        for step in each("search steps", range(steps + 1)):
            if stop and self.reached(tokens_S):
                return Found(tokens_S.tolist(), losses, step)
            if step < steps:  # the best of some that differ in one token; the tokens themselves count too
                candidates_CS = torch.cat([tokens_S[None], self.propose(tokens_S, generator)])
                losses_C = self.losses(candidates_CS)
                tokens_S = candidates_CS[losses_C.argmin()]
                losses.append((step + 1.0, float(losses_C.min())))
        return Found(tokens_S.tolist(), losses, None)

    @torch.no_grad()
    def reached(self, tokens_S: Tensor) -> bool:
        """Whether each target's token is the likeliest of the whole vocabulary."""
        rows = [target.head + tokens_S.tolist() + target.tail for target in self.targets]
        likeliest = (int(self.forward.logits([row], [(0, len(row) - 1)]).argmax()) for row in rows)
        return all(token == target.token for token, target in zip(likeliest, self.targets, strict=True))

    def propose(self, tokens_S: Tensor, generator: torch.Generator) -> Tensor:
        """Candidates (C, S), at most ``width``: at a random place one of the tokens that the gradient likes best."""
        gradient_SV = self.gradient(tokens_S).masked_fill(~self.allowed_V, float("inf"))
        liked_SK = (-gradient_SV).topk(min(self.topk, int(self.allowed_V.sum())), dim=-1).indices.cpu()
        found: dict[tuple[int, ...], None] = {}
        for _ in range(8 * self.width):
            place = int(torch.randint(len(tokens_S), (1,), generator=generator))
            choice = int(torch.randint(liked_SK.shape[1], (1,), generator=generator))
            tokens = tokens_S.tolist()
            tokens[place] = int(liked_SK[place, choice])
            if survives(self.scorer, self.targets[0], tokens):
                found[tuple(tokens)] = None
            if len(found) == self.width:
                break
        return torch.tensor(list(found) or [tokens_S.tolist()], device=tokens_S.device)

    def gradient(self, tokens_S: Tensor) -> Tensor:
        """Of the loss, by the one-hot rows of the searched tokens: (S, V)."""
        all_VD, total = self.embedded_VD, torch.zeros((), device=self.embedded_VD.device)
        hot_SV = torch.nn.functional.one_hot(tokens_S, len(all_VD)).to(all_VD).requires_grad_(True)
        for target, (front, cache) in zip(self.targets, self.heads, strict=True):
            given_1TD = torch.cat([all_VD[front], hot_SV @ all_VD, all_VD[target.tail]])[None]
            kept: dict[int, Tensor] = {}
            with watching(self.model, _keep_last(kept, target)):
                out = self.model(inputs_embeds=given_1TD, past_key_values=shared(cache) if cache else None,
                                 use_cache=bool(cache)).logits  # fmt: skip
            total = total + self._loss(out[:, -1], kept, target).sum()
        (gradient_SV,) = torch.autograd.grad(total / len(self.targets), hot_SV)
        return gradient_SV.float()

    @torch.no_grad()
    def losses(self, candidates_CS: Tensor) -> Tensor:
        """Mean loss over the targets, (C)."""
        total_C, rows = torch.zeros(len(candidates_CS), device=candidates_CS.device), candidates_CS.tolist()
        for target, (front, cache) in zip(self.targets, self.heads, strict=True):
            whole = [front + row + target.tail for row in rows]
            self.scorer.in_batches(
                partial(self._add_losses, total_C, whole, target, cache or None),
                [len(row) + len(target.head) // 8 for row in whole],
            )
        return total_C / len(self.targets)

    def _add_losses(
        self, total_C: Tensor, rows: Sequence[list[int]], target: Target, cache: Layers | None, batch: list[int]
    ) -> None:
        """Add the losses of some candidates."""
        kept: dict[int, Tensor] = {}
        with watching(self.model, _keep_last(kept, target)):
            spots = [(i, len(rows[0]) - 1) for i in range(len(batch))]
            logits_NV = self.forward.logits([rows[i] for i in batch], spots, cache)
        total_C[batch] += self._loss(logits_NV, kept, target)

    def _loss(self, logits_NV: Tensor, kept: dict[int, Tensor], target: Target) -> Tensor:
        """Loss of each row, (N), fp32."""
        right_N = torch.full((len(logits_NV),), target.token, device=logits_NV.device)
        loss_N = torch.nn.functional.cross_entropy(logits_NV.float(), right_N, reduction="none")
        if target.match:
            away = [
                (kept[layer].float() - base_D).pow(2).sum(-1) / base_D.pow(2).sum()
                for layer, base_D in target.match.items()
            ]
            loss_N = loss_N + self.weight * torch.stack(away).mean(0)
        return loss_N


def _keep_last(kept: dict[int, Tensor], target: Target) -> Observer:
    def seen(_place: str, layer: int, h_BTD: Tensor) -> None:
        if layer in target.match:
            kept[layer] = h_BTD[:, -1]

    return seen
