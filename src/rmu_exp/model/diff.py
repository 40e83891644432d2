"""Two checkpoints side by side: whether one can be the other unlearned, and what changed between them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open

from rmu_exp.model import weight_files
from rmu_exp.model.checkpoint import EMBEDDING, HEAD, Checkpoint
from rmu_exp.model.delta import Delta
from rmu_exp.support.errors import UserError

FIRST = ("model_type", "hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "vocab_size")
# What a configuration says beside what is computed: where it came from, how it was trained, how it is sampled from.
# Whether the head is the embedding is seen from the weights.
ASIDE = {"_name_or_path", "_commit_hash", "architectures", "auto_map", "transformers_version", "torch_dtype", "dtype"}
ASIDE |= {"use_cache", "bos_token_id", "eos_token_id", "pad_token_id", "id2label", "label2id", "problem_type"}
ASIDE |= {"initializer_range", "tie_word_embeddings", "quantization_config", "task_specific_params"}
TRAINING = ("dropout", "pdrop", "loss_coef", "loss_coefficient")  # ends of such names
BUFFERS = ("inv_freq", "masked_bias", ".attn.bias", ".attention.bias")  # saved by earlier versions, computed today
PROBES = ("The capital of France is", "1 + 1 = 2\n\n  «ünï» — 生物")


def difference(base: Checkpoint, other: Checkpoint, shape_only: bool = False) -> str | None:
    """What of the configuration or the tokenizer differs, in words; None: nothing that changes an answer.

    Args:
        shape_only: ``other`` is run as its own configuration says; it must be of the same shape.
    """
    mine, theirs = (checkpoint.config.to_dict() for checkpoint in (base, other))
    rest = [] if shape_only else sorted(mine.keys() | theirs.keys())
    for key in dict.fromkeys([*FIRST, *rest]):
        if key not in ASIDE and not key.endswith(TRAINING) and mine.get(key) != theirs.get(key):
            return f"its {key} is {theirs.get(key)}, not {mine.get(key)}"
    tokenizers = base.tokenizer(), other.tokenizer()
    mine, theirs = (dict(tokenizer.get_vocab()) for tokenizer in tokenizers)
    if mine != theirs:
        word = next((w for w in mine if theirs.get(w) != mine[w]), None) or next(w for w in theirs if w not in mine)
        return f"another tokenizer (token {word!r} is {theirs.get(word)}, not {mine.get(word)})"
    for text in PROBES:
        ours, its = (tokenizer(text)["input_ids"] for tokenizer in tokenizers)
        if ours != its:
            return f"another tokenizer ({text[:12]!r}… begins with the tokens {its[:3]}, not {ours[:3]})"
    return None


def changes(base: Checkpoint, other: Checkpoint) -> Delta:
    """The tensors of ``other`` that are not equal to the base's, as a Delta of the base.

    One tensor of each is in memory at a time, and the changed ones. Of two models of one configuration transformers
    reads tensors of the same names, so that what only ``other`` has counts for nothing, its own head aside.

    Raises:
        UserError: the two have other tensors, or nothing differs.
    """
    base.fetch()
    other.fetch()
    mine, theirs = _files(base), _files(other)
    lacking = sorted(name for name in set(mine) - set(theirs) if not name.endswith(BUFFERS))
    if lacking:
        raise UserError(f"unlearned: {other.name} has no tensor {lacking[0]}, {base.name} has")
    changed: dict[str, torch.Tensor] = {}
    for name in sorted(set(mine) & set(theirs)):
        before, after = _read(*mine[name]), _read(*theirs[name])
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


def _files(checkpoint: Checkpoint) -> dict[str, tuple[Path, str]]:
    """Each tensor's file, and its name there; a head that is the embedding stands for itself, saved or not."""
    found = {name: (file, name) for file in checkpoint.weight_files() for name in weight_files.header(file)}
    embedding = next((name for name in found if name.endswith(EMBEDDING)), None)
    if embedding and checkpoint.tied and not any(name.endswith(HEAD) for name in found):
        found[HEAD[0]] = found[embedding]
    return found


def _read(file: Path, name: str) -> torch.Tensor:
    with safe_open(str(file), "pt") as opened:
        return opened.get_tensor(name)
