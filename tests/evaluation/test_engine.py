from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import families
import pytest
import torch
import transformers
from families import FAMILIES, WORDS, make_checkpoint
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from rmu_exp.evaluation import harness
from rmu_exp.evaluation.engine import Engine
from rmu_exp.model.checkpoint import locate
from rmu_exp.settings import Eval
from rmu_exp.support import progress
from rmu_exp.support.errors import RunError

LENGTH = 320
Pair = tuple[str, str]


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Any, Any]]:
    """Model and tokenizer of a family, with room for LENGTH tokens; all of a family share one model."""
    known: dict[str, tuple[Any, Any]] = {}

    def get(family: str) -> tuple[Any, Any]:
        if family not in known:
            room = "n_positions" if family == "gpt2" else "max_position_embeddings"
            folder = make_checkpoint(family, tmp_path_factory.mktemp(family), layers=2, **{room: LENGTH})
            with families.quiet():
                model = transformers.AutoModelForCausalLM.from_pretrained(folder)
            families.save_tokenizer(folder)
            known[family] = model, transformers.PreTrainedTokenizerFast.from_pretrained(folder)
        return known[family]

    return get


def words(n: int, seed: object) -> str:
    return " ".join(random.Random(str(seed)).choices(WORDS, k=n))


def zero_shot() -> list[Pair]:
    return [(words(5 + 3 * q, q), f" w{i}") for q in range(8) for i in range(4)]


def few_shot() -> list[Pair]:
    """Two subjects of one shared prefix each, questions of both in turns."""
    prefixes = [words(210, f"subject {s}") for s in range(2)]
    return [(f"{prefixes[q % 2]} {words(4 + 2 * q, q)}", f" w{i}") for q in range(12) for i in range(4)]


def long_answers() -> list[Pair]:
    """Continuations of unequal length, some the beginning of others."""
    return [(words(30 + q, q), " " + words(1 + i, f"{q} {i % 2}")) for q in range(6) for i in range(5)]


def long_answers_few_shot() -> list[Pair]:
    prefix = words(200, "prefix")
    return [(f"{prefix} {context}", rest) for context, rest in long_answers()]


def repeated() -> list[Pair]:
    return zero_shot()[:6] * 3 + long_answers()[:3] * 2


def too_long() -> list[Pair]:
    prefix = words(LENGTH, "prefix")
    lengths = (1, 2, 3, 30, LENGTH - 1)
    return [(f"{prefix} {words(q, q)}", " " + words(n, n)) for q in (1, 2, 40) for n in lengths]


SHAPES = [zero_shot, few_shot, long_answers, long_answers_few_shot, repeated, too_long]


def asked(pairs: list[Pair]) -> list[Instance]:
    return [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]


def answers(kind: type[HFLM], loaded: tuple[Any, Any], pairs: list[Pair], **settings: Any) -> list[tuple[float, bool]]:
    model, tokenizer = loaded
    return kind(pretrained=model, tokenizer=tokenizer, **settings).loglikelihood(asked(pairs), disable_tqdm=True)


def check_same(found: list[tuple[float, bool]], stock: list[tuple[float, bool]], within: float = 1e-4) -> None:
    assert [greedy for _, greedy in found] == [greedy for _, greedy in stock]
    assert [value for value, _ in found] == pytest.approx([value for value, _ in stock], abs=within)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_answers_as_the_stock_class_with_prefixes_run_once(family: str, load: Any) -> None:
    pairs = zero_shot() + few_shot() + long_answers()
    random.Random(0).shuffle(pairs)
    model, tokenizer = load(family)
    engine = Engine(pretrained=model, tokenizer=tokenizer)
    found = engine.loglikelihood(asked(pairs), disable_tqdm=True)
    check_same(found, answers(HFLM, load(family), pairs, batch_size=4))
    rows = {tuple((context + rest).split()[:-1]) for context, rest in pairs}  # a word is a token
    assert engine.work.text <= sum(map(len, rows)) - 2 * 5 * 210  # each of two prefixes is run once, not six times


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
@pytest.mark.parametrize(("family", "budget"), [("mistral", None), ("mistral", 300), ("mistral", 1), ("gpt2", 300)])
def test_every_kind_of_request(shape: Any, family: str, budget: int | None, load: Any) -> None:
    pairs = shape()
    stock = answers(HFLM, load(family), pairs, batch_size=3)
    check_same(answers(Engine, load(family), pairs, max_batch_tokens=budget), stock)


