"""Every method keeps its weights inside a budget of KL, and results.json has what was measured on them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import a_run
import pytest
import tiny
import torch

from rmu_exp.config import plugins
from rmu_exp.evaluation import damage
from rmu_exp.model.checkpoint import Checkpoint
from rmu_exp.model.delta import Delta

LIMIT = 2e-3
OWN = {  # what a model of four layers needs
    "rr": ["method.offsets=[-1,0]"],
    "multi_layer": ["method.offsets=[-1,0]"],
    "cir": ["method.mlps=2", "method.refit=2", "train.lr=0.2"],
    "rmu_lat": ["method.inner_steps=2", "method.updates=1"],
    "elm": ["layers.rank=4"],
    "repselect": ["train.lr=0.05"],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Model, texts, and a run for ``undo`` to teach by."""
    folder = tmp_path_factory.mktemp("budgets")
    (folder / "neutral.txt").write_text("\n".join(tiny.texts(30, 5)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RMU_EXP_CACHE", str(folder / "cache"))
        a_run.carry_out(words(folder, "rmu", "layers=all"), folder / "teacher")
        yield folder


def words(folder, method, *more):
    given = [*a_run.words(folder), f"method={method}", "train.batch_size=2", "train.max_batches=12"]
    given += ["eval.tasks=[]", "eval.samples=0", "eval.damage=0"]
    own = [f"method.teacher={folder / 'teacher'}"] if method == "undo" else OWN.get(method, [])
    if plugins.module("method", method).Method.logits:  # which train every tensor
        given += ["train.lr=5e-4"]
    return [*given, f"data.neutral={folder / 'neutral.txt'}", f"train.kl_budget={LIMIT}", *own, *more]


def kl_of(folder, run):
    """KL(base ‖ unlearned) on the budget's texts, one full model each, a text at a time."""
    checkpoint = Checkpoint("tiny", folder / "model")
    base, other = (checkpoint.open(None, torch.float32, torch.device("cpu")) for _ in range(2))
    total = count = 0
    with Delta.load(run / "delta.safetensors").applied(other), torch.no_grad():
        for row in damage.encode_held(checkpoint.tokenizer(), tiny.texts(30, 5), "", 1024):
            p, q = (m(torch.tensor([row])).logits[0, :-1].double().log_softmax(-1) for m in (base, other))
            total, count = total + float((p.exp() * (p - q)).sum()), count + len(row) - 1
    return total / count


@pytest.mark.parametrize("name", plugins.files("method"))
def test_a_method_ends_inside_its_budget(place, name):
    a_run.carry_out(words(place, name), place / name)
    train = json.loads((place / name / "results.json").read_text())["train"]
    assert train["kl_budget"] == LIMIT
    assert train["kl"] == pytest.approx(kl_of(place, place / name), rel=5e-3)
    assert train["kl"] <= LIMIT
    assert train["kl_reached"], "all do, with these settings"
    assert train["kl"] >= 0.95 * LIMIT
    assert ("kl_scale" in train) == plugins.module("method", name).Method.at_once


def test_undo_is_not_taken_up_with_another_teacher(place, tmp_path, monkeypatch):
    teacher, method, seen = tmp_path / "teacher", plugins.module("method", "undo").Method, []
    shutil.copytree(place / "teacher", teacher)

    def words_of_undo():
        return words(place, "undo", f"method.teacher={teacher}", "train.save_every=0")

    def stopped(self, step, loss=method.loss):
        seen.append(step.number)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return loss(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(method, "loss", stopped)
        with pytest.raises(KeyboardInterrupt):
            a_run.carry_out(words_of_undo(), tmp_path / "run")
    other = Delta.load(teacher / "delta.safetensors")
    replace(other, tensors={name: 1.01 * w for name, w in other.tensors.items()}).save(teacher / "delta.safetensors")
    for folder in ("run", "anew"):
        a_run.carry_out(words_of_undo(), tmp_path / folder)
    made = [(tmp_path / folder / "delta.safetensors").read_bytes() for folder in ("run", "anew")]
    assert made[0] == made[1]


@pytest.mark.parametrize("name", ["npo", "repselect", "undo"])
def test_killed_and_started_again_it_keeps_the_same_bytes(place, name, monkeypatch):
    a_run.carry_out(words(place, name), place / name)
    whole = json.loads((place / name / "results.json").read_text())["train"]
    method, seen = plugins.module("method", name).Method, []

    def stopped(self, step, loss=method.loss):
        seen.append(step.number)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return loss(self, step)

    again = place / f"{name} again"
    with monkeypatch.context() as patch:
        patch.setattr(method, "loss", stopped)
        with pytest.raises(KeyboardInterrupt):
            a_run.carry_out(words(place, name, "train.save_every=0"), again)
    a_run.carry_out(words(place, name, "train.save_every=0"), again)
    same = [(place / folder / "delta.safetensors").read_bytes() for folder in (name, again.name)]
    assert same[0] == same[1]
    train = json.loads((again / "results.json").read_text())["train"]
    assert {key: train[key] for key in train if key.startswith("kl")} == {
        key: whole[key] for key in whole if key.startswith("kl")
    }
