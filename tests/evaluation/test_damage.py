"""KL, agreement and perplexity against the obvious computation: two models, one text a call, in double precision."""

from __future__ import annotations

import math
from pathlib import Path

import families
import pytest
import torch

from rmu_exp.evaluation import damage
from rmu_exp.model.checkpoint import locate
from rmu_exp.model.delta import Delta
from rmu_exp.model.parameters import resolve
from rmu_exp.model.split import layers_of
from rmu_exp.support.errors import UserError

CPU = torch.device("cpu")
ROWS = [[5, 6, 7, 8, 9, 10, 11, 12], [13, 14], [14, 15, 16], [20, 21, 22, 23, 24, 25], [9] * 12]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox", "mistral", "gpt2"])
@pytest.mark.parametrize("budget", [1, 20, 4096])
def test_equals_the_obvious_computation(family, budget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = locate(None, str(families.make_checkpoint(family, tmp_path / "model")))
    model, other = (checkpoint.open(None, torch.float32, CPU) for _ in range(2))
    generator = torch.Generator().manual_seed(1)
    trained = resolve(model, [2], None)[0]
    value = trained.view(layers_of(model)[2]).clone()
    value += 0.5 * torch.randn(value.shape, generator=generator)
    delta = Delta({trained.name: value})
    monkeypatch.setitem(damage.BUDGET, "cpu", budget)
    found = damage.compare(model, delta, checkpoint.tokenizer(), ROWS)
    with delta.applied(other):
        for i, row in enumerate(ROWS):
            ids = torch.tensor([row])
            base, after = (m(ids).logits[0, :-1].double().log_softmax(-1) for m in (model, other))
            assert found.tokens[i] == len(row) - 1
            assert found.kl[i] == pytest.approx(float((base.exp() * (base - after)).sum()), abs=1e-5)
            assert found.agree[i] == int((base.argmax(-1) == after.argmax(-1)).sum())
            for mine, logs in ((found.base, base), (found.unlearned, after)):
                assert mine[i] == pytest.approx(-float(logs.gather(1, ids[0, 1:, None]).sum()), abs=1e-4)
    assert sum(found.kl) > 0.01


def test_means_are_per_token_and_intervals_by_text() -> None:
    part = damage.Compared([2, 4], [1.0, 3.0], [2.0, 2.0], [2.0, 4.0], [4.0, 8.0])
    rate = part.per_token(part.kl)
    assert (rate.mean, rate.tokens) == (4 / 6, 6)
    spread = math.sqrt(((1 - 4 / 6 * 2) ** 2 + (3 - 4 / 6 * 4) ** 2) * 2) / 6
    assert rate.ci95 == pytest.approx((4 / 6 - 1.959964 * spread, 4 / 6 + 1.959964 * spread))
    assert part.perplexity(part.base) == pytest.approx(math.e)
    assert part.pooled(part).tokens == [2, 4, 2, 4]
    assert part.perplexity([1e6, 0.0]) == math.inf


def test_texts_are_the_first_with_something_to_predict(tmp_path: Path) -> None:
    tokenizer = locate(None, str(families.make_checkpoint("llama", tmp_path / "model"))).tokenizer()
    texts = ["w1 w2 w3 w4", "w1", "w5 w6", "w7 w8"]
    assert [len(row) for row in damage.encode(tokenizer, texts, "a.txt", 2, 3)] == [3, 2]
    with pytest.raises(UserError, match=r"data: a\.txt: no text has a token to predict"):
        damage.encode(tokenizer, ["w1", ""], "a.txt", 2, 3)
