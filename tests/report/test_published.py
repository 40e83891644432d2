"""Measured beside published: what the section says, and when there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sweep_rows import HEAD

from rmu_exp.cli.compose import composed
from rmu_exp.evaluation.statistics import summary
from rmu_exp.record.results import Results
from rmu_exp.report.markdown import text
from rmu_exp.report.published import PUBLISHED, SUBJECTS, changed, table

CONF = Path(__file__).parents[2] / "conf"
PAPER = {
    "source": "the paper",
    "questions": "the old ones",
    "base": {"wmdp_bio": 0.637},
    "unlearned": {"wmdp_bio": 0.312, "mmlu_virology": 0.9, "wmdp_cyber": 0.282},
}
NOTEBOOK = {"source": "the notebook", "questions": "", "unlearned": {"wmdp_bio": 0.309}}


def task(base: int, unlearned: int, n: int) -> dict[str, Any]:
    answers = {"base": [1] * base + [0] * (n - base), "unlearned": [1] * unlearned + [0] * (n - unlearned)}
    return {state: summary(given) for state, given in answers.items()} | {"chance": 0.25}


@pytest.fixture
def results() -> dict[str, Any]:
    qa = {"wmdp_bio": task(640, 315, 1000), "mmlu_virology": task(60, 30, 100), "mmlu_astronomy": task(9, 9, 10)}
    qa["mmlu_computer_security"] = task(7, 5, 10)
    return HEAD | {"qa": qa, "published": [PAPER, NOTEBOOK]}


def rows(results: dict[str, Any]) -> dict[tuple[str, str], list[str]]:
    """(task, state) to the further cells of its row."""
    return {(name, state): rest for name, state, *rest in table(Results.model_validate(results)).rows}


def page(results: dict[str, Any]) -> str:
    return text(Results.model_validate(results))


def test_a_cell_is_the_value_the_difference_and_the_side_of_the_interval(results: dict[str, Any]) -> None:
    found = rows(results)
    assert found["wmdp_bio", "base"] == ["1000", "64.0 %", "61.0–66.9", "63.7 %; +0.3; in", ""]
    assert found["wmdp_bio", "unlearned"] == ["1000", "31.5 %", "28.7–34.4", "31.2 %; +0.3; in", "30.9 %; +0.6; in"]
    assert found["mmlu_virology", "unlearned"][3] == "90.0 %; -60.0; outside"


def test_the_papers_subjects_are_shown_when_measured_and_others_when_published(results: dict[str, Any]) -> None:
    assert {name for name, _ in rows(results)} == {"wmdp_bio", "mmlu_virology", "mmlu_computer_security"}
    assert rows(results)["mmlu_computer_security", "unlearned"][3:] == ["", ""]
    assert {"mmlu_virology", "mmlu_college_biology", "mmlu_computer_security"} < set(SUBJECTS)


def test_each_source_is_named_with_its_questions(results: dict[str, Any]) -> None:
    lines = page(results).splitlines()
    assert "- [1] the paper; questions: the old ones" in lines
    assert "- [2] the notebook; questions: not stated" in lines


def test_a_base_that_was_not_asked_after_unlearning_has_one_row(results: dict[str, Any]) -> None:
    del results["qa"]["wmdp_bio"]["unlearned"]
    assert [state for name, state in rows(results) if name == "wmdp_bio"] == ["base"]


@pytest.mark.parametrize(
    "other", [{"qa": {}}, {"published": []}, {"qa": {"lore_forget": task(9, 3, 10), SUBJECTS[2]: task(7, 5, 10)}}]
)
def test_with_nothing_in_common_there_is_no_section(results: dict[str, Any], other: dict[str, Any]) -> None:
    assert "published" in page(results)
    assert "published" not in page(results | other)


def test_other_settings_than_the_presets_are_reported(results: dict[str, Any]) -> None:
    assert "preset" not in page(results)
    results["run"] = results["run"] | {"changed": ["steer 20 (preset: 6.5)"]}
    assert "**Not the preset's settings: steer 20 (preset: 6.5).**" in page(results)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], []),
        (["steer=6.5", "alpha=[1200,1200]", "seed=42"], []),
        (["steer=[6.5,20]"], ["steer 6.5, 20 (preset: 6.5)"]),
        (["train.lr=1e-4", "layer=3"], ["layer 3 (preset: 7)", "train.lr 0.0001 (preset: 5e-05)"]),
        (["method.faithful=false"], ["method.faithful False (preset: True)"]),
        (["layers.span=1"], ["layers.span 1 (preset: 3)"]),
        (["layers.param_ids=[6]"], ["layers.param_ids 6 (preset: None)"]),
        (["model.dtype=float32"], ["model.dtype float32 (preset: bfloat16)"]),
        (["model.revision=old"], ["model.revision old (preset: None)"]),
        (["data.retain=[w.txt]"], ["data.retain w.txt (preset: Salesforce/wikitext:wikitext-2-raw-v1:test)"]),
        (["data.forget=[a.txt,b.txt]"], [f"data.forget a.txt, b.txt (preset: {', '.join(PUBLISHED['data.forget'])})"]),
        (["data.on_bad_line=skip"], ["data.on_bad_line skip (preset: error)"]),
        (["data.max_length=64"], []),
        (
            ["data.max_length=64", "method.faithful=false"],
            ["method.faithful False (preset: True)", "data.max_length 64 (preset: 512)"],
        ),
        (["steer=auto"], ["steer auto (preset: 6.5)"]),
        (["steering=relative"], ["steering.kind relative (preset: absolute)"]),
        (["layers.rank=8"], []),
        (
            ["layers.lora=true", "layers.rank=8"],
            ["layers.lora True (preset: False)", "layers.rank 8 (preset: 16)"],
        ),
    ],
)
def test_what_differs_from_the_preset(words: list[str], expected: list[str], tmp_path: Path) -> None:
    (run,) = composed(["model=zephyr_7b", "data=wmdp", f"output='{tmp_path}'", *words], CONF)
    assert changed(run) == expected
