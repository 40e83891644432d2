"""All figures that need a GPU, within 20 minutes on an H100: the rows of docs/performance.md.

    make bench-gpu                                  # python bench/gpu.py docs/results/gpu.json
    python bench/gpu.py --tiny FILE.json            # the same programs on the CPU, at sizes that say nothing

Each row is a command; the file keeps it, its seconds and what it printed, beside the device, the versions and the
commit. The last row unlearns a model of Llama 3 8B's shape with random weights, under a budget of KL, and finetunes it
back by LoRA: what it answers means nothing, what it takes is that of any model of this shape.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import fit
import torch
from transformers import AutoTokenizer

from rmu_exp.model.checkpoint import locate
from rmu_exp.record import provenance
from rmu_exp.support.files import write_atomic

ROOT = Path(__file__).resolve().parents[1]
STEP, QUESTIONS = "bench/step.py", "bench/questions.py"
LARGE = "--device cuda --dtype bfloat16"
ZEPHYR = f"{STEP} {LARGE} --shape zephyr --length 512"
ROWS = {
    "Zephyr's shape, a step of ours": f"{ZEPHYR} --steps 50 --rounds 3 --only ours",
    "Zephyr's shape, a step of two full models": f"{ZEPHYR} --steps 50 --rounds 3 --only theirs",
    "Zephyr's shape, memory": f"{ZEPHYR} --memory",
    "150 batches": f"{ZEPHYR} --steps 150 --rounds 2 --only ours",
    "17,727 questions": f"{QUESTIONS} {LARGE} --shape zephyr --questions 311 --subjects 57 --few-shot 0 --repeats 1",
    "Mixtral's shape, its first eight layers": f"{STEP} {LARGE} --shape mixtral --length 512 --only ours",
}
SMALL = "--hidden 64 --vocab 200 --layers 9 --length 12"
TINY = {
    name: f"{STEP} {SMALL} --steps 2 --rounds 1 {'--memory' if 'memory' in name else '--only ours'}"
    if STEP in words
    else f"{QUESTIONS} --hidden 64 --layers 2 --vocab 500 --questions 6 --subjects 2 --few-shot 0 --repeats 1"
    for name, words in ROWS.items()
}
WHOLE = "8B: 40 steps under a budget of KL, then LoRA back"
RUN = (
    "train.py model=local data=atlas layer=7 steer=6.5 alpha=1200 train.lr=5e-5 train.max_batches=40 "
    "train.kl_budget=0.1 data.max_length=512 eval.limit=20 eval.samples=0 eval.damage=8 data.attacked=8 "
    "attacks=[relearn] attacks.relearn.sources=[forget] attacks.relearn.samples=[50] attacks.relearn.how=lora "
    "attacks.relearn.where=all tracking=off"
)
TOOK = ("seconds", "seconds_per_step", "seconds_measuring", "peak_memory_bytes", "kl", "kl_reached")


def ran(words: str, limit: float) -> dict[str, Any]:
    """A command, its seconds, its exit status and what it printed."""
    began = time.perf_counter()
    line = [sys.executable, *shlex.split(words)]
    try:
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"command": words, "seconds": round(limit, 1), "status": "did not end in time", "printed": []}
    said = done.stdout.splitlines()
    row = {"command": words, "seconds": round(time.perf_counter() - began, 1), "status": done.returncode}
    return row | {"printed": said if done.returncode == 0 else [*said, *done.stderr.splitlines()[-3:]]}


def whole_run(folder: Path, tiny: bool, end: float) -> dict[str, Any]:
    """The last row: results.json's numbers in place of what is printed."""
    shape = (64, 128, 9, 4, 2, 49152) if tiny else fit.SHAPES["8B"]
    place = fit.checkpoint(folder / "model", shape, "bfloat16")
    AutoTokenizer.from_pretrained(locate("smollm2_135m").folder).save_pretrained(place)
    words = f"{RUN} model.path={place} output={folder / 'run'}"
    row = ran(words + " model.device=cpu" * tiny, max(1.0, end - time.perf_counter()))
    row["command"] = RUN
    if row["status"] == 0:
        found = json.loads((folder / "run/results.json").read_text(encoding="utf-8"))
        row["printed"] = [f"{key}: {found['train'][key]}" for key in TOOK if key in found["train"]]
        row["printed"] += [f"relearn {key}: {value}" for key, value in found["attacks"]["relearn"]["budget"].items()]
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="what is written")
    parser.add_argument("--tiny", action="store_true", help="on the CPU, at sizes that say nothing")
    parser.add_argument("--minutes", type=float, default=20, help="for all of it; what is left out then says so")
    args = parser.parse_args()
    if not args.tiny and not torch.cuda.is_available():
        print("bench/gpu.py: no GPU is visible; --tiny runs the same programs on the CPU", file=sys.stderr)
        return 2
    end, rows = time.perf_counter() + 60 * args.minutes, dict[str, Any]()
    state = provenance.git_state()
    device = "cpu" if args.tiny else torch.cuda.get_device_name()
    about = {"device": device, "versions": provenance.versions(), "git": vars(state) if state else None}

    def note(name: str, row: dict[str, Any]) -> None:
        rows[name] = row
        write_atomic(args.file, json.dumps(about | {"rows": rows}, indent=1) + "\n")  # after each: a session may end
        print(f"{name}: {row['seconds']} s", *row["printed"], sep="\n  ", flush=True)

    for name, words in (TINY if args.tiny else ROWS).items():
        note(name, ran(words, max(1.0, end - time.perf_counter())))
    with tempfile.TemporaryDirectory(prefix="rmu_exp-") as folder:
        note(WHOLE, whole_run(Path(folder), args.tiny, end))
    return int(any(row["status"] != 0 for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
