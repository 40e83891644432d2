"""Names against what is on disk, slices against what transformers reads into them."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open

from rmu_exp.model import weight_files
from rmu_exp.model.parameters import assemble, by_index, down_projection, on_disk, resolve
from rmu_exp.model.split import layers_of
from rmu_exp.support.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture
def model(checkpoint):
    return checkpoint.open(None, torch.float32, CPU)


def stored(checkpoint):
    """Every layer's tensors, read from the files by name."""
    tensors = {}
    for file in checkpoint.weight_files():
        with safe_open(file, "pt") as content:
            tensors |= {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    return {name: tensor for name, tensor in tensors.items() if weight_files.LAYER.search(name)}


def test_every_name_on_disk_is_known_and_reads_what_is_there(checkpoint, model):
    files, layers = stored(checkpoint), layers_of(model)
    assert on_disk(model).keys() == files.keys()
    for name, trained in on_disk(model).items():
        assert torch.equal(trained.read(layers[trained.layer]), files[name]), name


def test_all_covers_every_parameter_of_the_layers(model):
    layers = layers_of(model)
    trained = resolve(model, [0, 2], "all")
    assert {t.layer for t in trained} == {0, 2}
    for t in trained:
        t.view(layers[t.layer]).fill_(7)
    assert all((p == 7).all() for layer in (0, 2) for p in layers[layer].parameters())
    assert not any((p == 7).all() for p in layers[1].parameters())


def test_the_default_is_the_matrix_that_ends_the_mlp(checkpoint, model):
    """Filled with zeros, it silences the MLP."""
    layers = layers_of(model)
    for t in resolve(model, [0], None):
        t.view(layers[0]).zero_()
    h = torch.randn(1, 3, checkpoint.hidden_size)
    out = layers[0].mlp(h)
    bias = dict(layers[0].named_parameters()).get(
        down_projection(model).replace("weight", "bias"), torch.zeros(checkpoint.hidden_size)
    )
    torch.testing.assert_close(out, bias.expand_as(out))


DOWN_INDEX = {"mistral": 6, "llama": 6, "qwen2": 9, "qwen3": 8, "gemma2": 6}


@pytest.mark.parametrize("family", DOWN_INDEX)
def test_param_ids_of_the_down_projection(checkpoint_of, family):
    model = checkpoint_of(family).open(1, torch.float32, CPU)
    assert by_index(model, 0, [DOWN_INDEX[family]]) == ["mlp.down_proj.weight"]
    names = [name for name, _ in layers_of(model)[0].named_parameters()]
    assert by_index(model, 0, range(len(names))) == names


def test_param_ids_of_mixtral_are_those_of_the_published_modules(mixtral):
    model = mixtral.open(1, torch.float32, CPU)
    moe = "block_sparse_moe"
    assert by_index(model, 0, range(15)) == [
        *(f"self_attn.{x}_proj.weight" for x in "qkvo"),
        f"{moe}.gate.weight",
        *(f"{moe}.experts.{e}.w{k}.weight" for e in range(3) for k in (1, 2, 3)),
        "input_layernorm.weight",
    ]
    assert by_index(model, 0, [7]) == [f"{moe}.experts.0.w3.weight"]


def test_param_ids_of_qwen_experts_begin_with_the_router(checkpoint_of):
    model = checkpoint_of("qwen3_moe").open(2, torch.float32, CPU)
    assert by_index(model, 0, [6, 7, 8, 9]) == [
        "mlp.gate.weight",
        *(f"mlp.experts.0.{part}_proj.weight" for part in ("gate", "up", "down")),
    ]
    assert down_projection(model, 0) == "mlp.experts.*.down_proj.weight"
    assert down_projection(model, 1) == "mlp.down_proj.weight"  # a dense layer between


def test_globs_keep_the_published_order_without_repetition(mixtral):
    model = mixtral.open(2, torch.float32, CPU)
    names = ["block_sparse_moe.experts.*.w2.weight", "self_attn.[kq]_proj.weight", "self_attn.q_proj.weight"]
    expected = ["self_attn.q_proj", "self_attn.k_proj", *(f"block_sparse_moe.experts.{e}.w2" for e in range(3))]
    assert [t.name for t in resolve(model, [0, 1], names)] == [
        f"model.layers.{layer}.{name}.weight" for layer in (0, 1) for name in expected
    ]


@pytest.mark.parametrize("names", [["mlp.nothing"], ["self_attn.q_proj.weight", "experts.*"]])
def test_what_matches_nothing_is_told_what_there_is(mixtral, names):
    model = mixtral.open(2, torch.float32, CPU)
    with pytest.raises(
        UserError, match=r"matches nothing in layer 1; .*gate\.weight, .*experts\.\*\.w1\.weight, "
    ) as error:
        resolve(model, [1], names)
    assert repr(names[-1]) in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_indices(mistral):
    model = mistral.open(2, torch.float32, CPU)
    with pytest.raises(UserError, match=r"got 9, allowed is 0 to 8: 0 self_attn\.q_proj\.weight, "):
        by_index(model, 0, [9])
    with pytest.raises(UserError, match="got -1"):
        by_index(model, 0, [-1])
    with pytest.raises(UserError, match="layers: got 2, allowed is 0 to 1"):
        resolve(model, [2], None)
    with pytest.raises(UserError, match="empty list"):
        resolve(model, [0], [])


def test_assemble_leaves_the_rest_of_a_fused_tensor_and_gives_each_slice_its_gradient(mixtral):
    model = mixtral.open(2, torch.bfloat16, CPU)
    layers = layers_of(model)
    trained = resolve(model, [0, 1], ["block_sparse_moe.experts.1.*", "self_attn.o_proj.weight"])
    values = [torch.randn(t.read(layers[t.layer]).shape, requires_grad=True) for t in trained]
    table = assemble(model, trained, values)
    assert {t.dtype for mine in table.values() for t in mine.values()} == {torch.bfloat16}
    for layer, mine in table.items():
        expected = {name: layers[layer].get_parameter(name).detach().clone() for name in mine}
        for t, value in zip(trained, values, strict=True):
            if t.layer == layer:
                whole = expected[t.parameter]
                (whole if t.index is None else whole[t.index]).copy_(value.detach())
        assert all(torch.equal(mine[name], tensor) for name, tensor in expected.items())
        assert not any(torch.equal(layers[layer].get_parameter(name), tensor) for name, tensor in mine.items())
    sum(t.float().sum() for mine in table.values() for t in mine.values()).backward()
    assert all(torch.equal(v.grad, torch.ones_like(v)) and v.grad.dtype == torch.float32 for v in values)
