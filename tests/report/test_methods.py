"""The table of methods, from results written by hand."""

from __future__ import annotations

import pytest
from sweep_rows import HEAD, RUN, TRAIN, attack, row

from rmu_exp.__main__ import main
from rmu_exp.record.results import Results
from rmu_exp.report import methods
from rmu_exp.report.objectives import Measure


def result(method: str, seed: int, forget: float, general: float, chance: float = 0.25, **more) -> Results:
    qa = {"lore_forget": row(round(100 * forget), 100, 98), "lore_general": row(round(100 * general), 100)}
    qa = {name: measured | {"tasks": [], "chance": chance} for name, measured in qa.items()}
    train = TRAIN | {"seconds": 10.0 * (1 + seed), "peak_memory_bytes": 300_000_000}
    about = RUN | {"method": method, "seed": seed} | more.pop("run", {})
    return Results.model_validate(HEAD | {"run": about, "qa": qa, "train": train} | more)


def write(folder, runs):
    for i, run in enumerate(runs):
        (folder / str(i)).mkdir()
        run.save(folder / str(i) / "results.json")


RUNS = [
    result("npo", 0, 0.60, 0.90),
    result("npo", 1, 0.70, 0.80),
    result("npo", 2, 0.80, 0.70),
    result("rmu", 0, 0.30, 0.97),
]


def test_intervals_by_hand():
    mean = methods.mean([Measure(a, 0, 1, 100) for a in (0.6, 0.7, 0.8)])
    half = 4.302653 * 0.1 / 3**0.5  # Student's t of two degrees of freedom
    assert (mean.value, mean.low, mean.high) == pytest.approx((0.7, 0.7 - half, 0.7 + half), rel=1e-5)
    alone = methods.mean([Measure(0.3, 0, 1, 100)])
    assert (alone.low, alone.high) == pytest.approx((0.2189489, 0.3958485), abs=1e-6)  # Wilson


def test_a_row_a_method_the_least_forget_first():
    rows = methods.rows(RUNS)
    assert [(row.method, row.numbers.get("seeds")) for row in rows] == [("base", None), ("rmu", 1), ("npo", 3)]
    assert rows[2].numbers["seconds"] == 20
    assert rows[0].accuracy["forget"].value == 0.98
    assert "adjacent" not in rows[0].accuracy
    table = methods.table(rows).markdown()
    assert "| method | forget | general | seeds | seconds | memory, MB |" in table
    assert "| rmu | 30.0 (22–40) | 97.0 (92–99) | 1 | 10 | 300 |" in table


def test_a_budget_is_named_where_methods_differ_in_it():
    def under(method, budget):
        origin = {
            "config": {"train.kl_budget": budget},
            "config_hash": f"{method}{budget}",
            "versions": {},
            "command": "",
        }
        return result(method, 0, 0.5, 0.9, provenance=origin)

    one = [under("rmu", 0.1), under("npo", 0.1)]
    assert {row.method for row in methods.rows(one)} == {"base", "rmu", "npo"}
    two = {row.method for row in methods.rows([*one, under("rmu", 0.01)])}
    assert two == {"base", *(f"{name} train.kl_budget={b}" for name, b in (("rmu", 0.1), ("rmu", 0.01), ("npo", 0.1)))}


def test_worst_case_after_attacks_and_perplexity():
    attacks = {"relearn": attack(0.3, 0.5), "prune": attack(0.3, 0.4), "norms": {"budget": {}}}  # no answers in norms
    before, after = ({"perplexity": value, "tokens": 9} for value in (2.0, 3.0))
    read = {"perplexity": {"x.txt": {"base": before, "unlearned": after}}}
    base, row = methods.rows([result("rmu", 0, 0.3, 0.9, attacks=attacks, **read)])
    assert (row.numbers["perplexity"], base.numbers["perplexity"]) == (3.0, 2.0)
    assert methods.WORST not in base.accuracy
    z = 2.2414027  # of 1 - 0.05/2, since it is the greater of two
    half = z * (0.25 / 100 + z**2 / 40000) ** 0.5 / (1 + z**2 / 100)
    worst = row.accuracy[methods.WORST]
    assert (worst.value, worst.low, worst.high) == pytest.approx((0.5, 0.5 - half, 0.5 + half), abs=1e-6)
    fewer = result("rmu", 1, 0.3, 0.9, attacks={"relearn": attack(0.3, 0.5)})
    both = [result("rmu", 0, 0.3, 0.9, attacks=attacks), fewer]
    first, last = (methods.rows(order)[1].accuracy[methods.WORST] for order in (both, both[::-1]))
    assert first == last


