"""The loop against the obvious one: two full models, full forwards, no tricks, written from the paper."""

from __future__ import annotations

import pytest
import tiny
import torch

from rmu_exp.data import batches as batching
from rmu_exp.model.checkpoint import Checkpoint
from rmu_exp.model.parameters import resolve
from rmu_exp.model.split import layers_of
from rmu_exp.unlearning.loop import frozen_norms, root_mean_square, unlearn
from rmu_exp.unlearning.method import Context
from rmu_exp.unlearning.methods import rmu

LAYER, STEPS, SIZE, SEED = 4, 8, 4, 3
STEER, ALPHA, LR = [6.5, 3.0], [40.0, 20.0], 1e-3
CPU = torch.device("cpu")


class PublishedAdamW:
    """The optimizer of the published loop, from its formula: eps is added before the bias correction."""

    def __init__(self, params, lr, betas=(0.9, 0.999), eps=1e-6):
        self.params, self.lr, self.betas, self.eps, self.t = list(params), lr, betas, eps, 0
        self.m = [torch.zeros_like(p) for p in self.params]
        self.v = [torch.zeros_like(p) for p in self.params]

    @torch.no_grad()
    def step(self):
        self.t += 1
        b1, b2 = self.betas
        size = self.lr * (1 - b2**self.t) ** 0.5 / (1 - b1**self.t)
        for p, m, v in zip(self.params, self.m, self.v, strict=True):
            m.mul_(b1).add_(p.grad, alpha=1 - b1)
            v.mul_(b2).addcmul_(p.grad, p.grad, value=1 - b2)
            p.addcdiv_(m, v.sqrt().add_(self.eps), value=-size)


