"""Prompts that both models answer: taken from the questions of each role, or from a file of one's own.

A file is ``.txt`` (one prompt per line) or ``.jsonl`` (objects with ``prompt``, and if wanted ``role``, a word, and
``answer``, a text or a list of texts that are all right). This module knows no model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rmu_exp.evaluation import questions
from rmu_exp.evaluation.questions import Question
from rmu_exp.settings import Eval
from rmu_exp.support.errors import UserError

KEY, OWN = "eval.samples", "own"
KNOWN = ("prompt", "role", "answer")


@dataclass(frozen=True)
class Prompt:
    """A prompt, what it is for, and the answers that are right (none: it is no question)."""

    role: str
    text: str
    answers: tuple[str, ...] = ()


def from_questions(
    tasks: Mapping[str, Sequence[str]],
    topics: Sequence[str],
    count: int,
    settings: Eval,
) -> list[Prompt]:
    """At most ``count`` prompts per role, evenly over its questions; letters to choose from are left out.

    Args:
        tasks: role to lm-eval tasks and groups; those without options give no prompts.
        settings: which of a task's questions are asked, and where own tasks lie.
    """
    found = []
    for role, names in tasks.items():
        asked = [q for group in questions.load(names, topics, settings).values() for q in group] if names else []
        found += [_of(role, asked[i]) for i in evenly(len(asked), count)]
    return found


def evenly(size: int, count: int) -> list[int]:
    """``count`` indices spread evenly over so many things; all of them where there are no more."""
    return [i * size // count for i in range(count)] if size > count else list(range(size))


def _of(role: str, question: Question) -> Prompt:
    text = question.context
    if question.lettered and question.stem:
        text = f"Question: {question.stem}\nAnswer:"
    right = question.choices[question.answer] if question.choices else question.options[question.answer]
    return Prompt(role, text.rstrip(" "), (right.strip(),))


def from_file(source: str) -> list[Prompt]:
    """The prompts in a file. Raises UserError: the file and line, what is wrong."""
    path = Path(source).expanduser()
    if path.suffix not in (".txt", ".jsonl"):
        raise UserError(f"{KEY}: got {source!r}, allowed is a .txt or .jsonl file of prompts, or a number per role")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        if any("\0" in line for line in lines):
            raise ValueError("not text")
    except FileNotFoundError as error:
        raise UserError(
            f"{KEY}: {source}: no such file (looked in {path.absolute().parent}); check its name"
        ) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"{KEY}: {source}: cannot be read ({reason})") from error
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    plain = path.suffix == ".txt"
    found = [Prompt(OWN, line) for _, line in numbered] if plain else list(_objects(source, numbered))
    if not found:
        raise UserError(f"{KEY}: {source}: is empty, no prompt in it; give one prompt per line")
    return found


def _objects(source: str, numbered: Sequence[tuple[int, str]]) -> Iterator[Prompt]:
    for number, line in numbered:
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{KEY}: {source}, line {number}: not JSON; plain prompts belong in a .txt file") from error
        prompt, role, right = (
            (values.get("prompt"), values.get("role", OWN), values.get("answer", []))
            if isinstance(values, dict)
            else ("",) * 3
        )
        right = [right] if isinstance(right, str) else right
        if not isinstance(prompt, str) or not prompt.strip():
            raise UserError(f'{KEY}: {source}, line {number}: no \'prompt\' in it; write {{"prompt": "…"}}')
        if not isinstance(role, str) or not role:
            raise UserError(f"{KEY}: {source}, line {number}: 'role' is {role!r}, allowed is a word")
        if not isinstance(right, list) or not all(isinstance(r, str) for r in right):
            raise UserError(
                f"{KEY}: {source}, line {number}: 'answer' is {right!r}, allowed is a text or a list of them"
            )
        if unknown := [key for key in values if key not in KNOWN]:
            raise UserError(
                f"{KEY}: {source}, line {number}: unknown field {unknown[0]!r}, allowed is {', '.join(KNOWN)}"
            )
        yield Prompt(role, prompt, tuple(right))
