"""results.json: its schema file, and files of schema 1."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest
from sweep_rows import HEAD, attack, row

from rmu_exp.record import results as results_json
from rmu_exp.support.errors import UserError

OLD = HEAD | {"qa": {"lore_forget": row(3, 10) | {"tasks": ["lore_forget_a"]}}, "attacks": {"probe": attack(0.3, 0.9)}}
OLD["attacks"]["probe"] |= {"of": "abc", "control": {"never": row(3, 10)["base"], "shuffled": "none"}, "layer": 3}


def test_the_schema_file_is_that_of_the_classes():
    """``python -m rmu_exp.record.results`` writes it."""
    kept = json.loads((files("rmu_exp.record") / "results.schema.json").read_text(encoding="utf-8"))
    assert kept == results_json.schema()


def test_schema_1_is_read_and_written_as_schema_2(tmp_path):
    file = tmp_path / "results.json"
    file.write_text(json.dumps(OLD, default=lambda part: part.model_dump(exclude_none=True)))
    found = results_json.load(file)
    entry = found.attacks["probe"]
    assert (entry.fingerprint, list(entry.controls), list(entry.control)) == ("abc", ["oracle"], ["oracle", "shuffled"])
    assert found.qa["lore_forget"].base.n == 10
    found.save(file)
    content = json.loads(file.read_text())
    assert (content["schema"], content["run"]["kind"], content["attacks"]["probe"]["layer"]) == (2, "train", 3)
    assert results_json.load(file) == found.model_copy(update={"schema_number": 2})


@pytest.mark.parametrize("run", [{"unlearned": None}, {"layer": -1}, {"method": None}])
def test_what_is_no_run_is_one_line(tmp_path, run):
    file = tmp_path / "results.json"
    file.write_text(json.dumps(HEAD | {"run": HEAD["run"] | run | {"method": None}}))
    with pytest.raises(UserError, match=r"damaged \(run"):
        results_json.load(file)
