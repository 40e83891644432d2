"""RepSelect and CIR against hand-computed values and the obvious computation: each text alone, whole gradients."""

from __future__ import annotations

import pytest
import tiny
import torch
from families import make_checkpoint
from worked import FORGET, LAYER, RETAIN, Worked, batch

from rmu_exp.model.checkpoint import Checkpoint
from rmu_exp.model.parameters import resolve
from rmu_exp.model.split import layers_of
from rmu_exp.support.errors import UserError
from rmu_exp.unlearning.loop import unlearn
from rmu_exp.unlearning.methods import cir, repselect
from rmu_exp.unlearning.snapshot import Snapshots


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return Checkpoint("tiny", tiny.mistral(tmp_path_factory.mktemp("tiny")))


def weight(model, t):
    return layers_of(model)[t.layer].mlp.down_proj.weight


def mean_nll(model, texts):
    rows = [model(input_ids=torch.tensor([t])).logits[0, :-1].log_softmax(-1) for t in texts]
    return -torch.cat([row.gather(1, torch.tensor(t[1:])[:, None]) for row, t in zip(rows, texts, strict=True)]).mean()


def gradients(model, trained, loss):
    model.requires_grad_(False)
    wanted = [weight(model, t).requires_grad_() for t in trained]
    return torch.autograd.grad(loss(model), wanted)


def svd(g):
    """Those of the singular directions that are there."""
    u, s, vh = torch.linalg.svd(g, full_matrices=False)
    rank = int(torch.linalg.matrix_rank(g, rtol=1e-5))
    return u[:, :rank], s[:rank], vh.mT[:, :rank]


def test_collapse_by_hand():
    """diag(4, 2, 1) in its own directions: on each side every entry is divided by 4, 2 and 1."""
    g = torch.diag(torch.tensor([4.0, 2.0, 1.0]))
    u, s, v = svd(g)
    both = repselect.collapsed(g, u, s, v, "both", "soft").diagonal()
    torch.testing.assert_close(both, torch.tensor([0.25, 0.5, 1.0]))
    one = repselect.collapsed(g, u, s, v, "act", "soft").diagonal()
    torch.testing.assert_close(one, torch.ones(3), msg="one side whitens a matrix in its own directions")
    quadratic = repselect.collapsed(g, u, s, v, "grad", "quadratic").diagonal()
    torch.testing.assert_close(quadratic, torch.tensor([0.25, 0.5, 1.0]))
    hard = repselect.collapsed(g, u[:, :1], s[:1], v[:, :1], "act", "hard").diagonal()
    torch.testing.assert_close(hard, torch.tensor([0.0, 2.0, 1.0]))
    other = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])  # input and output side differ
    torch.testing.assert_close(repselect.collapsed(other, u, s, v, "act", "soft")[0], torch.tensor([0.25, 1.0, 3.0]))
    torch.testing.assert_close(repselect.collapsed(other, u, s, v, "grad", "soft")[0], torch.tensor([0.25, 0.5, 0.75]))


