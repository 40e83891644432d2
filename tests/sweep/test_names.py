"""Names of trials' folders."""

from __future__ import annotations

import pytest

from rmu_exp.sweep.overrides import trial_name


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["layer=7", "steer=6.5"], "layer=7,steer=6.5"),
        (["train.lr=1e-05"], "lr=1e-05"),
        (["steer=[6.5, 20]"], "steer=6.5+20"),
        (["steer=[6.5,20]"], "steer=6.5+20"),
        (["data.name='a_b'"], "name=a_b"),
        (["method=npo", "method.retain=kl"], "method=npo,retain=kl"),
    ],
)
def test_plain_values_are_the_name(words, name):
    assert trial_name(words) == name


@pytest.mark.parametrize(
    "values",
    [
        ("a/b", "a-b", "a:b", "a%b", "'a b'", "ab", "a--b"),
        ("org/model", "org-model"),
        ("[a,b]", "a+b"),
        ("[x/y,z]", "[x,y/z]", "[x-y,z]"),
    ],
)
def test_other_values_have_other_names(values):
    found = [trial_name([f"model.path={value}"]) for value in values]
    assert len(set(found)) == len(values), found
    assert not any("/" in name or " " in name for name in found)
