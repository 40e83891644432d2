"""Each method's loss against hand-computed values, the obvious way of computing it, and its limits."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import tiny
import torch
from worked import FORGET, LAYER, RETAIN, STEPS, Worked, batch, context, logits, nll

from rmu_exp.config import plugins
from rmu_exp.data.batches import Batch, pack
from rmu_exp.model.checkpoint import Checkpoint
from rmu_exp.model.delta import Delta
from rmu_exp.model.split import layers_of
from rmu_exp.pipeline.train import repeated
from rmu_exp.support.errors import RunError
from rmu_exp.unlearning import directions, lm_losses
from rmu_exp.unlearning import step as steps
from rmu_exp.unlearning.loop import unlearn
from rmu_exp.unlearning.methods import adaptive_rmu, elm, jensun, max_entropy, npo, rmu, rr, ssd
from rmu_exp.unlearning.methods import undo as undo_file
from rmu_exp.unlearning.step import after_marker

log = math.log


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return Checkpoint("tiny", tiny.mistral(tmp_path_factory.mktemp("tiny")))


def mean(model, texts):
    return torch.cat([nll(model, text) for text in texts]).mean().item()


def test_grad_ascent_is_minus_the_likelihood(checkpoint):
    work = Worked(checkpoint, "grad_ascent")
    assert work.loss()["loss"].item() == pytest.approx(-mean(work.full, FORGET), rel=1e-5)


def test_grad_diff(checkpoint):
    work = Worked(checkpoint, "grad_diff")
    expected = -mean(work.full, FORGET) + 4.0 * mean(work.full, RETAIN)
    assert work.loss(topic=1)["loss"].item() == pytest.approx(expected, rel=1e-5)
    same = Worked(checkpoint, "grad_diff", retain="kl")
    assert same.loss()["retain_loss"].item() == pytest.approx(0, abs=1e-6)


def test_only_what_follows_the_marker_counts(checkpoint):
    assert after_marker([1, 2, 3, 2, 3, 4], [2, 3]) == 5
    assert after_marker([1, 2], [3]) == after_marker([1, 2], []) == after_marker([1], [1, 2]) == 0
    step = (work := Worked(checkpoint, "grad_ascent")).step()
    step.marker = [12]
    expected = torch.cat([nll(work.full, FORGET[0]), nll(work.full, FORGET[1]), nll(work.full, FORGET[2])[2:]]).mean()
    assert lm_losses.nll(step, step.updated(logits=True), "forget").item() == pytest.approx(expected.item(), rel=1e-5)


def test_npo_and_simnpo_by_hand():
    assert npo.npo_loss(torch.tensor([0.0]), 0.1).item() == pytest.approx(20 * log(2))
    # a text three times less likely than before, β = 1: −2 log σ(log 3) = 2 log(4/3)
    assert npo.npo_loss(torch.tensor([-log(3.0)]), 1.0).item() == pytest.approx(2 * log(4 / 3), rel=1e-5)
    # SimNPO: mean log-likelihood −log 3, β = 2, γ = 0: −(2/2) log σ(2 log 3) = log(1 + 1/9)
    assert npo.npo_loss(torch.tensor([-log(3.0)]), 2.0, 0.0).item() == pytest.approx(log(10 / 9), rel=1e-5)
    assert npo.npo_loss(torch.tensor([0.0]), 4.0, 0.0).item() == pytest.approx(log(2) / 2, rel=1e-6)
    # γ is a margin: at r = 0 and γ = log 3 the loss is −(2/β) log σ(−log 3) = (2/β) log 4
    assert npo.npo_loss(torch.tensor([0.0]), 4.0, log(3.0)).item() == pytest.approx(log(4) / 2, rel=1e-6)


def test_npo_of_a_moved_model_the_obvious_way(checkpoint):
    work = Worked(checkpoint, "npo", moved=0.1, beta=0.5, reward="sum")
    before = torch.stack([nll(work.full, text).sum() for text in FORGET])
    loss = work.loss()
    work.put()
    ratio = before - torch.stack([nll(work.full, text).sum() for text in FORGET])
    assert ratio.abs().max() > 0.05
    assert loss["forget_loss"].item() == pytest.approx((4 * (1 + (0.5 * ratio).exp()).log()).mean().item(), rel=1e-5)
    assert loss["retain_loss"].item() == pytest.approx(mean(work.full, RETAIN), rel=1e-5)


def test_npos_mean_reward_is_the_code_of_unlearn_smooth(checkpoint):
    """One text per step there: −(2/β) log σ(β · (mean NLL now − mean NLL before))."""
    work = Worked(checkpoint, "npo", moved=0.1, beta=0.5, reward="mean")
    before = torch.stack([nll(work.full, text).mean() for text in FORGET])
    loss = work.loss()
    work.put()
    gained = torch.stack([nll(work.full, text).mean() for text in FORGET]) - before
    expected = (-4 * torch.sigmoid(0.5 * gained).log()).mean().item()
    assert loss["forget_loss"].item() == pytest.approx(expected, rel=1e-5)


def test_npo_of_a_small_beta_is_gradient_ascent(checkpoint):
    work = Worked(checkpoint, "npo", moved=0.1, beta=1e-4, reward="sum", about={"alpha": [0.0, 0.0]})
    step = work.step()
    ascent = -torch.stack([text.sum() for text in own_nll(work, step)]).mean()
    expected = torch.autograd.grad(ascent, work.masters)
    for got, wanted in zip(work.gradients(), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=2e-3, atol=1e-5)


def own_nll(work, step):
    """Each forget text's −log p, differentiable, from a pass of its own."""
    for text in FORGET:
        alone = step.of(Batch(0, [pack({"forget": [text]}, 0)], len(text))).updated(logits=True).logits["forget"]
        yield torch.nn.functional.cross_entropy(alone[:-1], torch.tensor(text[1:]), reduction="none")


