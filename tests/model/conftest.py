"""Checkpoints of every architecture, written once a session; a cache folder of the tests' own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import FAMILIES, make_checkpoint

from rmu_exp.model.checkpoint import Checkpoint, locate
from rmu_exp.model.delta import Delta
from rmu_exp.model.parameters import resolve
from rmu_exp.model.split import layers_of

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RMU_EXP_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Checkpoint]:
    """Model type to its sharded checkpoint of four layers."""
    made: dict[str, Path] = {}

    def get(family: str) -> Checkpoint:
        if family not in made:
            made[family] = make_checkpoint(family, tmp_path_factory.mktemp(family), shard="12KB")
        return locate(None, str(made[family]))

    return get


@pytest.fixture(params=FAMILIES)
def checkpoint(request: pytest.FixtureRequest, checkpoint_of: Callable[[str], Checkpoint]) -> Checkpoint:
    """Each architecture in turn."""
    return checkpoint_of(request.param)


@pytest.fixture
def mistral(checkpoint_of: Callable[[str], Checkpoint]) -> Checkpoint:
    return checkpoint_of("mistral")


@pytest.fixture
def mixtral(checkpoint_of: Callable[[str], Checkpoint]) -> Checkpoint:
    return checkpoint_of("mixtral")


@pytest.fixture(scope="session")
def changed() -> Callable[..., Delta]:
    """Makes a Delta of a checkpoint that adds one to the trained tensors of layers 0 and 2."""

    def make(checkpoint: Checkpoint, names: list[str] | str | None = None) -> Delta:
        model = checkpoint.open(3, torch.float32, torch.device("cpu"))
        trained = resolve(model, [0, 2], names)
        values = [t.read(layers_of(model)[t.layer]) + 1 for t in trained]
        return Delta.from_trained(trained, values, torch.randn(2, 16), ["hexes", "wards"], checkpoint)

    return make
