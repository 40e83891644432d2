"""Perplexity against the obvious computation: one text a call, one token at a time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tiny
import torch

from rmu_exp.evaluation import perplexity as perplexity_module
from rmu_exp.evaluation.perplexity import perplexity
from rmu_exp.support.errors import UserError

TEXTS = ["the river runs past a quiet mill", "herons wait", "over", "", " ".join(["two old stones and"] * 9)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tiny.mistral(tmp_path_factory.mktemp("model"), layers=2)
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def naive(model: Any, rows: list[list[int]], window: int) -> tuple[list[float], list[int]]:
    """Each text's summed negative log-likelihood and how many of its tokens were predicted."""
    sums, counts = [], []
    for ids in rows:
        total = 0.0
        for i in range(1, len(ids)):
            context = ids[(i - 1) // (window - 1) * (window - 1) : i]
            total -= model(torch.tensor([context])).logits[0, -1].double().log_softmax(-1)[ids[i]].item()
        sums.append(total)
        counts.append(max(0, len(ids) - 1))
    return sums, counts


@pytest.mark.parametrize("max_length", [2, 5, 100])
@pytest.mark.parametrize("max_batch_tokens", [1, 12, 10_000])
def test_equals_the_obvious_computation(model: tuple[Any, Any], max_length: int, max_batch_tokens: int) -> None:
    found = perplexity(*model, TEXTS, max_length=max_length, max_batch_tokens=max_batch_tokens)
    sums, counts = naive(model[0], model[1](TEXTS)["input_ids"], max_length)
    mean = sum(sums) / sum(counts)
    assert found.tokens == sum(counts) == 6 + 1 + 35
    assert found.perplexity == pytest.approx(math.exp(mean), rel=1e-5)
    used = [(s, n) for s, n in zip(sums, counts, strict=True) if n]
    deviations = sum((s - mean * n) ** 2 for s, n in used)
    assert found.nll_stderr == pytest.approx((deviations * 3 / 2) ** 0.5 / sum(counts), rel=1e-4)


def test_a_long_context_is_used_in_part(model: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"max_batch_tokens": 12}
    wanted = perplexity(*model, TEXTS, max_length=5, **limits)
    assert perplexity_module.LONGEST == 4096
    monkeypatch.setattr(perplexity_module, "LONGEST", 5)
    assert perplexity(*model, TEXTS, max_length=131072, **limits) == wanted
    assert perplexity(*model, TEXTS, max_length=3, **limits) != wanted, "a shorter context is used in full"


def test_every_token_weighs_the_same(model: tuple[Any, Any]) -> None:
    settings: dict[str, int] = {"max_length": 100, "max_batch_tokens": 100}
    short, long = (perplexity(*model, [text], **settings) for text in (TEXTS[1], TEXTS[4]))
    both = perplexity(*model, [TEXTS[1], TEXTS[4]], **settings)
    assert short.nll_stderr is None, "one text has no error"
    weighted = (short.tokens * math.log(short.perplexity) + long.tokens * math.log(long.perplexity)) / 36
    assert math.log(both.perplexity) == pytest.approx(weighted, rel=1e-5)


def test_tokens_that_the_tokenizer_adds_give_context_but_are_not_predicted(model: tuple[Any, Any]) -> None:
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    inner = model[1].backend_tokenizer.__class__.from_str(model[1].backend_tokenizer.to_str())
    inner.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    around = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    found = perplexity(model[0], around, TEXTS[:2], max_length=100, max_batch_tokens=100)
    rows = [[1, *ids] for ids in model[1](TEXTS[:2])["input_ids"]]
    sums, counts = naive(model[0], rows, 100)
    assert found.tokens == sum(counts) == 9
    assert found.perplexity == pytest.approx(math.exp(sum(sums) / 9), rel=1e-5)


@pytest.mark.parametrize("texts", [[], ["", "over"]])
def test_texts_without_a_token_to_predict_are_refused(model: tuple[Any, Any], texts: list[str]) -> None:
    with pytest.raises(UserError, match=r"eval\.perplexity: no text has a token to predict"):
        perplexity(*model, texts, max_length=9, max_batch_tokens=9)
