"""An adapter of the peft library in the place of an unlearned model."""

from __future__ import annotations

import a_run
import pytest
import tiny
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rmu_exp.cli import compose
from rmu_exp.model import adapter
from rmu_exp.model.checkpoint import locate
from rmu_exp.model.delta import Delta
from rmu_exp.model.export import export
from rmu_exp.pipeline import run as pipeline
from rmu_exp.record.results import load
from rmu_exp.support.errors import UserError


@pytest.fixture
def base(tmp_path):
    return tiny.mistral(tmp_path / "base")


def write(base, folder, noise=1.0, **settings):
    """A LoRA over two matrices, with random numbers where training begins at zero."""
    model = AutoModelForCausalLM.from_pretrained(base)
    lora = LoraConfig(r=4, lora_alpha=6, target_modules=r".*layers\.[23]\.mlp\.down_proj", **settings)
    wrapped = get_peft_model(model, lora)
    torch.manual_seed(1)
    for name, p in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=noise)
    wrapped.save_pretrained(folder)
    return folder


def test_the_delta_is_the_product_of_the_two_factors(base, tmp_path):
    folder = write(base, tmp_path / "adapter")
    assert adapter.is_adapter(str(folder))
    delta = adapter.merged(locate(None, str(base)), folder, "unlearned")
    before, factors = load_file(base / "model.safetensors"), load_file(folder / "adapter_model.safetensors")
    assert sorted(delta.tensors) == [f"model.layers.{i}.mlp.down_proj.weight" for i in (2, 3)]
    for name, value in delta.tensors.items():
        a, b = (factors[f"base_model.model.{name.removesuffix('weight')}lora_{k}.weight"] for k in "AB")
        assert torch.allclose(value, before[name] + 6 / 4 * b @ a, atol=1e-6)


def test_a_judgement_of_an_adapter(base, tmp_path, monkeypatch):
    monkeypatch.setenv("RMU_EXP_CACHE", str(tmp_path / "cache"))
    folder = write(base, tmp_path / "adapter")
    words = [
        f"unlearned={folder}",
        f"base={base}",
        "model=lore",
        "data=lore",
        "eval.tasks=[lore_general]",
        "eval.limit=2",
    ]
    (judge,) = compose.composed([*words, "tracking=off"], a_run.CONF, name="judge")
    pipeline.execute(judge, tmp_path / "out")
    merged = AutoPeftModelForCausalLM.from_pretrained(folder).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    locate(None, str(base)).tokenizer().save_pretrained(tmp_path / "merged")
    (judge,) = compose.composed(
        [f"unlearned={tmp_path / 'merged'}", *words[1:], "tracking=off"], a_run.CONF, name="judge"
    )
    pipeline.execute(judge, tmp_path / "out2")
    assert (tmp_path / "out/answers.jsonl").read_bytes() == (tmp_path / "out2/answers.jsonl").read_bytes()


def test_what_does_not_fit_is_one_line(base, tmp_path):
    folder = write(base, tmp_path / "adapter")
    other = locate(None, str(tiny.mistral(tmp_path / "other", hidden=48)))
    with pytest.raises(UserError, match=r"does not go onto .*; give the base that it was trained on") as told:
        adapter.merged(other, folder, "unlearned")
    assert "\n" not in str(told.value)
    whole = write(base, tmp_path / "head", modules_to_save=["lm_head"])
    with pytest.raises(UserError, match=r"replaces whole modules \(lm_head\)"):
        adapter.merged(locate(None, str(base)), whole, "unlearned")
    with pytest.raises(UserError, match="changes nothing"):
        adapter.merged(locate(None, str(base)), write(base, tmp_path / "zero", noise=0.0), "unlearned")


def test_an_adapter_as_part_of_the_base(base, tmp_path, monkeypatch):
    monkeypatch.setenv("RMU_EXP_CACHE", str(tmp_path / "cache"))
    folder = write(base, tmp_path / "adapter")
    (tmp_path / "t.txt").write_text("\n".join(tiny.texts(12, 1)))
    words = ["model=local", f"model.path={base}", f"model.adapter={folder}", "data=local", "layer=3", "steer=6"]
    words += [f"data.{role}=[{tmp_path}/t.txt]" for role in ("forget", "retain")] + ["alpha=1", "train.max_batches=2"]
    words += ["eval=none", "tracking=off", "export=true"]
    run = a_run.carry_out(words, tmp_path / "out")
    delta = Delta.load(tmp_path / "out/delta.safetensors")
    merged = AutoPeftModelForCausalLM.from_pretrained(folder).merge_and_unload().state_dict()
    exported = load_file(tmp_path / "out/model/model.safetensors")
    assert exported.keys() == load_file(base / "model.safetensors").keys()
    for name, value in exported.items():
        assert torch.allclose(value, delta.tensors.get(name, merged[name]), atol=1e-6), name
    results = load(tmp_path / "out/results.json")
    origin = results.provenance
    assert origin.model_digest not in ("", locate(None, str(base)).digest())
    assert origin.model_file["base_digest"] == locate(None, str(base)).digest()
    assert a_run.carry_out(words, tmp_path / "out") == run, "done already"
    with pytest.raises(UserError, match="made for"):
        export(locate(None, str(base)), delta, tmp_path / "again")
    other = tiny.mistral(tmp_path / "other", hidden=48)
    for given, said in {
        f"model.path={other}": "does not go onto .*; give the base",
        f"model.adapter={base}": "allowed is a folder of peft's",
    }.items():
        with pytest.raises(UserError, match=rf"^model.adapter: .*{said}"):
            a_run.carry_out([*words, given], tmp_path / "no")
    assert not list((tmp_path / "no").iterdir())
