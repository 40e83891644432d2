"""SAM, the sign mask and folds: around any method's loss, against hand-computed values and the obvious way."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import tiny
import torch
from composing import composed
from worked import CPU, Worked, batch

from rmu_exp.data import batches as batching
from rmu_exp.data.batches import Tokens
from rmu_exp.model.checkpoint import Checkpoint
from rmu_exp.model.parameters import assemble
from rmu_exp.support.errors import UserError
from rmu_exp.unlearning.gradients import Gradients, Wrap
from rmu_exp.unlearning.loop import unlearn
from rmu_exp.unlearning.snapshot import Snapshots
from rmu_exp.unlearning.step import Step


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return Checkpoint("tiny", tiny.mistral(tmp_path_factory.mktemp("tiny")))


@pytest.mark.parametrize(
    ("wrap", "expected"),
    [
        (Wrap(), [1.0, 5.0]),
        (Wrap(sam=0.5), [1.3, 5.4]),  # ∇½w² = w = (3, 4) has norm 5, ε = (0.3, 0.4)
        (Wrap(sign_mask=True), [-2.0, 5.0]),  # 3 against −2 is left out
        (Wrap(0.5, True), [-2.0, 5.4]),
    ],
)
def test_by_hand(wrap, expected):
    """L_F = ½·w², rest = −2·w₀ + w₁ at w = (3, 4)."""
    w = torch.tensor([3.0, 4.0], requires_grad=True)

    def loss(step):
        forget = (w**2).sum() / 2
        return {"loss": forget - 2 * w[0] + w[1], "forget_loss": forget}

    method = SimpleNamespace(loss=loss, context=SimpleNamespace(layer=0), forget_target=lambda step: None)
    step = SimpleNamespace(numbers=lambda layer, target: {})
    numbers = Gradients(method, [w], lambda some, number: step, CPU, wrap).of(batch(), 1)
    assert torch.allclose(w.grad, torch.tensor(expected))
    assert w.tolist() == [3, 4], "the weights are back to the bit"
    assert numbers["loss"].item() == 12.5 - 6 + 4, "what is shown is the loss at the weights"


@pytest.mark.parametrize("name", ["rmu", "npo", "scrub", "grad_ascent"])
@pytest.mark.parametrize("parts", [1, 2])
def test_the_obvious_way_and_in_parts(checkpoint, name, parts):
    work = Worked(checkpoint, name, moved=0.1)
    if parts == 2 and work.method.mean_over is None:
        pytest.skip("goes through as one")

    def two(masters):
        losses = work.method.loss(work.step())
        forget = torch.autograd.grad(losses["forget_loss"], masters, retain_graph=True)
        whole = torch.autograd.grad(losses["loss"], masters)
        return forget, [w - f for w, f in zip(whole, forget, strict=True)]

    forget, rest = two(work.masters)
    norm = torch.cat([f.flatten() for f in forget]).norm()
    with torch.no_grad():
        for w, f in zip(work.masters, forget, strict=True):
            w += 0.1 * f / norm
    above, _ = two(work.masters)
    with torch.no_grad():
        for w, f in zip(work.masters, forget, strict=True):
            w -= 0.1 * f / norm

    def make(some, number):
        return Step(work.split, some, assemble(work.model, work.trained, work.masters), work.layers, number=number)

    gradients = Gradients(work.method, work.masters, make, CPU, Wrap(0.1, True))
    gradients.parts = parts
    gradients.of(batch(), 1)
    for w, a, r in zip(work.masters, above, rest, strict=True):
        sure = (a * r).abs() > 1e-9  # where the sign is no matter of rounding
        expected = torch.where(a * r < 0, 0, a) + r
        assert sure.any() or name == "grad_ascent"
        torch.testing.assert_close(w.grad[sure], expected[sure], rtol=2e-3, atol=1e-5)


def test_a_resumed_run_is_the_same_run(checkpoint, tmp_path):
    def values(batches, **more):
        work = Worked(checkpoint, "rmu_lat", inner_steps=2, updates=4)
        return unlearn(work.model, work.trained, batches, work.method, 1e-2, wrap=Wrap(0.05, True), **more)

    order = [batch(n // 4 % 2) for n in range(6)]
    whole = values(order)
    values(order[:3], snapshots=Snapshots(tmp_path / "state", every=0))
    again = values(order, snapshots=Snapshots(tmp_path / "state", every=0))
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))


def test_stages_forget_more_and_more():
    forget, retain = [Tokens([[100 + i] for i in range(12)])], [Tokens([[i] for i in range(5)])]
    steps = list(batching.layered(forget, retain, 2, 90, 0, 0, folds=3))
    assert len(steps) == 90
    seen = []
    for stage in range(3):
        found = {"forget": set(), "retain": set()}
        for one in steps[30 * stage : 30 * (stage + 1)]:
            for role in found:
                found[role] |= {text[0] for text in batching.texts(one.passes[0], role)}
        seen.append(found)
    everything = {100 + i for i in range(12)}
    assert [len(found["forget"]) for found in seen] == [4, 8, 12]
    assert seen[0]["forget"] < seen[1]["forget"] < seen[2]["forget"] == everything
    for found in seen:
        assert found["retain"] == {0, 1, 2, 3, 4} | (everything - found["forget"])
    one = batching.shuffled(forget, retain, 2, 9, 0, 0)
    same = batching.layered(forget, retain, 2, 9, 0, 0, folds=1)
    assert all(torch.equal(a.passes[0].ids_RT, b.passes[0].ids_RT) for a, b in zip(one, same, strict=True))
    with pytest.raises(UserError, match=r"^train\.folds: got 7, but the corpus has 12 texts, fewer than"):
        batching.layered(forget, retain, 2, 9, 0, 0, folds=7)
    with pytest.raises(UserError, match=r"^train\.folds: got 3, but 2 steps are 2 rounds of the topics; take fewer"):
        batching.layered(forget, retain, 2, 2, 0, 0, folds=3)


def test_topics_take_turns_in_every_stage():
    corpora = [Tokens([[i] for i in range(9)])] * 2
    assert [b.topic for b in batching.layered(corpora, corpora, 2, 11, 0, 0, folds=3)] == [0, 1] * 5 + [0]


@pytest.mark.parametrize("words", ["train.sam=0.01", "train.sign_mask=true", "train.folds=2"])
def test_the_published_loop_has_none_of_it(words):
    with pytest.raises(UserError, match=r"^train\.\w+: the published loop \(method\.faithful=true\) has none of it$"):
        composed("method.faithful=true", words)
    composed(words)


def test_the_published_loop_has_one_target():
    with pytest.raises(UserError, match=r"^method\.target: got 'add', but method\.faithful=true is RMU with"):
        composed("method.faithful=true", "method.target=add")
    with pytest.raises(UserError, match=r"^steer: got 'auto', which is a length; method\.target=ablate takes a factor"):
        composed("steer=auto", "method.target=ablate")
    assert not composed("method.target=ablate", "steer=2").steers_by_length
