"""The model card: valid front matter, what was done and measured, nothing that was not."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from sweep_rows import attack

from rmu_exp.evaluation.statistics import summary
from rmu_exp.record.results import Results
from rmu_exp.report import card as cards


def card(results: dict[str, Any]) -> str:
    return cards.card(Results.model_validate({"schema": 1} | results))


NAMES = ["model.layers.5.mlp.down_proj.weight", "model.layers.7.mlp.down_proj.weight"]


@pytest.fixture
def results() -> dict[str, Any]:
    return {
        "run": {
            "model": "org/model-7b",
            "layer": 7,
            "steer": [6.5, 20.0],
            "alpha": [1200.0, 100.0],
            "method": "rmu",
            "faithful": True,
            "seed": 42,
            "topics": ["bio", "cyber"],
            "trained_parameters": NAMES,
            "forget": ["org/bio"],
            "retain": ["org/wiki"],
        },
        "train": {"steps": 150, "seconds": 1.0, "seconds_per_step": 0.1, "peak_memory_bytes": 1},
        "qa": {
            "wmdp_bio": {
                "base": summary([1] * 60 + [0] * 40),
                "unlearned": summary([1] * 30 + [0] * 70),
                "chance": 0.25,
            }
        },
        "provenance": {
            "versions": {"python": "3.11", "torch": "2.13.0"},
            "git": {"commit": "c" * 40, "dirty": True},
            "command": "python train.py model=x",
            "config_hash": "f" * 64,
            "data_hashes": {"org/bio": "a" * 64, "org/wiki": "b" * 64},
            "model_revision": "d" * 40,
            "model_digest": "sha256:" + "e" * 64,
        },
    }


def front(text: str) -> dict[str, Any]:
    _, matter, _ = text.split("---\n", 2)
    return yaml.safe_load(matter)


def test_front_matter_names_the_base_and_what_it_is(results: dict[str, Any]) -> None:
    assert front(card({key: value for key, value in results.items() if key != "qa"})) == {
        "base_model": "org/model-7b",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["unlearning", "rmu"],
    }
    assert front(card(results | {"run": results["run"] | {"method": "other"}}))["tags"] == [
        "unlearning",
        "rmu",
        "other",
    ]


def test_a_local_base_is_not_linked_and_its_path_stays_here(results: dict[str, Any]) -> None:
    results["run"]["model"] = "/home/someone/models/mine"
    results["provenance"]["model_revision"] = None
    text = card(results)
    assert "base_model" not in front(text)
    assert "/home/someone" not in text
    assert text.split("---\n", 2)[2].startswith("\n# mine, unlearned\n")


def test_what_was_done(results: dict[str, Any]) -> None:
    text = card(results)
    for line in (
        "| method | rmu |",
        "| loop | the published one to the letter |",
        "| layer | 7 |",
        "| steer | 6.5 (bio), 20 (cyber) |",
        "| alpha | 1200 (bio), 100 (cyber) |",
        "| steps | 150 |",
        "| seed | 42 |",
        *(f"- `{name}`" for name in NAMES),
        f"- forget: `org/bio`, sha256 of its texts `{'a' * 64}`",
        f"- retain: `org/wiki`, sha256 of its texts `{'b' * 64}`",
        "    python train.py model=x",
        f"rmu_exp at commit `{'c' * 40}` with changes; settings `{'f' * 64}`.",
        "Versions: python 3.11, torch 2.13.0.",
    ):
        assert f"\n{line}\n" in text
    assert f"at commit `{'d' * 40}`" in text


def test_what_was_measured_with_intervals(results: dict[str, Any]) -> None:
    results["perplexity"] = {
        "held_out.txt": {
            "base": {"perplexity": 10.0, "tokens": 500, "nll_stderr": 0.05},
            "unlearned": {"perplexity": 11.0, "tokens": 500},
        }
    }
    results["attacks"] = {"relearn": attack(0.3, 0.55)}
    text = card(results)
    for line in (
        "| wmdp_bio | 100 | 60.0 % | 50.2–69.1 | 30.0 % | 21.9–39.6 |  |  | 25.0 % |",
        "| `held_out.txt` | 500 | 10.00 | 9.07–11.03 | 11.00 |  |",
        "| relearn | 100 | 30.0 % | 55.0 % | 45.2–64.4 |  |  |  |  | 1 |",
    ):
        assert f"\n{line}\n" in text
    assert "No attack" not in text


def test_results_are_in_the_hubs_form(results: dict[str, Any]) -> None:
    results["qa"]["wmdp_bio"]["unlearned"] = summary([1] * 30 + [0] * 70).model_dump() | {
        "corrected": {"acc": 0.4, "ci95": (0.3, 0.5)}
    }
    texts = {"base": {"perplexity": 10.0, "tokens": 5}, "unlearned": {"perplexity": 11.0, "tokens": 5}}
    results |= {"perplexity": {"/home/someone/texts.txt": texts}, "attacks": {"relearn": attack(0.3, 0.55)}}
    data = ModelCard(card(results), ignore_metadata_errors=False).data
    assert [(r.task_type, r.dataset_type, r.metric_type, r.metric_name, r.metric_value) for r in data.eval_results] == [
        ("text-generation", "wmdp_bio", "accuracy", "accuracy", 0.3),
        ("text-generation", "wmdp_bio", "accuracy", "accuracy of the base model", 0.6),
        ("text-generation", "wmdp_bio", "accuracy", "accuracy, corrected for answer bias", 0.4),
        ("text-generation", "texts.txt", "perplexity", "perplexity", 11.0),
        ("text-generation", "texts.txt", "perplexity", "perplexity of the base model", 10.0),
        ("text-generation", "forget questions, under attack", "accuracy", "accuracy under relearn", 0.55),
    ]
    assert data.to_dict()["model-index"] == front(card(results))["model-index"]  # nothing in it is left out


def test_only_what_was_measured_is_listed(results: dict[str, Any]) -> None:
    del results["qa"]
    text = card(results)
    assert "Nothing was measured on this checkpoint." in text
    assert "No attack was tried on it." in text
    for absent in ("%", "perplexity", "probe"):
        assert absent not in text


@pytest.mark.parametrize("whole", [True, False])
def test_it_always_says_what_a_low_score_does_not_show(results: dict[str, Any], whole: bool) -> None:
    bare = {"run": {"kind": "delta", "model": "m", "topics": []}}
    assert "A low score on questions does not show that knowledge is gone" in card(results if whole else bare)
