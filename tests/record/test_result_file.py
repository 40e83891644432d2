"""Result files: what they keep comes back, what all runs share stands once, later attacks stand with their run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sweep_rows import HEAD, RUN, TRAIN, attack, row

from rmu_exp.__main__ import main
from rmu_exp.record import result_file
from rmu_exp.record.result_file import ResultFile
from rmu_exp.record.results import Results
from rmu_exp.report import methods
from rmu_exp.support.errors import UserError

ORIGIN = {"versions": {"python": "3.11", "numpy": "2"}, "git": {"commit": "a" * 40, "dirty": False}}
TRAINED = TRAIN | {"kl_budget": 0.01, "kl": 0.0098, "kl_reached": True, "peak_memory_bytes": 3}


def made(method: str, seed: int = 0, lr: float = 0.1, delta: str = "", **more) -> Results:
    command = f"python train.py experiment=leaderboard model.path=/home/me/models/it output=/tmp/x seed={seed}"
    origin = ORIGIN | {"config": {"seed": seed, "train": {"lr": lr}}, "config_hash": f"{method}{seed}"}
    origin |= {"command": command, "delta_digest": delta or f"{method}{seed}", "model_digest": "m"}
    many = [f"h{i}" for i in range(57)]
    rows = {"f": row(30, 100) | {"tasks": ["g"], "role": "forget"}, "g": row(1, 3), "o": row(97, 99) | {"tasks": many}}
    rows |= {name: row(1, 3) for name in many}
    values = HEAD | {"run": RUN | {"method": method, "seed": seed}, "provenance": origin, "qa": rows, "train": TRAINED}
    return Results.model_validate(values | more)


def judged(delta: str, **attacks) -> Results:
    values = made("rmu", delta=delta).model_dump(exclude_none=True, exclude={"train", "qa"})
    run = {"kind": "judge", "model": "m", "topics": ["a"], "seed": 0, "unlearned": "u"}
    return Results.model_validate(values | {"run": run, "attacks": attacks})


def put(folder: Path, results: Results, done: bool = True) -> Path:
    folder.mkdir(parents=True)
    results.save(folder / "results.json")
    if done:
        (folder / "report.md").touch()
    return folder


def test_what_is_kept_comes_back(tmp_path):
    curves = {"curves": {"steps": {"title": "t", "x": "x", "y": "y", "panels": {"a": {}}}}}
    entry = attack(0.3, 0.123456789) | curves | {"control": {"base": row(9, 10)["base"], "oracle": "beside"}}
    runs = [made("rmu", attacks={"relearn": entry}), made("npo", 1), made("npo", 1, lr=0.2)]
    file = tmp_path / "board.json"
    result_file.write(ResultFile(runs, {"scrub,seed=2": "RunError: in /home/me/x/run.log"}), file)
    text = file.read_text()
    assert "/home" not in text
    assert "/tmp" not in text
    assert len(text.splitlines()) == 8, "a line per run"
    assert text.count("a" * 40) == 1, "what all share stands once"
    assert '"h1"' not in text
    back = result_file.read(file)
    assert back.failed == {"scrub,seed=2": "RunError: in run.log"}
    for was, now in zip(runs, back.runs, strict=True):
        assert now.train == was.train
        before, after = was.qa["f"].unlearned, now.qa["f"].unlearned
        assert (after.acc, after.n, *after.ci95) == pytest.approx((before.acc, before.n, *before.ci95), rel=1e-5)
        assert list(now.qa) == ["f", "g", "o"], "groups, each with its tasks where they are few"
        assert (now.qa["f"].tasks, now.qa["o"].tasks) == (["g"], [])
        assert (now.run.method, now.run.seed) == (was.run.method, was.run.seed)
        assert now.provenance.config_hash == was.provenance.config_hash
        assert now.provenance.command == f"python train.py experiment=leaderboard model.path=it seed={was.run.seed}"
        assert now.provenance.versions == {"python": "3.11"}
    first = back.runs[0].attacks["relearn"]
    assert (first.forget_acc.after, list(first.control), first.curves) == (0.123457, ["base"], {})
    assert [r.provenance.config for r in back.runs] == [{"train.lr": lr} for lr in (0.1, 0.1, 0.2)], "but for the seed"


def test_later_attacks_and_the_worst_of_a_search_stand_with_their_run(tmp_path):
    put(tmp_path / "board/rmu", made("rmu"))
    put(tmp_path / "board/cut off", made("npo"), done=False)
    put(tmp_path / "later", judged("rmu0", latent=attack(0.3, 0.4)))
    for name, after in (("a", 0.6), ("b", 0.5), ("c", 0.4)):
        put(tmp_path / "search" / name, judged("rmu0", relearn=attack(0.3, after)))
    worst = {"trials": 3, "worst": {"corrected": {"trial": "a"}, "probability": {"trial": "b"}}}
    (tmp_path / "search/worst_case.json").write_text(json.dumps(worst))
    (run,) = result_file.collect([tmp_path / "board", tmp_path / "later", tmp_path / "search"])
    assert methods.notes([run])[0] == "searched relearn is the worst of 3 attacks for rmu, seed 0"
    assert {name: entry.forget_acc.after for name, entry in run.attacks.items()} == {
        "latent": 0.4,
        "searched relearn, by corrected": 0.6,
        "searched relearn, by probability": 0.5,
    }
    with pytest.raises(UserError, match=r"^u: attacked, but its run is in none of the folders"):
        result_file.collect([tmp_path / "later"])
    worst |= {"trials": 9, "worst": {"corrected": {"trial": "c"}, "probability": {"trial": "c"}}}
    (tmp_path / "search/worst_case.json").write_text(json.dumps(worst))  # a longer search; one attack is the worst
    (again,) = result_file.collect([tmp_path / "search"], [run])
    assert {name: entry.forget_acc.after for name, entry in again.attacks.items()} == {
        "latent": 0.4,
        "searched relearn": 0.4,
    }


@pytest.mark.parametrize(
    ("left", "line"),
    [
        ("{", r".*/search/worst_case.json: damaged, or without one of its trials \(.*\); rmu-exp sweep .*"),
        ('{"trials": 1, "worst": {"corrected": {"trial": "gone"}}}', r".*: damaged, or without one of its trials.*"),
        (None, r".*/search: a search without its report; finish it, or: rmu-exp sweep .*/search"),
    ],
)
def test_a_damaged_or_unfinished_search_is_one_line(left, line, tmp_path):
    put(tmp_path / "rmu", made("rmu"))
    put(tmp_path / "search/a", judged("rmu0", relearn=attack(0.3, 0.5)))
    (tmp_path / "search/sweep.yaml").write_text("objectives: [corrected, probability]\n")
    if left:
        (tmp_path / "search/worst_case.json").write_text(left)
    with pytest.raises(UserError, match=line):
        result_file.collect([tmp_path])


def test_a_run_and_its_copy_are_one_run(tmp_path, capsys):
    """The last counts, with what only the first was attacked by; a copy adds no questions to an interval."""
    put(tmp_path / "b/rmu", made("rmu", attacks={"latent": attack(0.3, 0.4)}))
    put(tmp_path / "a/rmu", made("rmu", attacks={"relearn": attack(0.3, 0.5)}))
    (run,) = result_file.collect([tmp_path / "b", tmp_path / "a"])
    assert list(run.attacks) == ["latent", "relearn"]
    once, twice = (methods.rows(methods.read([tmp_path / name for name in names])) for names in ("b", "ba"))
    assert once[1].accuracy["forget"] == twice[1].accuracy["forget"]
    assert [row[1].accuracy[methods.WORST].value for row in (once, twice)] == [0.4, 0.5], "attacks come together"
    result_file.write(ResultFile([run]), tmp_path / "all.json")
    (again,) = methods.read([tmp_path / "all.json", tmp_path / "b"])
    assert list(again.attacks) == ["relearn", "latent"]


def test_a_search_over_two_models(tmp_path):
    """Each has the attack that is the worst on it by what it was chosen by; one trial's folder is a plain judgement."""
    for name in ("rmu", "npo"):
        put(tmp_path / "board" / name, made(name))
    for name, delta, after in (("a", "rmu0", 0.6), ("b", "npo0", 0.5)):
        put(tmp_path / "search" / name, judged(delta, relearn=attack(0.3, after)))
    worst = {"trials": 2, "worst": {"corrected": {"trial": "a"}, "probability": {"trial": "b"}}}
    (tmp_path / "search/worst_case.json").write_text(json.dumps(worst))
    runs = {r.run.method: r for r in result_file.collect([tmp_path / "board", tmp_path / "search"])}
    found = {m: {name: e.forget_acc.after for name, e in r.attacks.items()} for m, r in runs.items()}
    assert found["rmu"] == {"searched relearn, by corrected": 0.6}
    assert found["npo"] == {"searched relearn, by probability": 0.5}
    runs = {r.run.method: r for r in result_file.collect([tmp_path / "board", tmp_path / "search/a"])}
    assert list(runs["rmu"].attacks) == ["relearn"]


