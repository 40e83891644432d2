"""The parts of every architecture, and a model run in two pieces against the same model run whole."""

from __future__ import annotations

import architectures
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from rmu_exp.data import batches
from rmu_exp.model import split as anatomy
from rmu_exp.model.parameters import assemble, resolve
from rmu_exp.model.split import SplitModel, layers_of
from rmu_exp.support.errors import UserError
from rmu_exp.unlearning.step import Step

CPU = torch.device("cpu")
IDS = torch.randint(3, 60, (3, 9), generator=torch.Generator().manual_seed(0))
MASKS = {"none": None, "left": torch.ones(3, 9, dtype=torch.long), "right": torch.ones(3, 9, dtype=torch.long)}
MASKS["left"][0, :4] = MASKS["left"][2, :1] = 0
MASKS["right"][0, 5:] = MASKS["right"][2, 8:] = 0


def layer_output(model, layer, **inputs):
    """The obvious way: the whole forward, and a hook on one layer."""
    kept = []
    hook = layers_of(model)[layer].register_forward_hook(
        lambda module, args, out: kept.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad():
        model(use_cache=False, **inputs)
    hook.remove()
    return kept[0]


@pytest.mark.parametrize("side", MASKS)
def test_split_equals_the_plain_forward_bit_for_bit(checkpoint, side):
    full = checkpoint.open(None, torch.float32, CPU)
    plain = layer_output(full, 2, input_ids=IDS, attention_mask=MASKS[side])
    model = checkpoint.open(3, torch.float32, CPU)
    for first in range(3):
        split = SplitModel(model, first)
        assert torch.equal(split.upper(split.trunk(IDS, MASKS[side]), {}), plain)


def test_split_in_bfloat16_equals_the_plain_forward(checkpoint):
    model = checkpoint.open(3, torch.bfloat16, CPU)
    split = SplitModel(model, 1)
    assert torch.equal(
        split.upper(split.trunk(IDS, MASKS["left"]), {}),
        layer_output(model, 2, input_ids=IDS, attention_mask=MASKS["left"]),
    )


def test_rows_of_a_batch_equal_that_part_of_the_whole(checkpoint):
    split = SplitModel(checkpoint.open(3, torch.float32, CPU), 1)
    trunk = split.trunk(IDS, MASKS["left"])
    whole = split.upper(trunk, {})
    for rows in (torch.tensor([0]), torch.tensor([1, 2])):
        torch.testing.assert_close(split.upper(trunk.rows(rows), {}), whole[rows], rtol=1e-5, atol=1e-5)


def test_packed_texts_do_not_see_each_other(mistral):
    split = SplitModel(mistral.open(3, torch.float32, CPU), 1)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    packed = split.upper(split.trunk(IDS[:1], None, positions), {})
    for part in (slice(0, 4), slice(4, 9)):
        alone = split.upper(split.trunk(IDS[:1, part]), {})
        torch.testing.assert_close(packed[:, part], alone, rtol=1e-5, atol=1e-5)


def test_new_weights_count_and_only_they_get_gradients(checkpoint):
    model = checkpoint.open(3, torch.float32, CPU)
    split, trained = SplitModel(model, 1), resolve(model, [1, 2], None)
    values = [(t.read(layers_of(model)[t.layer]) * 2).requires_grad_() for t in trained]
    trunk = split.trunk(IDS, MASKS["left"])
    out = split.upper(trunk, assemble(model, trained, values))
    out.square().mean().backward()
    assert all(v.grad is not None and v.grad.abs().sum() > 0 for v in values)
    assert all(p.grad is None for p in model.parameters())
    with torch.no_grad():
        for t, value in zip(trained, values, strict=True):
            t.view(layers_of(model)[t.layer]).copy_(value)
    assert torch.equal(layer_output(model, 2, input_ids=IDS, attention_mask=MASKS["left"]), out)


def test_nothing_is_left_behind(checkpoint):
    model = checkpoint.open(3, torch.float32, CPU)
    before = [(name, id(module), len(module._forward_hooks)) for name, module in model.named_modules()]
    split = SplitModel(model, 1)
    split.upper(split.trunk(IDS, MASKS["left"]), {})
    with pytest.raises(IndexError):  # a token beyond the vocabulary
        split.trunk(IDS + 1000, MASKS["left"])
    assert [(name, id(module), len(module._forward_hooks)) for name, module in model.named_modules()] == before


def test_the_parts_are_found(checkpoint):
    model, full = checkpoint.open(2, torch.float32, CPU), checkpoint.open(None, torch.float32, CPU)
    assert anatomy.embedding_of(model).weight.shape == (63, checkpoint.hidden_size)
    assert isinstance(anatomy.norm_of(model), nn.Identity)
    assert not isinstance(anatomy.norm_of(full), nn.Identity)
    assert anatomy.head_of(full) is full.get_output_embeddings()
    assert [len(layers_of(m)) for m in (model, full)] == [2, 4]
    layer, out = layers_of(full)[0], []
    for part in (anatomy.attention_of(layer), anatomy.mlp_of(layer)):
        part.register_forward_hook(lambda *_: out.append(1))
    full(input_ids=IDS)
    assert len(out) == 2
    with pytest.raises(UserError, match="has no head"):
        anatomy.head_of(model)


class Doubling(nn.Module):
    """A layer that returns a tuple, as transformers' did for years and remote code still does."""

    kind = "doubling"

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, hidden_states, attention_mask=None):
        return (hidden_states * self.scale, None)