def obvious(checkpoint, trained, number, settings):
    """The single shot with one whole model, texts alone, exact singular values; every step has the same batch."""
    model = checkpoint.open(None, torch.float32, torch.device("cpu"))
    base = [weight(model, t).detach().clone() for t in trained]
    steps = number // (1 + settings.lora + (settings.distribution == "retain"))
    of = (
        gradients(model, trained, lambda m: -steps * mean_nll(m, RETAIN)) if settings.distribution == "retain" else None
    )
    if settings.lora:
        halves = []
        for i, w in enumerate(base):
            generator = torch.Generator().manual_seed(1 + 2 * i)
            a = (2 * torch.rand(8, w.shape[1], generator=generator) - 1) / w.shape[1] ** 0.5
            halves.append((a.requires_grad_(), torch.zeros(w.shape[0], 8, requires_grad=True)))
        for _ in range(steps):
            put = {
                f"model.layers.{t.layer}.{t.parameter}": w + b @ a
                for t, w, (a, b) in zip(trained, base, halves, strict=True)
            }
            call = lambda input_ids, put=put: torch.func.functional_call(model, put, (input_ids,))  # noqa: E731
            mean_nll(call, FORGET).backward()
            with torch.no_grad():
                for pair in halves:
                    for p in pair:
                        p -= settings.lora_lr * p.grad
                        p.grad = None
        for t, w, (a, b) in zip(trained, base, halves, strict=True):
            weight(model, t).data.copy_((w + b @ a).detach())
    found = gradients(model, trained, lambda m: -steps * mean_nll(m, FORGET))
    new = []
    for w, g, other in zip(base, found, of or found, strict=True):
        u, s, v = svd(other)
        scale = torch.diag(s.min() / s)
        take = [x @ (torch.eye(len(s)) - scale) @ x.mT for x in (v, u)]
        if settings.collapse in ("act", "both"):
            g = g - g @ take[0]
        if settings.collapse in ("grad", "both"):
            g = g - take[1] @ g
        new.append(w - 0.05 * g)
    return base, new


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"lora": False},
        {"distribution": "retain"},
        {"collapse": "act", "lora": False},
        {"collapse": "grad", "distribution": "retain"},
        {"collapse": "none"},
    ],
)
def test_repselect_is_the_obvious_single_shot(checkpoint, settings):
    steps = 6
    work = Worked(checkpoint, "repselect", directions=1000, lora_lr=0.5, about={"steps": steps}, **settings)
    values = unlearn(work.model, work.trained, [batch()] * steps, work.method, 0.05)
    base, expected = obvious(checkpoint, work.trained, steps, work.settings)
    for value, wanted, w in zip(values, expected, base, strict=True):
        torch.testing.assert_close(value - w, wanted - w, rtol=5e-3, atol=5e-3 * (wanted - w).abs().max().item())
        assert (value - w).abs().max() > 1e-5


def test_repselects_ablations_and_rank(checkpoint):
    plain = {"directions": 1000, "lora": False}
    none = Worked(checkpoint, "repselect", **plain, collapse="none")
    same = Worked(checkpoint, "repselect", **plain, distribution="none")
    ours, theirs = (unlearn(w.model, w.trained, [batch()] * 4, w.method, 0.05) for w in (none, same))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    g = torch.randn(40, 30, generator=torch.Generator().manual_seed(1)) * 0.5 ** torch.arange(30)
    u, s, v = repselect.leading(g, 5, 0)
    assert (u.shape, v.shape) == ((40, 5), (30, 5))
    torch.testing.assert_close(s, torch.linalg.svdvals(g)[:5], rtol=1e-3, atol=0)
    assert all(torch.equal(a, b) for a, b in zip(repselect.leading(g, 5, 0), (u, s, v), strict=True))
    with pytest.raises(UserError, match=r"^train\.max_batches: got 2, repselect needs 3 or more"):
        repselect.Method.refuse(repselect.Settings("retain", "both", "soft", None, True, 0.01), 3, 0, 2)


@pytest.mark.parametrize("name", ["repselect", "cir"])
def test_a_training_that_was_stopped_ends_with_the_same_bytes(checkpoint, tmp_path, name):
    settings = {"cir": {"refit": 2, "mlps": 2}}.get(name, {"distribution": "retain"})
    steps = 9
    make = lambda: Worked(checkpoint, name, about={"steps": steps}, **settings)  # noqa: E731
    whole = make()
    expected = unlearn(whole.model, whole.trained, ([batch(0), batch(1)] * 5)[:steps], whole.method, 0.05)
    for stop in (2, 5, 8):
        work, file = make(), tmp_path / f"{stop}.safetensors"

        def ends(stop=stop):
            yield from ([batch(0), batch(1)] * 5)[:stop]
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            unlearn(work.model, work.trained, ends(), work.method, 0.05, snapshots=Snapshots(file, "run", every=0))
        kept, work = Snapshots(file, "run"), make()
        assert kept.steps == stop
        values = unlearn(
            work.model, work.trained, ([batch(0), batch(1)] * 5)[:steps], work.method, 0.05, snapshots=kept
        )
        assert all(torch.equal(a, b) for a, b in zip(values, expected, strict=True))


def recorded(model, trained, text):
    """Inputs of the trained modules and their outputs, which keep gradients, and what MLPs give, of one text."""
    ins, outs, mlps, hooks = [], [], [], []
    for t in trained:
        module = layers_of(model)[t.layer].mlp.down_proj
        hooks.append(module.register_forward_hook(lambda _m, i, o: ins.append(i[0]) or outs.append(o)))
    for layer in (LAYER - 1, LAYER):
        hooks.append(layers_of(model)[layer].mlp.register_forward_hook(lambda _m, _i, o: mlps.append(o)))
    model(input_ids=torch.tensor([text]))
    for hook in hooks:
        hook.remove()
    return [i[0] for i in ins], outs, [m[0] for m in mlps]


