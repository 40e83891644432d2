"""The questions of atlas as lm-eval data sets; lm-eval calls this by name from the YAML files."""

import json
from pathlib import Path

import datasets


def of(role: str, topic: str, **_: object) -> dict[str, datasets.Dataset]:
    """The questions about a topic, with the fields of ``questions.jsonl``.

    ``question``, ``lead`` (how its answer begins) and ``statement`` (the open form), ``choices``, ``answer``;
    ``role``, ``topic``, ``relation`` (the kind of question), ``entity`` and ``fact`` (the same fact in another form has
    the same); ``half``: ``choose`` or ``report``; ``held_out``: no forget text names the entity.
    """
    lines = Path(__file__).with_name("questions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if (row["role"], row["topic"]) == (role, topic)]
    return {"test": datasets.Dataset.from_list(rows)}