class Old(nn.Module):
    def __init__(self):
        super().__init__()
        self.wte, self.h = nn.Embedding(99, 2), nn.ModuleList(Doubling() for _ in range(3))

    def forward(self, input_ids, attention_mask, use_cache):
        h = self.wte(input_ids)
        for layer in self.h:
            assert layer.kind == "doubling"
            h = layer(h, attention_mask=attention_mask)[0]
        return h


def test_layers_that_return_tuples():
    model = Old()
    split = SplitModel(model, 1)
    assert torch.equal(split.upper(split.trunk(IDS), {}), model(IDS, None, False))


def test_an_unknown_architecture_is_told_what_was_looked_for():
    with pytest.raises(UserError, match=r"Linear has no list of decoder layers; looked for layers, h"):
        layers_of(nn.Linear(1, 1))


def test_a_cut_above_the_model_is_refused(mistral):
    with pytest.raises(UserError, match="got 3, allowed is 0 to 2"):
        SplitModel(mistral.open(3, torch.float32, CPU), 3)


@pytest.mark.parametrize("first", [0, 2])
def test_logits_over_a_split_equal_the_whole_model_bit_for_bit(checkpoint, first):
    full = checkpoint.open(None, torch.float32, CPU)
    split = SplitModel(full, first)
    with torch.no_grad():
        plain = full(input_ids=IDS, attention_mask=MASKS["left"], use_cache=False).logits
        h = split.upper(split.trunk(IDS, MASKS["left"]), {})
        assert torch.equal(split.logits(h, IDS), plain)
        assert torch.equal(full(input_ids=IDS, attention_mask=MASKS["left"], use_cache=False).logits, plain)


def test_a_shift_is_added_to_a_layers_output(mistral):
    model = mistral.open(3, torch.float32, CPU)
    shift = torch.randn(3, 9, mistral.hidden_size)
    hook = layers_of(model)[1].register_forward_hook(lambda module, args, out: out + shift)
    plain = layer_output(model, 2, input_ids=IDS)
    hook.remove()
    for first in (0, 1, 2):
        split = SplitModel(model, first)
        *_, (_, h) = split.walk(split.trunk(IDS), {}, {1: shift})
        torch.testing.assert_close(h, plain, rtol=1e-6, atol=1e-6)


def test_texts_are_kept_apart(checkpoint):
    assert SplitModel(checkpoint.open(None, torch.float32, CPU), 1).keeps_texts_apart()


@pytest.mark.parametrize("kind", ["bloom", "mamba2"])
def test_a_model_that_mixes_the_texts_of_a_row_gets_one_per_row(kind, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(architectures.make(kind, tmp_path)).eval().requires_grad_(False)
    split = SplitModel(model, 1)
    assert not split.keeps_texts_apart()
    halves = {"forget": [[4, 5, 6, 7, 8], [9, 10]], "retain": [[11, 12, 13], [4, 14]]}
    packed = batches.pack(halves, 0)
    assert len(packed.ids_RT) < 4
    step = Step(split, batches.Batch(0, [packed], 12), {}, [2])
    seen = step.frozen().h[2]
    for role, texts in halves.items():
        assert sorted(batches.texts(step.batch.passes[0], role)) == sorted(texts)
        mine = batches.texts(step.batch.passes[0], role)
        for text, h_TD in zip(mine, seen[role].split([*map(len, mine)]), strict=True):
            torch.testing.assert_close(h_TD, layer_output(model, 2, input_ids=torch.tensor([text]))[0])