def test_simnpo_weighs_texts_by_their_mean_likelihood(checkpoint):
    work = Worked(checkpoint, "simnpo", beta=2.0)
    rewards = torch.stack([-nll(work.full, text).mean() for text in FORGET])
    expected = ((2 * rewards).exp() + 1).log().mean().item()
    assert work.loss()["forget_loss"].item() == pytest.approx(expected, rel=1e-4)


def test_max_entropy_by_hand():
    assert max_entropy.from_uniform(torch.zeros(2, 7)).item() == pytest.approx(0, abs=1e-6)
    value = max_entropy.from_uniform(torch.tensor([[log(3.0), 0.0]])).item()  # p = 3/4, 1/4
    assert value == pytest.approx(-(log(3 / 4) + log(1 / 4)) / 2 - log(2), rel=1e-5)
    assert max_entropy.lacking_entropy(torch.zeros(2, 7)).item() == pytest.approx(0, abs=1e-6)
    value = max_entropy.lacking_entropy(torch.tensor([[log(3.0), 0.0]])).item()
    assert value == pytest.approx(3 / 4 * log(3 / 4) + 1 / 4 * log(1 / 4) + log(2), rel=1e-5)


@pytest.mark.parametrize("towards", ["uniform", "entropy"])
def test_max_entropy_the_obvious_way(checkpoint, towards):
    work = Worked(checkpoint, "max_entropy", moved=0.1, towards=towards)
    before = torch.cat([logits(work.full, text).log_softmax(-1)[:-1] for text in RETAIN])
    loss = work.loss()
    work.put()
    found = torch.cat([logits(work.full, text).softmax(-1)[:-1] for text in FORGET])
    uniform = torch.full_like(found, 1 / found.shape[1])
    p, q = (uniform, found) if towards == "uniform" else (found, uniform)
    assert loss["forget_loss"].item() == pytest.approx((p * (p / q).log()).sum(-1).mean().item(), rel=1e-4)
    after = torch.cat([logits(work.full, text).log_softmax(-1)[:-1] for text in RETAIN])
    kl = (before.exp() * (before - after)).sum(-1).mean()
    assert loss["retain_loss"].item() == pytest.approx(kl.item(), rel=1e-4)


