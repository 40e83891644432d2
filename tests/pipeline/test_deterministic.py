"""What a run sets of its process is set inside of it, and given back."""

from __future__ import annotations

import os

import torch

from rmu_exp.pipeline.session import WORKSPACE, computing
from rmu_exp.settings import Model


def test_asked_for_inside_and_given_back(monkeypatch):
    monkeypatch.delenv(WORKSPACE, raising=False)

    def state() -> tuple[int, bool, str | None]:
        return torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), os.environ.get(WORKSPACE)

    before = state()
    with computing(Model()):
        assert state() == before
    with computing(Model(threads=before[0] + 1, deterministic=True)):
        assert state() == (before[0] + 1, True, ":4096:8")
    assert state() == before
