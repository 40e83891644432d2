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


def edited(base: Path, to: Path, config: dict[str, object], tensors: dict[str, torch.Tensor]) -> Path:
    """A copy with other entries in its configuration and more tensors."""
    shutil.copytree(base, to)
    about = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(about | config))
    save_file(load_file(to / "model.safetensors") | tensors, to / "model.safetensors", {"format": "pt"})
    return to


@pytest.mark.parametrize(
    ("key", "value"),
    [("rms_norm_eps", 1e-3), ("hidden_act", "gelu"), ("sliding_window", 7), ("num_key_value_heads", 4)],
)
def test_whatever_changes_an_answer_is_told(base, tmp_path, key, value):
    other = edited(base, tmp_path / "other", {key: value}, {})
    assert f"its {key} is {value}" in (diff.difference(locate(None, str(base)), locate(None, str(other))) or "")


def test_another_rope_and_another_bos_are_told(base, tmp_path):
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    other = edited(base, tmp_path / "rope", rope, {})
    assert "rope" in (diff.difference(locate(None, str(base)), locate(None, str(other))) or "")
    other = edited(base, tmp_path / "bos", {}, {})
    table = json.loads((other / "tokenizer.json").read_text())
    table["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "</s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {"</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}},
    }
    (other / "tokenizer.json").write_text(json.dumps(table))
    assert "begins with the tokens [2," in (diff.difference(locate(None, str(base)), locate(None, str(other))) or "")


def test_what_says_nothing_of_the_answers_may_differ(base, tmp_path):
    aside = {"dtype": "float32", "use_cache": False, "attention_dropout": 0.1, "transformers_version": "4.0"}
    down = "model.layers.2.mlp.down_proj.weight"
    more = {down: torch.zeros(32, 64), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    other = edited(base, tmp_path / "other", aside, more)
    bases = locate(None, str(base)), locate(None, str(other))
    assert diff.difference(*bases) is None
    assert list(diff.changes(*bases).tensors) == [down]
    assert list(diff.changes(*bases[::-1]).tensors) == [down]


def test_a_head_of_ones_own_is_a_change(tmp_path):
    base = tiny.mistral(tmp_path / "tied", tie_word_embeddings=True)
    embedding = load_file(base / "model.safetensors")["model.embed_tokens.weight"]
    untied = {"tie_word_embeddings": False}
    same = edited(base, tmp_path / "same", untied, {"lm_head.weight": embedding.clone()})
    other = edited(base, tmp_path / "other", untied, {"lm_head.weight": -embedding})
    with pytest.raises(UserError, match="nothing to judge"):
        diff.changes(locate(None, str(base)), locate(None, str(same)))
    for pair in ((base, other), (other, base), (same, other)):
        assert list(diff.changes(*(locate(None, str(p)) for p in pair)).tensors) == ["lm_head.weight"]


def test_odd_folders_are_refused_before_anything_is_read(tmp_path):
    base = tiny.mistral(tmp_path / "tied", tie_word_embeddings=True)
    tensors = load_file(base / "model.safetensors")
    head = {"lm_head.weight": -tensors["model.embed_tokens.weight"]}
    with pytest.raises(UserError, match="its files hold another head; set tie_word_embeddings to false"):
        locate(None, str(edited(base, tmp_path / "other", {}, head)))
    eight = {name: value.to(torch.float8_e4m3fn) for name, value in tensors.items() if "proj" in name}
    with pytest.raises(UserError, match="holds F8_E4M3 weights"):
        locate(None, str(edited(base, tmp_path / "fp8", {}, eight)))
    assert locate(None, str(edited(base, tmp_path / "null", {"quantization_config": None}, {}))).depth == 6
    (base / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="holds an adapter"):
        locate(None, str(base))
