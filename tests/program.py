"""train.py and its like as processes that need not import anything: forked from one that has.

A small run spends most of its time on importing. A fork has a working folder, an environment, signals and an exit
status of its own; only what libraries read of the environment when they are imported (HF_HOME, HF_ENDPOINT) it has not.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from threading import Lock, Thread

ROOT = Path(__file__).parents[1]
IMPORTED = ["rmu_exp.cli.job", "rmu_exp.model.export", "rmu_exp.sweep.session", "rmu_exp.evaluation.engine"]
IMPORTED += ["transformers.models.mistral.modeling_mistral", "transformers.convert_slow_tokenizer", "matplotlib.pyplot"]
IMPORTED += ["lm_eval.tasks", "lm_eval.evaluator", "lm_eval.models.huggingface"]  # not wandb: forks shared its folder
ASKING = Lock()


@cache
def _server() -> subprocess.Popen[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen([sys.executable, __file__], env=env, text=True, **pipes)


class Program:
    """A Python program that runs, with what tests use of ``subprocess.Popen``. Its name is relative to the project.

    Args:
        env: its environment; else the tests', without W&B's.
        more: what is added to that.
    """

    def __init__(self, *words: object, cwd: Path = ROOT, env: Mapping[str, str] = os.environ, **more: object) -> None:
        self.args = [str(ROOT / str(words[0])), *map(str, words[1:])]
        self.folder = tempfile.mkdtemp()
        given = {k: v for k, v in env.items() if env is not os.environ or not k.startswith("WANDB_")}
        given |= {"PYTHONPATH": str(ROOT / "src")} | {key: str(value) for key, value in more.items()}
        asked = {"words": self.args, "cwd": str(cwd), "env": given, "folder": self.folder}
        with ASKING:
            server = _server()
            print(json.dumps(asked), file=server.stdin, flush=True)
            self.pid = int(server.stdout.readline())

    def poll(self) -> int | None:
        """The exit status, or the number of a signal below zero; None while it runs."""
        file = Path(self.folder, "status")
        return int(file.read_text()) if file.exists() else None

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """Standard output and standard error, once it and what it has started have ended."""
        deadline, both = time.monotonic() + timeout, [Path(self.folder, name) for name in ("out", "err")]
        while self.poll() is None or not all(file.exists() for file in both):
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(0.01)
        return both[0].read_text(), both[1].read_text()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(*words: object, timeout: float = 300, **how: object) -> subprocess.CompletedProcess[str]:
    """A program to its end, as ``subprocess.run`` gives it."""
    started = Program(*words, **how)
    try:
        out, err = started.communicate(timeout)
    except subprocess.TimeoutExpired:
        started.kill()
        raise
    return subprocess.CompletedProcess(started.args, started.returncode, out, err)


def _serve() -> dict:
    """Fork for each line that is read. Returns, in a fork, what it was asked for."""
    for line in sys.stdin:
        asked = json.loads(line)
        if os.fork():
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        pipes = [os.pipe(), os.pipe()]
        child = os.fork()
        if child == 0:
            for place, (_, end) in enumerate(pipes, 1):
                os.dup2(end, place)
            return asked
        print(child, flush=True)
        for name, (begin, end) in zip(("out", "err"), pipes, strict=True):
            os.close(end)
            Thread(target=_keep, args=(Path(asked["folder"], name), begin)).start()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        _write(Path(asked["folder"], "status"), str(status).encode())
        sys.exit()
    sys.exit()


def _keep(file: Path, pipe: int) -> None:
    with open(pipe, "rb") as read:
        _write(file, read.read())


def _write(file: Path, content: bytes) -> None:
    file.with_suffix(".part").write_bytes(content)
    file.with_suffix(".part").rename(file)


if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # of forks that have ended nothing is left
    from rmu_exp.cli.compose import silence_libraries

    silence_libraries()  # as train.py does before it imports
    for module in IMPORTED:
        importlib.import_module(module)
    asked = _serve()
    os.setsid()
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = asked["words"]
    runpy.run_path(sys.argv[0], run_name="__main__")
