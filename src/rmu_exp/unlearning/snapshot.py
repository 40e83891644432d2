"""What training needs to resume after any interruption: one safetensors file, replaced as a whole.

The trained tensors, and the state of optimizer, method and budget: every use of chance follows from seed and step.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rmu_exp.support import signals
from rmu_exp.support.files import replace_atomic
from rmu_exp.unlearning.budget import Budget
from rmu_exp.unlearning.method import Method

LEAST = 5.0  # seconds between two snapshots
SHARE = 0.01  # of the time that snapshots may take
INSIDE = "/"  # between the names of nested entries


class Snapshots:
    """The newest snapshot of a training run.

    Args:
        file: where it is; None: nothing is kept.
        of: what it belongs to; a snapshot of anything else is not used.
        every: seconds between two snapshots; None: few enough that they cost next to nothing.

    Attributes:
        steps: how many were done at the snapshot that was found.
        seconds: how long they had taken.
        spent: seconds that this process has taken to save.
    """

    def __init__(self, file: Path | None = None, of: str = "", every: float | None = None) -> None:
        self.file, self.of, self.every = file, of, every
        self.kept, about = _read(file, of) if file is not None and file.is_file() else ({}, {})
        self.steps, self.seconds = int(about.get("steps", 0)), float(about.get("seconds", 0))
        self._began = self._last = time.perf_counter()
        self._cost = self.spent = 0.0

    def due(self) -> bool:
        """Whether to save now; a stop that is asked for is a reason, too."""
        if self.file is None:
            return False
        least = max(LEAST, self._cost / SHARE) if self.every is None else self.every
        return signals.asked() or time.perf_counter() - self._last > least

    def save(
        self,
        steps: int,
        masters: Sequence[Tensor],
        optimizer: torch.optim.Optimizer,
        method: Method,
        budget: Budget | None = None,
    ) -> None:
        """Keep the state after a number of steps."""
        assert self.file is not None
        began = time.perf_counter()
        kept = {f"master.{i}": w for i, w in enumerate(masters)}
        for part, state in ("method", method.state()), ("budget", budget.state() if budget else {}):
            kept |= {f"{part}.{name}": value for name, value in state.items()}
        for i, values in optimizer.state_dict()["state"].items():
            kept |= {f"optimizer.{i}.{name}": torch.as_tensor(value) for name, value in _flat(values)}
        plain = {name: value.detach().cpu().contiguous().clone() for name, value in kept.items()}
        about = {"of": self.of, "steps": str(steps), "seconds": repr(self.seconds + began - self._began)}
        replace_atomic(self.file, lambda temporary: save_file(plain, temporary, metadata=about))
        self._last = time.perf_counter()
        self._cost = self._last - began
        self.spent += self._cost

    def restore(
        self,
        masters: Sequence[Tensor],
        optimizer: torch.optim.Optimizer,
        method: Method,
        budget: Budget | None = None,
    ) -> None:
        """Put the state that was found, if any was, in place."""
        if not self.kept:
            return
        state: dict[int, dict[str, Any]] = {}
        own: dict[str, dict[str, Tensor]] = {"method": {}, "budget": {}}
        for name, value in self.kept.items():
            match name.split(".", 2):
                case ["optimizer", index, key]:
                    *inside, last = key.split(INSIDE)
                    place: dict[str, Any] = state.setdefault(int(index), {})
                    for part in inside:
                        place = place.setdefault(part, {})
                    place[last] = value if value.dim() or value.is_floating_point() else int(value)  # a number it was
                case ["method" | "budget" as part, *key]:
                    own[part][".".join(key)] = value
        with torch.no_grad():
            for i, w in enumerate(masters):
                w.copy_(self.kept[f"master.{i}"])
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        method.restore(own["method"])
        if budget:
            budget.restore(own["budget"])
        self.kept = {}


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """The entries of an optimizer's state, which bitsandbytes nests."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}{INSIDE}")
        else:
            yield before + name, value


def _read(file: Path, of: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A snapshot's tensors, and what it says about itself; nothing when it is damaged or belongs to something else.

    The tensors are copies: kernels may round differently on memory that is aligned as it is in a file.
    """
    try:
        with safe_open(file, "pt") as found:
            about = found.metadata() or {}
            if about.get("of") != of:
                return {}, {}
            return {name: found.get_tensor(name).clone() for name in found.keys()}, about  # noqa: SIM118
    except (SafetensorError, OSError):
        return {}, {}
