"""Questions of one's own: files, YAML and folders become tasks; what cannot be asked is refused by file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from rmu_exp.evaluate import catalogue, own_questions
from rmu_exp.settings import Eval, Questions
from rmu_exp.support.errors import UserError

ROW = {"question": "Where?", "choices": ["here", "there"], "answer": 1}


@pytest.mark.parametrize(
    ("row", "place"),
    [
        (ROW, 1),
        (ROW | {"answer": "there"}, 1),
        (ROW | {"answer": "B"}, 1),
        (ROW | {"answer": "0"}, 0),
        ({"question": "q", "A": "x", "B": "y", "C": "z", "answer": "c"}, 2),
        ({"question": "q", "option1": "x", "option2": "y", "answer": "option2"}, 1),
        ({"question": "q", "options": ["1", "0"], "answer": "1"}, 0),  # a text before a place
    ],
)
def test_an_answer_is_a_place_a_letter_a_column_or_a_text(row: dict[str, object], place: int, tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text(json.dumps(row) + "\n")
    assert own_questions.read(str(file))[0]["answer"] == place


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("q.csv", "a,b\n1,2\n", ["q.csv:2", "no question"]),
        ("q.csv", "question,A,B,answer\nq,x,y,z\n", ["q.csv:2", "'z' is no option", "'x', 'y'"]),
        ("q.csv", "question,A,B,answer\nq,x,,A\n", ["q.csv:2", "1 options"]),
        ("q.csv", "question,A,B,answer\nq,x,x,A\n", ["q.csv:2", "twice"]),
        ("q.csv", "question,A,B,answer\n", ["no questions"]),
        ("q.csv", "question,A,B,answer\nq,x,y,A,more\n", ["q.csv:2", "more fields"]),
        ("q.jsonl", '{"question": "q", "choices": ["x", "y"]}', ["q.jsonl:1", "no answer"]),
        ("q.jsonl", "\n{", ["q.jsonl:2", "not JSON"]),
        ("q.jsonl", "[1]", ["q.jsonl:1", "an object per line"]),
        ("q.jsonl", '{"question": "q", "choices": {"a": 1}, "answer": 0}', ["q.jsonl:1", "allowed is a list"]),
        ("q.parquet", "no parquet", ["q.parquet", "cannot be read"]),
    ],
)
def test_bad_rows_are_refused_by_file_and_line(name: str, text: str, words: list[str], tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as error:
        own_questions.read(str(tmp_path / name))
    assert all(word in str(error.value) for word in words), error.value


def test_files_yaml_and_folders_are_tasks(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([ROW | {"fact": "f"}, ROW]), tmp_path / "mine.parquet")
    (tmp_path / "rows.json").write_text(json.dumps([ROW, ROW]))
    task = {"task": "own_one", "dataset_path": "json", "dataset_kwargs": {"data_files": str(tmp_path / "rows.json")}}
    task |= {
        "test_split": "train",
        "output_type": "multiple_choice",
        "doc_to_text": "question",
        "doc_to_choice": "choices",
    }
    task |= {"doc_to_choice": "choices", "doc_to_target": "answer", "metric_list": [{"metric": "acc"}]}
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    (tmp_path / "one/a.yaml").write_text(yaml.safe_dump(task))
    (tmp_path / "two/a.yaml").write_text(yaml.safe_dump(task | {"task": "own_two"}))
    (tmp_path / "two/g.yaml").write_text(yaml.safe_dump({"group": "own_group", "task": ["own_two"]}))
    entries = [str(tmp_path / "mine.parquet"), str(tmp_path / "one/a.yaml"), str(tmp_path / "two")]
    found = catalogue.find(entries)
    assert [found.names[entry] for entry in entries] == [["mine"], ["own_one"], ["own_group"]]
    loaded = catalogue.loaded(Eval(tasks=entries))
    assert {name: len(task.eval_docs) for name, task in loaded["tasks"].items()} == {
        "mine": 2,
        "own_one": 2,
        "own_two": 2,
    }
    assert list(loaded["groups"]) == ["own_group"]
    named = catalogue.find(["own_one"], [str(tmp_path / "one")])
    assert named.load(["own_one"])["tasks"]["own_one"].config.output_type == "multiple_choice"
    (tmp_path / "rows.json").unlink()
    with pytest.raises(UserError, match=r"own_one|a\.yaml"):
        catalogue.loaded(Eval(tasks=[str(tmp_path / "one/a.yaml")]))


def test_groups_whose_members_lie_in_other_folders_are_found_whole() -> None:
    found = catalogue.find(["openllm"])
    assert {"arc_challenge", "hellaswag", "truthfulqa_mc2", "winogrande", "gsm8k", "mmlu_virology"} <= set(
        found.manager.all_tasks
    )


def test_roles_are_given_and_never_guessed() -> None:
    questions = Questions(forget=["mmlu"], adjacent=["x"])
    assert questions.roles(["mmlu", "x", "lore_forget"]) == {
        "mmlu": "forget",
        "x": "adjacent",
        "lore_forget": "general",
    }
    assert Questions(forget=["a"], general=["b"]).roles(["a", "b", "atlas_forget"]) == {"a": "forget", "b": "general"}
    with pytest.raises(UserError, match=r"data\.questions\.forget: a is in data\.questions\.general too"):
        Questions(forget=["a"], general=["a"]).check()
