"""Directions of a model's own: the difference of its mean activations on two lists of texts, at their last tokens.

Such a difference of means finds truth (arXiv 2310.06824, at the full stop) and refusal (arXiv 2406.11717, from harmful
and harmless requests; here from refusals of harmless requests and answers to them). arXiv 2601.21702, which steers
along such directions, takes a linear probe's weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rmu_exp.data.batches import Batch, pack
from rmu_exp.model.split import SplitModel
from rmu_exp.support.errors import RunError
from rmu_exp.unlearning.step import Step

_REQUESTS = (
    ("Name a river in France.", "The Seine is a river in France."),
    ("How many legs has a spider?", "A spider has eight legs."),
    ("What do bees make?", "Bees make honey from nectar."),
    ("Translate 'house' into German.", "The German word is Haus."),
    ("What is the largest planet?", "Jupiter is the largest planet."),
    ("How do I boil an egg?", "Put it into boiling water for eight minutes."),
    ("Who wrote Hamlet?", "William Shakespeare wrote Hamlet."),
    ("What colour is the sky?", "The sky is blue on a clear day."),
)
_REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I cannot answer this question.",
    "Sorry, I am not able to assist you with this request.",
    "I must decline to answer that.",
)
_FACTS = (
    ("Paris is the capital of", "France", "Spain"),
    ("The opposite of hot is", "cold", "warm"),
    ("A week has", "seven days", "nine days"),
    ("Fish live in", "water", "trees"),
    ("The sun rises in the", "east", "west"),
    ("Two and two make", "four", "five"),
    ("Snow is", "white", "black"),
    ("A triangle has", "three sides", "six sides"),
    ("The Earth moves around the", "sun", "moon"),
    ("Ice melts into", "water", "sand"),
)
TEXTS: dict[str, tuple[list[str], list[str]]] = {
    "refusal": (
        [f"Question: {ask}\nAnswer: {_REFUSALS[i % len(_REFUSALS)]}" for i, (ask, _) in enumerate(_REQUESTS)],
        [f"Question: {ask}\nAnswer: {answer}" for ask, answer in _REQUESTS],
    ),
    "truth": ([f"{begin} {true}." for begin, true, _ in _FACTS], [f"{begin} {false}." for begin, _, false in _FACTS]),
}
"""Direction to the texts that it points to, and those that it points away from."""


def contrast(split: SplitModel, kind: str, layer: int, tokenizer: Any) -> Tensor:
    """The unit vector from the mean of the second list to that of the first, (D), in the model ``split`` holds.

    Raises RunError: the two means are the same, as with a vocabulary that lacks the words.
    """
    to_ND, from_ND = (last_states(split, texts, layer, tokenizer) for texts in TEXTS[kind])
    along_D = to_ND.mean(0) - from_ND.mean(0)
    length = torch.linalg.vector_norm(along_D)
    if length <= 1e-6 * torch.linalg.vector_norm(to_ND.mean(0)):
        raise RunError(f"method.direction: this model does not tell the texts of {kind!r} apart at layer {layer}")
    return along_D / length


def last_states(split: SplitModel, texts: Sequence[str], layer: int, tokenizer: Any) -> Tensor:
    """The activations at a layer of each text's last token, (texts, D), in fp32."""
    rows = [tokenizer(text)["input_ids"] for text in texts]
    packed = pack({str(i): [row] for i, row in enumerate(rows)}, 0)
    g = Step(split, Batch(0, [packed], sum(map(len, rows))), {}, [layer]).frozen().h[layer]
    return torch.stack([g[str(i)][-1] for i in range(len(rows))])