def test_a_judged_model_that_is_known_is_taken_anew(tmp_path, caplog):
    """In its place; an attack that only the earlier judgement has stays with it where there is one model."""
    other = judged("").model_copy(update={"qa": made("rmu").qa, "attacks": {}})
    other.provenance.delta_digest, other.provenance.config_hash = None, "of another model"
    before = other.model_copy(update={"attacks": judged("", latent=attack(0.3, 0.4)).attacks})
    known = [before, made("rmu"), made("npo")]
    put(tmp_path / "x", other)
    for name in ("rmu", "npo"):
        put(tmp_path / f"judged-{name}", judged(f"{name}0", relearn=attack(0.3, 0.5)))
    runs = result_file.collect([tmp_path], known)
    assert [(r.run.kind, r.run.method, list(r.attacks)) for r in runs] == [
        ("judge", None, ["latent"]),
        ("train", "rmu", ["relearn"]),
        ("train", "npo", ["relearn"]),
    ]
    assert not caplog.messages


def test_a_result_file_grows(tmp_path):
    """Its runs come first; one that was run again is taken anew, and attacks on a known one stand with it."""
    file, grown = tmp_path / "board.json", tmp_path / "grown.json"
    put(tmp_path / "one/rmu", made("rmu"))
    put(tmp_path / "one/npo", made("npo", lr=0.2))
    put(tmp_path / "two/npo", made("npo", lr=0.2, attacks={"probe": attack(0.2, 0.5)}))
    put(tmp_path / "two/cir", made("cir", lr=0.3))
    put(tmp_path / "two/later", judged("rmu0", latent=attack(0.3, 0.4)))
    assert main(["results", str(tmp_path / "one"), str(file)]) == 0
    assert main(["results", str(file), str(tmp_path / "two"), str(grown)]) == 0
    runs = {r.run.method: r for r in result_file.read(grown).runs}
    assert {name: list(run.attacks) for name, run in runs.items()} == {"rmu": ["latent"], "npo": ["probe"], "cir": []}
    assert len(result_file.read(grown).runs) == 3
    assert main(["results", str(grown), str(grown), str(tmp_path / "one"), str(grown)]) == 0
    runs = {r.run.method: r for r in result_file.read(grown).runs}
    assert {name: list(run.attacks) for name, run in runs.items()} == {"rmu": ["latent"], "npo": ["probe"], "cir": []}
    assert len(result_file.read(grown).runs) == 3, "each once"