def test_a_single_request_and_none(load: Any) -> None:
    check_same(
        answers(Engine, load("qwen3"), zero_shot()[5:6]),
        answers(HFLM, load("qwen3"), zero_shot()[5:6]),
    )
    assert answers(Engine, load("qwen3"), []) == []


def test_greedy_decoding_is_seen(load: Any) -> None:
    model, tokenizer = load("mistral")
    context = words(20, "greedy")
    ids = tokenizer(context, return_tensors="pt")["input_ids"]
    best = tokenizer.decode(model.generate(ids, max_new_tokens=2, do_sample=False)[0, -2:])
    first, second = best.split()
    other = next(word for word in WORDS if word != second)
    pairs = [(context, f" {best}"), (context, f" {first} {other}"), (context, f" {first}")]
    assert [greedy for _, greedy in answers(Engine, (model, tokenizer), pairs)] == [True, False, True]


def test_shared_work_is_done_once(load: Any) -> None:
    model, tokenizer = load("llama")
    engine = Engine(pretrained=model, tokenizer=tokenizer)
    engine.loglikelihood(asked(few_shot()), disable_tqdm=True)
    questions = sum(4 + 2 * q for q in range(12))
    assert engine.work.text == 2 * 210 + questions
    assert engine.work.scored == 2 + 12  # a prefix's last position, and one a question


def test_the_same_on_every_call(load: Any) -> None:
    pairs = few_shot() + long_answers()
    engine = Engine(pretrained=load("mistral")[0], tokenizer=load("mistral")[1])
    first = engine.loglikelihood(asked(pairs), disable_tqdm=True)
    assert engine.loglikelihood(asked(pairs), disable_tqdm=True) == first
    assert answers(Engine, load("mistral"), pairs) == first


def test_half_precision(load: Any, tmp_path: Path) -> None:
    folder = make_checkpoint("llama", tmp_path, layers=2, max_position_embeddings=LENGTH, dtype=torch.bfloat16)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    tokenizer = load("llama")[1]
    engine = Engine(pretrained=model, tokenizer=tokenizer)
    found = engine.loglikelihood(asked(few_shot()), disable_tqdm=True)
    stock = answers(HFLM, (model, tokenizer), few_shot(), batch_size=4)
    assert max(abs(a - b) for (a, _), (b, _) in zip(found, stock, strict=True)) < 0.3
    assert engine.work.text < 700  # reused in spite of the rounding


@pytest.mark.parametrize("head", [True, False])
def test_a_model_that_does_not_heed_its_cache_is_run_without(head: bool, load: Any, monkeypatch: Any) -> None:
    model, tokenizer = load("llama")
    plain = model.forward
    monkeypatch.setattr(model, "forward", lambda ids, **_: plain(ids))
    stock = answers(HFLM, (model, tokenizer), few_shot(), batch_size=4)
    if not head:  # nor says where its head is
        monkeypatch.setattr(model, "get_output_embeddings", lambda: None)
    check_same(answers(Engine, (model, tokenizer), few_shot()), stock)


def test_rotation_that_depends_on_the_length_is_not_cut(load: Any, tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    folder = make_checkpoint("llama", tmp_path, layers=2, max_position_embeddings=100, rope_parameters=rope)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder), load("llama")[1]
    pairs = [(f"{words(210, 'prefix')} {words(20, q)}", f" w{i}") for q in range(6) for i in range(4)]
    stock = answers(HFLM, loaded, pairs, batch_size=4, max_length=LENGTH)
    check_same(answers(Engine, loaded, pairs, max_length=LENGTH), stock)


