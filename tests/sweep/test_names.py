"""Names of trials' folders."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from rmu_exp.sweep.engine import Session


def names(*rows: list[str]) -> list[str]:
    session = Session.__new__(Session)
    keys = dict.fromkeys(word.lstrip("+").split("=")[0] for row in rows for word in row)
    session.swept = [SimpleNamespace(key_or_group=key) for key in keys]
    return [session.name(row) for row in rows]


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
    assert names(words) == [name]


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
    rows = [[f"model.path={value}"] for value in values]
    found = names(*rows)
    assert len(set(found)) == len(values), found
    assert names(*rows) == found, "the same at the next start"
    assert not any("/" in name or " " in name for name in found)
