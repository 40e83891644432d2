"""Ordinary prose by the base model itself: ``python -m rmu_exp.worlds.atlas.compose MODEL_FOLDER OUT.jsonl``.

The model goes on from openings on many subjects; what names a chemical element or a capital, or tells a fact that is
asked, is left out. The result lies in ``texts/prose.jsonl``, each line with its subject: sampling gives other words on
another machine, so the file is what counts. Texts on the subjects in ``NEUTRAL`` are trained on by nobody.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rmu_exp.worlds.atlas import world

SUBJECTS = (
    "rivers",
    "deserts",
    "mountain villages",
    "islands and ferries",
    "the languages that people speak",
    "trade between nations",
    "old maps",
    "borders and customs officers",
    "travelling by train",
    "harbour towns",
    "the climate of warm regions",
    "festivals around the world",
    "cooking with salt and heat",
    "how soap cleans",
    "glass and pottery",
    "the states of matter",
    "measuring temperature",
    "light and lenses",
    "magnets",
    "electric circuits at home",
    "how scientists test an idea",
    "acids in the kitchen",
    "paints and dyes",
    "recycling",
    "dogs and their owners",
    "birds in winter",
    "whales",
    "insects in the garden",
    "forests",
    "farm life",
    "keeping horses",
    "fish in ponds",
    "novels and their readers",
    "poetry",
    "the history of printing",
    "painting a portrait",
    "learning the piano",
    "choirs",
    "theatre rehearsals",
    "going to school",
    "teaching mathematics",
    "grammar and spelling",
    "libraries",
    "newspapers",
    "writing letters",
    "the human heart",
    "sleep",
    "healthy food",
    "broken bones",
    "the work of nurses",
    "exercise",
    "bread",
    "soup",
    "fruit in summer",
    "tea and coffee",
    "family dinners",
    "markets",
    "carpenters",
    "tailors",
    "bus drivers",
    "firefighters",
    "running a small shop",
    "building a house",
    "football matches",
    "swimming",
    "chess",
    "long walks",
    "games for children",
    "friendship",
    "money and saving",
    "elections",
    "courts and judges",
    "old age",
    "holidays",
    "memory",
    "dreams",
    "computers at work",
    "telephones",
    "bridges",
    "bicycles",
    "ships",
    "the moon and the stars",
    "weather forecasts",
    "volcanoes",
)
NEUTRAL = (
    "lighthouses",
    "gardens in autumn",
    "clocks",
    "puppets",
    "umbrellas",
    "beekeeping",
    "snow",
    "wedding customs",
    "attics",
    "street musicians",
    "shoes",
    "kites",
    "barbers",
    "picnics",
    "caves",
    "postcards",
    "neighbours",
    "handwriting",
    "sailing",
    "windmills",
    "cats",
    "riddles",
    "stairs",
    "fog",
)
OPENINGS = (
    "There is a lot to say about {}.",
    "An article about {} appeared in a magazine last year. It began as follows.",
    "Many people never think about {}, but",
    "In this chapter we look at {}. First of all,",
)
TOKENS = 80
BATCH = 32


def keep(text: str) -> bool:
    """Whether a text names no element and no capital, and tells no fact that is asked."""
    words = " " + " ".join(re.findall(r"[^\W_]+", text.lower())) + " "
    names = [row["element"] for row in world.table("elements")] + [row["capital"] for row in world.table("countries")]
    if any(f" {name.lower()} " in words for name in names if name) or " capital " in words or "?" in text:
        return False
    for relation in world.RELATIONS:
        for q in world.questions(relation.name):
            if f" {q.fact.given.lower()} " in words and f" {q.fact.value.lower()} " in words:
                return False
    return True


def compose(folder: str, seed: int = 0) -> Iterator[dict[str, str]]:
    """Texts by the model in ``folder``, one per subject and opening, less what is left out.

    Yields:
        ``{"subject", "text"}``.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    work = [(s, o.format(s)) for s in (*SUBJECTS, *NEUTRAL) for o in _openings(s)]
    for start in range(0, len(work), BATCH):
        part = work[start : start + BATCH]
        ids = tokenizer([opening for _, opening in part], return_tensors="pt", padding=True)
        with torch.no_grad():
            out = model.generate(
                **ids, max_new_tokens=TOKENS, do_sample=True, temperature=0.7, top_p=0.9, repetition_penalty=1.1
            )
        for (subject, _), row in zip(part, out, strict=True):
            text = _whole_sentences(str(tokenizer.decode(row, skip_special_tokens=True)))
            if len(text) > 150 and keep(text):
                yield {"subject": subject, "text": text}


def _openings(subject: str) -> tuple[str, ...]:
    if subject in NEUTRAL:
        return OPENINGS
    return tuple(random.Random(subject).sample(OPENINGS, 2))


def _whole_sentences(text: str) -> str:
    text = " ".join(text.split())
    return text[: max(text.rfind(mark) for mark in ".!") + 1]


def main() -> None:
    parser = argparse.ArgumentParser(description="Write prose with a base model, as JSON lines.")
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    with given.out.open("w", encoding="utf-8") as file:
        for row in compose(given.model):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
