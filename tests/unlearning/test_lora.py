"""Adapters against a model that has the merged matrices."""

from __future__ import annotations

import pytest
import tiny
import torch
from families import make_checkpoint
from worked import CPU, LAYER, context

from rmu_exp.data import batches as batching
from rmu_exp.model.checkpoint import Checkpoint
from rmu_exp.model.parameters import assemble, resolve
from rmu_exp.model.split import SplitModel, layers_of
from rmu_exp.support.errors import UserError
from rmu_exp.unlearning.loop import unlearn
from rmu_exp.unlearning.lora import Adapters, matrices
from rmu_exp.unlearning.methods import rmu

IDS = torch.tensor([[3, 4, 5, 6, 7]])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return Checkpoint("tiny", tiny.mistral(tmp_path_factory.mktemp("tiny")))


def adapted(checkpoint, seed=0):
    model = checkpoint.open(LAYER + 1, torch.float32, CPU)
    on = matrices(model, resolve(model, range(LAYER + 1), ["all"]))
    return model, Adapters(model, on, rank=2, alpha=6, seed=seed)


def test_adapters_sit_on_every_matrix_and_start_at_nothing(checkpoint):
    model, adapters = adapted(checkpoint)
    assert len(adapters.on) == 7 * (LAYER + 1), "norms have none"
    split, plain = SplitModel(model, 0), SplitModel(checkpoint.open(LAYER + 1, torch.float32, CPU), 0)
    h = split.upper(split.trunk(IDS), {})
    assert torch.equal(h, plain.upper(plain.trunk(IDS), {}))


def test_merged_matrices_are_what_was_trained(checkpoint):
    model, adapters = adapted(checkpoint)
    tokens = [batching.tokenize(tiny.texts(12, seed), checkpoint.tokenizer(), 64) for seed in (1, 2)]
    batches = batching.shuffled([tokens[0]] * 2, [tokens[1]] * 2, 2, 4, 0, 2)
    method = rmu.Method(rmu.Settings(faithful=False), context(checkpoint))
    values = unlearn(model, adapters.trained, batches, method, 1e-2)
    merged = adapters.merged(values)
    split = SplitModel(model, 0)
    trained = split.upper(split.trunk(IDS), assemble(model, adapters.trained, values))
    plain = checkpoint.open(LAYER + 1, torch.float32, CPU)
    base = SplitModel(plain, 0)
    before = base.upper(base.trunk(IDS), {})
    assert torch.equal(split.upper(split.trunk(IDS), {}), before), "the model is left as it was"
    for t, value in zip(adapters.on, merged, strict=True):
        t.view(layers_of(plain)[t.layer]).copy_(value)
    after = base.upper(base.trunk(IDS), {})
    torch.testing.assert_close(after, trained, rtol=1e-4, atol=1e-4)
    assert (after - before).abs().max() > 1e-2


def test_same_seed_same_adapters(checkpoint):
    first, again, other = (adapted(checkpoint, seed)[1] for seed in (0, 0, 1))
    values = [[t.read(a.layers[t.layer]) for t in a.trained] for a in (first, again, other)]
    assert all(torch.equal(a, b) for a, b in zip(values[0], values[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(values[0], values[2], strict=True))


def test_refusals(checkpoint, tmp_path):
    model = checkpoint.open(LAYER + 1, torch.float32, CPU)
    with pytest.raises(UserError, match=r"layers.rank: none of .*layernorm"):
        matrices(model, resolve(model, [0], ["input_layernorm.weight"]))
    mixture = Checkpoint("m", make_checkpoint("mixtral", tmp_path)).open(2, torch.float32, CPU)
    with pytest.raises(UserError, match=r"layers.rank: .*experts.* fused"):
        matrices(mixture, resolve(mixture, [0], None))
