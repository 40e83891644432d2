"""The docs' tables and figures are those of the result files beside them."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

import program
import pytest
from PIL import Image
from sweep_rows import HEAD, RUN, TRAIN, row

from rmu_exp.cli import pages
from rmu_exp.evaluation import statistics
from rmu_exp.record import result_file
from rmu_exp.record import results as results_json
from rmu_exp.record.result_file import ResultFile
from rmu_exp.record.results import Results
from rmu_exp.support.errors import UserError
from rmu_exp.sweep import trials

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [p for p in (DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))) if "<!-- results:" in p.read_text()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_docs_are_up_to_date(page):
    """`make docs-results` would change nothing."""
    text, drawn = pages.rendered(page, DOCS)
    assert text == page.read_text(encoding="utf-8")
    for image, figure in drawn.items():
        assert Image.open(image).text["Description"] == pages.digest(figure), image


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lore", "atlas"])
def test_a_result_files_command_gives_its_numbers_again(name, tmp_path):
    """Within what another processor's rounding moves: the base model hardly, the unlearned one by 6 points."""
    (there,) = result_file.read(DOCS / f"results/{name}.json").runs
    _, script, *words = shlex.split(there.provenance.command)
    done = program.run(script, *words, f"output={tmp_path / 'run'}", timeout=2400)
    assert done.returncode == 0, done.stderr
    again = results_json.load(tmp_path / "run/results.json")
    assert again.provenance.model_digest == there.provenance.model_digest
    for task, was in there.qa.items():
        now = again.qa[task]
        assert now.base.acc == pytest.approx(was.base.acc, abs=0.01), task
        assert now.unlearned.acc == pytest.approx(was.unlearned.acc, abs=0.06), task
        assert now.unlearned.corrected.acc == pytest.approx(was.unlearned.corrected.acc, abs=0.06), task


def measured(right: int, corrected: int, prob: float) -> dict:
    found = statistics.measured([1] * right + [0] * (10 - right), [1] * corrected + [0] * (10 - corrected), [prob] * 10)
    return found.model_dump(mode="json", exclude_none=True)


def test_every_image_of_the_docs_is_made_from_a_result_file():
    shown = {image for page in PAGES for image in pages.rendered(page, DOCS)[1]}
    assert shown == set(DOCS.glob("img/*"))


def made(method: str, seed: int, budget: float, reached: bool = True, **settings) -> Results:
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
        "config": {"train": {"kl_budget": budget}} | settings,
        "config_hash": f"{settings}",
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
    views = ["methods train.kl_budget=0.01", "attacks train.kl_budget=0.01", "lasting", "methods train.kl_budget=0.1"]
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
    image = page.parent / "img/board.lasting.png"
    assert "![lasting](img/board.lasting.png)" in text
    again, drawn = pages.rendered(page)
    assert again == text, "nothing changes when nothing has changed"
    assert Image.open(image).text["Description"] == pages.digest(drawn[image])


@pytest.fixture
def swept(tmp_path):
    """Six runs over two settings in a result file, with the norms of the first, and the path of a page beside it."""
    runs = [varied(layer, steer) for layer in (3, 7) for steer in (2.0, 6.5, 20.0)]
    norms = {f"norm_{role}_{state}": 1.5 for role in ("forget", "retain") for state in ("updated", "frozen")}
    lines = [norms | {"topic": "hexes", "step": step, "steer": 2.0} for step in (1, 2)]
    result_file.write(ResultFile(runs, {}, {"3, 2.0": lines}), tmp_path / "docs/results/all.json")
    return tmp_path / "README.md"


def varied(layer: int, steer: float, alpha: float = 300, seed: int = 0, right: int = 3) -> Results:
    """A run whose forget group has two tasks."""
    run = made("rmu", 0, 0.01)
    own = run.run.model_copy(update={"seed": seed, "layer": layer, "steer": [steer, steer], "alpha": [alpha]})
    origin = run.provenance.model_copy(update={"delta_digest": f"{layer}, {steer}", "config": {}})
    f = {"tasks": ["f_a", "f_b"], "role": "forget"}
    rows = {"f": f | row(right, 10, 9), "f_a": row(2, 10, 8), "f_b": row(right, 10, 9)}
    values = run.model_dump(exclude={"qa"}, exclude_none=True) | {"qa": rows | {"g": row(8, 10) | {"role": "general"}}}
    values |= {"run": own.model_dump(), "provenance": origin.model_dump(exclude_none=True)}
    values["train"] |= {"reached": {"hexes": 0.843, "wards": 0.5}}
    values["damage"] = {
        "kl": {"neutral": {"mean": 0.0123, "ci95": (0, 1)}}, "agreement": {"neutral": {"mean": 1, "ci95": (0, 1)}},
        "perplexity": {}, "sources": {"neutral": ["n"]},
    }  # fmt: skip
    values["verdict"] = {"word": "partly", "sentences": []}
    return Results.model_validate(values)


