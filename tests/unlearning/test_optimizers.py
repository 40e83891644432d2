"""Smaller training: layers that are run again on the way back, and moments in 8 bits."""

from __future__ import annotations

import importlib.util
from importlib.metadata import PackageNotFoundError

import pytest
import tiny
import torch
from composing import composed
from safetensors.torch import load_file
from worked import Worked, batch

from rmu_exp.model.checkpoint import Checkpoint
from rmu_exp.model.split import layers_of
from rmu_exp.support.errors import UserError
from rmu_exp.unlearning import optimizers
from rmu_exp.unlearning.gradients import Wrap
from rmu_exp.unlearning.loop import unlearn
from rmu_exp.unlearning.snapshot import Snapshots

needs_bitsandbytes = pytest.mark.skipif(not importlib.util.find_spec("bitsandbytes"), reason="bitsandbytes is missing")
ORDER = [batch(n % 2) for n in range(4)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return Checkpoint("tiny", tiny.mistral(tmp_path_factory.mktemp("tiny")))


@pytest.mark.parametrize("method", ["rmu", "npo", "rmu_lat", "elm", "repselect"])
def test_running_layers_again_changes_no_number(checkpoint, method):
    runs = []

    def values(recompute):
        work, count = Worked(checkpoint, method, layers=[0, 1, 2, 3]), []
        layers_of(work.model)[1].mlp.register_forward_pre_hook(lambda *_: count.append(torch.is_grad_enabled()))
        found = unlearn(work.model, work.trained, ORDER, work.method, 1e-2, wrap=Wrap(), recompute=recompute)
        runs.append(sum(count))
        return found

    kept, again = values(False), values(True)
    assert runs[1] > runs[0] > 0, "layers were run again"
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))


@needs_bitsandbytes
def test_eight_bits_are_near_thirty_two():
    """After ten steps, a tenth of AdamW's way apart: a code of 8 bits rounds each moment by a few per cent."""
    name = "adamw_8bit"
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(64, 256, generator=generator)  # smaller tensors stay in 32 bits
    made = {kind: start.clone().requires_grad_() for kind in ("adamw", name)}
    steps = {kind: optimizers.make(kind, [w], 1e-2) for kind, w in made.items()}
    for _ in range(10):
        g = torch.randn(start.shape, generator=generator)
        for kind, w in made.items():
            w.grad = g.clone()
            steps[kind].step()
    apart = (made[name] - made["adamw"]).detach().abs()
    moved = (made["adamw"] - start).detach().abs()
    assert moved.mean() > 1e-2
    assert apart.mean() < 0.1 * moved.mean()
    sizes = {v.dtype for v in steps[name].state[made[name]].values() if torch.is_tensor(v) and v.numel() == w.numel()}
    assert sizes == {torch.uint8}


@needs_bitsandbytes
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_resumed_run_is_the_same_run(tmp_path):
    wide = Checkpoint("wide", tiny.mistral(tmp_path / "model", hidden=64))

    def values(batches, **more):
        work = Worked(wide, "rmu", about={"optimizer": "adamw_8bit"})
        return unlearn(work.model, work.trained, batches, work.method, 1e-2, **more)

    whole = values(ORDER)
    values(ORDER[:2], snapshots=Snapshots(tmp_path / "state", every=0))
    assert any(v.dtype == torch.uint8 for v in load_file(tmp_path / "state").values())
    again = values(ORDER, snapshots=Snapshots(tmp_path / "state", every=0))
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))


def test_without_the_package_it_is_one_line(monkeypatch):
    for there in ("0.46.1", None):

        def version(name, there=there):
            if there is None:
                raise PackageNotFoundError(name)
            return there

        monkeypatch.setattr(optimizers, "version", version)
        with pytest.raises(
            UserError, match=r"^train\.optimizer: adamw_8bit is that of bitsandbytes 0\.50 or newer; pip"
        ):
            optimizers.refuse("adamw_8bit", "cpu")
    optimizers.refuse("adamw", "cpu")


def test_nothing_is_paged_on_a_cpu():
    with pytest.raises(
        UserError, match=r"^train\.optimizer: paged_adamw_8bit moves its numbers off a GPU, and this is"
    ):
        optimizers.refuse("paged_adamw_8bit", "cpu")


def test_the_published_loop_has_its_own():
    with pytest.raises(UserError, match=r"^train\.optimizer: the published loop"):
        composed("method.faithful=true", "train.optimizer=adamw_8bit")
    assert composed("method.faithful=true", "train.checkpointing=true").train.checkpointing
