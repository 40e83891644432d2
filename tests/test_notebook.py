"""docs/quickstart.ipynb: its cells run from top to bottom, on a tiny model in the place of the real one."""

from __future__ import annotations

import json
from pathlib import Path

import a_run
import pytest

NOTEBOOK = Path(__file__).parent.parent / "docs/quickstart.ipynb"


def cells() -> list[str]:
    return ["".join(c["source"]) for c in json.loads(NOTEBOOK.read_text())["cells"] if c["cell_type"] == "code"]


def run(sources: list[str]) -> dict[str, object]:
    names: dict[str, object] = {}
    for number, source in enumerate(sources, 1):
        exec(compile(source, f"cell {number}", "exec"), names)
    return names


def test_the_cells_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RMU_EXP_CACHE", str(tmp_path / "cache"))
    tiny = dict(word.split("=", 1) for word in a_run.words(tmp_path) if word != "tracking=off")
    sources = cells()
    (first,) = [i for i, source in enumerate(sources) if "SETTINGS = " in source]
    sources[first] += f"\nSETTINGS = {tiny | {'output': 'runs/quickstart'}!r}"
    names = run(sources)
    said = capsys.readouterr().out
    assert "  unlearned:" in said
    assert len(names["figure"].axes[0].lines) == len(names["run"].results.run.topics)
    assert (tmp_path / "unlearned-model/model.safetensors").is_file()


@pytest.mark.slow
def test_the_cells_run_on_the_real_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = run(cells())
    assert names["verdict"].word == "forgot"
    assert names["found"].after.acc > names["found"].before.acc
