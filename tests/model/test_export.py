"""An export is the base checkpoint, byte for byte, but for the changed tensors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from families import make_checkpoint
from safetensors.torch import load_file

from rmu_exp.model import export as module
from rmu_exp.model.checkpoint import locate
from rmu_exp.model.delta import Delta
from rmu_exp.model.export import export
from rmu_exp.model.parameters import resolve
from rmu_exp.support.errors import RunError, UserError

CPU = torch.device("cpu")


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}


def test_only_the_changed_tensors_differ(checkpoint, tmp_path, changed):
    delta, out = changed(checkpoint), tmp_path / "out"
    assert export(checkpoint, delta, out, "# card") == out
    base, new = tensors(checkpoint.folder), tensors(out)
    assert base.keys() == new.keys()
    for name, tensor in base.items():
        assert torch.equal(new[name], delta.tensors.get(name, tensor))
        assert torch.equal(new[name], tensor) == (name not in delta.tensors)
    assert {f.name for f in out.iterdir()} == {f.name for f in checkpoint.folder.iterdir()} | {"README.md"}
    for file in checkpoint.folder.glob("*.json"):
        assert (out / file.name).read_bytes() == file.read_bytes()
    assert (out / "README.md").read_text() == "# card"


def test_transformers_loads_it_as_base_and_delta(checkpoint, tmp_path, changed):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    delta = changed(checkpoint)
    loaded = AutoModelForCausalLM.from_pretrained(export(checkpoint, delta, tmp_path / "out")).state_dict()
    model = checkpoint.open(None, torch.float32, CPU)
    with delta.applied(model):
        assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())
    ids = checkpoint.tokenizer()("w1")["input_ids"]
    assert ids
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("w1")["input_ids"] == ids


def test_a_checkpoint_without_the_causal_prefix(tmp_path, changed):
    """The hub's gpt2 has h.0.mlp.c_proj.weight where the causal model says transformer.h.0.…"""
    base = locate(None, str(make_checkpoint("gpt2", tmp_path / "base", head=False, dtype=torch.bfloat16)))
    assert "h.0.mlp.c_proj.weight" in tensors(base.folder)
    delta = changed(base)
    out = tensors(export(base, delta, tmp_path / "out"))
    assert torch.equal(out["h.0.mlp.c_proj.weight"], delta.tensors["transformer.h.0.mlp.c_proj.weight"])
    full = locate(None, str(tmp_path / "out")).open(None, torch.bfloat16, CPU)
    assert torch.equal(full.transformer.h[2].mlp.c_proj.weight, delta.tensors["transformer.h.2.mlp.c_proj.weight"])


def test_the_base_keeps_its_dtype(tmp_path):
    base = locate(None, str(make_checkpoint("mixtral", tmp_path / "base", dtype=torch.bfloat16, shard="8KB")))
    trained = resolve(base.open(1, torch.float32, CPU), [0], None)
    values = {t.name: torch.randn(16, 24) for t in trained}
    out = tensors(export(base, Delta(values), tmp_path / "out"))
    assert {t.dtype for t in out.values()} == {torch.bfloat16}
    assert all(torch.equal(out[name], value.bfloat16()) for name, value in values.items())


def test_other_copies_of_the_weights_are_left_out(tmp_path, changed):
    folder = make_checkpoint("mistral", tmp_path / "base")
    for name in ("pytorch_model.bin", "consolidated.safetensors", "README.md", "flax_model.msgpack", ".hidden"):
        (folder / name).write_bytes(b"x")
    (folder / "pytorch_model.bin.index.json").write_text("{}")
    (folder / "LICENSE").write_text("free")
    base = locate(None, str(folder))
    out = export(base, changed(base), tmp_path / "out")
    names = {f.name for f in out.iterdir()}
    assert names >= {"model.safetensors", "config.json", "tokenizer.json", "LICENSE"}
    assert all(name.endswith((".json", "LICENSE", "model.safetensors")) for name in names)
    assert "pytorch_model.bin.index.json" not in names


def test_refusals_write_nothing(mistral, checkpoint_of, tmp_path, changed):
    delta, out = changed(mistral), tmp_path / "deep" / "out"
    name = next(iter(delta.tensors))
    for wrong, match in (
        (changed(checkpoint_of("olmo2")), r"was made for .*\(sha256:.*not for .*mistral"),
        (Delta(changed(checkpoint_of("gpt2")).tensors), r"has no tensor transformer\.h\."),
        (Delta({name: torch.zeros(2)}), r"is F32 \[16, 24\] in .* and \[2\] in the Delta"),
    ):
        with pytest.raises(UserError, match=match):
            export(mistral, wrong, out)
    assert not out.parent.exists()
    out.mkdir(parents=True)
    with pytest.raises(UserError, match="exists already"):
        export(mistral, delta, out)


def test_a_failure_leaves_nothing(mistral, tmp_path, monkeypatch, changed):
    delta, out = changed(mistral), tmp_path / "out"

    def full(source, target):
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.shutil, "copyfile", full)
    with pytest.raises(RunError, match=r"cannot be written .*No space"):
        export(mistral, delta, out)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 10}))
    with pytest.raises(RunError, match=r"has 0\.0 GB free"):
        export(mistral, delta, out)
    assert list(tmp_path.iterdir()) == []


def test_the_index_stays_true(checkpoint, tmp_path, changed):
    out = export(checkpoint, changed(checkpoint), tmp_path / "out")
    table = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    assert all(name in load_file(out / file) for name, file in table.items())