def test_one_attack_of_two_judgements_is_refused(tmp_path, caplog):
    """As in a search that has not ended: none of its attacks stands for it."""
    put(tmp_path / "run", made("rmu", attacks={"relearn": attack(0.3, 0.6)}))
    put(tmp_path / "search/a", judged("rmu0", relearn=attack(0.3, 0.5)))
    (run,) = result_file.collect([tmp_path])
    assert run.attacks["relearn"].forget_acc.after == 0.5
    assert caplog.messages == ["rmu, seed 0: an earlier relearn was left out for a later one"]
    put(tmp_path / "search/b", judged("rmu0", relearn=attack(0.3, 0.4)))
    with pytest.raises(
        UserError, match=r"search/a and .*search/b: both have the attack relearn on one model; give one"
    ):
        result_file.collect([tmp_path])


def test_what_two_files_have_of_one_run_comes_together(tmp_path, caplog):
    """Its attacks, and its norms, as long as both are of one Delta."""
    one = ResultFile([made("rmu", attacks={"relearn": attack(0.3, 0.6)})], {}, {"rmu0": [{"step": 1}]})
    result_file.write(one, tmp_path / "one.json")
    result_file.write(ResultFile([made("rmu", attacks={"latent": attack(0.3, 0.5)})]), tmp_path / "two.json")
    result_file.write(ResultFile([made("rmu", delta="other", attacks={})]), tmp_path / "again.json")
    files = [str(tmp_path / name) for name in ("one.json", "two.json", "both.json", "again.json", "all.json")]
    assert main(["results", *files[:3]]) == 0
    both = result_file.read(tmp_path / "both.json")
    assert [list(run.attacks) for run in both.runs] == [["relearn", "latent"]]
    assert list(both.norms) == ["rmu0"]
    assert not caplog.messages
    assert main(["results", *files[2:]]) == 0
    again = result_file.read(tmp_path / "all.json")
    assert [run.provenance.delta_digest for run in again.runs] == ["other"]
    assert not again.norms, "those of the other Delta"
    assert caplog.messages == ["rmu, seed 0: run again, with another Delta; left out: relearn, latent"]


