"""Every architecture through a whole run: unlearn, Delta, export, and what transformers loads from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from families import FAMILIES, make_checkpoint
from safetensors.torch import load_file

from rmu_exp.cli import compose
from rmu_exp.model.delta import Delta
from rmu_exp.pipeline import run as pipeline

CONF = Path(__file__).parents[2] / "conf"
LAYER = 2


@pytest.mark.parametrize("faithful", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_unlearn_delta_export_reload(family, faithful, tmp_path, monkeypatch) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv("RMU_EXP_CACHE", str(tmp_path / "cache"))
    base, out = make_checkpoint(family, tmp_path / "base", shard="12KB"), tmp_path / "out"
    (tmp_path / "forget.txt").write_text("w1 w2 w3\n" * 12)  # one text, so that the loss of every step is comparable
    (tmp_path / "retain.txt").write_text("".join(f"w2 w{i} w{i % 7}\n" for i in range(12)))
    words = f"""model=local model.path={base} data=local data.forget=[{tmp_path}/forget.txt] layer={LAYER} steer=30
        data.retain=[{tmp_path}/retain.txt] alpha=1 train.lr=1e-2 train.max_batches=3 eval=none tracking=off export=true
        method.faithful={str(faithful).lower()} output={out}""".split()
    (run,) = compose.composed(words, CONF)
    pipeline.execute(run, out)

    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1]["forget_loss"] < steps[0]["forget_loss"]
    delta = Delta.load(out / "delta.safetensors").tensors
    assert sorted(delta) == sorted(json.loads((out / "results.json").read_text())["run"]["trained_parameters"])
    before, after = (
        {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}
        for folder in (base, out / "model")
    )
    assert {name for name in before if not torch.equal(before[name], after[name])} == set(delta)
    assert all(torch.equal(after[name], value) for name, value in delta.items())

    ids = AutoTokenizer.from_pretrained(out / "model")("w1 w2 w3", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        old, new = (
            AutoModelForCausalLM.from_pretrained(folder)(ids, output_hidden_states=True).hidden_states
            for folder in (base, out / "model")
        )
    assert torch.equal(old[0], new[0])
    assert not torch.equal(old[LAYER + 1], new[LAYER + 1])
