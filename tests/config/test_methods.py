"""Methods' settings as read from their files, against the files themselves; every choice in conf/ composes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from rmu_exp.cli.compose import composed as of_words
from rmu_exp.config import methods
from rmu_exp.config.parse import parse
from rmu_exp.settings import PRESET
from rmu_exp.support.errors import UserError
from rmu_exp.unlearn import method

CONF = Path(__file__).parents[2] / "conf"


def composed(*words):
    (run,) = of_words([*words, "output=/tmp/none"], CONF)
    return run


@pytest.mark.parametrize("name", methods.names())
def test_settings_are_the_files(name):
    read, own = methods.settings(name), method.find(name).Settings
    assert [(f.name, f.type) for f in dataclasses.fields(read)] == [
        *((f.name, f.type) for f in dataclasses.fields(own)),
        ("name", str),
    ]
    assert dataclasses.asdict(read()) == dataclasses.asdict(own()) | {"name": name}
    assert set(methods.sentences(name)) == {f.name for f in dataclasses.fields(own)}, "a sentence under each setting"
    assert "arXiv" in method.find(name).__doc__ or name == "grad_ascent"


def test_a_choice_for_every_method():
    assert [file.stem for file in sorted((CONF / "method").glob("*.yaml"))] == methods.names()


@pytest.mark.parametrize("name", methods.names())
def test_every_method_composes_for_lore_and_for_zephyr(name):
    for words in ([], ["model=zephyr_7b", "data=wmdp"]):
        run = composed(f"method={name}", *words)
        assert run.method.name == name
        assert run.train.lr > 0


@pytest.mark.parametrize("name", methods.names())
def test_every_declared_setting_is_in_its_file_so_that_it_can_be_set(name):
    raw = OmegaConf.to_container(OmegaConf.load(CONF / f"method/{name}.yaml"))
    assert set(raw) - {"presets"} == {f.name for f in dataclasses.fields(methods.settings(name))}


def test_settings_without_a_preset_are_set_on_the_command_line():
    assert composed("method=rmu_lat").method.below == 1
    assert composed("method=rmu_lat", "method.below=2").method.below == 2
    assert composed("method=llmu", "method.ascent=2", "method.mismatch=0").method.ascent == 2
    cut = composed("method=cut", "method.novice=a child", "method.expert='one who knows {keyword}'").method
    assert (cut.novice, cut.expert) == ("a child", "one who knows {keyword}")
    own = method.find("cut").Settings()
    assert (composed("method=cut").method.novice, composed("method=cut").method.expert) == (own.novice, own.expert)


def test_a_preset_of_the_method_wins_over_the_models_and_the_command_line_over_both():
    assert composed("method=npo").train.lr != composed().train.lr
    assert composed("method=npo", "model=zephyr_7b").method.beta == 0.0225
    assert composed("method=npo", "model=zephyr_7b").train.max_batches == 125
    assert composed("method=npo", "train.lr=0.5", "method.beta=2").train.lr == 0.5
    assert composed("method=npo", "model=zephyr_7b").layers.span == 0
    assert composed("method=npo", "layers=published").layers.span == 3
    assert composed("method=npo", "layers=lora").layers.lora


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["method=npo", "method.betta=1"], "method.betta: no such key, did you mean method.beta? (known: method.beta"),
        (["method=npo", "+method.betta=1"], "method.betta: no such key, did you mean method.beta?"),
        (["method=npo", "method.beta=much"], "method.beta: got 'much', allowed is a number"),
        (["method=npo", "method.beta=0"], "method.beta: got 0"),
        (["method=npo", "method.retain=mse"], "method.retain: got 'mse', allowed is nll, kl"),
        (["method=ssd", "method.threshold=-1"], "method.threshold: got -1"),
        (["method=rr", "layers.rank=0"], "layers.rank: got 0, allowed is 1 or more"),
        (["method=grad_accent"], "method: got 'grad_accent', allowed is adaptive_rmu"),
        (["method=rmu", "method.name=nope"], "method.name: got 'nope', allowed is adaptive_rmu"),
    ],
)
def test_unknown_or_impossible_settings_are_one_line(words, said):
    with pytest.raises(UserError) as caught:
        composed(*words)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_a_wrong_preset_is_named():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", overrides=["method=npo", "++method.presets.any.betta=1"])
    with pytest.raises(UserError, match=r"method.presets: npo has 'betta' for any, allowed is source, layer"):
        parse(config)
    assert "lr" in PRESET
