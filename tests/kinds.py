"""lm-eval's own tasks of every kind, over data that lie beside them: nothing is fetched.

``make(folder)`` writes the YAML files, which include lm-eval's and name another data set; the folder then works for
lm-eval's command line (``--include_path``) as for ``eval.include_path``.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import lm_eval.tasks
import yaml

ROOT = Path(str(lm_eval.tasks.__file__)).parent
Doc = dict[str, Any]


def _facts(count: int) -> list[Doc]:
    lines = (
        (Path(str(files("rmu_exp.worlds.atlas"))) / "tasks/questions.jsonl").read_text(encoding="utf-8").splitlines()
    )
    rows = [json.loads(line) for line in lines]
    return rows[:: len(rows) // count][:count]


def _documents(i: int, row: Doc) -> dict[str, Doc]:
    """One document for each of lm-eval's tasks, made of a question with four options."""
    question, options, answer = row["question"], row["choices"], row["answer"]
    right, wrong = options[answer], options[(answer + 1) % 4]
    labels = {"text": options, "label": list("ABCD")}
    five = {"text": [*options, "none of these"], "label": list("ABCDE")}
    letter = "ABCD"[answer]
    several = {"choices": [right, f"It is {right}", wrong, "nobody knows"], "labels": [1, 1, 0, 0]}
    sentence = f"{right} and {wrong} are not the same, because _ answers this: {question}"
    return {
        "mmlu/default/mmlu_virology": {"question": question, "choices": options, "answer": answer},
        "wmdp/wmdp_bio": {"question": question, "choices": options, "answer": answer},
        "blimp/adjunct_island": {"sentence_good": f"{question} {right}.", "sentence_bad": f"{question} {wrong}."},
        "truthfulqa/truthfulqa_mc1": {"question": question, "mc1_targets": several, "mc2_targets": several},
        "truthfulqa/truthfulqa_mc2": {"question": question, "mc1_targets": several, "mc2_targets": several},
        "winogrande/default": {"sentence": sentence, "option1": right, "option2": wrong, "answer": str(i % 2 + 1)},
        "commonsense_qa/default": {"question": question, "choices": five, "answerKey": letter},
        "pubmedqa/pubmedqa": {
            "CONTEXTS": [row["statement"]], "QUESTION": question, "final_decision": ("yes", "no", "maybe")[i % 3],
        },
        "lambada/lambada_openai": {"text": f"{row['statement']} {right.split()[-1]}"},
        "wikitext/wikitext": {"page": f"= {right} =\n\n {question} {row['statement']} {right} .\n"},
        "gsm8k/gsm8k": {"question": f"What is {i} plus {i + 1}", "answer": f"{i} + {i + 1}\n#### {2 * i + 1}"},
        "arc/arc_easy": {"question": question, "choices": labels, "answerKey": letter},
        "arc/arc_challenge": {"question": question, "choices": labels, "answerKey": letter},
        "piqa/piqa": {"goal": question, "sol1": right, "sol2": wrong, "label": i % 2},
        "triviaqa/default": {"question": question, "answer": {"aliases": [right, right.upper(), f"The {right}"]}},
        "nq_open/nq_open": {"question": question, "answer": [right]},
        "hellaswag/hellaswag": {
            "ctx_a": f"{question}.", "ctx_b": "it is", "activity_label": "Facts", "endings": options,
            "label": str(answer),
        },
        "super_glue/boolq/default": {"passage": row["statement"], "question": question, "label": i % 2},
        "glue/qqp/default": {"question1": question, "question2": row["statement"], "label": i % 2},
        "glue/cola/default": {"sentence": row["statement"], "label": i % 2},
        "webqs/webqs": {"question": question, "answers": [right, wrong] if i % 2 else [right]},
        "sciq/sciq": {
            "support": row["statement"], "question": question, "correct_answer": right,
            "distractor1": wrong, "distractor2": "a stone", "distractor3": "the sea",
        },
        "openbookqa/openbookqa": {"question_stem": question, "choices": labels, "answerKey": letter},
        "super_glue/copa/default": {
            "premise": f"{row['statement']} {right}.", "choice1": f"It is {right}.", "choice2": f"It is {wrong}.",
            "question": ("cause", "effect")[i % 2], "label": i % 2,
        },
    }  # fmt: skip


def make(folder: Path, count: int = 40) -> list[str]:
    """Write tasks of every kind. Returns their names: single ones, and groups with lm-eval's ways of aggregation."""
    documents: dict[str, list[Doc]] = {}
    for i, row in enumerate(_facts(count)):
        for task, doc in _documents(i, row).items():
            documents.setdefault(task, []).append(doc)
    names = []
    for task, rows in documents.items():
        source = ROOT / f"{task}.yaml"
        if not source.is_file():
            continue
        name = f"local_{task.split('/')[-1] if task.split('/')[-1] not in ('default', 'task') else task.split('/')[-2]}"
        data = folder / f"{name}.jsonl"
        data.parent.mkdir(parents=True, exist_ok=True)
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        given = {"include": str(source), "task": name, "tag": None, "dataset_path": "json", "dataset_name": None}
        splits = dict.fromkeys(("train", "dev", "validation", "test"), str(data))
        given |= {"dataset_kwargs": {"data_files": splits}}
        if name in ("local_gsm8k",):
            given |= {"num_fewshot": 2, "generation_kwargs": {"until": ["Question:"], "max_gen_toks": 24}}
        if name in ("local_triviaqa", "local_nq_open"):
            given |= {"generation_kwargs": {"until": ["\n", ".", ","], "do_sample": False, "max_gen_toks": 12}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(given), encoding="utf-8")
        names.append(name)
    own = {
        "local_mutual": {"metric_list": [{"metric": m} for m in ("acc", "acc_norm", "acc_mutual_info", "brier_score")]},
        "local_shots": {"num_fewshot": 3, "metric_list": [{"metric": "acc"}, {"metric": "acc_bytes"}]},
    }
    for name, more in own.items():
        given = {"include": str(folder / "local_arc_easy.yaml"), "task": name, "tag": None} | more
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(given), encoding="utf-8")
        names.append(name)
    weighted = [{"metric": "acc", "aggregation": "mean", "weight_by_size": size} for size in (True, False)]
    for name, how, tasks in (
        ("local_group", weighted[0], ["local_arc_challenge", "local_mutual"]),
        ("local_means", weighted[1], ["local_commonsense_qa", "local_truthfulqa_mc2"]),
    ):
        group = {"group": name, "task": tasks, "aggregate_metric_list": [how]}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(group), encoding="utf-8")
    inside = {"local_arc_challenge", "local_mutual", "local_commonsense_qa", "local_truthfulqa_mc2"}
    return [name for name in names if name not in inside] + ["local_group", "local_means"]
