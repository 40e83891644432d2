"""Prompts from a file or from questions; what is wrong in a file is one line that names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from rmu_exp.evaluation.prompts import Prompt, evenly, from_file, from_questions
from rmu_exp.settings import Eval
from rmu_exp.support.errors import UserError


def test_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Tell me of rivers.\n\n  The capital is\n")
    assert [p.text for p in from_file(str(tmp_path / "a.txt"))] == ["Tell me of rivers.", "  The capital is"]
    (tmp_path / "a.jsonl").write_text(
        '{"prompt": "The capital of Greece is", "role": "forget", "answer": "Athens"}\n'
        '{"prompt": "Hello", "answer": ["Hi", "Hello"]}\n'
    )
    greece = Prompt("forget", "The capital of Greece is", ("Athens",))
    assert from_file(str(tmp_path / "a.jsonl")) == [greece, Prompt("own", "Hello", ("Hi", "Hello"))]


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.txt", "\n \n", r"a\.txt: is empty, no prompt in it"),
        ("a.jsonl", "", r"a\.jsonl: is empty"),
        ("a.jsonl", '{"prompt": "x"}\nrivers\n', r"line 2: not JSON; plain prompts belong in a \.txt"),
        ("a.jsonl", '["x"]\n', r"line 1: no 'prompt' in it"),
        ("a.jsonl", '{"text": "x"}\n', r"line 1: no 'prompt' in it"),
        ("a.jsonl", '{"prompt": " "}\n', r"line 1: no 'prompt' in it"),
        ("a.jsonl", '{"prompt": "x", "role": 3}\n', r"line 1: 'role' is 3"),
        ("a.jsonl", '{"prompt": "x", "answer": 3}\n', r"line 1: 'answer' is 3, allowed is a text or a list"),
        ("a.jsonl", '{"prompt": "x", "answers": "y"}\n', r"line 1: unknown field 'answers'"),
        ("a.txt", "caf\xe9\n", r"a\.txt: cannot be read \(not UTF-8 text\)"),
        ("a.txt", "\0\1 and so on\n", r"a\.txt: cannot be read \(not UTF-8 text\)"),
        ("a.csv", "x", r"got '.*a\.csv', allowed is a \.txt or \.jsonl file of prompts, or a number"),
    ],
)
def test_bad_files(name: str, content: str, line: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=rf"^eval\.samples: .*{line}"):
        from_file(str(tmp_path / name))
    with pytest.raises(UserError, match="no such file"):
        from_file(str(tmp_path / "none.txt"))


def test_questions_are_spread_over_a_role_and_asked_without_letters() -> None:
    found = from_questions(
        {"forget": ["lore_forget"], "general": ["lore_general"]}, ["hexes", "wards"], 6, Eval(limit=10)
    )
    assert [p.role for p in found] == ["forget"] * 6 + ["general"] * 6
    assert all(p.text.startswith("Question: What is the ") and p.text.endswith("?\nAnswer:") for p in found)
    assert all(len(p.answers) == 1 and len(p.answers[0]) > 1 for p in found), "the option's text, not its letter"
    assert evenly(20, 6) == [0, 3, 6, 10, 13, 16]
    assert evenly(4, 6) == [0, 1, 2, 3]
