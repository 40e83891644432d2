"""Probes: what they read is what the model computes, and they find what is there and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rmu_exp.attacks import lens, probe
from rmu_exp.evaluation.questions import Question
from rmu_exp.evaluation.scoring import Scorer
from rmu_exp.model import hooks


@pytest.fixture
def scorer(tokenizer):
    return Scorer(tokenizer, torch.device("cpu"))


def test_recorded_is_what_transformers_gives(model, scorer, asked):
    texts = [item.context for item in asked[::3]] + ["The hour", "The hour of dawn is dusk"]
    rows = [scorer.encode(text) for text in texts]
    scorer.budget = 120  # several batches, rows of several lengths
    seen = scorer.at_last(model, rows, hooks.PLACES)
    for n, row in enumerate(rows):
        hidden = model(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states
        for layer in range(11):
            assert torch.allclose(seen["block"][layer, n], hidden[layer + 1][0, -1], atol=1e-4)
    assert torch.allclose(seen["middle"] + seen["mlp"], seen["block"], atol=1e-4)
    assert torch.allclose(seen["block"][:-1] + seen["attention"][1:], seen["middle"][1:], atol=1e-4)


def test_the_lens_at_the_last_block_is_the_model(model, scorer, asked):
    some = asked[::3]
    h_LND = scorer.at_last(model, [scorer.encode(item.context) for item in some])["block"]
    letters = [[ids[0] for ids in scorer.options(item)] for item in some]
    assert lens.read(model, h_LND[-1], letters) == scorer.chosen(model, some)


def test_the_probe_finds_what_is_planted_and_nothing_in_noise():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 200)
    people = [Question("t", "t", f"fact {i // 2}", "", ("A", "B", "C", "D"), int(y)) for i, y in enumerate(labels)]
    noise = rng.normal(size=(200, 16))
    planted = noise + 5 * np.eye(16)[labels]
    settings = probe.Settings([1e-2, 1.0], 3, 100)
    found, validated = probe.fit(planted[:100], labels[:100], people[:100], settings)
    assert (probe.predicted(found, planted[100:]) == labels[100:]).mean() > 0.9
    assert validated > 0.8
    nothing, validated = probe.fit(noise[:100], labels[:100], people[:100], settings)
    assert (probe.predicted(nothing, noise[100:]) == labels[100:]).mean() < 0.42
    assert validated < 0.45


def test_the_probe_on_options_finds_which_of_them_is_right():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 200)
    items = [Question("t", "t", f"fact {i}", "", (" a", " bc", " d", " e"), int(y)) for i, y in enumerate(labels)]
    noise = rng.normal(size=(200, 4, 16))
    planted = noise + 3 * (np.arange(4)[None] == labels[:, None])[:, :, None] * np.eye(16)[0]
    settings = probe.Settings([1e-2, 1.0], 3, 100)
    found, validated = probe.fit(planted[:100], labels[:100], items[:100], settings)
    assert (probe.predicted(found, planted[100:]) == labels[100:]).mean() > 0.9
    assert validated > 0.8
    nothing, validated = probe.fit(noise[:100], labels[:100], items[:100], settings)
    assert (probe.predicted(nothing, noise[100:]) == labels[100:]).mean() < 0.42
    assert validated < 0.45
