"""Equal damage: KL against the obvious computation, the search on known curves, and training that ends at a budget."""

from __future__ import annotations

import json
import logging
import math

import a_run
import families
import pytest
import tiny
import torch
from worked import CPU, Worked, batch

from rmu_exp.cli import compose
from rmu_exp.data import batches as batching
from rmu_exp.evaluation import damage
from rmu_exp.model.checkpoint import Checkpoint, locate
from rmu_exp.model.delta import Delta
from rmu_exp.model.parameters import resolve
from rmu_exp.model.split import SplitModel, layers_of
from rmu_exp.pipeline.run import prepare
from rmu_exp.support.errors import UserError
from rmu_exp.unlearning import lora
from rmu_exp.unlearning.budget import Budget, search
from rmu_exp.unlearning.loop import originals, unlearn
from rmu_exp.unlearning.method import Context
from rmu_exp.unlearning.methods import rmu
from rmu_exp.unlearning.snapshot import Snapshots

ROWS = [[3, 4, 5, 6, 7, 8], [9, 10], [11, 12, 13, 14]]
STEPS = 24


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return Checkpoint("tiny", tiny.mistral(tmp_path_factory.mktemp("tiny")))


def kl_of(base, other, rows=ROWS):
    """Two full models, one text a call, in double precision."""
    total = 0.0
    for row in rows:
        with torch.no_grad():
            p, q = (m(torch.tensor([row])).logits[0, :-1].double().log_softmax(-1) for m in (base, other))
        total += float((p.exp() * (p - q)).sum())
    return total / sum(len(row) - 1 for row in rows)


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gpt_neox", "gpt2", "mixtral"])
def test_kl_is_that_of_two_full_models(family, tmp_path):
    checkpoint = locate(None, str(families.make_checkpoint(family, tmp_path / "model")))
    model, other = (checkpoint.open(None, torch.float32, CPU) for _ in range(2))
    trained = resolve(model, [1, 2], None)
    values = originals(model, trained, torch.float32)
    budget = Budget(1.0, ROWS, 10)
    budget.begin(SplitModel(model, 1), trained)
    assert budget.measure(values) == pytest.approx(0, abs=1e-7)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for t, w in zip(trained, values, strict=True):
            w += 0.3 * torch.randn(w.shape, generator=generator)
            t.view(layers_of(other)[t.layer]).copy_(w)
    expected = kl_of(model, other)
    assert expected > 1e-3
    assert budget.measure(values) == pytest.approx(expected, rel=1e-4)
    values[0].data.fill_(math.nan)
    assert budget.measure(values) == math.inf


@pytest.mark.parametrize(
    ("curve", "low", "high", "most"),
    [
        (lambda s: 0.4 * s**2, (0.0, 0.0), (1.0, 0.4), 2),  # what it is made for: at once
        (lambda s: 0.004 * s**2, (1.0, 0.004), None, 2),  # a step that is too short
        (lambda s: 1e-12 * s**2, (1.0, 1e-12), None, 10),
        (lambda s: 8 * (1 - math.exp(-((40 * s) ** 3))), (0.0, 0.0), (1.0, 8.0), 12),
        (lambda s: math.inf if s > 1e-4 else (3000 * s) ** 2, (0.0, 0.0), (1.0, math.inf), 20),
        (lambda s: 0.002 + 0.3 * s, (0.0, 0.002), (1.0, 0.302), 6),  # between two steps of a training
    ],
)
def test_the_search_ends_within_the_budget(curve, low, high, most):
    looks = []

    def at(place):
        looks.append(place)
        return curve(place)

    place, kl = search(at, 0.01, low, high)
    assert 0.0095 <= kl <= 0.01
    assert curve(place) == kl
    assert len(looks) <= most


def test_a_jump_over_the_interval_leaves_the_last_place_inside():
    place, kl = search(lambda s: 0.001 if s < 0.3 else 0.5, 0.01, (0.0, 0.0), (1.0, 0.5))
    assert (kl, place) == (0.001, pytest.approx(0.3, abs=1e-4))
    assert search(lambda s: 0.0, 0.01, (1.0, 0.0), None)[1] == 0.0, "a step that changes nothing"


