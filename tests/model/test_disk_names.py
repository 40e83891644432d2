"""Names of tensors: what a loaded model says it has on disk is what lies there, in architectures of many kinds."""

from __future__ import annotations

import architectures
import pytest
import torch
from safetensors.torch import load_file

from rmu_exp.model.checkpoint import locate
from rmu_exp.model.parameters import down_projection, on_disk
from rmu_exp.model.split import layers_of, layers_path

MIXTURES = ("deepseek_v3", "olmoe", "granitemoe", "cohere2_moe", "ernie4_5_moe", "minimax_m2", "gpt_oss")
PLAIN = ("opt", "phi", "gptj", "gpt_bigcode", "biogpt", "helium")


@pytest.mark.parametrize("kind", [*MIXTURES, *PLAIN])
def test_every_tensor_is_the_one_of_its_name_on_disk(kind, tmp_path):
    checkpoint = locate(None, str(architectures.make(kind, tmp_path)))
    files = load_file(tmp_path / "model.safetensors")
    model = checkpoint.open(None, torch.float32, torch.device("cpu"))
    places, layers = on_disk(model), layers_of(model)
    for name, place in places.items():
        assert torch.equal(place.view(layers[place.layer]), files[name]), name
    inside = {name for name in files if name.startswith(f"{layers_path(model)}.")}
    assert set(places) <= inside
    assert {name.split(".")[-1] for name in inside - set(places)} <= {"e_score_correction_bias"}, "a buffer of some"
    headless = checkpoint.open(2, torch.float32, torch.device("cpu"))
    assert set(on_disk(headless)) == {name for name, place in places.items() if place.layer < 2}
    assert down_projection(model, 1)