def hidden_of(model, layer, **inputs):
    """Output of decoder layer ``layer`` of a full model, by a hook."""
    kept = []
    handle = layers_of(model)[layer].register_forward_hook(lambda _m, _i, out: kept.append(out))
    model(**inputs)
    handle.remove()
    return kept[0][0] if isinstance(kept[0], tuple) else kept[0]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return Checkpoint("tiny", tiny.mistral(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def corpora():
    forget = [tiny.texts(30, seed) for seed in (1, 2)]
    retain = [tiny.texts(25, 3)] * 2
    return forget, retain


def two_models(checkpoint, dtype=torch.float32):
    updated = checkpoint.open(None, dtype, CPU)
    frozen = checkpoint.open(None, dtype, CPU)
    stack = layers_of(updated)
    params = [stack[i].mlp.down_proj.weight.requires_grad_() for i in (LAYER - 2, LAYER - 1, LAYER)]
    return updated, frozen, params


def method_of(checkpoint, faithful, dtype=torch.float32):
    sizes = checkpoint.hidden_size, CPU, STEPS
    about = Context(LAYER, ["a", "b"], STEER, ALPHA, *sizes, seed=SEED, faithful=faithful, dtype=dtype)
    return rmu.Method(rmu.Settings(faithful=faithful), about)


def ours(checkpoint, batches, faithful, dtype=torch.float32):
    model = checkpoint.open(LAYER + 1, dtype, CPU)
    before = [p.clone() for p in model.parameters()]
    trained = resolve(model, [LAYER - 2, LAYER - 1, LAYER], None)
    seen = []
    method = method_of(checkpoint, faithful, dtype)
    values = unlearn(model, trained, batches, method, LR, on_metrics=seen.append)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)), "the model was changed"
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules()), "a hook was left behind"
    return values, seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_faithful_equals_the_published_loop(checkpoint, corpora, dtype):
    """In fp32 within rounding; in bf16, in which the published loop trains, to the bit."""
    forget, retain = corpora
    tokenizer = checkpoint.tokenizer()
    values, seen = ours(checkpoint, batching.published(forget, retain, tokenizer, SIZE, STEPS), True, dtype)

    updated, frozen, params = two_models(checkpoint, dtype)
    torch.manual_seed(SEED)
    control = []
    for c in STEER:
        u = torch.rand(1, 1, checkpoint.config.hidden_size, dtype=dtype)
        control.append(u / torch.norm(u) * c)
    optimizer = PublishedAdamW(params, LR)
    tokenizer.padding_side, tokenizer.truncation_side = "left", "right"
    cut = lambda texts, n: tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=n)  # noqa: E731
    total = min(STEPS, *(-(-len(t) // SIZE) for t in (*forget, *retain)))
    for step in range(total):
        topic, at = step % 2, SIZE * (step // 2)
        f = cut(forget[topic][at : at + SIZE], 512 if topic == 0 else 768)
        r = cut(retain[topic][at : at + SIZE], 512)
        for tokens in (f, r):
            tokens.pop("token_type_ids", None)
        h = hidden_of(updated, LAYER, **f)
        forget_loss = torch.nn.functional.mse_loss(h, control[topic].expand_as(h))
        with torch.no_grad():
            g = hidden_of(frozen, LAYER, **r)
        retain_loss = torch.nn.functional.mse_loss(hidden_of(updated, LAYER, **r), g)
        loss = forget_loss + ALPHA[topic] * retain_loss
        for p in params:
            p.grad = None
        loss.backward()
        optimizer.step()
        assert seen[step]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert len(seen) == total
    moved = max(
        (p - q).abs().max()
        for p, q in zip(params, [layers_of(frozen)[i].mlp.down_proj.weight for i in (2, 3, 4)], strict=True)
    )
    assert moved > 1e-3
    allowed = 1e-6 if dtype == torch.float32 else 0
    assert max((p - v).abs().max().item() for p, v in zip(params, values, strict=True)) <= allowed


def test_default_equals_two_models_without_padding(checkpoint, corpora):
    forget, retain = corpora
    tokenizer = checkpoint.tokenizer()
    tokens = [[batching.tokenize(t, tokenizer, 512) for t in side] for side in (forget, retain)]
    control = method_of(checkpoint, False).control_KD
    values, seen = ours(checkpoint, batching.shuffled(*tokens, SIZE, STEPS, SEED, 2), False)

    updated, frozen, params = two_models(checkpoint)
    optimizer = PublishedAdamW(params, LR)
    for step, batch in enumerate(batching.shuffled(*tokens, SIZE, STEPS, SEED, 2)):
        only = batch.passes[0]
        alone = {role: texts_of(only, role) for role in ("forget", "retain")}
        assert sum(len(t) for t in alone["forget"] + alone["retain"]) == batch.text_tokens
        h = torch.cat([hidden_of(updated, LAYER, input_ids=t[None])[0] for t in alone["forget"]])
        k = torch.cat([hidden_of(updated, LAYER, input_ids=t[None])[0] for t in alone["retain"]])
        with torch.no_grad():
            g = torch.cat([hidden_of(frozen, LAYER, input_ids=t[None])[0] for t in alone["retain"]])
        loss = ((h - control[batch.topic]) ** 2).mean() + ALPHA[batch.topic] * ((k - g) ** 2).mean()
        for p in params:
            p.grad = None
        loss.backward()
        optimizer.step()
        assert seen[step]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert max((p - v).abs().max().item() for p, v in zip(params, values, strict=True)) <= 1e-6


def texts_of(only, role):
    """A packed pass taken apart again: the role's texts, each alone."""
    ids, positions = only.ids_RT.flatten(), only.positions_RT.flatten()
    found = []
    for index in only.tokens[role].tolist():
        if positions[index] == 0:
            found.append([])
        found[-1].append(ids[index])
    return [torch.stack(t) for t in found]


def test_four_norms_and_cosines_of_every_step(checkpoint, corpora):
    forget, retain = corpora
    tokenizer = checkpoint.tokenizer()
    batches = batching.published(forget, retain, tokenizer, SIZE, 2)
    _, seen = ours(checkpoint, batches, True)
    first = seen[0]
    assert first["norm_forget_updated"] == pytest.approx(first["norm_forget_frozen"], rel=1e-6)
    assert first["norm_retain_updated"] == pytest.approx(first["norm_retain_frozen"], rel=1e-6)
    assert first["cos_forget"] == pytest.approx(1, abs=1e-5)
    assert first["retain_loss"] == pytest.approx(0, abs=1e-9)
    model = checkpoint.open(None, torch.float32, CPU)
    inputs = tokenizer(forget[0][:SIZE], return_tensors="pt", padding=True)
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        h = hidden_of(model, LAYER, **inputs)
    assert first["norm_forget_frozen"] == pytest.approx(h.norm(dim=-1).mean().item(), rel=1e-5)


def test_bf16_trains_fp32_masters(tmp_path, corpora):
    checkpoint = Checkpoint("tiny", tiny.mistral(tmp_path, dtype="bfloat16"))
    forget, retain = corpora
    model = checkpoint.open(LAYER + 1, torch.bfloat16, CPU)
    tokens = [[batching.tokenize(t, checkpoint.tokenizer(), 512) for t in side] for side in (forget, retain)]
    trained = resolve(model, [LAYER], None)
    values = unlearn(model, trained, batching.shuffled(*tokens, SIZE, 4, 0, 2), method_of(checkpoint, False), 1e-5)
    assert values[0].dtype == torch.float32
    original = trained[0].read(layers_of(model)[LAYER]).float()
    assert (values[0] - original).abs().max() > 1e-5, "steps below bf16's resolution must add up"


@pytest.mark.parametrize("faithful", [False, True])
def test_frozen_norms_are_medians_without_padding_and_first_tokens(checkpoint, corpora, faithful):
    """Each text alone, by a hook; the published order's first batches are the first texts of each file."""
    forget, retain = corpora
    tokenizer = checkpoint.tokenizer()
    model = checkpoint.open(LAYER + 1, torch.float32, CPU)
    if faithful:
        batches = list(batching.published(forget, retain, tokenizer, SIZE, 4))
        texts = {k: [torch.tensor(tokenizer(text)["input_ids"]) for text in forget[k][: 2 * SIZE]] for k in (0, 1)}
    else:
        tokens = [[batching.tokenize(t, tokenizer, 512) for t in side] for side in (forget, retain)]
        batches = list(batching.shuffled(*tokens, SIZE, 4, SEED, 2))
        texts = {k: [t for b in batches[k::2] for t in texts_of(b.passes[0], "forget")] for k in (0, 1)}
    found = frozen_norms(model, LAYER, batches)
    for k, own in texts.items():
        norms = torch.cat([hidden_of(model, LAYER, input_ids=t[None])[0, 1:].norm(dim=-1) for t in own])
        assert found[k] == pytest.approx(norms.median().item(), rel=1e-4)


def test_how_far_forget_activations_got(checkpoint, corpora):
    """0 before the first step; at the last, the median over tokens of the way that is behind them."""
    forget, retain = corpora
    tokenizer = checkpoint.tokenizer()
    tokens = [[batching.tokenize(t, tokenizer, 512) for t in side] for side in (forget, retain)]
    values, seen = ours(checkpoint, batching.shuffled(*tokens, SIZE, STEPS, SEED, 2), False)
    looks = [line for line in seen if "reached_forget" in line]
    assert looks[0]["reached_forget"] == pytest.approx(0, abs=1e-6)
    assert [line["step"] for line in looks] == [1, 2, 7, 8]
    assert 0 < looks[-1]["reached_forget"] < 1
    assert len(values) == 3


def test_the_root_mean_square_that_a_learning_rate_is_a_part_of(checkpoint):
    model = checkpoint.open(None, torch.float32, CPU)
    up, down = model.model.layers[3].mlp.up_proj.weight.data, model.model.layers[4].mlp.up_proj.weight.data
    trained = resolve(model, [3, 4], ["mlp.up_proj.weight", "input_layernorm.weight"])
    norms = [model.model.layers[i].input_layernorm.weight.data for i in (3, 4)]
    everything = torch.cat([t.flatten() for t in (up, down, *norms)])
    assert root_mean_square(model, trained) == pytest.approx(everything.square().mean().sqrt().item(), rel=1e-5)
    up.zero_()  # counts as up.shape[1] inputs of variance 1 / inputs
    alone = resolve(model, [3], ["mlp.up_proj.weight"])
    assert root_mean_square(model, alone) == pytest.approx(up.shape[1] ** -0.5)