@pytest.mark.parametrize("trimmed", [False, True])
def test_runs_that_differ_stay_apart_when_a_file_grows(tmp_path, trimmed):
    """``trimmed``: a file of an earlier version, which had only what differed among its own runs."""
    train = {"train": TRAINED | {"kl_budget": 0.1}}
    put(tmp_path / "one/rmu", made("rmu", lr=0.1))
    put(tmp_path / "two/rmu", made("rmu", lr=0.2) if not trimmed else made("rmu", **train))
    (tmp_path / "two/rmu/results.json").write_text(
        (tmp_path / "two/rmu/results.json").read_text().replace('"rmu0"', '"another"')
    )
    file = tmp_path / "board.json"
    assert main(["results", str(tmp_path / "one"), str(file)]) == 0
    if trimmed:
        content = json.loads(file.read_text())
        content["shared"]["provenance"]["config"] = {}
        file.write_text(json.dumps(content))
    assert main(["results", str(file), str(tmp_path / "two"), str(file)]) == 0
    rows = methods.rows(result_file.read(file).runs)
    assert [row.numbers["seeds"] for row in rows if row.method.startswith("rmu")] == [1, 1]


def test_a_trial_that_was_run_again_has_not_failed(tmp_path):
    put(tmp_path / "one/rmu", made("rmu"))
    file = tmp_path / "board.json"
    result_file.write(ResultFile([made("rmu")], {"two/npo": "RunError: lost", "other/npo": "RunError"}), file)
    put(tmp_path / "two/npo", made("npo"))
    (tmp_path / "two/npo/trial.json").write_text('{"number": 0, "settings": {}}')
    (tmp_path / "two/npo/config.yaml").write_text("seed: 0")
    assert main(["results", str(file), str(tmp_path / "two"), str(file)]) == 1
    assert result_file.read(file).failed == {"other/npo": "RunError"}, "another board's trial of that name"


def test_norms_over_the_steps_are_there_when_asked_for(tmp_path):
    norms = {f"norm_{role}_{state}": 1.23456789 for role in ("forget", "retain") for state in ("updated", "frozen")}
    lines = [norms | {"step": n, "topic": "ab"[n % 2], "steer": 2.0, "loss": 0.1} for n in range(1, 201)]
    (put(tmp_path / "one/rmu", made("rmu")) / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    file, grown = tmp_path / "board.json", tmp_path / "grown.json"
    assert main(["results", str(tmp_path / "one"), str(file)]) == 0
    assert not result_file.read(file).norms
    assert main(["results", "--norms", str(tmp_path / "one"), str(file)]) == 0
    assert main(["results", str(file), str(grown)]) == 0, "they are not lost"
    (kept,) = result_file.read(grown).norms.values()
    steps = [line["step"] for line in kept if line["topic"] == "a"]
    assert (steps[0], steps[-1], len(steps)) == (2, 200, 26)
    last = next(line for line in kept if line["step"] == 200)
    assert last == dict.fromkeys(norms, 1.23457) | {"step": 200, "topic": "a", "steer": 2.0}


def test_the_command_says_which_trials_are_missing(tmp_path, capsys):
    put(tmp_path / "board/rmu", made("rmu"))
    for name, reason in (("npo", "RunError: the loss is not finite"), ("rmu", None)):
        (tmp_path / "board" / name).mkdir(exist_ok=True)
        (tmp_path / "board" / name / "trial.json").write_text('{"number": 0, "settings": {}}')
        if reason:
            (tmp_path / "board" / name / "error.txt").write_text(reason)
    file = tmp_path / "results/board.json"
    assert main(["results", str(tmp_path / "board"), str(file)]) == 1
    assert "npo is not among them: RunError: the loss is not finite" in capsys.readouterr().err
    assert main(["table", str(file)]) == 0
    assert "| rmu | 30.0 (22–40) |" in (tmp_path / "results/methods.md").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["results", "FOLDER", "FOLDER"], "got no name for the file"),
        (["results", "FOLDER/none", "FOLDER/a.json"], "none: no such folder"),
        (["results", "FOLDER", "FOLDER/a.json"], "no finished runs with questions below"),
        (["table", "FOLDER/other.json"], "other.json: damaged, or no result file"),
    ],
)
def test_refusals(tmp_path, capsys, words, said):
    (tmp_path / "other.json").write_text('{"a": 1}')
    assert main([word.replace("FOLDER", str(tmp_path)) for word in words]) == 2
    assert said in capsys.readouterr().err
    assert sorted(f.name for f in tmp_path.iterdir()) == ["other.json"]
