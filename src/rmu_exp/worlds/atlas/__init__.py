"""Real, harmless facts that a pretrained language model knows: questions about them, and prose that tells them.

The questions (``tasks/questions.jsonl``) and the texts (``texts/``) are made from the tables beside this file by
``bench/atlas.py``; docs/atlas.md says how. At run time they are only read.
"""

import json
from importlib.resources import files

CORPORA = ("elements", "capitals", "retain", "neutral")
"""Two forget topics, ordinary prose to retain, and prose of the same kind that nothing is trained on."""


def texts(name: str) -> list[str]:
    """The texts of a corpus, in a fixed order. Raises KeyError with what there is when there is no such corpus."""
    if name not in CORPORA:
        raise KeyError(f"atlas has {', '.join(CORPORA)}")
    lines = (files(__package__) / "texts" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]
