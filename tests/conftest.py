"""What tests of several folders share."""

from __future__ import annotations

from pathlib import Path

import a_run
import pytest
from hypothesis import settings


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, with an exported model; the model and the texts lie beside it. Read only."""
    folder = tmp_path_factory.mktemp("tiny_run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RMU_EXP_CACHE", str(folder / "cache"))
        a_run.carry_out([*a_run.words(folder), "export=true", "attacks=[norms]"], folder / "run")
    return folder / "run"


@pytest.fixture(scope="session")
def tiny_seen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run with samples, damage and ripple; models and texts lie beside it. Read only."""
    folder = tmp_path_factory.mktemp("observed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RMU_EXP_CACHE", str(folder / "cache"))
        words = a_run.words(folder)
        (folder / "neutral.txt").write_text("two herons wait\nthe old bridge and the quiet mill\n" * 3)
        a_run.carry_out([*words, *a_run.seen(folder)], folder / "run")
    return folder / "run"


settings.register_profile("long", max_examples=5000, print_blob=True)
