"""Shared activations: the bytes of a run alone, nothing computed again, never more on disk than allowed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
import torch

from rmu_exp.config import plugins
from rmu_exp.data import batches as batching
from rmu_exp.model.checkpoint import Checkpoint
from rmu_exp.model.parameters import resolve
from rmu_exp.model.split import layers_of
from rmu_exp.pipeline import models
from rmu_exp.pipeline.run import execute
from rmu_exp.settings import Data, Layers, Model, Run, Share, Tracking, Train
from rmu_exp.support.errors import RunError
from rmu_exp.unlearning.activation_cache import ActivationCache, shared
from rmu_exp.unlearning.loop import unlearn
from rmu_exp.unlearning.method import Context
from rmu_exp.unlearning.methods import rmu

CPU, LAYER, PLENTY = torch.device("cpu"), 4, 10**9


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("RMU_EXP_CACHE", str(tmp_path / "cache"))
    yield
    models.HELD.clear()


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def checkpoint(request, tmp_path_factory):
    return Checkpoint("tiny", tiny.mistral(tmp_path_factory.mktemp("tiny"), dtype=request.param))


def train(checkpoint, cache, faithful=False, steer=(6.5, 3.0), steps=4, lr=1e-3):
    """New values, and how many tokens went through the lowest layer."""
    tokenizer, dtype = checkpoint.tokenizer(), checkpoint.dtype
    forget, retain = [tiny.texts(20, seed) for seed in (1, 2)], [tiny.texts(20, 3)] * 2
    if faithful:
        batches = batching.published(forget, retain, tokenizer, 4, steps)
    else:
        tokens = [[batching.tokenize(t, tokenizer, 512) for t in side] for side in (forget, retain)]
        batches = batching.shuffled(*tokens, 4, steps, 0, 2)
    model = checkpoint.open(LAYER + 1, dtype, CPU)
    seen = []
    layers_of(model)[0].register_forward_hook(lambda module, args, out: seen.append(args[0][..., 0].numel()))
    kind = dtype if faithful else torch.float32
    context = Context(LAYER, ["a", "b"], steer, [40.0, 20.0], 32, CPU, steps, faithful=faithful, dtype=kind)
    method = rmu.Method(rmu.Settings(faithful=faithful), context)
    values = unlearn(model, resolve(model, [2, 3, 4], None), batches, method, lr, cache=cache)
    asked = 1 if faithful else 1 + 10  # the form of a layer's answer; whether packed texts are kept apart
    return values, sum(seen) - asked


def kept(checkpoint, budget=PLENTY):
    return shared(checkpoint, 2, LAYER + 1, checkpoint.dtype, "cpu", budget)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def entries(cache):
    """Name and time of writing of every entry."""
    return {f.name: f.stat().st_mtime_ns for f in cache.folder.iterdir()}


def size(folder):
    return sum(f.stat().st_size for f in folder.rglob("*.safetensors"))


@pytest.mark.parametrize("faithful", [False, True])
def test_a_further_trial_has_the_bytes_of_a_run_alone_and_runs_no_frozen_layer(checkpoint, faithful):
    alone, tokens = train(checkpoint, None, faithful)
    other, _ = train(checkpoint, None, faithful, steer=(2.0, 1.0))
    first, first_tokens = train(checkpoint, kept(checkpoint), faithful)
    again, again_tokens = train(checkpoint, kept(checkpoint), faithful)
    third, third_tokens = train(checkpoint, kept(checkpoint), faithful, steer=(2.0, 1.0))
    assert same(alone, first)
    assert same(alone, again)
    assert same(other, third)
    assert not same(alone, other)
    assert 0 < first_tokens <= tokens, "rows that come twice are computed once"
    assert again_tokens == third_tokens == 0


def test_longer_trials_take_what_there_is_and_add_the_rest(checkpoint):
    cache = kept(checkpoint)
    train(checkpoint, cache, steps=2)
    first = entries(cache)
    longer, _ = train(checkpoint, kept(checkpoint), steps=5)
    assert len(first) == 4
    assert len(entries(cache)) == 10
    assert first.items() <= entries(cache).items()
    assert same(longer, train(checkpoint, None, steps=5)[0])


def test_what_does_not_fit_the_budget_is_computed(checkpoint):
    cache = kept(checkpoint, 40_000)
    values, _ = train(checkpoint, cache)
    first = entries(cache)
    assert 0 < len(first) < 8
    assert size(cache.folder) <= 40_000
    again, _ = train(checkpoint, kept(checkpoint, 40_000))
    assert entries(cache) == first
    assert same(values, again)


def test_what_a_run_that_failed_has_left_is_right(checkpoint):
    """Nothing of the frozen model depends on what is learned."""
    with pytest.raises(RunError, match="loss is"):
        train(checkpoint, kept(checkpoint), lr=1e30)
    cache = kept(checkpoint)
    assert entries(cache)
    values, _ = train(checkpoint, cache)
    assert same(values, train(checkpoint, None)[0])


def test_a_damaged_entry_is_computed_again(checkpoint):
    cache = kept(checkpoint)
    train(checkpoint, cache)
    for file in cache.folder.iterdir():
        file.write_bytes(file.read_bytes()[:-1])
    assert same(train(checkpoint, kept(checkpoint))[0], train(checkpoint, None)[0])


def test_another_model_makes_room_and_sees_nothing_of_the_first(checkpoint, tmp_path):
    cache = kept(checkpoint)
    train(checkpoint, cache)
    old = cache.folder
    os.utime(old, (0, 0))
    other = Checkpoint("other", tiny.mistral(tmp_path / "other", seed=1))
    cache = kept(other, 2 * size(old) - 1)
    assert not old.exists()
    assert not entries(cache)
    train(other, cache)
    config = json.loads((other.folder / "config.json").read_text())
    (other.folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.1}))
    assert kept(other).folder != cache.folder, "the same weights in another configuration are another model"


def test_the_default_keeps_nothing(checkpoint, tmp_path):
    train(checkpoint, ActivationCache())
    assert not (tmp_path / "cache").exists()


def run_of(folder: Path, steer: float, when: str, corpus: Path) -> Run:
    return Run(
        layer=LAYER,
        steer=[steer],
        alpha=[20.0],
        model=Model(path=str(folder)),
        layers=Layers(span=3),
        method=plugins.schema("method", "rmu")(faithful=False),
        data=Data(forget=[str(corpus)], retain=[str(corpus)], topics=["a"]),
        train=Train(lr=1e-3, batch_size=4, max_batches=6),
        tracking=Tracking(kind="off"),
        share=Share(when=when),
    )


def test_runs_that_share_leave_the_files_of_runs_alone(tmp_path, monkeypatch, capsys):
    model, corpus = tiny.mistral(tmp_path / "tiny"), tmp_path / "texts.txt"
    corpus.write_text("\n".join(tiny.texts(30, 1)))
    opened: list[int | None] = []
    own = Checkpoint.open
    monkeypatch.setattr(Checkpoint, "open", lambda self, depth, *rest: opened.append(depth) or own(self, depth, *rest))
    for when in ("never", "always"):
        for steer in (6.5, 2.0):
            execute(run_of(model, steer, when, corpus), tmp_path / f"{when}{steer}")
        assert opened == [LAYER + 1] * (2 if when == "never" else 3), "the second trial loads no model again"
        assert (tmp_path / "cache/activations").exists() == (when == "always")
    entries = sorted((tmp_path / "cache/activations").rglob("*"))
    execute(run_of(model, 4.0, "always", corpus), tmp_path / "third")
    assert sorted((tmp_path / "cache/activations").rglob("*")) == entries, "a further trial computed again"
    for steer in (6.5, 2.0):
        alone, among = (tmp_path / f"{when}{steer}" / "delta.safetensors" for when in ("never", "always"))
        assert alone.read_bytes() == among.read_bytes()
        lines = [[json.loads(line) for line in (f.parent / "metrics.jsonl").open()] for f in (alone, among)]
        for metrics in (*lines[0], *lines[1]):
            metrics.pop("seconds")
        assert lines[0] == lines[1]
