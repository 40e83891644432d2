"""What is kept belongs to the very models, texts and questions that it was made from; anything else is not taken up."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import a_run
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from rmu_exp.cli import compose
from rmu_exp.evaluation import harness
from rmu_exp.evaluation.harness import Answers
from rmu_exp.model.checkpoint import locate
from rmu_exp.model.delta import Delta
from rmu_exp.pipeline.evaluate import EarlyStop
from rmu_exp.pipeline.record import made_from
from rmu_exp.pipeline.run import execute, prepare
from rmu_exp.pipeline.train import TrainPlan
from rmu_exp.settings import Judge, Run
from rmu_exp.support.errors import UserError


@pytest.fixture
def place(tiny_run, tmp_path, monkeypatch) -> Path:
    """A copy of a finished run, its model and its texts, to change things in."""
    monkeypatch.setenv("RMU_EXP_CACHE", str(tmp_path / "cache"))
    for name in ("model", "run"):
        shutil.copytree(tiny_run.parent / name, tmp_path / name)
    for name in ("forget.txt", "retain.txt"):
        shutil.copy(tiny_run.parent / name, tmp_path / name)
    config = (tmp_path / "run/config.yaml").read_text()
    (tmp_path / "run/config.yaml").write_text(config.replace(str(tiny_run.parent), str(tmp_path)))
    return tmp_path


def run_in(place: Path, *words: str) -> Run:
    (run,) = compose.composed([*a_run.words(place), *words, f"output={place / 'new'}"], a_run.CONF)
    return run


def change_weights(folder: Path) -> None:
    """One number, in a matrix that every run reads."""
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    save_file(weights | {name: weights[name] * 1.5}, folder / "model.safetensors", {"format": "pt"})


def change_json(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_a_checkpoint_is_its_weights_its_configuration_and_its_tokenizer(place):
    known = {locate(None, str(place / "model")).identity()}
    for change in (
        lambda: change_weights(place / "model"),
        lambda: change_json(place / "model/config.json", rms_norm_eps=0.1),
        lambda: change_json(place / "model/tokenizer_config.json", unk_token="</s>"),
        lambda: (place / "model/modeling_own.py").write_text("x = 1\n"),
    ):
        change()
        known.add(locate(None, str(place / "model")).identity())
    assert len(known) == 5
    (place / "model/README.md").write_text("another text")
    assert locate(None, str(place / "model")).identity() in known


def test_kept_parts_belong_to_the_model_and_the_texts(place):
    def mark() -> str:
        plan = prepare(run_in(place), place / "new")
        return made_from(plan.run, plan.models.base, plan.texts.digests)

    marks = {mark()}
    (place / "forget.txt").write_text("\n".join(tiny.texts(30, 9)))
    marks.add(mark())
    change_json(place / "model/config.json", rms_norm_eps=0.1)
    marks.add(mark())
    assert len(marks) == 3


def test_the_base_is_asked_again_when_its_tokenizer_or_the_questions_are_others(place, monkeypatch):
    run, asked = run_in(place), []

    def ask(_folder: Path) -> Answers:
        asked.append(1)
        return Answers({}, {}, {}, {}, {"a task": "these questions"})

    def judged(**how: bool) -> Answers:
        checkpoint = locate(None, str(place / "model"))
        return harness.base_answers(checkpoint, run.eval, torch.float32, "cpu", ask, **how)

    judged()
    judged()
    assert len(asked) == 1
    change_json(place / "model/tokenizer_config.json", unk_token="</s>")
    judged()
    assert len(asked) == 2
    judged(anew=True)
    assert len(asked) == 3


def test_answers_to_other_questions_are_not_compared(place, monkeypatch):
    """The cache has answers of the base to questions of another version of the data."""
    execute(run_in(place), place / "new")
    (kept,) = (place / "cache/base_answers").glob("*.json")
    found = json.loads(kept.read_text())
    right = json.loads((place / "new/results.json").read_text())["qa"]
    task = next(iter(found["chosen"]))
    found["hashes"][task] = "of other questions"
    found["chosen"][task] = [3 - c for c in found["chosen"][task]]
    kept.write_text(json.dumps(found))
    shutil.rmtree(place / "new")
    execute(run_in(place), place / "new")
    assert json.loads((place / "new/results.json").read_text())["qa"] == right
    assert "of other questions" not in kept.read_text()


def test_a_finished_run_does_not_go_on_upon_another_base(place):
    run = run_in(place)
    execute(run, place / "new")
    change_weights(place / "model")
    with pytest.raises(UserError, match=r"this Delta was made for .*, not for"):
        prepare(run, place / "new")


def test_attacks_belong_to_what_was_attacked_and_asked(place):
    def of(*words: str) -> str:
        plan = prepare(run_in(place, "attacks=[norms]", *words), place / "new").attacks
        assert plan is not None
        return plan.fingerprint(Delta.load(place / "run/delta.safetensors").digest())

    tiny.mistral(place / "oracle", layers=4, seed=5)
    found = [
        of(),
        of(f"model.oracle={place / 'oracle'}"),
        of("data.questions.forget=[lore_forget_hexes]"),
        of("eval.limit=5"),
    ]
    assert len(set(found)) == 4
    assert of() == found[0]
    (place / "retain.txt").write_text("\n".join(tiny.texts(30, 9)))
    assert of() not in found


def judge_of(place: Path, *words: str) -> Judge:
    given = [*words, "eval.tasks=[lore_forget]", "eval.limit=4", "model.oracle=null", "tracking=off"]
    (judge,) = compose.composed([*given, f"output={place / 'judged'}"], a_run.CONF, name="judge")
    return judge


def test_a_run_is_judged_on_the_base_that_it_changed(place):
    change_weights(place / "model")
    with pytest.raises(UserError, match=r"unlearned: .*this Delta was made for"):
        prepare(judge_of(place, f"unlearned={place / 'run'}"), place / "judged")


def test_a_judgement_does_not_go_on_with_another_model(place):
    shutil.copytree(place / "model", place / "other")
    change_weights(place / "other")
    words = (
        f"base={place / 'model'}",
        f"unlearned={place / 'other'}",
        "data=local",
        f"data.forget=[{place}/forget.txt]",
    )
    words += (f"data.retain=[{place}/retain.txt]", "data.questions.forget=[lore_forget]")
    execute(judge_of(place, *words), place / "judged")
    before = (place / "judged/results.json").read_bytes()
    change_weights(place / "other")
    with pytest.raises(UserError, match="judged other weights than are there now"):
        prepare(judge_of(place, *words), place / "judged")
    assert (place / "judged/results.json").read_bytes() == before


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(f): (f.stat().st_mtime_ns, f.read_bytes()) for f in folder.rglob("*") if f.is_file()}


@pytest.mark.parametrize("judged", [False, True])
def test_a_finished_run_started_again_does_nothing(place, monkeypatch, judged):
    """No tracker, no training, no plots; nothing in the folder is written anew."""
    words = ["attacks=[norms]", "tracking=wandb", "tracking.mode=offline"]
    wanted = judge_of(place, f"unlearned={place / 'run'}", "attacks=[norms]") if judged else run_in(place, *words)
    wanted.tracking.kind, wanted.eval.limit, folder = "off", 12, place / "new"
    execute(wanted, folder)
    before, wanted.tracking.kind = files(folder), "wandb"
    monkeypatch.setattr("rmu_exp.pipeline.run.open_tracker", lambda *_: pytest.fail("a tracker was opened"))
    execute(wanted, folder)
    wanted.seed = 3
    with pytest.raises(UserError, match="holds a run with other settings"):
        execute(wanted, folder)
    assert files(folder) == before


def test_a_later_attack_is_added_to_a_finished_run(place):
    execute(run_in(place), place / "new")
    before = json.loads((place / "new/results.json").read_text())
    delta = (place / "new/delta.safetensors").stat().st_mtime_ns
    execute(run_in(place, "attacks=[norms]"), place / "new")
    after = json.loads((place / "new/results.json").read_text())
    assert after["qa"] == before["qa"]
    assert "norms" in after["attacks"]
    assert "norms" in (place / "new/report.md").read_text()
    assert (place / "new/delta.safetensors").stat().st_mtime_ns == delta
    assert not isinstance(prepare(run_in(place), place / "new").source, TrainPlan)


def test_a_run_that_its_search_gave_up_is_neither_asked_the_rest_nor_attacked(place):
    run = run_in(place, "attacks=[norms]")
    execute(run, place / "new", EarlyStop(2, lambda partly: f"beaten on {partly.pruned.questions}"))
    execute(run, place / "new")
    results = json.loads((place / "new/results.json").read_text())
    assert results["pruned"]["because"] == "beaten on 2"
    assert not {"qa", "attacks"} & set(results)
    assert (place / "new/report.md").is_file()


def test_a_limit_of_questions_leaves_the_texts_of_perplexity_whole(place):
    measured = f"eval.perplexity={place / 'retain.txt'}"
    whole, limited = (
        prepare(run_in(place, measured, f"eval.limit={limit}"), place / "new").evaluation.held_out for limit in (999, 6)
    )
    assert whole is not None
    assert whole == limited
