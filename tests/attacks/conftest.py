"""A context for attacks on lore's model, with a stand-in for unlearning that costs nothing."""

from __future__ import annotations

import pytest
import torch

from rmu_exp.attacks.api import Context
from rmu_exp.evaluation import questions
from rmu_exp.model.checkpoint import locate
from rmu_exp.model.delta import Delta
from rmu_exp.settings import Eval
from rmu_exp.worlds import lore as world

SPAN = (5, 6, 7)
CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def lore():
    return locate("lore")


@pytest.fixture(scope="session")
def tokenizer(lore):
    return lore.tokenizer()


@pytest.fixture(scope="session")
def model(lore):
    return lore.open(None, torch.float32, CPU)


@pytest.fixture(scope="session")
def asked():
    return questions.needed(["lore_forget"], ["hexes", "wards"], Eval(limit=24))


@pytest.fixture
def context(lore, tokenizer, asked, model):
    """Unlearned here means: a constant direction is written over the stream at the steered layers."""
    import copy

    name = "model.layers.{}.mlp.down_proj.weight"
    generator = torch.Generator().manual_seed(0)
    noise = {name.format(i): 0.2 * torch.randn(128, 344, generator=generator) for i in SPAN}
    return Context(
        items=asked,
        others={},
        forget=world.texts("hexes")[:50],
        retain=world.texts("retain")[:50],
        layer=7,
        span=list(SPAN),
        seed=0,
        tokenizer=tokenizer,
        device=CPU,
        delta=Delta(noise),
        load=lambda: copy.deepcopy(model),
        load_oracle=lambda: copy.deepcopy(model),
    )