def test_what_runs_keep_is_a_row_for_each(swept):
    swept.write_text("<!-- results: all kept -->\n<!-- end -->\n")
    pages.main(swept.parent / "docs", swept)
    head, _, *rows = [line for line in swept.read_text().splitlines() if line.startswith("|")]
    assert head == "| settings | f_a (10) | f_b (10) | g (10) | reached | KL | verdict |"
    assert rows[0] == "| layer=3, steer=2 | -0.09 | 0.08 | 0.73 | 84, 50 % | 0.012 | partly |", (
        "(0.2 - 0.25) / (0.8 - 0.25), (0.3 - 0.25) / (0.9 - 0.25), (0.8 - 0.25) / (1 - 0.25)"
    )
    assert [line.split(" |")[0] for line in rows[1:3]] == ["| layer=3, steer=6.5", "| layer=3, steer=20"]
    assert len(rows) == 6
    assert "- 6 runs in `docs/results/all.json`" in swept.read_text()


def names(*runs: Results) -> list[str]:
    return [trial.name for trial in trials.of(runs)]


def test_settings_that_most_have_are_not_named_where_a_run_has_them_all():
    """As for dose and response: one setting at a time is varied around a common one."""
    around = [varied(7, 6.5), varied(7, 2.0), varied(7, 4.0), varied(7, 6.5, alpha=10)]
    assert names(*around) == ["steer=6.5,alpha=300", "steer=2", "steer=4", "alpha=10"]
    assert names(*around[1:3], varied(3, 6.5)) == ["layer=3,steer=6.5", "layer=7,steer=2", "layer=7,steer=4"]
    assert names(*(varied(7, 6.5, seed=seed) for seed in (1234568, 1234567))) == ["seed=1234567", "seed=1234568"]


def test_runs_that_nothing_tells_apart_have_names_of_their_own():
    assert names(varied(7, 6.5), varied(7, 6.5)) == ["all", "all (2)"]
    methods = [made(method, 0, 0.1) for method in ("rmu", "npo")]
    assert names(*methods) == ["method=npo", "method=rmu"]
    old, new = made("rmu", 0, 0.1), made("rmu", 1, 0.1, more=3)
    assert names(old, new) == ["seed=0", "seed=1"], "what one does not say is no difference"


def test_figures_of_a_run_and_of_a_sweep(swept):
    views = ["accuracy layer=3 steer=2", "sweep_front,sweep_map"]
    swept.write_text("\n\n".join(f"<!-- results: all {view} -->\n<!-- end -->" for view in views))
    text, drawn = pages.rendered(swept, swept.parent / "docs")
    names = ["all.accuracy.layer=3.steer=2", "all.sweep_front", "all.sweep_map"]
    assert [image.stem for image in drawn] == names
    assert all(f"](docs/img/{image.name})" in text for image in drawn)
    accuracy, front, cells = drawn.values()
    assert "layer 3, steer 2" in accuracy.get_suptitle()
    assert front.axes[0].get_xlabel() == "forget: f  (less is better)"
    assert cells.axes[0].images[0].get_array().shape == (3, 2)
    other = result_file.read(swept.parent / "docs/results/all.json").runs
    again = pages.FIGURES["sweep_front"](ResultFile([*other[1:], varied(3, 2.0, right=4)]))
    assert pages.digest(again) != pages.digest(front), "a number is another"


def test_the_norms_of_a_run_are_drawn_from_what_the_file_has(swept):
    content = result_file.read(swept.parent / "docs/results/all.json")
    figure = pages.FIGURES["norms"](replace(content, runs=content.runs[:1]))
    assert [list(line.get_ydata()) for line in figure.axes[0].lines[:4]] == [[1.5, 1.5]] * 4
    with pytest.raises(UserError, match=r"it has no norms; write it with rmu-exp results --norms"):
        pages.FIGURES["norms"](replace(content, runs=content.runs[1:2]))


@pytest.mark.parametrize(
    "marker",
    [
        "<!-- results: all kept layer -->\n<!-- end -->",
        "<!-- results: all  kept -->\n<!-- end -->",
        "<!-- results: all kept -->\n<!--end-->",
        "<!-- results: all kept -->\nprose\n\n<!-- results: all kept -->\n<!-- end -->",
        "prose\n<!-- end -->",
    ],
)
def test_a_marker_that_is_not_understood_is_refused(swept, marker):
    swept.write_text(f"# A\n\n{marker}\n")
    with pytest.raises(UserError, match=r"README\.md: <!--.*: got no <!-- results: NAME VIEW KEY=VALUE --> with its"):
        pages.rendered(swept, swept.parent / "docs")


def test_the_screen_has_no_colours_whatever_the_environment(swept, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    swept.write_text("<!-- results: all screen layer=7 steer=20 -->\n<!-- end -->\n")
    text, _ = pages.rendered(swept, swept.parent / "docs")
    assert "\x1b" not in text
    assert re.search(r"\n  f_a +80\.0 % +20\.0 %", text)


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
            r"page\.md: results: board nothing: got 'nothing', allowed is screen, questions, attacked, methods",
        ),
        ("none methods", r"none\.json: damaged, or no result file \(No such file"),
        ("board methods seed=7", "none of its 4 runs has seed=7"),
        ("board questions", "questions shows one run, and there are 4"),
        ("board sweep_map", "sweep_map is for runs that differ in two settings, and these differ in "),
    ],
)
def test_refusals(page, marker, said):
    page.write_text(f"<!-- results: {marker} -->\n<!-- end -->\n")
    with pytest.raises(UserError, match=said):
        pages.rendered(page)
