"""The help pages: complete, short, and made without importing what they explain."""

from __future__ import annotations

from pathlib import Path

import pytest

from rmu_exp.config import plugins, reference
from rmu_exp.support.errors import UserError

CONF = Path(__file__).parents[2] / "conf"


@pytest.mark.parametrize("program", ["train", "judge"])
def test_help_fits_two_screens_and_has_every_default(program):
    lines = reference.page(CONF, program).splitlines()
    assert len(lines) <= 114
    assert max(map(len, lines)) <= 120
    text = "\n".join(lines)
    for default in ("  seed=0 ", "  .name=smollm2_135m ", "  .kind=wandb ", "  .limit=null "):
        assert default in text
    assert ("  .lr=1e-3 " in text) is ("steering=" in text) is (program == "train")


def test_help_of_one_group_has_choices_keys_defaults_ranges_and_sentences():
    text = reference.page(CONF, "train", "attacks")
    for name in plugins.files("attacks"):
        assert f"attacks={name} " in text
    assert "attacks.quantise.bits=[8,4]" in text
    assert "[2 or more]" in text
    assert "Bits per weight" in text
    train = reference.page(CONF, "train", "train")
    assert "train.schedule=constant" in train
    assert "[constant, linear]" in train
    method = reference.page(CONF, "train", "method")
    assert "method.beta=0.0225" in method
    assert max(map(len, (text + train + method).splitlines())) <= 120


def test_an_unknown_group_is_one_line_with_those_there_are():
    with pytest.raises(UserError, match=r"--help atacks: no such group, allowed is model, data, .*attacks"):
        reference.page(CONF, "train", "atacks")


@pytest.mark.parametrize("group", ["method", "attacks"])
def test_a_sentence_under_each_setting_and_a_value_in_conf(group):
    for name in plugins.files(group):
        fields = set(plugins.schema(group, name).__dataclass_fields__) - {"name"}
        assert fields == set(plugins.declared(group, name)), name
        text = (CONF / group / f"{name}.yaml").read_text(encoding="utf-8")
        assert all(f"  {key}: " in text for key in fields), name
        assert group != "method" or "arXiv" in plugins.module(group, name).__doc__ or name == "grad_ascent"
