"""What a Delta keeps, and how it gets into a model and out again."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from rmu_exp.model.delta import CONTROL, KEY, Delta
from rmu_exp.model.parameters import on_disk, resolve
from rmu_exp.model.split import layers_of
from rmu_exp.support.errors import UserError

CPU = torch.device("cpu")
TOPICS = ["hexes", "wards"]


def test_round_trip(checkpoint, tmp_path, changed):
    delta = changed(checkpoint)
    delta.save(tmp_path / "sub" / "delta.safetensors")
    again = Delta.load(tmp_path / "sub" / "delta.safetensors")
    assert again.tensors.keys() == delta.tensors.keys()
    assert all(torch.equal(again.tensors[name], value) for name, value in delta.tensors.items())
    assert torch.equal(again.control, delta.control)
    assert (again.topics, again.base) == (TOPICS, checkpoint.about())
    assert again.base["digest"] == checkpoint.digest()


def test_the_same_delta_gives_the_same_bytes(mistral, tmp_path, changed):
    delta = changed(mistral, ["self_attn.*", "mlp.*"])
    other = Delta(
        dict(reversed(delta.tensors.items())), delta.control, delta.topics, dict(reversed(delta.base.items()))
    )
    delta.save(tmp_path / "a")
    other.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert load_file(tmp_path / "a").keys() == {*delta.tensors, CONTROL}


def test_without_control_vectors(mistral, tmp_path, changed):
    Delta(changed(mistral).tensors, None, [], {}).save(tmp_path / "d")
    assert Delta.load(tmp_path / "d").control is None


def test_values_are_rounded_as_on_disk(tmp_path):
    from families import make_checkpoint

    from rmu_exp.model.checkpoint import locate

    half = locate(None, str(make_checkpoint("llama", tmp_path, dtype=torch.bfloat16)))
    model = half.open(1, torch.float32, CPU)
    trained = resolve(model, [0], None)
    value = torch.randn(16, 24)
    (kept,) = Delta.from_trained(trained, [value], None, [], half).tensors.values()
    assert torch.equal(kept, value.bfloat16())


def test_from_trained_is_a_copy(mistral):
    model = mistral.open(1, torch.float32, CPU)
    trained, value = resolve(model, [0], None), torch.zeros(16, 24)
    delta = Delta.from_trained(trained, [value], None, [], mistral)
    value.add_(1)
    assert delta.tensors[trained[0].name].sum() == 0


@pytest.mark.parametrize("names", [None, "all"])
def test_applied_and_exactly_restored(checkpoint, names, changed):
    model, delta = checkpoint.open(None, torch.float32, CPU), changed(checkpoint, names)
    before = {name: p.clone() for name, p in model.named_parameters()}
    table, layers = on_disk(model), layers_of(model)
    with delta.applied(model) as same:
        assert same is model
        for name, trained in table.items():
            assert (name in delta.tensors) == (
                name.split(".")[2] in "02" and (names == "all" or trained.name in delta.tensors)
            )
            if name in delta.tensors:
                assert torch.equal(trained.read(layers[trained.layer]), delta.tensors[name])
        touched = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
        assert touched == {f"{prefix(model)}.{table[n].layer}.{table[n].parameter}" for n in delta.tensors}
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def prefix(model):
    return next(name for name, module in model.named_modules() if module is layers_of(model))


def test_restored_after_an_error(mistral, changed):
    model, delta = mistral.open(None, torch.float32, CPU), changed(mistral)
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(ZeroDivisionError), delta.applied(model):
        raise ZeroDivisionError
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_what_does_not_fit_leaves_the_model_as_it_was(mistral, checkpoint_of, changed):
    model = mistral.open(None, torch.float32, CPU)
    before = {name: p.clone() for name, p in model.named_parameters()}
    good = changed(mistral).tensors
    for tensors, match in (
        (changed(checkpoint_of("gpt2")).tensors, r"no tensor transformer\.h\.0\."),
        (good | {"model.layers.1.mlp.down_proj.weight": torch.zeros(2, 2)}, r"is \(2, 2\), the model has \(16, 24\)"),
        (good | {"model.layers.9.mlp.down_proj.weight": torch.zeros(16, 24)}, r"no tensor model\.layers\.9\."),
    ):
        with pytest.raises(UserError, match=match), Delta(tensors, None, [], {"name": "base/one"}).applied(model):
            pass
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_bad_files_are_refused(mistral, tmp_path, changed):
    file = tmp_path / "d.safetensors"

    def refused(match):
        with pytest.raises(UserError, match=match) as error:
            Delta.load(file)
        assert str(file) in str(error.value)
        assert "\n" not in str(error.value)

    refused("no such file")
    changed(mistral).save(file)
    content = file.read_bytes()
    for damaged in (b"", content[:-1], content[:20], b"\xff" * 100):
        file.write_bytes(damaged)
        refused("damaged or not a safetensors file")
    save_file({"a": torch.zeros(1)}, file)
    refused("not a Delta")
    for metadata in (
        "{",
        "[]",
        '{"format": "rmu_exp.delta.99"}',
        '{"format": "rmu_exp.delta.1", "topics": [], "base": 3}',
    ):
        save_file({"a": torch.zeros(1)}, file, {KEY: metadata})
        refused(r"not a Delta|format|does not fit")
    Delta({"a": torch.zeros(1)}, torch.zeros(2, 3), ["only one"], {}).save(file)
    refused("does not fit its tensors")


def test_a_failed_save_leaves_the_old_file(mistral, tmp_path, monkeypatch, changed):
    from rmu_exp.model import delta as module

    delta, file = changed(mistral), tmp_path / "d"
    delta.save(file)
    before = file.read_bytes()

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(OSError, match="space"):
        delta.save(file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]
