"""Which experts are trained, against what the model's own router says about each text alone."""

from __future__ import annotations

import a_run
import architectures
import pytest
import torch
from transformers import AutoModelForCausalLM

from rmu_exp.model.checkpoint import locate
from rmu_exp.model.delta import Delta
from rmu_exp.model.parameters import expert_of, resolve
from rmu_exp.support.errors import UserError

TEXTS = ["w1 w2 w3", "w4 w5", "w1 w6", "w2 w2"]
KINDS = dict.fromkeys(("mixtral", "olmoe"), ("num_local_experts", "num_experts"))
LAYERS = (1, 2)


def words(base, folder):
    (folder / "forget.txt").write_text("\n".join(TEXTS))
    (folder / "retain.txt").write_text("".join(f"w2 w{i} w{i % 7} w{i + 9}\n" for i in range(20)))
    given = f"model=local model.path={base} data=local data.forget=[{folder}/forget.txt] layer=2 layers.span=2 steer=30"
    given += f" data.retain=[{folder}/retain.txt] alpha=1 train.lr=1e-2 train.max_batches=3 eval=none tracking=off"
    return [*given.split(), "train.batch_size=4"]


@pytest.fixture(params=KINDS)
def base(request, tmp_path, monkeypatch):
    monkeypatch.setenv("RMU_EXP_CACHE", str(tmp_path / "cache"))
    return architectures.make(request.param, tmp_path / "base", **dict.fromkeys(KINDS[request.param], 12))


@torch.no_grad()
def routed(base, layer):
    """The experts that any token of the texts goes to: the two largest router logits of each."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base).eval(), locate(None, str(base)).tokenizer()
    found = set()
    for text in TEXTS:
        out = model(**tokenizer(text, return_tensors="pt"), output_router_logits=True)
        found |= set(out.router_logits[layer].topk(2, dim=-1).indices.flatten().tolist())
    return found


def test_those_that_forget_texts_are_routed_to(base, tmp_path):
    a_run.carry_out([*words(base, tmp_path), "layers.experts=used"], tmp_path / "out")
    trained = Delta.load(tmp_path / "out/delta.safetensors").tensors
    for layer in LAYERS:
        wanted = routed(base, layer)
        assert 0 < len(wanted) < 12
        assert {expert_of(name) for name in trained if f"layers.{layer}." in name} == wanted
    assert all(expert_of(name) is not None for name in trained), "no router"


def test_those_of_a_list_and_none_that_are_not_there(base, tmp_path):
    a_run.carry_out([*words(base, tmp_path), "layers.experts=[0,7]"], tmp_path / "out")
    assert {expert_of(name) for name in Delta.load(tmp_path / "out/delta.safetensors").tensors} == {0, 7}
    for given, said in {"[0,12]": "got 12, allowed is 0 to 11", "some": "allowed is all, used, or a list"}.items():
        with pytest.raises(UserError, match=rf"layers.experts: .*{said}"):
            a_run.carry_out([*words(base, tmp_path), f"layers.experts={given}"], tmp_path / "no")
    assert not list((tmp_path / "no").iterdir())


def test_routers_are_trained_only_by_name(base):
    model = locate(None, str(base)).skeleton(2)
    for names in (None, ["mlp"]):
        assert not any(t.name.endswith("gate.weight") for t in resolve(model, [1], names))
    assert [t.name.split(".")[-2:] for t in resolve(model, [1], ["*.gate.weight"])] == [["gate", "weight"]]


def test_a_model_without_experts(tmp_path):
    given = [*words(architectures.make("llama", tmp_path / "b"), tmp_path), "layers.experts=used"]
    with pytest.raises(UserError, match=r"layers.experts: .*down_proj.weight is not of one expert"):
        a_run.carry_out(given, tmp_path / "out")
