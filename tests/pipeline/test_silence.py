"""How long a run says nothing, in a terminal: a person who watches should never wonder whether it still works."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FIRST, LONGEST = 2.0, 10.0  # seconds
WORDS = ["model=lore", "data=lore", "eval.limit=40", "train.max_batches=40", "eval.samples=4", "model.threads=1"]
ATTACKS = ["probe", "relearn", "gcg", "prune", "latent", "soft_prompt", "quantise"]
WORDS += [f"attacks=[{','.join(ATTACKS)}]", "attacks.gcg.steps=20", "tracking=off"]


def used(pid: int) -> float:
    """Seconds of processor time of a process, which do not count while others have the machine."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def silences(line: list[str], cwd: Path) -> tuple[int, list[tuple[float, str]]]:
    """A command in a terminal: its exit status, and its silences in their order, with what it had said last."""
    ours, theirs = pty.openpty()
    env = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(line, cwd=cwd, env=env, stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True)
    os.close(theirs)
    found, before, last = list[tuple[float, str]](), 0.0, ""
    while process.poll() is None:
        if select.select([ours], [], [], 0.1)[0]:
            try:
                said = os.read(ours, 65536).decode(errors="replace")
            except OSError:  # a terminal that nobody writes to any more
                break
            now = used(process.pid)
            found.append((now - before, last))
            before, last = now, said.strip()[-200:] or last
    os.close(ours)
    return process.wait(), found


@pytest.mark.slow
def test_a_run_with_attacks_is_never_silent_for_long(tmp_path):
    line = [sys.executable, str(ROOT / "train.py"), *WORDS, f"output={tmp_path / 'run'}"]
    status, found = silences(line, tmp_path)
    assert status == 0
    assert found[0][0] < FIRST
    longest = sorted(found, reverse=True)
    assert longest[0][0] < LONGEST, longest[:5]
