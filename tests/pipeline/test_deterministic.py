"""Kernels that give the same bits each time are asked for inside of a run, and only where it says so."""

from __future__ import annotations

import torch

from rmu_exp.pipeline import run


def test_asked_for_inside_and_given_back():
    before = torch.are_deterministic_algorithms_enabled()
    with run.deterministic(False):
        assert torch.are_deterministic_algorithms_enabled() == before
    with run.deterministic(True):
        assert torch.are_deterministic_algorithms_enabled()
    assert torch.are_deterministic_algorithms_enabled() == before
