"""Questions of one's own: files, YAML and folders become tasks; what cannot be asked is refused by file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from rmu_exp.evaluation import catalogue, harness, own_questions
from rmu_exp.settings import Data, Eval, Questions, Run
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
        (
            {"question": "q", "B": "y", "A": "x", "i": 7, "answer": "B"},
            1,
        ),  # by name, wherever it stands; i is no option
        ({"question": "q", **{c: f"text {c}" for c in "ABCDEFGHIJKL"}, "answer": "L"}, 11),
        ({"question": "a\u2028b", "A": "x", "B": "y", "C": None, "answer": "b"}, 1),
        ({"question": "q", "options": ["1", "0"], "answer": "1"}, 0),  # a text before a place
    ],
)
def test_an_answer_is_a_place_a_letter_a_column_or_a_text(row: dict[str, object], place: int, tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text(json.dumps(row, ensure_ascii=False) + "\r\n", encoding="utf-8")
    assert own_questions.read(str(file))[0]["answer"] == place


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("q.csv", "a,b\n1,2\n", ["q.csv:2", "no question"]),
        ("q.csv", "question;A;B;answer\nq;x;y;A\n", ["q.csv:2", "no question among its columns (question;a;b;answer)"]),
        ("q.csv", "question,A,A,answer\nq,x,y,A\n", ["q.csv:1", "two columns are called 'A'"]),
        ("q.csv", "question,A,B,C,answer\nq,x,,z,B\n", ["q.csv:2", "an option without text; b is empty"]),
        ("q.csv", "question,option1,option2,answer\nq,x,y,1\nq,x,y,1\n", ["q.csv", "none is 0", "count from 0"]),
        ("q.csv", 'question,A,B,answer\n"q,x,y,A\n', ["q.csv:2", "not CSV"]),
        ("q.csv", "", ["q.csv", "no questions"]),
        ("q.csv", "question,A,B,answer\nq\xe9,x,y,A\n".encode("latin-1"), ["q.csv", "not UTF-8 (at byte 21)"]),
        ("q.jsonl", '{"question": "q", "choices": ["x", " "], "answer": 0}', ["q.jsonl:1", "an option without text"]),
        (
            "q.jsonl",
            '{"Question": "q", "question": "r", "A": "x", "B": "y", "answer": 0}',
            ["q.jsonl:1", "two columns"],
        ),
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
def test_bad_rows_are_refused_by_file_and_line(name: str, text: str | bytes, words: list[str], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
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


def test_what_lm_eval_would_pass_over_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tasks/deep").mkdir(parents=True)
    (tmp_path / "tasks/a.yaml").write_text("task: own_a\n")
    (tmp_path / "tasks/deep/b.yaml").write_text("task: own_b\nx: [1,\ny: 2\n")
    (tmp_path / "mine.yml").write_text("task: own_a\n")
    (tmp_path / "list.yaml").write_text("- a\n")
    (tmp_path / "twice").mkdir()
    for name in ("a", "b"):
        (tmp_path / f"twice/{name}.yaml").write_text("task: own_t\n")
    (tmp_path / "rows.json").write_text("[]")
    row = "question,A,B,answer\nq,x,y,A\n"
    (tmp_path / "piqa.csv").write_text(row)
    damaged = r"tasks/deep/b\.yaml: lm-eval cannot read it \(line 4: "
    for entries, words in (
        (["tasks"], damaged),
        (["tasks/deep/b.yaml"], damaged),
        (["mine.yml"], r"eval\.tasks: got mine\.yml, allowed is a file that ends in .*\.csv.*\.yaml"),
        (["rows.json"], r"eval\.tasks: got rows\.json, allowed is a file"),
        (["list.yaml"], "list.yaml: lm-eval cannot read it"),
        (["twice"], r"b\.yaml: defines own_t, as .*a\.yaml does; rename one"),
        ([""], "an entry is empty"),
        (["a" * 5000], "no task 'aaa"),
        (["piqa.csv", "piqa"], r"piqa\.csv is called piqa, as another entry is; rename the file"),
    ):
        with pytest.raises(UserError, match=words):
            catalogue.find(entries)
    with pytest.raises(UserError, match=damaged):
        catalogue.find(["own_b"], ["tasks"])
    assert catalogue.find(["own_a"], ["tasks"]).names == {"own_a": ["own_a"]}
    (tmp_path / "piqa").mkdir()  # a folder that only has the name of a task
    assert catalogue.find(["piqa"]).names == {"piqa": ["piqa"]}


def test_a_task_whose_code_or_metric_cannot_work_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([{"question": "q", "answer": "a"}]))
    (tmp_path / "utils.py").write_text("raise SystemExit('no prolog')\n")
    task = {"task": "own_gen", "dataset_path": "json", "dataset_kwargs": {"data_files": str(tmp_path / "rows.json")}}
    task |= {
        "test_split": "train",
        "output_type": "generate_until",
        "doc_to_text": "question",
        "doc_to_target": "answer",
    }
    metric = {"metric": "nosuch", "aggregation": "mean", "higher_is_better": True}
    file = tmp_path / "a.yaml"
    file.write_text(yaml.safe_dump(task | {"metric_list": [metric]}))
    monkeypatch.setattr("lm_eval.api.task.get_metric", lambda *_: None)  # as where the hub cannot be reached
    with pytest.raises(UserError, match=r"own_gen needs the metric nosuch"):
        catalogue.loaded(Eval(tasks=[str(file)]))
    file.write_text(yaml.safe_dump(task) + "process_docs: !function utils.docs\n")
    with pytest.raises(UserError, match=r"ends the program while it is loaded"):
        catalogue.loaded(Eval(tasks=[str(file)]))


def test_prompts_that_lm_eval_cannot_make_are_refused_before_training(tmp_path: Path) -> None:
    rows = [{"question": f"q{i}", "options": ["x", "y", "z"], "right": [0, i % 3]} for i in range(6)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    task = {
        "task": "own_several",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": str(tmp_path / "rows.json")},
    }
    task |= {"test_split": "train", "output_type": "multiple_choice", "doc_to_text": "question"}
    task |= {"doc_to_choice": "options", "doc_to_target": "right"}
    file = tmp_path / "a.yaml"
    file.write_text(yaml.safe_dump(task))
    harness.refuse(Eval(tasks=[str(file)]), None, 100)
    with pytest.raises(
        UserError, match=r"eval\.num_fewshot: lm-eval cannot make the prompts of own_several .*leave examples out"
    ):
        harness.refuse(Eval(tasks=[str(file)], num_fewshot=2), None, 100)


def test_a_look_at_the_first_prompt_changes_no_example(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("question,A,B,answer\n" + "".join(f"q{i},x{i},y{i},A\n" for i in range(9)))
    settings = Eval(tasks=[str(tmp_path / "mine.csv")], num_fewshot=3)

    def prompts() -> list[str]:
        (task,) = catalogue.loaded(settings)["tasks"].values()
        task.build_all_requests()
        return [request.args[0] for request in task.instances]

    before = prompts()
    harness.refuse(settings, None, 100)
    assert prompts() == before


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
    every = Questions(forget=["a"], adjacent=["b"], general=["c"])
    shown = Run(layer=1, steer=[1.0], alpha=[1.0], data=Data(questions=every), eval=Eval(tasks=[])).tasks_by_role
    assert shown == {"forget": ["a"], "adjacent": ["b"], "general": ["c"]}, "prompts are of every role, asked or not"