def test_the_command_writes_a_page_and_a_picture(tmp_path, capsys):
    write(tmp_path, RUNS)
    assert main(["table", str(tmp_path)]) == 0
    assert "| npo |" in capsys.readouterr().out
    assert (tmp_path / "methods.png").read_bytes()[:4] == b"\x89PNG"


def test_judged_models_stand_beside_methods(tmp_path, capsys):
    about = {"kind": "judge", "model": "m", "topics": ["hexes", "wards"], "seed": 0}
    damage = {"damage": {"kl": {"neutral": {"mean": 0.25, "ci95": [0.2, 0.3]}}, "agreement": {}, "perplexity": {}}}
    judged = []
    for name, forget in (("a/ckpt", 0.4), ("b/ckpt", 0.1), ("c/ckpt", 0.5)):
        values = result("x", 0, forget, 0.9, **damage).model_dump(exclude_none=True, exclude={"train"})
        judged.append(Results.model_validate(values | {"run": about | {"unlearned": name}}))
    (tmp_path / "runs").mkdir()
    (tmp_path / "judged").mkdir()
    write(tmp_path / "runs", RUNS)
    write(tmp_path / "judged", judged)
    assert main(["table", str(tmp_path / "runs"), str(tmp_path / "judged")]) == 0
    page = (tmp_path / "runs/methods.md").read_text()
    rows = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")][2:]
    assert rows == ["base", "b/ckpt", "rmu", "a/ckpt", "c/ckpt", "npo"]
    assert "| method | forget | general | KL | seeds | seconds | memory, MB |" in page
    assert "| b/ckpt | 10.0 (6–17) | 90.0 (83–94) | 0.25 | 1 |  |  |" in page


def test_no_runs_is_one_line(tmp_path, capsys):
    assert main(["table", str(tmp_path)]) == 2
    assert "no finished runs" in capsys.readouterr().err


def test_runs_of_other_settings_are_not_averaged():
    """Two steers of one method are two experiments; seeds of one are one."""
    given = [(steer, seed) for steer in (2, 20) for seed in (0, 1)]
    runs = [result("rmu", seed, 0.3 + steer / 100, 0.9, run={"steer": [steer]}) for steer, seed in given]
    rows = methods.rows(runs)
    assert [row.method for row in rows] == ["base", "rmu steer=2", "rmu steer=20"]
    assert [row.numbers["seeds"] for row in rows[1:]] == [2, 2]
    assert rows[1].accuracy["forget"].value == pytest.approx(0.32)


def test_other_questions_and_other_attacks_are_not_averaged():
    fewer = result("rmu", 1, 0.3, 0.9, attacks={"relearn": attack(0.3, 0.5)})
    fewer.qa["lore_forget"].unlearned.n = 20
    other = result("rmu", 2, 0.3, 0.9, attacks={"relearn": attack(0.3, 0.5) | {"settings": {"steps": 5}}})
    same = [result("rmu", seed, 0.3, 0.9, attacks={"relearn": attack(0.3, 0.5)}) for seed in (3, 4)]
    for r in (fewer, other, *same):
        r.qa["lore_forget"].role = "forget"
        r.attacks["relearn"].settings.setdefault("steps", 10)
    names = {row.method: row.numbers.get("seeds") for row in methods.rows([fewer, other, *same])}
    assert names == {
        "base": None,
        "rmu questions=120": 1,
        "rmu attacks.relearn.steps=5": 1,
        "rmu": 2,
    }
    said = methods.about([fewer, other, *same])
    assert said.endswith(" `rmu`, where nothing else is said: questions=200, attacks.relearn.steps=10.")