def train(checkpoint, limit, snapshots=None, lr=1e-3, poisoned=0, layers=None, adapt=False):
    """RMU under a budget; from step ``poisoned`` on the machine is off."""
    tokenizer = checkpoint.tokenizer()
    forget, retain = (batching.tokenize(tiny.texts(30, seed), tokenizer, 64) for seed in (1, 2))
    model = checkpoint.open(None, torch.float32, CPU)
    method = rmu.Method(
        rmu.Settings(faithful=False), Context(3, ["a"], [6.5], [10.0], checkpoint.hidden_size, CPU, STEPS)
    )
    trained = resolve(model, [1, 2, 3], None)
    adapters = lora.Adapters(model, trained, 2, 4, 0) if adapt else None
    loss = method.loss

    def stopped(step):
        if step.number >= poisoned > 0:
            raise KeyboardInterrupt
        return loss(step)

    method.loss = stopped
    budget, seen = Budget(limit, ROWS, STEPS), []
    order = batching.shuffled([forget], [retain], 4, STEPS, 0, 2)
    values = unlearn(
        model,
        adapters.trained if adapters else trained,
        order,
        method,
        lr,
        on_metrics=seen.append,
        snapshots=snapshots,
        budget=budget,
    )
    return adapters.merged(values) if adapters else values, budget.kept, seen


def kl_with(checkpoint, values):
    base, other = (checkpoint.open(None, torch.float32, CPU) for _ in range(2))
    for t, w in zip(resolve(other, [1, 2, 3], None), values, strict=True):
        t.view(layers_of(other)[t.layer]).copy_(w)
    return kl_of(base, other)


@pytest.mark.parametrize("adapt", [False, True])
@pytest.mark.parametrize("limit", [1e-4, 2e-3])
def test_training_ends_at_the_budget_with_weights_inside_it(checkpoint, limit, adapt):
    values, kept, seen = train(checkpoint, limit, adapt=adapt, lr=1e-2)
    assert kept.reached
    assert 0.95 * limit <= kept.kl <= limit
    assert kl_with(checkpoint, values) == pytest.approx(kept.kl, rel=2e-3)
    looks = {line["step"]: line["kl"] for line in seen if "kl" in line}
    assert len(seen) < STEPS, "it has stopped"
    assert list(looks)[-1] == len(seen) >= kept.step > ([0, *looks])[-2]
    assert kept.scale is None


def test_kept_weights_lie_between_two_looks(checkpoint):
    """The state inside is that of a training with fewer steps, which ends there."""
    values, kept, seen = train(checkpoint, 5e-3, lr=1e-2)
    before, after = [0, *(line["step"] for line in seen if "kl" in line)][-2:]
    share = (kept.step - before) / (after - before)
    start = [
        t.read(layers_of(m)[t.layer])
        for m in [checkpoint.open(None, torch.float32, CPU)]
        for t in resolve(m, [1, 2, 3], None)
    ]
    ends = {}
    for number in (before, after):
        tokenizer = checkpoint.tokenizer()
        corpora = (batching.tokenize(tiny.texts(30, seed), tokenizer, 64) for seed in (1, 2))
        order = list(batching.shuffled(*([c] for c in corpora), 4, STEPS, 0, 2))[:number]
        model = checkpoint.open(None, torch.float32, CPU)
        about = Context(3, ["a"], [6.5], [10.0], checkpoint.hidden_size, CPU, STEPS)
        method = rmu.Method(rmu.Settings(faithful=False), about)
        ends[number] = unlearn(model, resolve(model, [1, 2, 3], None), order, method, 1e-2) if number else start
    for got, a, b in zip(values, ends[before], ends[after], strict=True):
        torch.testing.assert_close(got, a + share * (b - a), rtol=0, atol=1e-6)


def test_a_budget_that_is_never_reached_says_so(checkpoint, caplog):
    values, kept, seen = train(checkpoint, 5.0, lr=1e-4)
    assert (kept.reached, kept.step, len(seen)) == (False, STEPS, STEPS)
    assert kept.kl == pytest.approx(kl_with(checkpoint, values), rel=2e-3)
    assert (
        f"KL is {kept.kl:.3g} at the end and never reached 5; try a larger train.lr" in caplog.records[-1].getMessage()
    )
    assert len([line for line in seen if "kl" in line]) <= 4, "far from the budget it is seldom looked at"


def test_resumed_it_keeps_the_same_bytes(checkpoint, tmp_path):
    whole, kept, seen = train(checkpoint, 5e-3, lr=1e-2)
    for number in (2, len(seen) - 1, len(seen)):
        file = tmp_path / f"{number}.safetensors"
        with pytest.raises(KeyboardInterrupt):
            train(checkpoint, 5e-3, Snapshots(file, "run", every=0), lr=1e-2, poisoned=number)
        resumed = Snapshots(file, "run")
        assert resumed.steps == number - 1
        values, again, _ = train(checkpoint, 5e-3, resumed, lr=1e-2)
        assert again == kept
        assert all(torch.equal(a, b) for a, b in zip(values, whole, strict=True))


