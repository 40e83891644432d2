"""The part of a layer that no new weight reaches: computed once, and the same bits in the second run."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call

from rmu_exp.model.parameters import assemble, resolve
from rmu_exp.model.replay import recording, replaying
from rmu_exp.model.split import layers_of, split_at

CPU = torch.device("cpu")
IDS = torch.randint(3, 60, (3, 9), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("names", [None, ["*"]])
def test_the_frozen_run_after_the_updated_one_has_the_bits_of_a_run_alone(checkpoint, names):
    model = checkpoint.open(3, torch.float32, CPU)
    split, trained = split_at(model, 1), resolve(model, [1, 2], names)
    values = [(t.read(layers_of(model)[t.layer]) * 2).requires_grad_() for t in trained]
    alone = split.upper(split.trunk(IDS), {})
    first = split.upper(split.trunk(IDS), assemble(model, trained, values))
    trunk = split.trunk(IDS)
    updated = split.upper(trunk, assemble(model, trained, values))
    assert torch.equal(updated, first)
    assert not torch.equal(updated, alone)
    assert names is not None or trunk.memo, "nothing was shared"
    assert torch.equal(split.upper(trunk, {}), alone)
    assert not any("forward" in vars(module) for module in model.modules()), "a forward was left behind"


def test_attention_of_the_lowest_trained_layer_runs_once(mistral):
    model = mistral.open(3, torch.float32, CPU)
    split, trained = split_at(model, 1), resolve(model, [1, 2], None)
    calls = []
    for i, layer in enumerate(layers_of(model)):
        for part in (layer.self_attn.q_proj, layer.mlp.down_proj):
            part.register_forward_hook(lambda module, *_, i=i: calls.append((i, module.out_features)))
    trunk = split.trunk(IDS)
    split.upper(trunk, assemble(model, trained, [t.read(layers_of(model)[t.layer]) for t in trained]))
    split.upper(trunk, {})
    heads, wide = (
        part.out_features for part in (layers_of(model)[0].self_attn.q_proj, layers_of(model)[0].mlp.down_proj)
    )
    once = [(0, heads), (0, wide), (1, heads)]
    assert sorted(calls) == sorted([*once, *[(1, wide), (2, heads), (2, wide)] * 2])


class Direct(nn.Module):
    """Reads a weight of its second part without calling it, before it calls the third."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        return self.c(torch.nn.functional.linear(self.a(x), self.b.weight))


def test_a_weight_that_is_read_without_its_module_leaves_nothing_to_replay():
    layer, x, memo = Direct(), torch.randn(2, 4), {}
    with recording(layer, ["b.weight"], memo):
        functional_call(layer, {"b.weight": layer.b.weight * 2}, (x,))
    assert memo == {}
    with replaying(layer, memo):
        assert torch.equal(layer(x), layer.c(torch.nn.functional.linear(layer.a(x), layer.b.weight)))


def test_an_error_leaves_the_modules_as_they_were():
    layer = Direct()
    with pytest.raises(RuntimeError), recording(layer, ["b.weight"], {}):
        layer(torch.randn(2, 5))
    assert not any("forward" in vars(module) for module in layer.modules())
