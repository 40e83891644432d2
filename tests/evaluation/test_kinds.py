"""Every kind of task of lm-eval: what is measured equals what lm-eval's own class measures on the same folder."""

from __future__ import annotations

from pathlib import Path

import kinds
import lm_eval
import pytest
import transformers
from lm_eval.tasks import TaskManager

from rmu_exp.evaluation import harness
from rmu_exp.settings import Eval
from rmu_exp.worlds import checkpoint

LORE = checkpoint("lore")
FRACTIONS = ("local_truthfulqa_mc2", "local_means")  # whose questions are not each right or wrong
EXACT = ("exact_match", "acc", "acc_norm", "acc_bytes", "acc_mutual_info", "mcc", "f1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kinds")


def test_every_metric_of_every_kind_is_lm_evals(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = kinds.make(folder, 8)
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")
    stock = lm_eval.simple_evaluate(
        "hf", {"pretrained": str(LORE), "dtype": "float32"}, names, device="cpu", limit=6, bootstrap_iters=100,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_pretrained(LORE)
    tokenizer = transformers.AutoTokenizer.from_pretrained(LORE)
    found = harness.ask(model, tokenizer, Eval(tasks=names, include_path=[str(folder)], limit=6, bootstrap=100))
    assert len(found.metrics) >= 20
    for name, values in stock["results"].items():
        metrics, stderrs = harness.metrics_of(values)
        assert found.metrics[name].keys() == metrics.keys(), name
        for metric, value in metrics.items():
            exact = metric.split(",")[0] in EXACT and name not in FRACTIONS
            within = 0 if exact else 2e-6  # lore knows none of these words: its perplexity is 1e5
            assert found.metrics[name][metric] == pytest.approx(value, rel=within, abs=0), (name, metric)
        assert found.stderrs[name] == pytest.approx(stderrs, rel=1e-5), name
    table = harness.compare(found, found) | harness.measured(found, found)
    assert table["local_truthfulqa_mc2"].base.acc == pytest.approx(stock["results"]["local_truthfulqa_mc2"]["acc,none"])
    assert "local_wikitext" in harness.measured(found, found)
    assert table["local_winogrande"].base.n == 6
    assert table["local_winogrande"].mcnemar is not None
