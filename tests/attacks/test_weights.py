"""Attacks on weights and activations, each against a value worked out by hand or the slow way."""

from __future__ import annotations

import copy

import pytest
import torch

from rmu_exp.attacks import ablation, prompts, prune, quantise, relearn
from rmu_exp.attacks.frame import UNLEARNED, share
from rmu_exp.attacks.items import Item


def test_rounding_by_hand():
    weight = torch.tensor([[1.0, -0.4, 0.13, 0.0, 7.0]])
    # group of two, three bits: levels -3..3; scales 1/3, 0.13/3, 7/3
    rounded = quantise.rounded(weight, 3, 2)
    assert rounded.tolist()[0] == pytest.approx([1.0, -1 / 3, 0.13, 0.0, 7.0], abs=1e-6)
    assert torch.equal(quantise.rounded(torch.zeros(2, 4), 4, 4), torch.zeros(2, 4))


def test_eight_bits_change_little_and_two_bits_much(model):
    weight = model.model.layers[8].mlp.up_proj.weight
    fine, coarse = (quantise.rounded(weight, bits, 64) for bits in (8, 2))
    assert (fine - weight).norm() < 0.02 * weight.norm()
    assert (coarse - weight).norm() > 0.2 * weight.norm()


def test_ablation_removes_the_direction_and_nothing_else(model, context):
    directions = torch.nn.functional.normalize(torch.randn(12, 128, generator=torch.Generator().manual_seed(1)), dim=1)
    ids = torch.tensor([context.scorer.encode(context.items[0].context)])
    seen = {}
    for name in ("plain", "hooks"):
        handle = None
        with ablation.removed(model, directions, [7] if name == "hooks" else []):
            handle = model.model.layers[7].register_forward_hook(lambda _m, _i, o, name=name: seen.setdefault(name, o))
            model(input_ids=ids)
        handle.remove()
    r = directions[7]
    assert (seen["hooks"] @ r).abs().max() < 1e-5
    assert torch.allclose(seen["plain"] - (seen["plain"] @ r)[..., None] * r, seen["hooks"], atol=1e-6)


def test_ablation_from_the_weights_writes_nothing_along_the_direction(model, context):
    directions = torch.nn.functional.normalize(torch.randn(12, 128, generator=torch.Generator().manual_seed(2)), dim=1)
    changed = copy.deepcopy(model)
    ablation.remove_from_weights(changed, directions, [7])
    written: list[torch.Tensor] = []
    changed.model.layers[7].mlp.register_forward_hook(lambda _m, _i, out: written.append(out))
    changed(input_ids=torch.tensor([context.scorer.encode(context.items[0].context)]))
    assert (written[0] @ directions[7]).abs().max() < 1e-5
    assert torch.equal(changed.model.layers[6].mlp.down_proj.weight, model.model.layers[6].mlp.down_proj.weight)


def test_set_difference_by_hand(model, context):
    pruned = copy.deepcopy(model)
    names = [name for name, _ in prune.matrices(pruned)]
    zero = {name: torch.zeros_like(w) for name, w in prune.matrices(pruned)}
    forget, retain = ({n: z.clone() for n, z in zero.items()} for _ in range(2))
    first = names[0]
    forget[first][0, :4] = torch.tensor([4.0, 3.0, 2.0, 1.0])
    retain[first][0, 1] = 5.0
    part = 2 / forget[first].numel()
    with torch.no_grad():
        count = prune._top(forget[first], part) & ~prune._top(retain[first], part / 2)
    assert count[0, :3].tolist() == [True, False, False]
    before = dict(prune.matrices(copy.deepcopy(model)))
    prune.prune(pruned, forget, retain, part, part / 2)
    weight = dict(prune.matrices(pruned))[first]
    assert weight[0, 0] == 0
    assert torch.equal(weight[0, 1:], before[first][0, 1:])


def test_importance_is_weight_times_gradient(model, context):
    settings = prune.Settings([0.1], [0.1], 1, 64)
    found = prune.importance(copy.deepcopy(model), context, "forget", settings)
    other = copy.deepcopy(model).requires_grad_(True)
    (text,) = context.rng("prune/forget").sample(context.forget, 1)
    ids = torch.tensor([context.scorer.encode(text)])
    logits = other(input_ids=ids).logits
    torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]).backward()
    weight = other.model.layers[5].mlp.up_proj.weight
    assert torch.allclose(found["5.mlp.up_proj.weight"], (weight * weight.grad).abs(), rtol=1e-3, atol=1e-8)


def test_finetuning_leaves_the_models_alone_and_learns(context):
    settings = relearn.Settings(["split"], [16], 12, 4, 1e-3, "changed", "full", 4, 2, 64, True)
    before = {name: p.clone() for name, p in context.copy(UNLEARNED).named_parameters()}
    texts = relearn._texts(context, "split")
    path = relearn.finetune(context, UNLEARNED, texts, settings, 2, "test")
    assert [step for step, _ in path] == [0, 6, 12]
    with context.model(UNLEARNED) as again:
        assert all(torch.equal(p, before[name]) for name, p in again.named_parameters())
    assert path == relearn.finetune(context, UNLEARNED, texts, settings, 2, "test")


def test_only_what_was_changed_is_finetuned(context):
    names = relearn._changed(context, context.copy(UNLEARNED))
    assert names == [f"model.layers.{i}.mlp.down_proj.weight" for i in (5, 6, 7)]


def test_split_shows_no_fact_of_the_scored_half(context):
    hidden = {item.fact for item in context.pick(context.halves[1])}
    for source in ("forget", "split"):
        assert not [t for t in relearn._texts(context, source) if any(fact in t for fact in hidden)]


def test_answers_only_marks_what_follows_the_question(context):
    settings = relearn.Settings(["split"], [1], 1, 1, 1.0, "all", "full", 1, 1, 99, True)
    ids, wanted = relearn._row_of(context, "What is it?\nA. dawn\nAnswer: A. dawn.\nWhat", settings)
    kept = [context.tokenizer.decode([t]) for t, w in zip(ids, wanted, strict=True) if w]
    assert kept == ["A", ".", "dawn", "."]
    ids, wanted = relearn._row_of(context, "The hour is dawn.", settings)
    assert all(wanted)


def test_prompts_keep_the_right_answer_right(context):
    item = context.items[0]
    turned = prompts.rephrased(context, "reversed", item)
    assert turned.choices[3 - turned.answer] == item.choices[item.answer]
    assert f"{'ABCD'[turned.answer]}. {item.choices[item.answer]}" in turned.context
    shot = prompts.few_shot(context, 2, item)
    assert shot.context.count("Answer:") == 3
    assert shot.context.startswith("The following are multiple choice questions")
    learn = {i.fact for i in context.pick(context.halves[0])}
    assert item.fact not in shot.context.rsplit("\n\n", 1)[0] or item.fact not in learn
    strange = Item("t", "t", "f", "no parts?\nAnswer:", (" A", " B"), 0)
    assert prompts.rephrased(context, "reversed", strange) == strange


def test_random_weights_give_chance(context):
    """The stand-in for unlearning destroys: nobody knows anything after it."""
    assert share(context.plain(UNLEARNED)) < 0.6
    assert share(context.plain("base")) > 0.9