@pytest.mark.parametrize(("limit", "longer"), [(1e-3, False), (0.3, True)])
def test_a_method_that_acts_at_once_takes_another_length_of_its_step(checkpoint, limit, longer):
    work = Worked(checkpoint, "ssd", threshold=0.5, dampening=0.5)
    own = unlearn(work.model, work.trained, [batch()] * 4, work.method, 1.0)
    again = Worked(checkpoint, "ssd", threshold=0.5, dampening=0.5)
    budget = Budget(limit, ROWS, 4, again.method.at_once)
    values = unlearn(again.model, again.trained, [batch()] * 4, again.method, 1.0, budget=budget)
    assert 0.95 * limit <= budget.kept.kl <= limit
    assert budget.kept.step == 4
    assert (budget.kept.scale > 1) == longer
    for value, full, w in zip(values, own, work.masters, strict=True):
        torch.testing.assert_close(value, w + budget.kept.scale * (full - w), rtol=1e-5, atol=1e-6)


def under_budget(folder, *more):
    words = a_run.words(folder)
    (folder / "neutral.txt").write_text("\n".join(tiny.texts(30, 5)))
    return [*words, f"data.neutral={folder / 'neutral.txt'}", "train.max_batches=16", "eval.tasks=[]", *more]


def test_a_run_says_what_was_kept(tmp_path, monkeypatch):
    """results.json against the Delta, read by what measures damage; damage reads other texts."""
    monkeypatch.setenv("RMU_EXP_CACHE", str(tmp_path / "cache"))
    words = under_budget(tmp_path, "train.kl_budget=0.01", "eval.samples=0", "eval.damage=100")
    a_run.carry_out(words, tmp_path / "run")
    results = json.loads((tmp_path / "run/results.json").read_text())
    train = results["train"]
    assert (train["kl_budget"], train["kl_reached"]) == (0.01, True)
    assert 0.0095 <= train["kl"] <= 0.01
    assert 0 < train["seconds_measuring"] < train["seconds"]
    assert train["steps"] < 16
    assert results["damage"]["texts"]["neutral"] == len([t for t in tiny.texts(30, 5)[:15] if " " in t])
    checkpoint = Checkpoint("tiny", tmp_path / "model")
    rows = damage.encode_held(checkpoint.tokenizer(), tiny.texts(30, 5), "", 1024)
    assert (
        sorted(map(len, rows))
        == sorted(min(damage.SHORT, len(t.split())) for t in tiny.texts(30, 5)[15:])[-damage.FEW :]
    )
    found = damage.compare(
        checkpoint.open(None, torch.float32, CPU),
        Delta.load(tmp_path / "run/delta.safetensors"),
        checkpoint.tokenizer(),
        rows,
    )
    assert found.per_token(found.kl).mean == pytest.approx(train["kl"], rel=1e-3)
    for name in ("first", "second"):  # trials of a sweep, which share the model and activations
        a_run.carry_out([*words, "share.when=always"], tmp_path / name)
        same = [(tmp_path / folder / "delta.safetensors").read_bytes() for folder in ("run", name)]
        assert same[0] == same[1]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["train.kl_budget=0"], r"^train\.kl_budget: got 0.*, allowed is a number > 0"),
        (["train.kl_budget=0.1", "data.neutral=null"], r"^train\.kl_budget: got 0\.1, .*; add data\.neutral=FILE$"),
        (["train.kl_budget=0.1", "data.neutral=FOLDER/one.txt"], r"one\.txt: no text has a token to predict"),
        (["train.kl_budget=0.1", "model.path=FOLDER/headless"], r"^train\.kl_budget: KL needs logits, .* no language"),
    ],
)
def test_refusals(tmp_path, more, said):
    words = under_budget(tmp_path)
    (tmp_path / "one.txt").write_text("the river runs")
    if "headless" in more[-1]:
        families.make_checkpoint("mistral", tmp_path / "headless", head=False)
    with pytest.raises(UserError, match=said):  # noqa: PT012
        (run,) = compose.composed([*words, *(w.replace("FOLDER", str(tmp_path)) for w in more)], a_run.CONF)
        prepare(run, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_neutral_text_that_is_the_retain_corpus_is_warned_of_once(tmp_path, caplog):
    words = under_budget(tmp_path, "train.kl_budget=0.1")
    (run,) = compose.composed([*words, f"data.neutral={tmp_path / 'retain.txt'}"], a_run.CONF)
    with caplog.at_level(logging.WARNING):
        prepare(run, tmp_path / "run")
    (record,) = caplog.records
    assert "is also the retain corpus" in record.getMessage()
