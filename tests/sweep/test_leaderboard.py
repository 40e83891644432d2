"""The table, from the experiment to the result file, on the tiny model; and what such a sweep or search refuses."""

from __future__ import annotations

import shutil

import a_run
import pytest
import tiny

from rmu_exp.__main__ import main
from rmu_exp.cli import compose
from rmu_exp.record import result_file
from rmu_exp.support.errors import UserError


def test_the_leaderboard_resumes_and_gives_a_result_file(train, words, tmp_path, capsys):
    board, neutral = tmp_path / "board", tmp_path / "neutral.txt"
    neutral.write_text("\n".join(tiny.texts(30, 5)))
    given = [
        "experiment=leaderboard",
        "method=rmu,ssd",
        f"data.neutral={neutral}",
        "layer=1",
        "steer=6",
        "eval.limit=12",
    ]
    given += ["train.batch_size=2", "train.kl_budget=0.002", "attacks.relearn.steps=2", f"output={board}"]
    first = train(*given)
    assert first.returncode == 0, first.stderr
    shutil.rmtree(board / "method=ssd")
    again = train(*given, "attacks=[quick,norms]")
    assert again.returncode == 0, again.stderr
    assert "2 trials (1 done before)" in again.stderr
    assert (board / "report.md").read_text().count("method=rmu") > 0
    file = tmp_path / "board.json"
    assert main(["results", str(board), str(file)]) == 0
    runs = result_file.read(file).runs
    assert [r.run.method for r in runs] == ["rmu", "ssd"]
    for run in runs:
        assert 0.95 * 0.002 <= run.train.kl <= run.train.kl_budget == 0.002
        assert set(run.attacks) == {"relearn", "ablation", "quantise", "norms"}
        assert run.qa["lore_forget"].role == "forget"
        assert str(tmp_path) not in file.read_text()
    assert main(["table", str(file)]) == 0
    assert "| rmu |" in capsys.readouterr().out


@pytest.mark.parametrize(("data", "more"), [("atlas", []), ("lore", ["model=lore", "method=rmu,npo"])])
def test_neutral_text_is_the_worlds_own(data, more):
    runs = compose.composed(["experiment=leaderboard", *more, f"data={data}"], a_run.CONF, multirun=True)
    assert {run.data.neutral for run in runs} == {f"{data}:neutral"}
    assert {run.train.kl_budget for run in runs} == {0.01}
    assert len({run.method.name for run in runs}) == (2 if more else 19), "all but undo, a second phase"


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("train", ["train.kl_budget=-1"], r"^train\.kl_budget: got -1, allowed is a number > 0"),
        ("judge", ["experiment=worst_case"], r"^unlearned: "),
        ("judge", ["experiment=worst_case", "unlearned=x", "attacker.trials=0"], r"^attacker\.trials: got 0, .* 1 or"),
        ("judge", ["experiment=worst_case", "unlearned=x", "attacker.bound=1.1"], r"^attacker\.bound: got 1\.1, "),
    ],
)
def test_refusals(name, words, said):
    with pytest.raises(UserError, match=said):
        compose.composed(words, a_run.CONF, name, multirun=name == "judge")
