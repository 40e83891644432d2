"""Unlearning depth: patches against the obvious computation with hooks, the score against one by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from rmu_exp.attacks import depth, runner
from rmu_exp.evaluation.forward import Forward
from rmu_exp.evaluation.questions import Question
from rmu_exp.model.delta import Delta
from rmu_exp.record.results import AttackEntry, Results, RunInfo
from rmu_exp.record.store import Store
from rmu_exp.report import attacks, markdown

CHANGED = "model.layers.8.mlp.down_proj.weight"
EMPTY = Results(run=RunInfo(model="m", topics=["a"], seed=0, method="rmu", layer=1))


@pytest.fixture
def depths(context, asked, model):
    """A context with an oracle of its own, and answers of one token and of several."""

    def oracle():
        other = context.load()
        weight = other.get_parameter(CHANGED)
        with torch.no_grad():
            weight.add_(0.5 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)))
        return other

    longer = Question("t", "hexes", "f", asked[0].context, (" A B A", " B"), 0)
    return dataclasses.replace(context, items=[*asked[:3], longer], load_oracle=oracle)


def naive(context, source, host, item):
    """The host's mean log-probability of the answer: plainly, and with each layer's output from the source."""
    source, host = context.copy(source), context.copy(host)
    prompt, answer = (context.tokenizer(text)["input_ids"] for text in (item.context, item.options[item.answer]))
    row, begin = torch.tensor([prompt + answer[:-1]]), len(prompt) - 1

    def read():
        logs = host(input_ids=row).logits[0].double().log_softmax(-1)
        return sum(logs[begin + t, token].item() for t, token in enumerate(answer)) / len(answer)

    with torch.no_grad():
        seen = []
        hooks = [la.register_forward_hook(lambda _m, _i, out: seen.append(out)) for la in source.model.layers]
        source(input_ids=row)
        for hook in hooks:
            hook.remove()
        plain, patched = read(), []
        for layer, given in zip(host.model.layers, seen, strict=True):

            def instead(_m, _i, out, given=given):
                return torch.cat([out[:, :begin], given[:, begin:]], dim=1)

            hook = layer.register_forward_hook(instead)
            patched.append(read())
            hook.remove()
    return plain, patched


@pytest.mark.parametrize("reuses", [True, False])
def test_every_patch_is_that_of_plain_hooks(depths, monkeypatch, reuses):
    monkeypatch.setattr(Forward, "can_reuse", lambda *_: reuses)
    found = depth.run(depths, depth.Settings(0.05)).more["depth"]
    costs = {}
    for name, (source, host) in depth.PATCHES.items():
        each = [naive(depths, source, host, item) for item in depths.items]
        sign = -1 if name == "restored" else 1
        costs[name] = torch.tensor([[sign * (plain - s) for s in patched] for plain, patched in each])
        assert found[name] == pytest.approx(costs[name].mean(0).tolist(), abs=2e-4)
    assert min(max(found[name]) for name in costs) > 0.1, "each patch does something"
    scores = [depth.score(*pair, 0.05) for pair in zip(costs["lost"].tolist(), costs["oracle"].tolist(), strict=True)]
    kept = [s for s in scores if s is not None]
    assert found["scored"] == len(kept) > 0
    assert found["score"]["mean"] == pytest.approx(sum(kept) / len(kept), abs=1e-3)


def test_the_oracle_is_controlled_on_other_questions(depths):
    """Which are here the same ones, so that it costs as much."""
    about = depth.run(dataclasses.replace(depths, others={"more": depths.items}), depth.Settings(0.05)).more["depth"]
    assert about["apart"] == about["oracle"]
    entry = AttackEntry.model_validate({"depth": about, "budget": {}})
    (line,) = attacks.depths(EMPTY.model_copy(update={"attacks": {"depth": entry}}))
    assert f"the oracle's state costs up to {max(about['apart']):.2f} nats, which is no missing knowledge" in line


def test_the_score_by_hand():
    assert depth.score([0.5, 2.0, 9.0], [1.0, 1.0, 0.01], 0.05) == pytest.approx((0.5 + 1.0) / 2)
    assert depth.score([-1.0, 0.2], [3.0, 1.0], 0.05) == pytest.approx((0 + 0.2) / 4), "what a patch adds is not erased"
    assert depth.score([1.0], [0.05], 0.05) is None


def test_nothing_unlearned_is_depth_0_and_the_oracle_itself_depth_1(depths):
    about = depth.run(dataclasses.replace(depths, delta=Delta({})), depth.Settings(0.05)).more["depth"]
    assert [*about["lost"], *about["restored"]] == pytest.approx([0] * 24, abs=1e-5)
    assert about["score"]["mean"] == pytest.approx(0, abs=1e-4)
    weight = depths.load_oracle().get_parameter(CHANGED).detach().clone()
    same = dataclasses.replace(depths, delta=Delta({CHANGED: weight}), journal=Store())
    about = depth.run(same, depth.Settings(0.05)).more["depth"]
    assert about["score"]["mean"] == pytest.approx(1, abs=1e-3)


def test_without_an_oracle_both_directions_are_reported_and_no_score(depths):
    alone = dataclasses.replace(depths, load_oracle=None)
    *_, results = runner.run_attacks(alone, {"depth": {"threshold": 0.05}}, EMPTY)
    entry = results.attacks["depth"]
    assert entry.error is None
    assert (entry.depth.score, entry.depth.oracle, len(entry.depth.lost)) == (None, None, 12)
    (lines,) = entry.curves["layers"].panels.values()
    assert list(lines) == [depth.LINES["lost"], depth.LINES["restored"]]
    (line,) = attacks.depths(results)
    assert line.startswith("No unlearning depth: without an oracle it is not known how much should be missing.")
    assert line in markdown.text(results)
    assert set(attacks.curves(results)) == {"depth_layers"}
    *_, results = runner.run_attacks(depths, {"depth": {"threshold": 0.05}}, EMPTY)
    assert attacks.depths(results)[0].startswith("**Unlearning depth 0.")
