"""What is written in batches, padded on the left, is what each prompt gets alone; likelihoods are the obvious ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import families
import pytest
import torch

from rmu_exp.evaluation import generate
from rmu_exp.evaluation.generate import write
from rmu_exp.model.checkpoint import locate
from rmu_exp.support.errors import UserError

PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12], [13], [14, 15, 16], [5, 6], [20, 21, 22, 23, 24]]
CPU = torch.device("cpu")


def opened(family: str, folder: Path) -> tuple[Any, Any]:
    checkpoint = locate(None, str(families.make_checkpoint(family, folder / family, layers=2)))
    return checkpoint.open(None, torch.float32, CPU), checkpoint.tokenizer()


@torch.no_grad()
def naive(model: Any, prompt: list[int], tokens: int, ends: list[int]) -> list[int]:
    """Greedy decoding without a cache, one prompt at a time."""
    ids = list(prompt)
    for _ in range(tokens):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in ends:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma2", "mistral", "qwen3_moe"])
def test_a_batch_gives_what_each_prompt_gives_alone(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = opened(family, tmp_path)
    ends = generate.end_tokens(model, tokenizer)
    for stride in (2, 8):  # rows that have ended are dropped now and then
        monkeypatch.setattr(generate, "STRIDE", stride)
        found = write(model, tokenizer, PROMPTS, tokens=6, context=64)
        assert [w.ids for w in found] == [naive(model, prompt, 6, ends) for prompt in PROMPTS]
    assert [w.text for w in found] == [tokenizer.decode(w.ids, skip_special_tokens=True) for w in found]


def test_an_end_of_text_ends_it_and_the_checkpoints_own_habits_do_not_count(tmp_path: Path) -> None:
    model, tokenizer = opened("llama", tmp_path)
    (free,) = write(model, tokenizer, PROMPTS[:1], tokens=8, context=64)
    model.generation_config.eos_token_id = free.ids[3]
    model.generation_config.do_sample, model.generation_config.temperature = True, 9.0
    model.generation_config.repetition_penalty = 5.0
    found = write(model, tokenizer, PROMPTS, tokens=20, context=64)
    assert found[0].ids == free.ids[: free.ids.index(free.ids[3]) + 1]
    assert [w.ids for w in found] == [naive(model, prompt, 20, [free.ids[3]]) for prompt in PROMPTS]
    assert model.generation_config.repetition_penalty == 5.0, "the model is left as it was"


def test_a_sample_depends_on_seed_and_prompt_alone(tmp_path: Path) -> None:
    model, tokenizer = opened("llama", tmp_path)
    how = {"tokens": 8, "context": 64}

    def sampled(prompts: list[list[int]], seeds: list[int | None]) -> list[list[int]]:
        return [w.ids for w in write(model, tokenizer, prompts, seeds=seeds, **how)]

    together = sampled(PROMPTS, [1] * 5)
    assert [sampled([prompt], [1])[0] for prompt in PROMPTS] == together
    assert sampled(PROMPTS, [2] * 5) != together
    mixed = sampled(PROMPTS + PROMPTS, [None] * 5 + [1] * 5)
    assert mixed == sampled(PROMPTS, []) + together


def test_samples_follow_the_models_distribution(tmp_path: Path) -> None:
    model, tokenizer = opened("llama", tmp_path)
    with torch.no_grad():
        wanted = model(torch.tensor([PROMPTS[2]])).logits[0, -1].softmax(-1)
    drawn = [write(model, tokenizer, PROMPTS[2:3], tokens=1, context=64, seeds=[s])[0].ids[0] for s in range(300)]
    found = torch.bincount(torch.tensor(drawn), minlength=len(wanted)) / len(drawn)
    assert (found - wanted).abs().sum() < 0.55 < (found - wanted.roll(7)).abs().sum() + 0.3
    top = wanted.topk(10).indices
    assert float(found[top].sum()) == pytest.approx(float(wanted[top].sum()), abs=0.1)


def test_likelihoods_are_the_obvious_ones(tmp_path: Path) -> None:
    model, tokenizer = opened("llama", tmp_path)
    written = [[7, 8, 9], [30], [31, 32], [33, 5, 6, 7], [8, 9]]
    found = generate.nll(model, tokenizer, PROMPTS, written)
    own = write(model, tokenizer, PROMPTS, tokens=5, context=64, seeds=[None, 1, None, 2, 3])
    assert [w.nll for w in own] == pytest.approx(
        generate.nll(model, tokenizer, PROMPTS, [w.ids for w in own]), abs=1e-5
    )
    for prompt, ids, value in zip(PROMPTS, written, found, strict=True):
        with torch.no_grad():
            logs = model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
        wanted = -sum(float(logs[len(prompt) - 1 + k, token]) for k, token in enumerate(ids)) / len(ids)
        assert value == pytest.approx(wanted, abs=1e-5)


def test_a_long_prompt_is_read_from_its_end_and_an_empty_one_refused(tmp_path: Path) -> None:
    model, tokenizer = opened("llama", tmp_path)
    long = list(range(5, 45))
    (found,), (short,) = (write(model, tokenizer, [p], tokens=4, context=c) for p, c in ((long, 20), (long[-16:], 64)))
    assert found == short
    with pytest.raises(UserError, match="prompt 2 has no token"):
        write(model, tokenizer, [[5], []], tokens=4, context=64)
    with pytest.raises(UserError, match=r"eval\.tokens: got 64, but the model reads no more than 64"):
        write(model, tokenizer, [[5]], tokens=64, context=64)