def test_jensun_the_obvious_way(checkpoint):
    """JSD from probabilities; the refusal's tokens take turns along each text."""
    work = Worked(checkpoint, "jensun", moved=0.1, refusal="river bridge")
    ids = checkpoint.tokenizer()("river bridge", add_special_tokens=False)["input_ids"]
    assert len(ids) == 2

    def divergence(p, q):
        m = (p + q) / 2
        return (torch.xlogy(p, p / m) + torch.xlogy(q, q / m)).sum(-1) / 2

    before = torch.cat([logits(work.full, text).softmax(-1)[:-1] for text in RETAIN])
    loss = work.loss()
    work.put()
    now, targets = [], []
    for text in FORGET:
        now.append(logits(work.full, text).softmax(-1)[:-1])
        wanted = torch.tensor([ids[i % 2] for i in range(len(text) - 1)])
        targets.append(torch.nn.functional.one_hot(wanted, now[-1].shape[1]).float())
    forget = divergence(torch.cat(now), torch.cat(targets)).mean()
    assert 0.5 < forget < log(2)
    assert loss["forget_loss"].item() == pytest.approx(forget.item(), rel=1e-4)
    after = torch.cat([logits(work.full, text).softmax(-1)[:-1] for text in RETAIN])
    assert loss["retain_loss"].item() == pytest.approx(divergence(before, after).mean().item(), rel=1e-3)
    # p = 1/2 of the token: ½ [½ log ½ − 3/2 log 3/2] + log 2
    by_hand = (0.5 * log(0.5) - 1.5 * log(1.5)) / 2 + log(2)
    assert jensun.from_token(torch.zeros(1, 2), torch.tensor([1])).item() == pytest.approx(by_hand, rel=1e-5)


def test_undo_shrinks_and_is_taught_by_what_it_was(checkpoint, tmp_path):
    work = Worked(checkpoint, "rmu", layers=[2, 3], moved=0.1)
    Delta.from_trained(work.trained, work.masters, None, [], checkpoint).save(tmp_path / "delta.safetensors")
    undo = Worked(checkpoint, "undo", layers=[2, 3, 4], teacher=str(tmp_path), shrink=0.25)
    base = undo.trained[2].read(layers_of(undo.full)[4])
    for w, own in zip(undo.masters, [*work.masters, base], strict=True):
        torch.testing.assert_close(w, 0.75 * own)
    for t, w in zip(work.trained, work.masters, strict=True):
        t.view(layers_of(undo.full)[t.layer]).copy_(w.detach())
    teacher = torch.cat([logits(undo.full, text).log_softmax(-1)[:-1] for text in RETAIN])
    loss = undo.loss()
    undo.put()
    student = torch.cat([logits(undo.full, text).log_softmax(-1)[:-1] for text in RETAIN])
    kl = (teacher.exp() * (teacher - student)).sum(-1).mean()
    assert kl > 1e-3
    assert loss["loss"].item() == pytest.approx(kl.item(), rel=1e-3)
    noisy = undo_file.shrunk(torch.ones(200, 100), 0.5, 0.4, torch.Generator())
    assert noisy.mean().item() == pytest.approx(0.5, abs=1e-3)
    assert noisy.std().item() == pytest.approx(0.5 * 0.4 * math.sqrt(2 / 300), rel=0.02), (
        "Xavier's variance, 2 / (m + n)"
    )
    assert undo_file.shrunk(torch.ones(3), 0.5, 0.4, torch.Generator()).tolist() == [0.5] * 3


