"""The project speaks the field's language: words that its glossary (CONTRIBUTING) replaces do not come back."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
REPLACED = {
    r"\b(one|texts?|tokens?|questions?|steps?|values?|entry|line|folder|file|trials?|rows?|files?|name|object|vector) "
    r"an? (topic|step|task|token|text|trial|question|layer|row|run|model|attack|method|pass)\b": "… per …",
    r"\bbehind (the layer|the step|the token|a|its|it|which|that|step|this|what|each)\b": "after",
    r"\b(is|are|was|were|be) told\b|\btold (in|by|about|apart|of|from)\b|\b_?told\(": "reported",
    r"\bcarry_out\b|\btake_up\b|\btaken_up\b|\blet_go\b|\boffer_all\b": "run, execute, launch, resume, release",
    r"\bnever[- ]knew\b|\bmodel that never knew\b|\bload_never\b": "oracle",
    r"\bhopeless\b|\bHopeless\b": "early stopping rule",
    r"\bjudged anew\b|\bmade anew\b|\basked anew\b": "again",
    r"\bgoes on behind\b|\bonce it is well\b|\bat it\b": "resumes; is in use",
}
FILES = [
    *ROOT.glob("src/**/*.py"),
    *ROOT.glob("conf/**/*.yaml"),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "train.py", "judge.py")),
    *(file for file in ROOT.glob("docs/*.md") if file.name != "log.md"),  # the notebook is as it was written
]


@pytest.mark.parametrize("pattern", REPLACED, ids=[REPLACED[p].replace(" ", "_") for p in REPLACED])
def test_replaced_words_do_not_come_back(pattern):
    found = [
        f"{file.relative_to(ROOT)}:{number}: {match[0]}"
        for file in FILES
        for number, line in enumerate(file.read_text(encoding="utf-8").partition("## Glossary")[0].splitlines(), 1)
        for match in re.finditer(pattern, line)
    ]
    assert not found, f"write {REPLACED[pattern]!r}:\n" + "\n".join(found)
