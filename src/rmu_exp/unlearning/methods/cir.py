"""Collapse of irrelevant representations (arXiv 2509.11816): the MLPs are broken where only forget texts use them.

    L_forget = mean over MLPs of  mean_t max(0, ⟨o_t, o⁰_t⟩) / (mean_t ‖o⁰_t‖)²        o: what an MLP adds to the stream
    ∂L/∂W    = Σ_t d'_t a'_tᵀ,    scaled to the norm ``train.lr`` over all matrices
    L_retain = mean_t ‖h_t − h⁰_t‖ / mean_t ‖h⁰_t‖  at ℓ,   plain SGD

a is a linear module's input and d the gradient of its output; a' and d' are these without their projections on the mean
and on the leading principal components that they had over the last ``refit`` steps: what many tokens have in common is
left alone. Before there are components nothing is trained. A text's first and last token do not count in the gradient,
nor its first one in the loss. One step of each topic goes to the forget texts, then one to the retain texts.
``steer`` and ``alpha`` are not used. Follows github.com/filyp/unlearning (src/CIR.py), with the components of the exact
covariance.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from rmu_exp.data.batches import FORGET, RETAIN, inside
from rmu_exp.model.split import SplitModel, layers_of, mlp_of
from rmu_exp.support.errors import UserError
from rmu_exp.support.setting import setting
from rmu_exp.unlearning import method
from rmu_exp.unlearning.method import Context, Losses
from rmu_exp.unlearning.step import Step, Weights

ITERATIONS = 8  # of the subspace iteration on a covariance; as good as twice as many on the vectors themselves
MORE = 8  # directions that it follows beside those that are wanted, so that these are found well


@dataclass
class Settings:
    """CIR's settings."""

    mlps: int = setting(least=1)
    """How many MLPs are broken: that of `layer` and those below it."""
    act_directions: int = setting(least=1)
    """How many directions the inputs lose: their mean, and one fewer principal components."""
    grad_directions: int = setting(least=1)
    """The same for the gradients of the outputs."""
    refit: int = setting(least=1)
    """Steps over which the directions are measured; an epoch in the published code."""
    retain_lr: float = setting(least=0)
    """Learning rate of the retain loss."""