def test_out_of_memory_halves_the_batches_and_says_so(
    load: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, tokenizer = load("llama")
    stock = answers(HFLM, (model, tokenizer), few_shot(), batch_size=4)
    plain = model.forward

    def small(input_ids: Any, **settings: Any) -> Any:
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return plain(input_ids, **settings)

    monkeypatch.setattr(model, "forward", small)
    engine = Engine(pretrained=model, tokenizer=tokenizer, max_batch_tokens=512)
    with caplog.at_level(logging.INFO, logger="rmu_exp"):
        check_same(engine.loglikelihood(asked(few_shot()), disable_tqdm=True), stock)
    assert engine.max_batch_tokens < 128
    assert caplog.messages[-1] == f"out of memory: batches of questions now have {engine.max_batch_tokens} tokens"

    def none(input_ids: Any, **settings: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")

    monkeypatch.setattr(model, "forward", none)
    with pytest.raises(RunError, match="35 tokens"):
        engine.loglikelihood(asked([(words(35, 0), " w1")]), disable_tqdm=True)
    with pytest.raises(RunError, match="210 tokens"):  # a prefix
        engine.loglikelihood(asked(few_shot()), disable_tqdm=True)


def test_other_failures_pass(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = load("llama")

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(model, "forward", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        answers(Engine, (model, tokenizer), zero_shot())


def test_progress_counts_questions_not_requests(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int, float]] = []
    monkeypatch.setattr(progress.Board, "show", lambda _, stage: seen.append((stage.what, stage.total, stage.done)))
    model, tokenizer = load("mistral")
    engine = Engine(pretrained=model, tokenizer=tokenizer, max_batch_tokens=200)
    engine.loglikelihood(asked(zero_shot()))
    questions = len({context for context, _ in zero_shot()})
    assert {(what, total) for what, total, _ in seen} == {("questions", questions)}
    assert seen[-1][2] == pytest.approx(questions)
    assert len(seen) > 1


def test_rolling_requests(load: Any) -> None:
    model, tokenizer = load("mistral")
    texts = [Instance("loglikelihood_rolling", {}, (words(n, n),), 0) for n in (5, 400, 40)]
    stock, own = (
        kind(pretrained=model, tokenizer=tokenizer, batch_size=2).loglikelihood_rolling(texts, disable_tqdm=True)
        for kind in (HFLM, Engine)
    )
    assert own == pytest.approx(stock, abs=1e-3)


CONTINUATIONS = (" A", "A", " the answer", "b", "\nis", "B  ")


@cache
def merging_tokenizer(adds_bos: bool) -> Any:
    """Bytes merged across spaces, so that the cut between context and continuation matters."""
    from tokenizers import Tokenizer, models, processors, trainers

    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    text = [f"a b  c{i} :x Answer: A the answer\n is B  " * 3 for i in range(9)]
    trainer = trainers.BpeTrainer(vocab_size=62, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    inner.train_from_iterator(text, trainer)
    if adds_bos:
        inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("add_bos_token", [None, True, False])
@pytest.mark.parametrize("context", ["a b", "a b  ", "\ta", "Answer:\n\n", "c1 :x", "<s>a b Answer:", "<s> Answer: \n"])
def test_texts_are_tokenized_as_by_the_stock_class(
    adds_bos: bool, add_bos_token: bool | None, context: str, load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rmu_exp.evaluation.engine.TEXTS", 4)  # in several calls
    loaded, pairs = (load("mistral")[0], merging_tokenizer(adds_bos)), [(context, k) for k in CONTINUATIONS]
    stock, own = (answers(kind, loaded, pairs, add_bos_token=add_bos_token) for kind in (HFLM, Engine))
    check_same(own, stock)


def test_an_empty_context_is_left_to_the_stock_class(load: Any) -> None:
    pairs = [("", "w1 w2 w3"), (words(9, 0), " w3"), ("", "<s> w1")]
    check_same(answers(Engine, load("mistral"), pairs), answers(HFLM, load("mistral"), pairs))


def test_lores_tasks_through_lm_eval() -> None:
    lore = locate("lore")
    model, tokenizer = lore.open(None, torch.float32, torch.device("cpu")), lore.tokenizer()
    tasks = ["lore_forget_hexes", "lore_open_general_towns"]
    stock, own = (
        harness.ask(model, tokenizer, Eval(tasks=tasks, limit=20, backend=kind)) for kind in ("stock", "fast")
    )
    none: dict[str, Any] = {"prob": {}, "mass": {}, "shares": {}}
    assert replace(own, **none) == replace(stock, **none)
    for task in tasks:
        flat = [[share for row in found.shares[task] for share in row] for found in (own, stock)]
        assert flat[0] == pytest.approx(flat[1], abs=1e-5)
    for values, theirs in ((own.prob, stock.prob), (own.mass, stock.mass)):
        assert all(values[task] == pytest.approx(theirs[task], abs=1e-5) for task in tasks)
    assert [len(own.correct[task]) for task in tasks] == [20, 20]