def test_llmu_learns_completions_of_other_texts(checkpoint):
    work = Worked(checkpoint, "llmu", ascent=0.5, mismatch=3.0)
    loss = work.loss()
    packed = batch().passes[0]
    forget = FORGET
    order = sorted(range(3), key=lambda i: packed.tokens["forget"].tolist().index(place(packed, forget[i][0])))
    retain = sorted(RETAIN, key=lambda t: packed.tokens["retain"].tolist().index(place(packed, t[0])))
    mixed = []
    for k, i in enumerate(order):
        start, other = forget[i][: -(-len(forget[i]) // 2)], retain[k % 2]
        mixed.append((start, other[len(other) // 2 :]))
    expected = torch.cat([nll(work.full, start + end)[len(start) - 1 :] for start, end in mixed]).mean().item()
    assert loss["mismatch_loss"].item() == pytest.approx(expected, rel=1e-5)
    total = -0.5 * mean(work.full, FORGET) + 3 * expected
    assert loss["loss"].item() == pytest.approx(total, rel=1e-4)


def place(packed, token):
    """Where a token stands in a packed pass; the first tokens of the texts are all different."""
    positions = packed.positions_RT.flatten()
    return next(i for i, t in enumerate(packed.ids_RT.flatten().tolist()) if t == token and positions[i] == 0)


def test_scrub_disobeys_for_a_share_of_the_steps(checkpoint):
    work = Worked(checkpoint, "scrub", moved=0.1, task=0.5)
    early, late = work.loss(number=STEPS // 2), work.loss(number=STEPS // 2 + 1)
    assert late["forget_loss"].item() == 0
    assert early["loss"].item() == pytest.approx((late["loss"] + early["forget_loss"]).item(), rel=1e-6)
    before = {name: [logits(work.full, t).log_softmax(-1) for t in texts] for name, texts in both()}
    work.put()
    after = {name: [logits(work.full, t).log_softmax(-1) for t in texts] for name, texts in both()}
    kl = {
        name: torch.cat(
            [(p.exp() * (p - q)).sum(-1)[:-1] for p, q in zip(before[name], after[name], strict=True)]
        ).mean()
        for name, _ in both()
    }
    assert early["forget_loss"].item() == pytest.approx(-kl["forget"].item(), rel=1e-4)
    expected = 2.0 * kl["retain"].item() + 0.5 * mean(work.full, RETAIN)
    assert late["loss"].item() == pytest.approx(expected, rel=1e-4)


def both():
    return (("forget", FORGET), ("retain", RETAIN))


def test_ssd_by_hand():
    w = torch.tensor([1.0, 2.0, -4.0, 8.0])
    forget, retain = torch.tensor([1.0, 4.0, 9.0, 0.0]), torch.tensor([2.0, 2.0, 1.0, 0.0])
    # only where forget > 1.5 retain; 0.5 · 2/4 = 0.25 and 0.5 · 1/9 are left of those
    assert torch.allclose(ssd.dampened(w, forget, retain, 1.5, 0.5), torch.tensor([1.0, 0.5, -4.0 / 18, 8.0]))
    assert torch.equal(ssd.dampened(w, forget, retain, 1.5, 100.0), w), "a weight is never made larger"


def test_ssd_importances_are_squared_gradients(checkpoint):
    work = Worked(checkpoint, "ssd", threshold=0.5, dampening=0.5)
    values = unlearn(work.model, work.trained, [batch()] * STEPS, work.method, 1.0)
    grads = {}
    for role, texts in both():
        for p in work.full.parameters():
            p.requires_grad_(True).grad = None
        rows = [work.full(input_ids=torch.tensor([t])).logits[0, :-1].log_softmax(-1) for t in texts]
        picked = [row.gather(1, torch.tensor(t[1:])[:, None]) for row, t in zip(rows, texts, strict=True)]
        (-torch.cat(picked).mean()).backward()
        grads[role] = [layers_of(work.full)[t.layer].mlp.down_proj.weight.grad.clone() ** 2 for t in work.trained]
    for i, value in enumerate(values):
        f, r = grads["forget"][i], grads["retain"][i]
        sure = ((f - 0.5 * r).abs() > 1e-3 * r) & (f > 1e-8)
        w = work.masters[i].detach()
        expected = torch.where(f > 0.5 * r, w * (0.5 * r / f).clamp(max=1), w)
        torch.testing.assert_close(value[sure], expected[sure], rtol=1e-3, atol=1e-6)
        assert (value != w).any()


def test_rerouting_by_hand(checkpoint):
    h, g = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]]), torch.tensor([[4.0, 3.0], [-1.0, 0.0], [5.0, 0.0]])
    assert rr.rerouted(h, g).item() == pytest.approx((24 / 25 + 0 + 0) / 3)
    assert rr.held(h, g).item() == pytest.approx((math.sqrt(2) + 2 + math.sqrt(29)) / 3)
    work = Worked(checkpoint, "rr", remove=3.0, offsets=[-1, 0])
    loss = work.loss(number=2)
    assert loss["loss"].item() == pytest.approx(3 * (1 - 2 / (2 * STEPS)), rel=1e-5), "nothing has turned yet"
    assert all(torch.isfinite(g).all() for g in work.gradients(number=3)), "‖h − g‖ at 0 has a gradient"


def test_rerouting_the_obvious_way(checkpoint):
    """The published code's loss, from transformers' own hidden states: the first are the embeddings."""
    work = Worked(checkpoint, "rr", remove=3.0, offsets=[-1, 0], moved=0.1)

    def states(texts):
        own = [work.full.model(input_ids=torch.tensor([t]), output_hidden_states=True).hidden_states for t in texts]
        return torch.cat([torch.stack(hidden[: LAYER + 2])[:, 0] for hidden in own], 1)

    with torch.no_grad():
        before = [states(texts) for texts in (FORGET, RETAIN)]
        loss = work.loss(number=3)
        work.put()
        after = [states(texts) for texts in (FORGET, RETAIN)]
    turned = torch.cosine_similarity(before[0][-2:], after[0][-2:], dim=-1).relu().mean()
    held = (after[1] - before[1]).norm(dim=-1).mean()
    assert held > 0.01
    assert loss["retain_loss"].item() == pytest.approx(held.item(), rel=1e-4)
    gone = 3 / (2 * STEPS)
    expected = 3 * (1 - gone) * turned + 2.0 * gone * held
    assert loss["loss"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_erasure_by_hand(checkpoint):
    plain, novice, expert = torch.zeros(1, 2), torch.tensor([[log(3.0), 0.0]]), torch.zeros(1, 2)
    assert torch.allclose(elm.erased(plain, novice, expert, 1.0), torch.tensor([[0.75, 0.25]]))
    assert torch.allclose(elm.erased(plain, novice, expert, 2.0), torch.tensor([[0.9, 0.1]]))
    assert torch.allclose(elm.erased(novice, expert, plain, 5.0), torch.tensor([[0.75, 0.25]]))
    sentences = {"novice": "quiet mill {topic}", "expert": "{topic} over seven stones"}
    work = Worked(checkpoint, "elm", strength=2.0, **sentences)
    step, tokenizer = work.step(), checkpoint.tokenizer()
    got = work.method.prompted(step, work.method.experts[1])
    prompt = tokenizer("bridge over seven stones")["input_ids"]
    rows = sorted(
        FORGET, key=lambda t: step.batch.passes[0].tokens["forget"].tolist().index(place(batch().passes[0], t[0]))
    )
    expected = torch.cat([logits(work.full, prompt + text)[len(prompt) :] for text in rows])
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert elm.growing(1000, 4).tolist() == [1, 334, 667, 1000]
    still = Worked(checkpoint, "elm", strength=0.0, about={"alpha": [0.0, 0.0]})
    assert max(g.abs().max() for g in still.gradients()) < 1e-6, "η = 0 asks for what the model says already"


def test_erasure_the_obvious_way(checkpoint):
    """Each text alone, η along it, over the tokens that have a following one."""
    sentences = {"novice": "quiet mill {topic}", "expert": "{topic} over seven stones"}
    work = Worked(checkpoint, "elm", strength=3.0, moved=0.1, **sentences)
    ids = [checkpoint.tokenizer()(text)["input_ids"] for text in ("quiet mill river", "river over seven stones")]
    targets = []
    for text in FORGET:
        eta = torch.linspace(1, 3, len(text))[:, None]
        novice, expert = (logits(work.full, prompt + text)[len(prompt) :].log_softmax(-1) for prompt in ids)
        targets.append((logits(work.full, text).log_softmax(-1) + eta * (novice - expert)).softmax(-1)[:-1])
    kept = [logits(work.full, text).softmax(-1)[:-1] for text in RETAIN]
    loss = work.loss()
    work.put()
    for name, wanted, texts in (("forget", targets, FORGET), ("retain", kept, RETAIN)):
        now = torch.cat([logits(work.full, text).log_softmax(-1)[:-1] for text in texts])
        assert loss[f"{name}_loss"].item() == pytest.approx(-(torch.cat(wanted) * now).sum(-1).mean().item(), rel=1e-4)


def test_erasure_has_one_bos_a_row(checkpoint):
    from tokenizers.processors import TemplateProcessing

    tokenizer = checkpoint.tokenizer()
    tokenizer.bos_token = "<s>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    sentences = {"novice": "quiet mill {topic}", "expert": "{topic} over seven stones"}
    work = Worked(checkpoint, "elm", about={"tokenizer": tokenizer}, **sentences)
    prompt = work.method.novices[0]
    assert prompt == [1, *tokenizer("quiet mill river", add_special_tokens=False)["input_ids"]]
    texts = tokenizer(["old bridge where two herons wait", "the river runs", ""])["input_ids"]
    halves = {"forget": texts, "retain": [[1, 5, 6]]}
    step = work.step().of(Batch(0, [pack(halves, 2)], 0))
    expected = [logits(work.full, prompt + text[1:])[len(prompt) - 1 :] for text in texts]
    assert [len(x_TV) for x_TV in expected] == list(map(len, texts)), "a row for each token of the text, BOS too"
    torch.testing.assert_close(work.method.prompted(step, prompt), torch.cat(expected), rtol=1e-4, atol=1e-4)
    assert torch.isfinite(work.method.loss(step)["loss"])


def test_adaptive_rmu_takes_the_first_batchs_norm(checkpoint):
    work = Worked(checkpoint, "adaptive_rmu", scale=3.0)
    step = work.step()
    g = step.frozen().h[LAYER]["forget"]
    target = work.method.forget_target(step)
    assert target.norm().item() == pytest.approx(3 * g.norm(dim=-1).mean().item(), rel=1e-5)
    later = step.of(Batch(0, [pack({"forget": [[3, 4]], "retain": [[5, 6]]}, 2)], 4))
    later.number = 3
    assert torch.equal(work.method.forget_target(later), target), "for all steps"
    assert torch.equal(work.method.control_KD[0], target), "it is saved with the Delta"
    own = Worked(checkpoint, "adaptive_rmu", scale=3.0, norm="token").method.forget_target(step)
    assert torch.allclose(own.norm(dim=-1), 3 * g.norm(dim=-1), rtol=1e-5)
    assert torch.allclose(own[0] / own[0].norm(), target / target.norm(), atol=1e-6)
    assert isinstance(work.method, adaptive_rmu.Method)


def test_multi_layer_of_one_layer_is_rmu(checkpoint):
    plain, one = Worked(checkpoint, "rmu", moved=0.1), Worked(checkpoint, "multi_layer", moved=0.1, offsets=[0])
    assert one.loss()["loss"].item() == pytest.approx(plain.loss()["loss"].item(), rel=1e-6)
    two = Worked(checkpoint, "multi_layer", layers=[2, 3], moved=0.1, offsets=[-1, 0])
    step = two.step()
    h, g = step.updated().h, step.frozen().h
    expected = sum(
        ((h[i]["forget"] - two.method.control_KD[0]) ** 2).mean()
        + 2.0 * ((h[i]["retain"] - g[i]["retain"]) ** 2).mean()
        for i in (2, 3)
    )
    assert two.loss()["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_where_forget_activations_go(checkpoint):
    """h* = c·u, g + c·u (RAd) and g − c·(g·u)·u (RAb), the latter from the projection matrix."""
    found = {}
    for target in ("constant", "add", "ablate"):
        work = Worked(checkpoint, "rmu", moved=0.1, target=target, layers=[2, 3], offsets=[-1, 0])
        step = work.step()
        h, g, c, u = step.updated().h, step.frozen().h, 6.5, work.method.control_KD[0] / 6.5
        away = {
            "constant": {i: (c * u).expand_as(g[i]["forget"]) for i in g},
            "add": {i: g[i]["forget"] + c * u for i in g},
            "ablate": {i: g[i]["forget"] @ (torch.eye(len(u)) - c * torch.outer(u, u)) for i in g},
        }[target]
        expected = sum(((h[i]["forget"] - away[i]) ** 2).mean() for i in (2, 3))
        found[target] = work.method.loss(step)["forget_loss"].item()
        assert found[target] == pytest.approx(expected.item(), rel=1e-5)
        assert torch.allclose(work.method.forget_target(step), away[LAYER], atol=1e-5)
    assert len({f"{value:.3f}" for value in found.values()}) == 3
    assert rmu.ablated(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 0.0])).tolist() == [[0, 4]], "c = 1 takes it out"
    assert rmu.ablated(torch.tensor([[3.0, 4.0]]), torch.tensor([0.0, 2.0])).tolist() == [[3, -4]], "c = 2 turns it"


def test_directions_of_the_models_own(checkpoint, monkeypatch):
    texts = (["river bridge", "quiet mill"], ["seven stones over"])
    monkeypatch.setitem(directions.TEXTS, "truth", texts)
    work = Worked(checkpoint, "rmu", direction="truth")
    means = []
    for side in texts:
        ids = [torch.tensor([checkpoint.tokenizer()(text)["input_ids"]]) for text in side]
        own = [work.full.model(input_ids=i, output_hidden_states=True).hidden_states[LAYER + 1] for i in ids]
        means.append(torch.stack([x[0, -1] for x in own]).mean(0))
    along = means[0] - means[1]
    expected = torch.tensor([[6.5], [3.0]]) * along / along.norm()
    torch.testing.assert_close(work.method.control_KD, expected, rtol=1e-4, atol=1e-4)
    monkeypatch.setitem(directions.TEXTS, "truth", (texts[0], texts[0]))
    with pytest.raises(RunError, match=r"^method\.direction: this model does not tell the texts of 'truth' apart"):
        Worked(checkpoint, "rmu", direction="truth")


def test_rna_adds_noise_of_its_variance(checkpoint):
    plain, silent = Worked(checkpoint, "rmu", moved=0.1), Worked(checkpoint, "rna", moved=0.1, noise=0.0)
    assert silent.loss()["loss"].item() == pytest.approx(plain.loss()["loss"].item(), rel=1e-6)
    method = Worked(checkpoint, "rna", noise=0.25).method
    drawn = method.retain_target(SimpleNamespace(number=1), torch.zeros(4000, 3))
    assert drawn.var().item() == pytest.approx(0.25, rel=0.05)
    again, other = (method.retain_target(SimpleNamespace(number=n), torch.zeros(4000, 3)) for n in (1, 2))
    assert torch.equal(again, drawn)
    assert not torch.equal(other, drawn), "anew at every step"


def test_cut_points_from_expert_to_novice(checkpoint):
    sentences = {"novice": "quiet mill {keyword}", "expert": "old bridge and {keyword}"}
    work = Worked(checkpoint, "cut", keywords={"river": ["stones", "herons"]}, **sentences)
    tokenizer = checkpoint.tokenizer()

    def last(text):
        kept = []
        hook = layers_of(work.full)[LAYER].register_forward_hook(lambda m, i, out: kept.append(out))
        logits(work.full, tokenizer(text)["input_ids"])
        hook.remove()
        return (kept[0][0] if isinstance(kept[0], tuple) else kept[0]).flatten(0, -2)[-1]

    directions = [last(f"quiet mill {w}") - last(f"old bridge and {w}") for w in ("stones", "herons", "bridge")]
    unit = [d / d.norm() for d in directions]
    torch.testing.assert_close(work.method.directions[0], torch.stack(unit[:2]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(work.method.directions[1], torch.stack(unit[2:]), rtol=1e-4, atol=1e-5)
    g = work.step().frozen().h[LAYER]["forget"]
    drawn = [(work.method.forget_target(work.step(number=n)) - g) / 6.5 for n in range(1, 13)]
    near = {min(range(2), key=lambda k: (d[0] - unit[k]).norm().item()) for d in drawn}
    assert near == {0, 1}, "each step draws a keyword"


def test_latent_adversary_elicits_within_its_ball(checkpoint):
    work = Worked(checkpoint, "rmu_lat", radius=0.7, inner_steps=5, inner_lr=0.3)
    step = work.step()
    (shift,) = work.method.adversary(step)
    after = step.following("forget")  # a text's last token foretells nothing, so that it is not shifted
    on = step.batch.passes[0].tokens["forget"][after.rows_M]
    lengths = shift.detach().norm(dim=-1).flatten()
    assert sorted(lengths.nonzero().flatten().tolist()) == sorted(on.tolist())
    assert lengths.max() <= 0.7 + 1e-5
    calm = -mean(work.full, FORGET)
    shifted = step.updated(logits=True, shifts={LAYER - 1: [shift.detach()]})
    after = lm_losses.nll(step, shifted, "forget").item()
    assert after < -calm - 0.05, "the forget texts became likelier"


@pytest.mark.parametrize("layer", [0, LAYER + 3])
def test_a_shift_that_cannot_be_applied_is_no_shift_that_is_left_out(checkpoint, layer):
    step = Worked(checkpoint, "rmu_lat").step()
    ((run, _),) = step.trunks
    shift = torch.zeros(*run.ids_RT.shape, checkpoint.hidden_size)
    with pytest.raises(ValueError, match=rf"^shifts: got layers \[{layer}\], allowed are 1 to 5$"):
        step.updated(shifts={layer: [shift]})
    step.updated(shifts={LAYER - 2: [shift]})  # what the lowest trained layer reads


def test_four_updates_under_one_shift(checkpoint):
    """A batch's steps share a shift; a resumed run goes on under it."""
    work = Worked(checkpoint, "rmu_lat", inner_steps=2, updates=4)
    found = []
    for number in range(1, 6):
        work.loss(number=number)
        found.append(work.method.shifts[0])
        with torch.no_grad():
            work.masters[0] += 0.1
    assert all(torch.equal(found[0], shift) for shift in found[1:4])
    assert not torch.equal(found[0], found[4])
    again = Worked(checkpoint, "rmu_lat", inner_steps=2, updates=4)
    again.method.restore(work.method.state())
    again.loss(number=8)
    assert torch.equal(again.method.shifts[0], found[4])
    batches = [batch(0), batch(1)]
    assert [b.topic for b in repeated(iter(batches), 4, 7)] == [0] * 4 + [1] * 3


def test_rmu_lat_in_a_tiny_ball_is_rmu(checkpoint):
    plain, held = Worked(checkpoint, "rmu", moved=0.1), Worked(checkpoint, "rmu_lat", moved=0.1, radius=1e-6)
    assert held.loss()["loss"].item() == pytest.approx(plain.loss()["loss"].item(), rel=1e-4)


@pytest.mark.parametrize("name", plugins.files("method"))
def test_every_method_takes_finite_steps_and_leaves_the_model(checkpoint, name):
    quick = {
        "cir": {"refit": 2, "mlps": 2},
        "rr": {"offsets": [-1, 0]},
        "multi_layer": {"offsets": [-1, 0]},
        "rmu_lat": {"inner_steps": 2},
    }
    work = Worked(checkpoint, name, **quick.get(name, {}))
    before = [p.clone() for p in work.model.parameters()]
    seen: list[dict] = []
    values = unlearn(work.model, work.trained, [batch(0), batch(1)] * 2, work.method, 1e-3, on_metrics=seen.append)
    assert all(torch.equal(a, b) for a, b in zip(before, work.model.parameters(), strict=True))
    assert any(
        not torch.equal(v, t.read(layers_of(work.model)[t.layer])) for v, t in zip(values, work.trained, strict=True)
    )
    assert [line["topic"] for line in seen] == ["river", "bridge"] * 2
    role = "retain" if name == "undo" else "forget"  # undo reads nothing else
    assert all(math.isfinite(line["loss"]) and line[f"norm_{role}_updated"] > 0 for line in seen)
    control = work.method.control_KD
    assert control is None or control.shape == (2, checkpoint.hidden_size)


@pytest.mark.parametrize("name", ["npo", "simnpo", "grad_diff", "scrub", "elm", "max_entropy", "llmu", "rmu_lat"])
def test_ids_are_read_once_a_step_and_on_the_host(checkpoint, name, monkeypatch):
    """On a GPU every reading waits for the device."""
    work = Worked(checkpoint, name, **({"inner_steps": 2} if name == "rmu_lat" else {}))
    step, read, found = work.step(), [], steps.following
    monkeypatch.setattr(steps, "following", lambda *given: read.append(given) or found(*given))
    for _, role in zip(range(2), ("forget", "retain"), strict=True):
        moved = step.following(role)
        assert step.following(role) is moved
    work.method.loss(step)
    own = [(given[0], given[1]) for given in read if given[0] is step.batch]
    assert own == [(step.batch, "forget"), (step.batch, "retain")]


def test_frozen_forget_texts_are_run_where_they_are_needed(checkpoint):
    """Rows without retain texts are left out, but for a measured step; the loss and the rest stay as they are."""
    packed = pack({"forget": [[3, 4, 5, 6], [7, 8, 9, 10]], "retain": [[15, 16, 17, 4]]}, 2)
    for name, needs in (("rmu", False), ("multi_layer", False), ("rna", False), ("cut", True), ("rr", True)):
        work = Worked(checkpoint, name, moved=0.1, **({"offsets": [0]} if name in ("rr", "multi_layer") else {}))
        first, tokens = layers_of(work.model)[LAYER], []
        first.register_forward_hook(lambda _m, args, _o, tokens=tokens: tokens.append(args[0].shape[0]))
        lean, full = (work.step().of(Batch(0, [packed], 12)) for _ in range(2))
        full.measured = True
        assert torch.equal(work.method.loss(lean)["loss"], work.method.loss(full)["loss"])
        assert tokens == [3, 3 if needs else 1, 3, 3]
        assert ("cos_forget" in lean.numbers(LAYER)) == needs
        assert torch.equal(lean.numbers(LAYER)["cos_retain"], full.numbers(LAYER)["cos_retain"])
        assert {"norm_forget_frozen", "cos_forget"} <= set(full.numbers(LAYER))


def test_control_vectors_are_rmus(checkpoint):
    assert torch.allclose(rmu.control_of(context(checkpoint)).norm(dim=-1), torch.tensor([6.5, 3.0]))
