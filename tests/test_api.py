"""``from rmu_exp import unlearn, evaluate, attack, load``: beside the command line, on a tiny random model."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import a_run
import pytest
import tiny
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import rmu_exp
from rmu_exp import Unlearned, attack, evaluate, load, unlearn
from rmu_exp.record import rundir
from rmu_exp.support.errors import UserError

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Unlearned:
    folder = tmp_path_factory.mktemp("api")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RMU_EXP_CACHE", str(folder / "cache"))
        given = [word for word in a_run.words(folder) if not word.startswith(("train.", "eval."))]
        train = {"lr": 0.01, "max_batches": 4}
        eval_ = {"tasks": ["lore_forget", "lore_general"], "limit": 6}
        before = list(sys.argv)
        made = unlearn(*given, train=train, eval=eval_, export=True, output=folder / r"a run = 'one' \two")
        assert sys.argv == before
        return made


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RMU_EXP_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def test_settings_are_those_of_the_command_line(run, tmp_path):
    a_run.carry_out([*a_run.words(run.folder.parent), "export=true"], tmp_path / "typed")
    ours, typed = (rundir.of(folder / "config.yaml") for folder in (run.folder, tmp_path / "typed"))
    assert ours.digest == typed.digest
    assert (run.folder / "delta.safetensors").read_bytes() == (tmp_path / "typed/delta.safetensors").read_bytes()
    assert run.results.verdict == load(tmp_path / "typed").results.verdict
    assert ours.command.startswith("rmu-exp train model=local")


def test_the_model_in_memory_is_the_export(run):
    exported = AutoModelForCausalLM.from_pretrained(run.folder / "model", dtype=torch.float32)
    ours = run.model.state_dict()
    for name, value in exported.state_dict().items():
        assert torch.equal(ours[name], value), name
    changed = load_file(run.folder / "delta.safetensors").keys() - {"control_vectors"}
    base = run.base().state_dict()
    assert {name for name, value in ours.items() if not torch.equal(base[name], value)} == changed


def test_both_write(run):
    written = run.write("two herons wait", tokens=4)
    ids = run.tokenizer("two herons wait", return_tensors="pt")
    for model, text in ((run.base(), written.base), (run.model, written.unlearned)):
        out = model.generate(**ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
        assert run.tokenizer.decode(out[0][ids["input_ids"].shape[1] :], skip_special_tokens=True) == text
    with pytest.raises(UserError, match="tokens: got 0"):
        run.write("two herons", tokens=0)


def test_own_questions_and_an_attack(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.csv").write_text("question,A,B,answer\nWhat is a hex?,a spell,a ship,A\n")
    row = evaluate(run, eval={"tasks": ["mine.csv"]}, tracking="off").qa["mine"]
    assert (row.base.n, row.unlearned.n) == (1, 1)
    found = attack(run, "norms", attacks={"norms": {"texts": 3}}, tracking="off", output=tmp_path / "attacked")
    assert found.attacks["norms"].settings["texts"] == 3
    assert found == attack(run.folder, "norms", "attacks.norms.texts=3", tracking="off", output="attacked")


def test_what_is_wrong_is_said_and_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"stear: no such key, did you mean steer\?"):
        unlearn(model="lore", data="lore", layer=7, stear=6.5, output=tmp_path / "new" / "run")
    with pytest.raises(UserError, match="layer: got 99"):
        unlearn(model="lore", data="lore", layer=99, steer=6.5, tracking="off", output=tmp_path / "new" / "run")
    with pytest.raises(UserError, match="layer: got 99"):
        unlearn(model="lore", data="lore", layer=99, steer=6.5, tracking="off")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match=r"no config.yaml in it"):
        load(tmp_path)
    with pytest.raises(AttributeError, match="no attribute 'forget'"):
        _ = rmu_exp.forget


def test_parts_work_on_any_model_in_memory(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.DOTALL)[1:]
    assert len(blocks) == 3
    model = AutoModelForCausalLM.from_pretrained(tiny.mistral(tmp_path)).requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    place = {"model": model, "tokenizer": AutoTokenizer.from_pretrained(tmp_path)}
    place |= {"forget_texts": tiny.texts(20, 1), "retain_texts": tiny.texts(20, 2)}
    for block in blocks:
        exec(block, place)
    assert place["answers"].accuracy("lore_general").n == 40  # ten of each of its tasks
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    for tensor, value in zip(place["trained"], place["values"], strict=True):
        moved = (value - before[f"model.{tensor.name.removeprefix('model.')}"]).abs().max()
        assert 1e-4 < moved < 6e-3  # AdamW moves by at most the rate a step
    found = place["found"]
    assert len(found.tokens) == 4
    assert found.losses[-1][1] <= found.losses[0][1]