class Sums:
    """Count, sum and sum of outer products of the vectors of one side of one matrix, and the directions they gave."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.count = torch.zeros((), device=device)
        self.sum_D, self.outer_DD = torch.zeros(width, device=device), torch.zeros(width, width, device=device)
        self.basis_KD = torch.zeros(0, width, device=device)

    def add(self, x_ND: Tensor) -> None:
        """Take in some vectors."""
        self.count += len(x_ND)
        self.sum_D += x_ND.sum(dim=0)
        self.outer_DD += x_ND.mT @ x_ND

    def fit(self, directions: int, seed: int) -> None:
        """Find the directions anew, and begin to measure again."""
        mean_D = self.sum_D / self.count
        self.basis_KD = torch.stack([mean_D / mean_D.norm().clamp(min=1e-30)])
        if directions > 1:
            covariance_DD = self.outer_DD / self.count - torch.outer(mean_D, mean_D)
            with torch.random.fork_rng(devices=[mean_D.device] if mean_D.is_cuda else []):
                torch.manual_seed(seed)
                rank = min(directions - 1, len(mean_D))
                more = min(rank + MORE, len(mean_D))
                _, _, components_DK = torch.svd_lowrank(covariance_DD, q=more, niter=ITERATIONS)
            self.basis_KD = torch.cat([self.basis_KD, components_DK.mT[:rank]])
        for total in (self.count, self.sum_D, self.outer_DD):
            total.zero_()

    def collapsed(self, x_ND: Tensor) -> Tensor:
        """The vectors without the directions, taken out one after the other as published."""
        for unit_D in self.basis_KD:
            x_ND = x_ND - torch.outer(x_ND @ unit_D, unit_D)
        return x_ND


class Method(method.Method):
    """CIR."""

    linear = True
    inside = True

    def __init__(self, settings: Settings, context: Context) -> None:
        super().__init__(settings, context)
        self.sides: dict[str, tuple[Sums, Sums]] = {}

    @classmethod
    def refuse(cls, settings: Settings, layer: int, lowest: int, steps: int) -> None:
        if settings.mlps > layer + 1:
            raise UserError(f"method.mlps: got {settings.mlps}, allowed is 1 to {layer + 1} (layer is {layer})")
        if steps <= settings.refit:
            raise UserError(f"train.max_batches: got {steps}, cir needs more than method.refit ({settings.refit})")

    def begin(self, split: SplitModel) -> None:
        self.layers = layers_of(split.model)

    def retains(self, number: int) -> bool:
        """Whether the step of this number, from 1, is for the retain texts."""
        later = number - 1 - self.settings.refit
        return later >= 0 and later // len(self.context.topics) % 2 == 1

    def loss(self, step: Step) -> Losses:
        layer = self.context.layer
        if self.retains(step.number):
            loss = moved(step.updated(RETAIN).h[layer][RETAIN], step.frozen(RETAIN).h[layer][RETAIN])
            return {"loss": loss, "retain_loss": loss}
        ((packed, _, tokens),) = step.holding([FORGET])
        counts, index = inside(packed, FORGET), tokens[FORGET]
        with self.outputs(index[counts]) as g, torch.no_grad():
            replace(step, weights={}).updated(FORGET)
        last = torch.cat([~counts[1:], counts.new_ones(1)])
        with self.outputs(index[counts]) as o, self.watched(step.weights, index[counts & ~last]):
            step.updated(FORGET)
        loss = torch.stack([broken(o_ND, g_ND) for o_ND, g_ND in zip(o, g, strict=True)]).mean()
        return {"loss": loss, "forget_loss": loss}

    @contextmanager
    def outputs(self, index: Tensor) -> Iterator[list[Tensor]]:
        """What the MLPs give for some tokens inside of the block, (N, D) each, lowest first."""
        found: list[Tensor] = []
        with ExitStack() as hooks:
            for layer in self.layers[self.context.layer - self.settings.mlps + 1 : self.context.layer + 1]:
                keep = mlp_of(layer).register_forward_hook(
                    lambda _m, _i, out: found.append(out.flatten(0, 1)[index].float())
                )
                hooks.callback(keep.remove)
            yield found

    @contextmanager
    def watched(self, weights: Weights, index: Tensor) -> Iterator[None]:
        """Inside of the block, the trained matrices get collapsed gradients, of some tokens."""
        with ExitStack() as hooks:
            for layer, own in weights.items():
                for name in own:
                    module = self.layers[layer].get_submodule(name.removesuffix(".weight"))
                    hook = partial(self.instead, f"{layer}.{name}", index)
                    hooks.callback(module.register_forward_hook(hook).remove)
            yield

    def instead(self, name: str, index: Tensor, module: Any, given: tuple[Tensor], out: Tensor) -> Tensor:
        """A linear module's output, with another way back."""
        if name not in self.sides:
            outs, ins = module.weight.shape
            self.sides[name] = Sums(ins, out.device), Sums(outs, out.device)
        return _Collapsed.apply(out.detach(), *given, module.weight, index, self.sides[name])

    def fit(self) -> None:
        """Find every matrix's directions anew."""
        counts = self.settings.act_directions, self.settings.grad_directions
        for number, sums in enumerate(self.sides.values()):
            for side, count in zip(sums, counts, strict=True):
                side.fit(count, self.context.seed + number)

    def optimizer(self, masters: list[Tensor], lr: float) -> torch.optim.Optimizer:
        return Normalised(masters, lr, self)

    def state(self) -> dict[str, Tensor]:
        return {
            f"{name}:{which}:{part}": value
            for name, sums in self.sides.items()
            for which, side in enumerate(sums)
            for part, value in vars(side).items()
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        for key, value in state.items():
            name, which, part = key.split(":")
            self.sides.setdefault(name, (Sums(1, self.context.device), Sums(1, self.context.device)))
            setattr(self.sides[name][int(which)], part, value.to(self.context.device))


class _Kept(Protocol):
    """What :class:`_Collapsed` keeps for the way back."""

    saved_tensors: tuple[Tensor, Tensor, Tensor]
    sides: tuple[Sums, Sums]

    def save_for_backward(self, *tensors: Tensor) -> None: ...


class _Collapsed(torch.autograd.Function):
    """A linear module's output as it is; on the way back ∂L/∂W is Σ d' a'ᵀ over some tokens, ∂L/∂a as ever."""

    @staticmethod
    def forward(ctx: _Kept, out: Tensor, a: Tensor, w: Tensor, index: Tensor, sides: tuple[Sums, Sums]) -> Tensor:
        ctx.save_for_backward(a, w, index)
        ctx.sides = sides
        return out.view_as(out)

    @staticmethod
    def backward(ctx: _Kept, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (d,), (a, w, index) = grads, ctx.saved_tensors
        both = [x.flatten(0, -2)[index].float() for x in (a, d)]
        for side, x_ND in zip(ctx.sides, both, strict=True):
            side.add(x_ND)
        a_NI, d_NO = (side.collapsed(x_ND) for side, x_ND in zip(ctx.sides, both, strict=True))
        return None, d @ w, (d_NO.mT @ a_NI).to(w.dtype), None, None


class Normalised(torch.optim.Optimizer):
    """Steps of a given length on the forget texts, of a given rate on the retain texts."""

    def __init__(self, masters: list[Tensor], lr: float, method: Method) -> None:
        super().__init__(masters, {"lr": lr})
        self.masters, self.method = masters, method
        for w in masters:
            self.state[w] = {"step": torch.tensor(0.0)}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for w in self.masters:
            self.state[w]["step"] += 1
        number, settings = int(self.state[self.masters[0]]["step"]), self.method.settings
        grads = [w.grad for w in self.masters if w.grad is not None]
        retains = self.method.retains(number)
        rate = settings.retain_lr
        if not retains:
            norm = torch.stack([g.float().norm() for g in grads]).norm().clamp(min=1e-30)
            rate = self.param_groups[0]["lr"] / norm
        if number > settings.refit:
            for w in self.masters:
                if w.grad is not None:
                    w.sub_(rate * w.grad)
        if not retains and sum(not self.method.retains(n) for n in range(1, number + 1)) % settings.refit == 0:
            self.method.fit()


def broken(o_ND: Tensor, g_ND: Tensor) -> Tensor:
    """How much of what MLPs gave the updated ones still give: a scalar, about 1 at first."""
    along_N = (o_ND * g_ND).sum(dim=-1) / torch.linalg.vector_norm(g_ND, dim=-1).mean() ** 2
    return along_N.relu().mean()


def moved(h_ND: Tensor, g_ND: Tensor) -> Tensor:
    """Mean ‖h − g‖ in units of mean ‖g‖: a scalar. Its gradient is 0, not undefined, where the two are equal."""
    return torch.linalg.vector_norm(h_ND - g_ND, dim=-1).mean() / torch.linalg.vector_norm(g_ND, dim=-1).mean()