def test_cir_takes_directions_out_of_activations_and_gradients(checkpoint):
    """One step: ΣD'A'ᵀ of each text alone, with bases by an exact eigendecomposition, scaled to the norm."""
    work = Worked(checkpoint, "cir", layers=[2, 3], refit=1, mlps=2, act_directions=3, grad_directions=4)
    work.method.context = type(work.method.context)(**(vars(work.method.context) | {"topics": ["a"], "steps": 2}))
    values = unlearn(work.model, work.trained, [batch()] * 2, work.method, 0.2)
    work = Worked(checkpoint, "cir", layers=[2, 3], refit=1, mlps=2)
    values_of_second = values
    # at the base: o = o⁰, whose loss is about 1
    texts = [recorded(work.full.requires_grad_(True), work.trained, text) for text in FORGET]
    norms = [torch.cat([m[k][1:] for *_, m in texts]).norm(dim=-1).mean().detach() for k in range(2)]
    count = sum(len(t) - 1 for t in FORGET)
    loss = sum(
        ((m[k][1:] * m[k][1:].detach()).sum(-1) / norms[k] ** 2).relu().sum() / count / 2
        for *_, m in texts
        for k in range(2)
    )
    assert work.loss()["loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    outs = [o for _, out, _ in texts for o in out]
    grads = torch.autograd.grad(loss, outs)
    for k, (t, value) in enumerate(zip(work.trained, values_of_second, strict=True)):
        a = torch.cat([ins[k][1:-1] for ins, _, _ in texts]).detach()
        d = torch.cat([grads[n * 2 + k][0, 1:-1] for n in range(len(FORGET))])
        both = []
        for x, directions in ((a, 3), (d, 4)):
            mean = x.mean(dim=0)
            _, vectors = torch.linalg.eigh(torch.cov(x.T, correction=0))
            for unit in [mean / mean.norm(), *vectors.T.flip(0)[: directions - 1]]:
                x = x - torch.outer(x @ unit, unit)
            both.append(x)
        moved = weight(work.full, t).detach() - value
        expected = both[1].T @ both[0]
        assert torch.cosine_similarity(moved.flatten(), expected.flatten(), dim=0) > 0.999
    total = torch.cat([(weight(work.full, t) - v).flatten() for t, v in zip(work.trained, values, strict=True)])
    assert total.norm().item() == pytest.approx(0.2, rel=1e-4), "and nothing before there are directions"


def test_cirs_losses_and_turns_by_hand(checkpoint):
    o, g = torch.tensor([[1.0, 0.0], [0.0, -2.0]]), torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    assert cir.broken(o, g).item() == pytest.approx((3 / 4 + 0) / 2)
    assert cir.moved(o, g).item() == pytest.approx((2 + 3) / 2 / 2)
    method = Worked(checkpoint, "cir", refit=3).method
    assert [method.retains(n) for n in range(1, 12)] == [False] * 5 + [True] * 2 + [False] * 2 + [True] * 2
    moved = Worked(checkpoint, "cir", refit=1, mlps=2, moved=0.1)
    h = [step.h[LAYER]["retain"] for step in (moved.step().updated(), moved.step().frozen())]
    assert moved.loss(number=4)["loss"].item() == pytest.approx(cir.moved(*h).item(), rel=1e-5)
    with pytest.raises(UserError, match=r"^method\.mlps: got 6, allowed is 1 to 4 \(layer is 3\)"):
        cir.Method.refuse(method.settings, 3, 0, 100)
    with pytest.raises(UserError, match=r"^train\.max_batches: got 3, cir needs more than method\.refit \(3\)"):
        cir.Method.refuse(method.settings, 8, 0, 3)


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("mistral", {"gate_proj", "up_proj", "down_proj"}),
        ("gpt_neox", {"dense_h_to_4h", "dense_4h_to_h"}),
        ("gpt2", {"c_fc", "c_proj"}),
        ("mixtral", {"w1", "w2", "w3"}),
    ],
)
def test_mlp_names_its_matrices(family, names, tmp_path):
    model = Checkpoint(family, make_checkpoint(family, tmp_path)).open(2, torch.float32, torch.device("cpu"))
    found = [t.name for t in resolve(model, [0, 1], ["mlp"])]
    assert {name.split(".")[-2] for name in found} == names
    assert all(".mlp." in name or ".experts." in name for name in found)
