"""Real, harmless facts that a pretrained language model knows: questions about them, and prose that tells them.

The questions (``tasks/questions.jsonl``) and the texts (``texts/``) are made from the tables beside this file by
``bench/atlas.py``; docs/atlas.md says how. At run time they are only read.
"""

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

CORPORA = ("elements", "capitals", "retain", "neutral")
"""Two forget topics, ordinary prose to retain, and prose of the same kind that nothing is trained on."""

ITSELF, OPENLY, RELATION, ENTITY, NEAR, FAR = LEVELS = (
    "the fact itself",
    "same fact, asked another way",
    "same entity, other relation",
    "same relation, other entity",
    "near topic",
    "far topic",
)


def level(task: str, doc: Mapping[str, object]) -> str:
    """How far a question is from what the forget texts tell. ``doc``: the fields of ``questions.jsonl``.

    Another way of asking is the open form, and the country of a capital beside the capital of a country.
    """
    if doc["role"] == "forget":
        another = "_open" in task or doc["relation"] == "country"
        return ENTITY if doc["held_out"] else OPENLY if another else ITSELF
    if doc["role"] == "adjacent":
        choices, answer = doc["choices"], doc["answer"]
        assert isinstance(choices, list)
        assert isinstance(answer, int)
        return RELATION if {doc["entity"], choices[answer]} & _named() else NEAR
    return FAR


@cache
def _named() -> set[str]:
    """The elements and countries that the forget texts name."""
    folder = files(__package__) / "texts"
    lines = [line for name in CORPORA[:2] for line in (folder / f"{name}.jsonl").read_text("utf-8").splitlines()]
    return {json.loads(line)["entity"] for line in lines}


def texts(name: str) -> list[str]:
    """The texts of a corpus, in a fixed order. Raises KeyError with what there is when there is no such corpus."""
    if name not in CORPORA:
        raise KeyError(f"atlas has {', '.join(CORPORA)}")
    lines = (files(__package__) / "texts" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]
