"""A step in parts has the gradients of the whole step, whenever memory makes it go through in parts."""

from __future__ import annotations

import logging
import sys

import program
import pytest
import tiny
import torch
from safetensors.torch import load_file
from worked import CPU, LAYER, Worked, batch

from rmu_exp.config import plugins
from rmu_exp.data import batches as batching
from rmu_exp.model.checkpoint import Checkpoint
from rmu_exp.model.parameters import assemble
from rmu_exp.support.errors import RunError
from rmu_exp.unlearning.gradients import Gradients
from rmu_exp.unlearning.step import Step

IN_PARTS = [name for name in plugins.files("method") if plugins.module("method", name).Method.mean_over is not None]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return Checkpoint("tiny", tiny.mistral(tmp_path_factory.mktemp("tiny")))


def gradients(work: Worked, largest: float = float("inf")) -> Gradients:
    """Of a method, on a device that holds no more than ``largest`` tokens."""

    def make(some: batching.Batch, number: int) -> Step:
        if some.passes[0].ids_RT.numel() > largest:
            raise torch.OutOfMemoryError("out of memory")
        weights = assemble(work.model, work.trained, work.masters)
        return Step(work.split, some, weights, work.layers, number=number)

    return Gradients(work.method, work.masters, make, CPU)


@pytest.mark.parametrize("name", IN_PARTS)
def test_the_same_gradients_and_losses_in_two_parts(checkpoint, name, caplog):
    """Three forget and two retain texts of unequal lengths, so that equal weights would not do."""
    work = Worked(checkpoint, name, moved=0.1, **({"offsets": [-1, 0]} if name == "multi_layer" else {}))
    whole = gradients(work).of(batch(), 1)
    expected = [w.grad.clone() for w in work.masters]
    some = gradients(work, largest=batch().passes[0].ids_RT.numel() - 1)
    with caplog.at_level(logging.WARNING):
        parts = some.of(batch(), 1)
    assert some.parts == 2
    assert "2 parts" in caplog.text
    for w, g in zip(work.masters, expected, strict=True):
        assert torch.allclose(w.grad, g, rtol=1e-4, atol=1e-7)
    for key in ("loss", "forget_loss"):
        assert parts[key].item() == pytest.approx(whole[key].item(), rel=1e-5)


def test_faithful_batches_in_parts():
    """Padded rows: every part keeps the padding, which counts in the published loss."""
    rows = torch.arange(12).view(4, 3)
    whole = batching.Batch(
        0, [batching.PackedRows(rows, torch.ones_like(rows), None, {"forget": torch.arange(12)})], 12
    )
    one, two = batching.split(whole, 2)
    assert one.passes[0].ids_RT.tolist() == rows[::2].tolist()
    assert two.passes[0].ids_RT.tolist() == rows[1::2].tolist()
    assert len(one.passes[0].tokens["forget"]) == 6


def test_what_cannot_be_made_smaller_is_told(checkpoint):
    with pytest.raises(RunError, match=r"one text of each kind.*data.max_length"):
        gradients(Worked(checkpoint, "rmu"), largest=0).of(batch(), 1)
    with pytest.raises(RunError, match=r"needs all texts of a step at once.*train.batch_size"):
        gradients(Worked(checkpoint, "rr", offsets=[0]), largest=0).of(batch(), 1)


def test_other_errors_are_not_taken_for_memory(checkpoint):
    work = Worked(checkpoint, "rmu")
    work.method.loss = lambda step: (_ for _ in ()).throw(RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        gradients(work).of(batch(), 1)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on a process's memory is Linux's")
def test_a_real_limit_on_memory(tmp_path):
    """A process that may hold too little for its batch says so, goes on in parts, and ends with the same Delta."""
    model = tiny.mistral(tmp_path / "model", layers=LAYER + 1, hidden=256)
    texts = [" ".join(" ".join(tiny.texts(40, i)).split()[:400]) for i in range(64)]
    (tmp_path / "a.txt").write_text("\n".join(texts))
    words = ["model=local", f"model.path={model}", "data=local", "tracking=off", "eval=none", "model.threads=1"]
    words += [f"data.forget=[{tmp_path / 'a.txt'}]", f"data.retain=[{tmp_path / 'a.txt'}]", f"layer={LAYER}"]
    words += ["steer=5", "alpha=10", "train.lr=1e-3", "train.batch_size=16", "train.max_batches=1"]
    told, deltas = [], []
    for limit in ("null", "0.5"):  # it takes about 1 GB without one
        done = program.run("train.py", *words, f"model.memory={limit}", f"output={tmp_path / limit}")
        assert done.returncode == 0, done.stderr
        told.append("out of memory: each step now goes through in" in done.stderr)
        deltas.append(load_file(tmp_path / limit / "delta.safetensors"))
    assert told == [False, True]
    for name, whole in deltas[0].items():
        assert torch.allclose(whole, deltas[1][name], atol=1e-5), name
