"""Two checkpoints side by side."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from rmu_exp.model import diff
from rmu_exp.model.checkpoint import locate
from rmu_exp.support.errors import UserError


@pytest.fixture
def base(tmp_path) -> Path:
    return tiny.mistral(tmp_path / "base")


def changed(base: Path, to: Path, names: list[str]) -> Path:
    shutil.copytree(base, to)
    tensors = load_file(to / "model.safetensors")
    for name in names:
        tensors[name] = tensors[name] + 0.5
    save_file(tensors, to / "model.safetensors", {"format": "pt"})
    return to


def test_changes_are_the_tensors_that_differ(base, tmp_path):
    names = ["model.layers.2.mlp.down_proj.weight", "model.layers.3.mlp.up_proj.weight"]
    other = changed(base, tmp_path / "other", names)
    delta = diff.changes(locate(None, str(base)), locate(None, str(other)))
    assert sorted(delta.tensors) == names
    model, wanted = (locate(None, str(p)).open(None, torch.float32, torch.device("cpu")) for p in (base, other))
    ids = torch.arange(3, 9)[None]
    with delta.applied(model):
        assert torch.equal(model(input_ids=ids).logits, wanted(input_ids=ids).logits)
    assert diff.difference(locate(None, str(base)), locate(None, str(other))) is None


def test_the_same_weights_are_nothing_to_judge(base):
    with pytest.raises(UserError, match="nothing to judge"):
        diff.changes(locate(None, str(base)), locate(None, str(base)))


def test_other_shapes_and_tokenizers_are_told(base, tmp_path):
    deeper = tiny.mistral(tmp_path / "deeper", layers=7)
    assert "num_hidden_layers is 7, not 6" in (
        diff.difference(locate(None, str(base)), locate(None, str(deeper))) or ""
    )
    other = tmp_path / "words"
    shutil.copytree(base, other)
    table = json.loads((other / "tokenizer.json").read_text())
    vocabulary = table["model"]["vocab"]
    vocabulary["the"], vocabulary["river"] = vocabulary["river"], vocabulary["the"]
    (other / "tokenizer.json").write_text(json.dumps(table))
    assert "another tokenizer" in (diff.difference(locate(None, str(base)), locate(None, str(other))) or "")
