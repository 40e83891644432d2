"""What a model, a method and the pair of them set, and what wins."""

from __future__ import annotations

from pathlib import Path

import pytest
from composing import CONF, composed, config

from rmu_exp.config import parse, plugins

MLP = ["mlp.down_proj.weight"]
LORE = "model=lore data=lore"


def tuned(*words: str):
    run = composed(*words)
    train, layers = run.train, run.layers
    steps = (train.lr, train.batch_size, train.max_batches, train.schedule)
    return run.layer, run.steer[0], run.alpha[0], run.seed, *steps, layers.span, run.parameters, layers.lora


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", (7, 6.5, 300, 0, 1e-3, 4, 100, "constant", 3, None, False)),
        (LORE, (7, 6.5, 40, 0, 2.5e-3, 3, 700, "linear", 3, None, False)),
        ("model=zephyr_7b data=wmdp", (7, 6.5, 1200, 42, 5e-5, 4, 150, "constant", 3, MLP, False)),
        ("model=phi3_mini", (7, "a", 300, 0, None, 4, 80, "constant", 3, None, False)),
        ("model=hf model.name=a/b layer=1 steer=2 alpha=3", (1, 2, 3, 0, None, 4, 80, "constant", 3, None, False)),
        (f"method=npo {LORE}", (7, 6.5, 5, 0, 1e-3, 3, 200, "linear", 8, ["all"], True)),
        ("method=npo model=zephyr_7b", (7, 6.5, 1, 42, 5e-6, 4, 125, "linear", 0, ["all"], False)),
        (f"method=grad_ascent {LORE}", (7, 6.5, 0, 0, 3e-4, 3, 60, "linear", 8, ["all"], True)),
        (f"method=rr {LORE}", (7, 6.5, 40, 0, 2.5e-3, 3, 700, "linear", 3, MLP, True)),
        ("method=rr model=llama3_8b_instruct", (19, 20, 10, 0, 1e-4, 16, 150, "constant", 0, ["all"], True)),
        ("method=rmu_lat model=zephyr_7b", (8, 6.5, 1200, 42, 5e-5, 4, 800, "constant", 3, MLP, False)),
        ("method=cut model=zephyr_7b", (7, 20, 5000, 42, 5e-5, 4, 80, "constant", 3, MLP, False)),
        (f"method=npo layers=published {LORE}", (7, 6.5, 5, 0, 1e-3, 3, 200, "linear", 3, None, False)),
        ("method=npo model=zephyr_7b layers=published", (7, 6.5, 1, 42, 5e-6, 4, 125, "linear", 3, MLP, False)),
        (f"layers=lora {LORE}", (7, 6.5, 40, 0, 2.5e-3, 3, 700, "linear", 0, ["all"], True)),
        (f"method=npo layer=2 alpha=9 train.lr=0.5 {LORE}", (2, 6.5, 9, 0, 0.5, 3, 200, "linear", 8, ["all"], True)),
    ],
)
def test_the_command_line_over_the_pair_over_the_method_over_the_model(words, expected):
    assert tuned(*words.split()) == expected


def test_the_methods_own_settings_follow_the_same_order():
    assert composed("method=npo", *LORE.split()).method.beta == 0.1
    assert composed("method=npo", "model=zephyr_7b").method.beta == 0.0225
    assert composed("method=npo", "method.beta=2", *LORE.split()).method.beta == 2
    assert composed("model=zephyr_7b").faithful
    assert not composed().faithful
    assert composed("method=adaptive_rmu", "model=qwen3_8b").method.scale == 5


def test_short_texts_are_left_out_where_the_published_run_did():
    assert composed("model=mixtral_8x7b_instruct", "data=wmdp").data.min_len == 200
    assert composed("model=mixtral_8x7b_instruct").data.min_len == 0, "atlas's texts are what they are"


@pytest.mark.parametrize("name", plugins.files("method"))
def test_every_method_composes_for_lore_and_for_zephyr_with_numbers_to_see(name):
    for words in (LORE.split(), ["model=zephyr_7b", "data=wmdp"]):
        raw = config(f"method={name}", *words)
        assert parse.parse(raw).method.name == name
        assert isinstance(raw.train.lr, float)
        assert isinstance(raw.layer, int)
        assert "$" not in str(
            {key: raw[key] for key in ("layer", "steer", "alpha", "seed", "train", "layers", "method")}
        )


def test_there_is_a_file_for_every_choice():
    def names(group: str) -> set[str]:
        return {file.stem for file in (CONF / group).glob("*.yaml")}

    assert names("method") == set(plugins.files("method"))
    assert names("attacks") - {"all", "quick", "weak"} == set(plugins.files("attacks"))
    assert set(composed("attacks=all").attacks) == set(plugins.files("attacks"))
    assert names("preset") <= names("model")
    assert names("method_model") <= {f"{method}_{model}" for method in names("method") for model in names("model")}
    for file in Path(CONF / "preset").glob("*.yaml"):
        assert file.read_text(encoding="utf-8").startswith("# @package _global_\n# ")
