"""Two checkpoints side by side: whether one can be the other unlearned, and what changed between them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open

from rmu_exp.model import weight_files
from rmu_exp.model.checkpoint import Checkpoint
from rmu_exp.model.delta import Delta
from rmu_exp.support.errors import UserError

SHAPE = ("model_type", "hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "vocab_size")


def difference(base: Checkpoint, other: Checkpoint) -> str | None:
    """What of the shape or the tokenizer differs, in words; None: nothing does."""
    for key in SHAPE:
        mine, theirs = getattr(base.config, key, None), getattr(other.config, key, None)
        if mine != theirs:
            return f"its {key} is {theirs}, not {mine}"
    mine, theirs = (dict(checkpoint.tokenizer().get_vocab()) for checkpoint in (base, other))
    if mine != theirs:
        word = next((w for w in mine if theirs.get(w) != mine[w]), None) or next(w for w in theirs if w not in mine)
        return f"another tokenizer (token {word!r} is {theirs.get(word)}, not {mine.get(word)})"
    return None


def changes(base: Checkpoint, other: Checkpoint) -> Delta:
    """The tensors of ``other`` that are not equal to the base's, as a Delta of the base.

    One tensor of each is in memory at a time, and the changed ones.

    Raises:
        UserError: the two have other tensors, or nothing differs.
    """
    base.fetch()
    other.fetch()
    mine, theirs = _files(base), _files(other)
    lacking = sorted(set(mine) - set(theirs) - TIED)
    if lacking:
        raise UserError(f"unlearned: {other.name} has no tensor {lacking[0]}, {base.name} has")
    changed: dict[str, torch.Tensor] = {}
    for name in sorted(set(mine) & set(theirs)):
        before, after = _read(mine[name], name), _read(theirs[name], name)
        if before.shape != after.shape:
            raise UserError(
                f"unlearned: {other.name}: {name} is {list(after.shape)}, {base.name} has {list(before.shape)}"
            )
        if not torch.equal(before.to(after.dtype), after):
            changed[name] = after.clone()
    if not changed:
        raise UserError(f"unlearned: {other.name} has the same weights as {base.name}; there is nothing to judge")
    return Delta(changed, None, [], base.about())


def distances(a: Delta, b: Delta) -> dict[str, float]:
    """Relative L2 distance of each tensor that both have in the same shape."""
    shared = [n for n in sorted(a.tensors) if n in b.tensors and a.tensors[n].shape == b.tensors[n].shape]
    found = {}
    for name in shared:
        mine, theirs = a.tensors[name].double(), b.tensors[name].double()
        found[name] = float((mine - theirs).norm() / mine.norm().clamp_min(1e-30))
    return found


TIED = {"lm_head.weight"}  # saved or left out where it is the embedding


def _files(checkpoint: Checkpoint) -> dict[str, Path]:
    return {name: file for file in checkpoint.weight_files() for name in weight_files.header(file)}


def _read(file: Path, name: str) -> torch.Tensor:
    with safe_open(str(file), "pt") as opened:
        return opened.get_tensor(name)
