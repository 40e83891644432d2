"""Training that goes wrong is stopped by stated rules, and the last good state is kept."""

from __future__ import annotations

import logging

import pytest
import tiny
import torch

from rmu_exp.data import batches as batching
from rmu_exp.model.checkpoint import Checkpoint
from rmu_exp.model.parameters import resolve
from rmu_exp.support.errors import RunError
from rmu_exp.unlearning.guards import Guard
from rmu_exp.unlearning.loop import unlearn
from rmu_exp.unlearning.method import Context
from rmu_exp.unlearning.methods import rmu
from rmu_exp.unlearning.snapshot import Snapshots

CPU = torch.device("cpu")
STEPS = 30


def numbers(updated: float, frozen: float = 1.0, loss: float = 0.5) -> dict:
    return {"loss": loss, "norm_retain_updated": updated, "norm_retain_frozen": frozen}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stops(value):
    with pytest.raises(RunError, match=r"loss is (nan|inf) at step 7; try a smaller train.lr"):
        Guard().metrics(7, numbers(1.0, loss=value))


def test_retain_activations_that_grow(caplog):
    guard = Guard()
    with caplog.at_level(logging.WARNING):
        guard.metrics(7, numbers(9.9))
        assert not caplog.records
        guard.metrics(7, numbers(11.0))
        guard.metrics(7, numbers(12.0))
    assert len(caplog.records) == 1, "one warning"
    with pytest.raises(RunError, match=r"101 times as long.*larger alpha"):
        guard.metrics(7, numbers(101.0))


def test_accuracy_that_collapses():
    given = iter([0.9, 0.7, 0.5])
    guard = Guard(lambda values: next(given), every=10, collapse=0.3)
    guard.check(9, [])
    guard.check(10, [])
    with pytest.raises(RunError, match=r"50 % of the .* answered correctly at step 20, 90 % before"):
        guard.check(20, [])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return Checkpoint("tiny", tiny.mistral(tmp_path_factory.mktemp("tiny")))


def train(checkpoint, lr: float, snapshots: Snapshots | None = None, poisoned: int = 0) -> list[torch.Tensor]:
    """A run whose loss is not a number from step ``poisoned`` on."""
    tokenizer = checkpoint.tokenizer()
    forget, retain = (batching.tokenize(tiny.texts(30, seed), tokenizer, 64) for seed in (1, 2))
    model = checkpoint.open(4, torch.float32, CPU)
    about = Context(3, ["a"], [6.5], [10.0], checkpoint.hidden_size, CPU, STEPS)
    method = rmu.Method(rmu.Settings(faithful=False), about)
    loss = method.loss

    def spoilt(step):
        found = loss(step)
        return found | {"loss": found["loss"] * float("nan")} if step.number >= poisoned > 0 else found

    method.loss = spoilt
    order = batching.shuffled([forget], [retain], 4, STEPS, 0, 2)
    return unlearn(model, resolve(model, [1, 2, 3], None), order, method, lr, snapshots=snapshots)


def test_the_last_good_state_is_kept(checkpoint, tmp_path):
    """The snapshot behind the stop is of finite numbers, and going on from it ends as if nothing had happened."""
    kept = Snapshots(tmp_path / "training.safetensors", "this run", every=0)
    with pytest.raises(RunError, match="loss is nan at step 12"):
        train(checkpoint, 1e-3, kept, poisoned=12)
    again = Snapshots(tmp_path / "training.safetensors", "this run")
    assert again.steps == 11
    assert all(value.isfinite().all() for value in again.kept.values())
    for gone_on, whole in zip(train(checkpoint, 1e-3, again), train(checkpoint, 1e-3), strict=True):
        assert torch.equal(gone_on, whole)


def test_a_learning_rate_that_explodes_is_stopped(checkpoint):
    with pytest.raises(RunError, match=r"times as long as the frozen model's|is (nan|inf)"):
        train(checkpoint, 1e3)


def test_a_snapshot_of_something_else_is_left_alone(checkpoint, tmp_path):
    file = tmp_path / "training.safetensors"
    train(checkpoint, 1e-3, Snapshots(file, "one run", every=0))
    assert Snapshots(file, "one run").steps > 0
    assert Snapshots(file, "another run").steps == 0
    file.write_bytes(file.read_bytes()[:100])
    assert Snapshots(file, "one run").steps == 0


def test_activations_that_do_not_move_are_warned_of_once_after_a_tenth(caplog):
    guard = Guard(steps=40)
    guard.metrics(1, {"reached_forget": 0.0})
    assert not caplog.records, "the first step has changed nothing yet"
    guard.metrics(5, {"reached_forget": 0.0004})
    guard.metrics(11, {"reached_forget": 0.0004})
    (record,) = caplog.records
    assert (
        "have gone 0.0 % of the way to their target after 5 of 40 steps; try a larger train.lr" in record.getMessage()
    )
    moving = Guard(steps=40)
    moving.metrics(5, {"reached_forget": 0.2})
    assert len(caplog.records) == 1
