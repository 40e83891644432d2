"""Work that is made smaller until memory holds it."""

from __future__ import annotations

import weakref

import pytest
import torch

from rmu_exp.support.errors import RunError
from rmu_exp.support.memory import until_it_fits

CPU = torch.device("cpu")


def test_halved_until_it_fits_with_nothing_of_a_failed_attempt_alive():
    size, held = 8, []

    def work() -> int:
        tensor = torch.zeros(size)
        held.append(weakref.ref(tensor))
        if size > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return size

    def smaller() -> None:
        nonlocal size
        assert held[-1]() is None, "the failed attempt's tensor is still there"
        size //= 2

    assert until_it_fits(work, smaller, CPU) == 2
    assert len(held) == 3


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory.")])
def test_what_cannot_be_made_smaller_ends(error):
    def fail() -> None:
        raise error

    def nothing_left() -> None:
        raise RunError("at one text")

    with pytest.raises(RunError, match="at one text"):
        until_it_fits(fail, nothing_left, CPU)


def test_other_errors_pass_at_once():
    def fail() -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        until_it_fits(fail, lambda: pytest.fail("made smaller"), CPU)