def test_base_models_under_other_attacks_are_no_mean():
    """From the least to the greatest; one of an attack that showed nothing is left out."""

    def under(base: float, **more) -> dict:
        found = {
            name: {"acc": acc, "stderr": 0.1, "ci95": [acc, acc], "n": 100} for name, acc in (("b", base), ("x", 0.5))
        }
        entry = attack(0.3, 0.5) | {
            "before": found["x"],
            "after": found["x"],
            "control": {"base": found["b"] | {"p_chance": 1}},
        }
        return {"relearn": {k: v for k, v in (entry | more).items() if v is not None}}

    nothing = {"before": None, "after": None, "inconclusive": "did not learn"}
    runs = [
        result(m, 0, 0.3, 0.9, attacks=a)
        for m, a in (("rmu", under(0.8)), ("npo", under(0.4)), ("rr", under(0.1, **nothing)))
    ]
    lines = methods.attacked(runs).markdown().splitlines()
    assert lines[0] == "| method | asked plainly (100) | relearn (100) |"
    other = result("rmu", 1, 0.3, 0.9, attacks=under(0.8))
    other.attacks["relearn"].n = 90  # another half of the facts
    heads = methods.attacked([*runs, other]).markdown().splitlines()[0]
    assert heads == "| method | asked plainly (90–100) | relearn (90–100) |"
    assert {row.method: row.numbers.get("seeds") for row in methods.rows([*runs, other])}["rmu"] == 2
    assert lines[-1] == "| *base* |  | 40.0–80.0 |"
    assert methods.attacked(runs[:1]).markdown().splitlines()[-1] == "| *base* |  | 80.0 |"


def test_each_base_model_has_a_row():
    """One row, the first run's, stood for all of them."""
    runs = [result("rmu", 0, 0.3, 0.9), result("rmu", 0, 0.2, 0.8, run={"model": "other", "layer": 2})]
    names = ["base on m", "rmu on m", "base on other", "rmu on other"]
    assert [row.method for row in methods.rows(runs)] == names


def test_chance_is_the_questions_own_and_no_point_is_cut_off():
    figure = methods.draw(methods.rows([result("rmu", 0, 0.05, 0.06, chance=0.1)]))
    (axes,) = figure.axes
    lines = [line.get_xdata() for line in axes.lines]
    assert any(list(xs) == [0.1, 0.1] for xs in lines)
    assert axes.get_xlim()[0] < 0.05
    assert axes.get_ylim()[0] < 0.06


def test_what_lasts_is_drawn_from_the_worst_attack_by_each_measure():
    """By hand: of two attacks the one with more right answers, and the one with more probability; means over seeds."""

    def answers(acc: float, prob: float) -> dict:
        return {"acc": acc, "stderr": 0.1, "ci95": [acc, acc], "n": 10, "prob": prob, "prob_ci95": [prob / 2, prob]}

    def under(acc: float, prob: float, base: float) -> dict:
        states = {"before": answers(0.2, 0.01), "after": answers(acc, prob)}
        return {"budget": {}, **states, "control": {"base": answers(base, base) | {"p_chance": 0.01}}}

    runs = [
        result("rmu", 0, 0.3, 0.9, attacks={"relearn": under(0.5, 0.3, 0.8), "ablation": under(0.7, 0.1, 0.6)}),
        result("rmu", 1, 0.3, 0.9, attacks={"relearn": under(0.5, 0.2, 0.8), "ablation": under(0.3, 0.1, 0.6)}),
        result("npo", 0, 0.3, 0.9, attacks={"relearn": under(0.4, 0.9, 0.8)}),
    ]
    right, likely = methods.lasting(methods.rows(runs)).axes
    assert [text.get_text() for text in right.get_yticklabels()] == ["rmu", "npo"], "the lower probability is on top"
    first = {axes: [line for line in axes.lines if list(line.get_ydata()) == [0]] for axes in (right, likely)}
    values = {axes: {line.get_label(): float(line.get_xdata()[0]) for line in lines} for axes, lines in first.items()}
    base = "the base model under that attack"
    assert values[right] == pytest.approx({"asked plainly": 0.2, "after the worst attack": 0.6, base: 0.7})
    assert values[likely] == pytest.approx({"asked plainly": 0.01, "after the worst attack": 0.25, base: 0.8})
    assert methods.lasting(methods.rows(RUNS)) is None
