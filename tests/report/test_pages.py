"""The docs' tables and figures are those of the result files beside them."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from sweep_rows import HEAD, RUN, TRAIN, row

from rmu_exp.evaluation import statistics
from rmu_exp.record import result_file
from rmu_exp.record.result_file import ResultFile
from rmu_exp.record.results import Results
from rmu_exp.report import pages
from rmu_exp.support.errors import UserError

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("page", [p for p in sorted(DOCS.glob("*.md")) if "<!-- results:" in p.read_text()], ids=str)
def test_docs_are_up_to_date(page):
    """`make docs-results` would change nothing."""
    text, drawn = pages.rendered(page)
    assert text == page.read_text(encoding="utf-8")
    for image, (_, shown) in drawn.items():
        assert Image.open(image).text["Description"] == pages.digest(shown), image


def measured(right: int, corrected: int, prob: float) -> dict:
    found = statistics.measured([1] * right + [0] * (10 - right), [1] * corrected + [0] * (10 - corrected), [prob] * 10)
    return found.model_dump(mode="json", exclude_none=True)


def made(method: str, seed: int, budget: float, reached: bool = True) -> Results:
    forget = {"role": "forget", "chance": 0.25, "base": measured(9, 9, 0.6), "unlearned": measured(3, 4 + seed, 0.2)}
    qa = {"f": forget, "g": row(8, 10) | {"role": "general"}}
    train = TRAIN | {"kl_budget": budget, "kl": 0.9 * budget, "kl_reached": reached}
    attacks = {
        "relearn": {"before": measured(3, 4, 0.1), "after": measured(5, 6, 0.3 + seed / 10), "budget": {}}
        | {"control": {"base": measured(8, 9, 0.5)}},
        "quantise": {"before": measured(3, 4, 0.1), "after": measured(4, 4, 0.2), "budget": {}}
        if method == "rmu"
        else {"error": "RunError: no", "budget": {}},
    }
    for entry in attacks.values():
        if "after" in entry:
            ci95 = {when: entry[when]["ci95"] for when in ("before", "after")}
            accs = {when: entry[when]["acc"] for when in ("before", "after")}
            entry |= {"forget_acc": accs, "ci95": ci95, "n": 10, "chance": 0.25}
    origin = {
        "config": {"train": {"kl_budget": budget}},
        "config_hash": "",
        "versions": {},
        "command": "python train.py",
    }
    values = {"run": RUN | {"method": method, "seed": seed}, "qa": qa, "train": train, "attacks": attacks}
    return Results.model_validate(HEAD | values | {"provenance": origin})


@pytest.fixture
def page(tmp_path):
    runs = [made("rmu", 0, 0.01), made("rmu", 1, 0.01), made("npo", 0, 0.01), made("rmu", 0, 0.1, reached=False)]
    result_file.write(ResultFile(runs, {"cut": "RunError: lost"}), tmp_path / "results/board.json")
    page = tmp_path / "page.md"
    views = ["methods train.kl_budget=0.01", "attacks train.kl_budget=0.01", "front", "methods train.kl_budget=0.1"]
    page.write_text("# A\n\n" + "text\n\n".join(f"<!-- results: board {v} -->\nold\n<!-- end -->\n\n" for v in views))
    return page


def test_tables_and_figures_stand_between_the_markers(page):
    pages.main(page.parent)
    text = page.read_text()
    assert text.count("text\n\n<!--") == 3
    assert "old" not in text
    assert "| rmu | 30.0 / 45.0 (" in text, "plain, and corrected over two seeds: (40 + 50) / 2"
    assert "| rmu | 30.0 / 40.0, 10.0 % | 50.0 / 60.0, 35.0 % | 40.0 / 40.0, 20.0 % |" in text, (
        "probability: (0.3 + 0.4) / 2"
    )
    assert "| npo | 30.0 / 40.0, 10.0 % | 50.0 / 60.0, 30.0 % |  |" in text
    assert "| *base* |  | 80.0 / 90.0, 50.0 % |  |" in text
    assert "- npo, seed 0: quantise failed: RunError: no\n" in text
    assert "- never reached the budget: rmu, seed 0: 0.09 of 0.1\n" in text
    assert "- cut has no results: RunError: lost\n" in text
    assert "- 3 runs in `results/board.json`" in text
    image = page.parent / "img/results_board_front.png"
    assert "![front](img/results_board_front.png)" in text
    again, drawn = pages.rendered(page)
    assert again == text, "nothing changes when nothing has changed"
    assert Image.open(image).text["Description"] == pages.digest(drawn[image][1])


def test_commands_that_differ_in_one_value_are_one():
    one, two, three = "t.py method=a seed=0", "t.py method=b,c seed=0", "t.py method=b seed=1"
    assert pages.joined([two, one, one]) == ["t.py method=a,b,c seed=0"]
    assert pages.joined([one, three]) == [one, three]
    assert pages.joined(["t.py x=[1]", "t.py x=[2]", "t.py -m"]) == ["t.py -m", "t.py x=[1]", "t.py x=[2]"]


@pytest.mark.parametrize(
    ("marker", "said"),
    [
        (
            "board nothing",
            r"page\.md: results: board nothing: got 'nothing', allowed is questions, attacked, methods, attacks",
        ),
        ("none methods", r"none\.json: damaged, or no result file \(No such file"),
        ("board methods seed=7", "none of its 4 runs has seed=7"),
        ("board questions", "questions shows one run, and there are 4"),
    ],
)
def test_refusals(page, marker, said):
    page.write_text(f"<!-- results: {marker} -->\n<!-- end -->\n")
    with pytest.raises(UserError, match=said):
        pages.rendered(page)
