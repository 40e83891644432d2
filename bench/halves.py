"""What a run on atlas keeps of the base model's knowledge, by half and by whether a text tells the fact.

    python bench/halves.py RUN [RUN …]

Kept is (accuracy - chance) / (base - chance), plain and corrected for answer bias, with 95 % intervals from resampling
questions. Settings are chosen on the half ``choose`` and reported on the half ``report``. Reads answers.jsonl only.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from rmu_exp.worlds import atlas

CHANCE, DRAWS = 0.25, 2000
QUESTIONS = Path(atlas.__file__).parent / "tasks" / "questions.jsonl"
Right = tuple[int, int, int, int]
"""1 or 0: the base plainly and corrected, the unlearned model plainly and corrected."""


def answered(run: Path) -> dict[tuple[str, str], list[Right]]:
    """Group of questions and half to their answers."""
    asked: dict[str, list[dict[str, object]]] = defaultdict(list)
    for line in QUESTIONS.read_text(encoding="utf-8").splitlines():
        question = json.loads(line)
        asked[f"atlas_{question['role']}_{question['topic']}"].append(question)
    found: dict[tuple[str, str], list[Right]] = defaultdict(list)
    for line in (run / "answers.jsonl").read_text(encoding="utf-8").splitlines():
        answer = json.loads(line)
        if answer["task"] not in asked:
            continue  # the open form
        question = asked[answer["task"]][answer["question"]]
        right = (
            int(answer["base"] == answer["target"]),
            answer["base_corrected"],
            int(answer["unlearned"] == answer["target"]),
            answer["unlearned_corrected"],
        )
        role = str(question["role"])
        names = [role, f"{role}: {question['topic']}"]
        if role == "forget":
            names.append(f"forget, {'held out' if question['held_out'] else 'in a text'}")
        for name in names:
            for half in (str(question["half"]), "all"):
                found[name, half].append(right)
    return found


def kept(rights: Sequence[Right], form: int) -> float:
    """Plain (0) or corrected (1)."""
    base, after = (sum(right[k] for right in rights) / len(rights) for k in (form, form + 2))
    return (after - CHANCE) / (base - CHANCE) if base > CHANCE else float("nan")


def shown(rights: Sequence[Right], form: int) -> str:
    """With its interval."""
    rng = random.Random(0)
    draws = sorted(kept(rng.choices(rights, k=len(rights)), form) for _ in range(DRAWS))
    low, high = draws[DRAWS // 40], draws[-DRAWS // 40]
    return f"{kept(rights, form):.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    for run in parser.parse_args().runs:
        print(f"\n{run}\n\n| questions | half | n | kept | kept, corrected |\n|---|---|--:|--:|--:|")
        for (name, half), rights in sorted(answered(run).items()):
            print(f"| {name} | {half} | {len(rights)} | {shown(rights, 0)} | {shown(rights, 1)} |")


if __name__ == "__main__":
    main()
