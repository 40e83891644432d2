"""What a run prints of tasks of every kind against lm-eval's own command line on its exported checkpoint.

    python bench/as_lm_eval.py FOLDER [--way plain|shots|chat|part|drawn] [--limit 40] [KEY=VALUE …]

The tasks are lm-eval's own over local data (tests/kinds.py). Three steps of unlearning make a checkpoint that is not
the base. Every metric and standard error is compared, every choice, and every text that was generated; the exit
status is 1 when a metric is further than 1e-6 away, or a choice or a text is another one. KEY=VALUE go to train.py.
"""

from __future__ import annotations

import argparse
import json
import runpy
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lm_eval

from rmu_exp.evaluation import catalogue, harness
from rmu_exp.settings import Eval
from rmu_exp.support.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
RUN = ["data.forget=[atlas:elements]", "data.topics=[elements]", "steer=6.5", "alpha=100", "train.max_batches=3"]
RUN += ["data.max_length=48", "tracking=off", "export=true", "eval.corrected=false", "eval.samples=0", "eval.damage=0"]
RUN += ["eval.ripple=off", "data.questions.forget=[]", "data.questions.adjacent=[]", "data.questions.general=[]"]
SYSTEM = "Answer in one word."
WAYS: dict[str, tuple[list[str], list[str]]] = {
    "plain": ([], []),
    "shots": (["eval.num_fewshot=2"], ["--num_fewshot", "2"]),
    "chat": (
        ["eval.chat_template=true", f"eval.system_prompt='{SYSTEM}'", "eval.num_fewshot=1"],
        ["--apply_chat_template", "--system_instruction", SYSTEM, "--num_fewshot", "1"],
    ),
    "part": ([], []),
    "drawn": (["eval.draw=1"], []),
}
WITHIN = 1e-6
SLOW = ("local_qqp", "local_cola")  # standard errors of F1 and MCC: 100,000 draws, minutes each
Samples = dict[str, list[dict[str, Any]]]


def ours(words: list[str]) -> Samples:
    """Run train.py in this process. Returns what lm-eval noted of the unlearned model, by task."""
    seen: list[Samples] = []
    evaluate = lm_eval.evaluate

    def watched(*args: Any, **kwargs: Any) -> Any:
        found = evaluate(*args, **kwargs)
        seen.append(found["samples"])
        return found

    lm_eval.evaluate, sys.argv = watched, ["train.py", *words]
    try:
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    finally:
        lm_eval.evaluate = evaluate
    return seen[-1]  # the base is asked first, or not at all


def theirs(folder: Path, words: list[str]) -> tuple[dict[str, Any], Samples]:
    """lm-eval's command line on the checkpoint: its results and what it noted, by task."""
    line = [
        "run",
        "--model",
        "hf",
        "--model_args",
        f"pretrained={folder / 'run/model'},dtype=float32",
        "--device",
        "cpu",
    ]
    line += [
        "--batch_size",
        "8",
        "--include_path",
        str(folder / "tasks"),
        "--output_path",
        str(folder / "theirs"),
        "--log_samples",
        *words,
    ]
    subprocess.run([sys.executable, "-m", "lm_eval", *line], check=True)
    (results,) = (folder / "theirs").rglob("results_*.json")
    samples: Samples = {}
    for file in results.parent.glob("samples_*.jsonl"):
        name = file.name.removeprefix("samples_").rsplit("_", 1)[0]
        samples[name] = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return json.loads(results.read_text(encoding="utf-8"))["results"], samples


