"""Disks that are full or read-only under real runs: at every request for space, and as small file systems."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import program
import pytest
from small_disk import mounted, remount

from rmu_exp.support.boundary import line_for
from rmu_exp.support.files import write_atomic

HERE = Path(__file__).parents[1]
SMALL = """model=lore data=lore layer=7 train.max_batches=4 train.batch_size=4 eval.tasks=[lore_forget] eval.limit=5
    attacks=[quantise] attacks.quantise.bits=[8] export=true"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """full_disk.c, compiled."""
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs Linux and a C compiler")
    made = tmp_path_factory.mktemp("shim") / "full_disk.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", made, HERE / "full_disk.c", "-ldl"], check=True)
    return made


def runs(shim: Path, folder: Path, where: str, error: str, every: int, *words: str) -> list[dict[str, Any]]:
    """What full_disk.py tells: of the undisturbed run, and of those whose disk failed."""
    env = os.environ | {"LD_PRELOAD": str(shim), "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        HERE / "full_disk.py",
        where,
        error,
        folder,
        str(every),
        *SMALL.split(),
        "tracking=off",
        *words,
    ]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check_resumable(line: dict[str, Any], folder: Path, words: str) -> None:
    """One line, exit status 1, nothing half-written, and the next start ends as if nothing had been."""
    assert line["status"] == 1, line
    (message,) = line["told"]
    assert message.startswith("rmu_exp: ")
    assert words in message
    assert f"the same command with output={folder / 'run'} resumes it" in message
    assert line["half"] == []
    assert (line["again"], line["told_again"], line["same"]) == (0, [], True)


@pytest.mark.parametrize(
    ("error", "every", "words"),
    [
        ("ENOSPC", 90, "no space left on "),
        pytest.param("ENOSPC", 1, "no space left on ", marks=pytest.mark.slow),
        pytest.param("EROFS", 15, "has become read-only", marks=pytest.mark.slow),
        pytest.param("EIO", 15, "input/output error", marks=pytest.mark.slow),
    ],
)
def test_a_disk_that_fails_ends_in_one_line_and_loses_nothing(shim, tmp_path: Path, error, every, words) -> None:
    """At each so many of the run's requests for space; at the last of all only the folder is still to be flushed."""
    undisturbed, *others = runs(shim, tmp_path, "run", error, every)
    assert undisturbed["requests"] > 90
    assert len(others) >= undisturbed["requests"] // every
    for line in others[:-1] if every == 1 else others:
        check_resumable(line, tmp_path, words)


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_costs_time_and_not_the_run(shim: Path, tmp_path: Path) -> None:
    undisturbed, *others = runs(shim, tmp_path, "cache", "ENOSPC", 4, "share.when=always")
    assert undisturbed["requests"] > 20
    for line in others:
        assert (line["status"], line["half"], line["same"]) == (0, [], True), line
        assert all("kept" in message or "not shared" in message for message in line["told"])


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    with mounted(tmp_path / "disk") as place:
        yield place


def train(*words: str, cache: Path) -> subprocess.CompletedProcess[str]:
    return program.run("train.py", *SMALL.split(), *words, RMU_EXP_CACHE=cache)


def whole(folder: Path) -> None:
    """Every file that must be whole can be read."""
    from safetensors import safe_open

    assert not [f for f in folder.rglob(".*") if f.name != ".lock" and "wandb" not in f.parts]
    for file in folder.rglob("*.safetensors"):
        with safe_open(file, "pt") as found:
            assert list(found.keys())
    for file in folder.glob("*.json"):
        json.loads(file.read_text())


@pytest.mark.parametrize(
    "sizes",
    [("400k",), pytest.param(("24k", "48k", "640k"), marks=pytest.mark.slow)],
    ids=len,
)
def test_small_file_systems_with_weights_and_biases_beside(disk: Path, tmp_path: Path, sizes: tuple[str, ...]) -> None:
    folder = disk / "run"
    for size in sizes:
        shutil.rmtree(folder, ignore_errors=True)
        remount(disk, f"size={size}")
        done = train(f"output={folder}", cache=tmp_path / "cache")
        lines = [line for line in done.stderr.splitlines() if line.startswith("rmu_exp:")]
        assert done.returncode == 1, (size, done.stderr)
        assert "Traceback" not in done.stderr, done.stderr
        assert len(lines) == 1, done.stderr
        assert "export" in lines[0] or "no space left on" in lines[0]
        assert f"output={folder}" in lines[0]
        whole(folder)
    remount(disk, "size=64m")
    done = train(f"output={folder}", cache=tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    assert (folder / "report.md").is_file()
    assert (folder / "model" / "model.safetensors").is_file()
    assert not (folder / "state").exists()


@pytest.mark.slow
def test_a_read_only_disk_is_refused_and_a_read_only_cache_is_used(disk: Path, tmp_path: Path) -> None:
    remount(disk, "size=64m")
    shared = ("tracking=off", "share.when=always")
    done = train(f"output={tmp_path / 'one'}", *shared, cache=disk / "cache")
    assert done.returncode == 0, done.stderr
    remount(disk, "ro")
    done = train(f"output={disk / 'run'}", cache=tmp_path / "cache")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("rmu_exp: output: cannot write to")
    assert "read-only file system" in line
    done = train(f"output={tmp_path / 'two'}", *shared, cache=disk / "cache")
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("rmu_exp:")]
    assert "activations are not shared" in line
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two")]
    assert results[0]["qa"] == results[1]["qa"]


def of_python() -> None:
    with Path("/dev/full").open("wb") as file:
        file.write(b"x" * 100_000)


def of_arrow() -> None:
    import pyarrow as pa

    with pa.OSFile("/dev/full", "wb") as sink:
        sink.write(b"x" * 100_000)


def of_safetensors() -> None:
    raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("fails", [of_python, of_arrow, of_safetensors])
def test_what_libraries_make_of_a_full_disk_is_known(fails, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="space") as caught:
        fails()
    assert str(line_for(caught.value, tmp_path)).startswith("no space left on ")
    assert line_for(FileNotFoundError(2, "No such file"), tmp_path) is None


def test_a_write_that_fails_keeps_what_was_there(tmp_path: Path) -> None:
    from rmu_exp.support.files import replace_atomic

    file = tmp_path / "results.json"
    write_atomic(file, "before")

    def half(temporary: Path) -> None:
        temporary.write_text("af")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"results\.json"):
        replace_atomic(file, half)
    assert file.read_text() == "before"
    assert [f.name for f in tmp_path.iterdir()] == ["results.json"]
