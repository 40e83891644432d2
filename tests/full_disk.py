"""Runs whose disk is full or broken from the n-th request for space on, in forked processes; then resumed.

    LD_PRELOAD=full_disk.so python full_disk.py PLACE ERROR FOLDER EVERY OVERRIDES…

``full_disk.so`` is full_disk.c, compiled. PLACE is ``run`` or ``cache``: which folder's disk fails; ERROR is ENOSPC
or the like. Prints a line of JSON for the undisturbed run, and one for every EVERY-th request of it.
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from rmu_exp.cli import compose, job
from rmu_exp.settings import Run

ROOT = Path(__file__).parent.parent
HEAVY = ["rmu_exp.pipeline.run", "rmu_exp.evaluation.engine", "rmu_exp.model.export", "transformers.trainer"]
HEAVY += ["transformers.models.mistral.modeling_mistral", "lm_eval.tasks", "lm_eval.models.huggingface"]
ENDS_EARLY = ("metrics.jsonl", "run.log")
CHANGES = ("results.json", "report.md", "report.html", "README.md")  # they have seconds in them

shim = ctypes.CDLL(None)
shim.full_disk.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int]
shim.full_disk_requests.restype = ctypes.c_long


def start(run: Run, folder: Path, place: Path, full_at: int = 0, error: str = "ENOSPC") -> dict[str, Any]:
    """One run in a process of its own, as the command line executes it."""
    told, counted = folder.with_suffix(".told"), folder.with_suffix(".requests")
    child = os.fork()
    if child == 0:
        os.dup2(os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        shim.full_disk(str(place).encode(), full_at, getattr(errno, error))
        status = 99
        try:
            status = job.execute(lambda: run, folder)
        finally:
            counted.write_text(str(shim.full_disk_requests()))
            sys.stderr.flush()
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    lines = [s for s in told.read_text().splitlines() if s.startswith(("rmu_exp", "Traceback")) or "rror" in s]
    return {"status": status, "told": lines, "requests": int(counted.read_text())}


def files(folder: Path) -> dict[str, bytes]:
    found = (f for f in folder.rglob("*") if f.is_file()) if folder.is_dir() else ()
    return {str(f.relative_to(folder)): f.read_bytes() for f in found if f.name != ".lock"}


def half_written(folder: Path, whole: dict[str, bytes]) -> list[str]:
    """Files that are neither whole nor allowed to end early."""
    bad = []
    for name, data in files(folder).items():
        plain = name.rpartition("/")[2]
        if plain in ENDS_EARLY:
            good = plain == "run.log" or whole[name].startswith(data[:80])
        elif plain == "results.json":
            good = isinstance(json.loads(data), dict)
        elif plain in CHANGES:
            good = data[-80:] == whole[name][-80:]
        else:
            good = name.startswith("state/") or data == whole.get(name)
        bad += [] if good else [name]
    return bad


def measured(folder: Path) -> Any:
    """results.json and the Delta, timings aside."""
    results = json.loads((folder / "results.json").read_text())
    results["train"] = results["train"]["steps"]
    for attack in results.get("attacks", {}).values():
        attack["budget"].pop("seconds")
    return results, (folder / "delta.safetensors").read_bytes(), sorted(files(folder))


def main(where: str, error: str, given: str, every: str, *words: str) -> None:
    for name in HEAVY:
        importlib.import_module(name)
    folder, cache = Path(given) / "run", Path(given) / "cache"
    os.environ["RMU_EXP_CACHE"] = str(cache)
    (run,) = compose.composed([*words, f"output={folder}"], ROOT / "conf")
    place = folder if where == "run" else cache
    start(run, folder, place)  # fills the cache
    shutil.rmtree(folder)
    if where == "cache":
        shutil.rmtree(cache)
    undisturbed = start(run, folder, place)
    whole, wanted = files(folder), measured(folder)
    print(json.dumps(undisturbed | {"files": sorted(whole)}), flush=True)
    for n in range(1, undisturbed["requests"] + 1, int(every)):
        shutil.rmtree(folder)
        if where == "cache":
            shutil.rmtree(cache, ignore_errors=True)  # the one before may not have been able to make it
        line = start(run, folder, place, n, error) | {"n": n, "half": half_written(folder, whole)}
        again = start(run, folder, place) if line["status"] else line
        line |= {"again": again["status"], "told_again": again["told"], "same": measured(folder) == wanted}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