def answers(samples: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Each question's choice (of several likelihoods) or text, and the likelihoods."""
    found: list[tuple[Any, ...]] = []
    for sample in sorted(samples, key=lambda s: (s["filter"], s["doc_id"])):
        given = sample["filtered_resps"]
        if all(isinstance(value, (list, tuple)) for value in given) and all(len(value) == 2 for value in given):
            likely = [float(value[0]) for value in given]
            found.append((sample["doc_id"], likely.index(max(likely)), likely))
        else:
            found.append((sample["doc_id"], given if isinstance(given[0], str) else None, []))
    return found


def compare(run: dict[str, Any], results: dict[str, Any], mine: Samples, its: Samples) -> int:
    """Print what differs, and a summary. Returns how many things differ."""
    values, worst, wrong = 0, 0.0, 0
    for task, row in results.items():
        for key, theirs_of in zip(("metrics", "metrics_stderr"), harness.metrics_of(row), strict=True):
            for metric, value in theirs_of.items():
                got = run["qa"][task]["unlearned"][key].get(metric)
                values += 1
                both_nan = value != value and (got is None or got != got)
                apart = (
                    0.0 if both_nan else abs(got - value) / max(1.0, abs(value)) if got is not None else float("inf")
                )
                worst = max(worst, apart)
                if apart > WITHIN:
                    wrong += 1
                    print(f"{task} {key} {metric}: {got} here, {value} there")
    asked, widest = 0, 0.0
    for task, noted in its.items():
        for one, other in zip(answers(mine[task]), answers(noted), strict=True):
            asked += 1
            if one[:2] != other[:2] and not (isinstance(other[1], list) and one[1] is None):
                wrong += 1
                print(f"{task}: {one[:2]} here, {other[:2]} there")
            widest = max([widest, *(abs(a - b) for a, b in zip(one[2], other[2], strict=True))])
    print(f"{len(results)} tasks and groups, {values} metrics and standard errors: furthest apart {worst:.1e}")
    print(f"{asked} questions: log-likelihoods differ by at most {widest:.1e}; {wrong} things differ")
    return wrong


def takes_examples(name: str, folder: Path, shots: int) -> bool:
    """Whether lm-eval can put solved examples before a task's questions; prints why not."""
    try:
        harness.refuse(Eval(tasks=[name], include_path=[str(folder)], num_fewshot=shots), None, 10**6)
    except UserError as error:
        print(f"left out: {error}")
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--way", choices=WAYS, default="plain")
    parser.add_argument("--limit", type=int, default=40)
    parser.add_argument("--tasks", help="some of the tasks, with commas between them")
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE")
    args = parser.parse_intermixed_args()
    folder = args.folder.absolute()
    sys.path.insert(0, str(ROOT / "tests"))
    import kinds

    made = kinds.make(folder / "tasks", args.limit)
    names = args.tasks.split(",") if args.tasks else [name for name in made if name not in SLOW]
    here, there = WAYS[args.way]
    if shots := next((int(word.partition("=")[2]) for word in here if word.startswith("eval.num_fewshot=")), 0):
        names = [name for name in names if takes_examples(name, folder / "tasks", shots)]
    limit = {"part": 0.3, "drawn": args.limit // 2}.get(args.way, args.limit)
    words = [*RUN, f"eval.limit={limit}", f"eval.tasks=[{','.join(names)}]"]
    words += [f"eval.include_path=[{folder / 'tasks'}]", f"output={folder / 'run'}", *here, *args.words]
    limits = ["--limit", str(limit)]
    if args.way == "drawn":
        settings = Eval(tasks=names, include_path=[str(folder / "tasks")], limit=limit, draw=1)
        tasks = catalogue.loaded(settings)["tasks"]
        limits = [
            "--samples",
            json.dumps({name: list(catalogue.places(task, settings)) for name, task in tasks.items()}),
        ]
    began = time.perf_counter()
    mine = ours(words)
    middle = time.perf_counter()
    results, its = theirs(folder, ["--tasks", ",".join(names), *limits, *there])
    print(f"train.py with both models {middle - began:.0f} s, lm-eval on one {time.perf_counter() - middle:.0f} s")
    run = json.loads((folder / "run/results.json").read_text(encoding="utf-8"))
    sys.exit(int(compare(run, results, mine, its) > 0))


if __name__ == "__main__":
    main()
