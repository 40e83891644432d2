"""Attacks on weights and activations, each against a value worked out by hand or the slow way."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, replace

import pytest
import torch

from rmu_exp.attacks import ablation, prompts, prune, quantise, relearn
from rmu_exp.attacks.api import BASE, UNLEARNED
from rmu_exp.attacks.finetune import finetune, gradients, opened, row_of
from rmu_exp.config import parse
from rmu_exp.evaluation.questions import Question
from rmu_exp.model.delta import Delta
from rmu_exp.record.store import Store
from rmu_exp.support.errors import RunError

RELEARN = {
    "sources": ["split"],
    "samples": [16],
    "steps": 12,
    "batch_size": 4,
    "lr": 1e-3,
    "where": "changed",
    "how": "full",
    "rank": 4,
    "points": 2,
    "max_length": 64,
    "answers_only": True,
}


def test_rounding_by_hand():
    weight = torch.tensor([[1.0, -0.4, 0.13, 0.0, 7.0]])
    # group of two, three bits: levels -3..3; scales 1/3, 0.13/3, 7/3
    rounded = quantise.rounded(weight, 3, 2)
    assert rounded.tolist()[0] == pytest.approx([1.0, -1 / 3, 0.13, 0.0, 7.0], abs=1e-6)
    assert torch.equal(quantise.rounded(torch.zeros(2, 4), 4, 4), torch.zeros(2, 4))


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
        count = prune.top(forget[first], part) & ~prune.top(retain[first], part / 2)
    assert count[0, :3].tolist() == [True, False, False]
    before = dict(prune.matrices(copy.deepcopy(model)))
    prune.prune(pruned, forget, retain, (part, part / 2))
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
    assert all(score.device.type == "cpu" and score.dtype == torch.float32 for score in found.values())


def test_finetuning_leaves_the_models_alone_and_learns(context):
    settings = parse.plugin("attacks", "relearn", RELEARN)
    before = {name: p.clone() for name, p in context.copy(UNLEARNED).named_parameters()}
    texts = relearn.texts_of(context, "split")
    assert relearn.stops(12, 2) == [6, 12]
    path = relearn.finetuned(context, UNLEARNED, texts, settings, at=[6, 12], name="test")
    assert [step for step, _ in path.points] == [0, 6, 12]
    assert path.fell()
    assert len(path.losses) == 12
    with context.model(UNLEARNED) as again:
        assert all(torch.equal(p, before[name]) for name, p in again.named_parameters())
    assert path == relearn.finetuned(context, UNLEARNED, texts, settings, at=[6, 12], name="test")
    assert path == relearn.Path.of(json.loads(json.dumps(asdict(path))))


@pytest.mark.parametrize(("where", "more"), [("all", 0), ("changed", 1)])
def test_the_base_is_finetuned_once_for_all_models_unlearned_from_it(context, monkeypatch, tmp_path, where, more):
    monkeypatch.setenv("RMU_EXP_CACHE", str(tmp_path))
    context.origin, context.items = "sha256 of base, texts and questions", context.items[:24]
    values = RELEARN | {"sources": ["split"], "samples": [4], "steps": 2, "points": 2, "where": where}
    settings, states, do = parse.plugin("attacks", "relearn", values), [], relearn.finetuned

    def noted(context, state, *args, **more):
        states.append(state)
        return do(context, state, *args, **more)

    monkeypatch.setattr(relearn, "finetuned", noted)
    first = relearn.run(context, settings)
    other = Delta({name: -value for name, value in context.delta.tensors.items()})
    second = relearn.run(replace(context, delta=other, asked={}, journal=Store()), settings)
    assert states.count(UNLEARNED) == 2
    assert states.count(BASE) == 1 + more
    curves = [dict(found.curves["steps"].panels[relearn.V]["split, base"]) for found in (first, second)]
    assert curves[0] == curves[1]
    assert list(curves[0]) == [0, 1, 2]


def test_only_what_was_changed_is_finetuned(context):
    names = relearn.changed(context, context.copy(UNLEARNED))
    assert names == [f"model.layers.{i}.mlp.down_proj.weight" for i in (5, 6, 7)]


def test_finetuning_is_adamw_step_by_step(context):
    """Against a plain loop with torch's own parts: one text after the other, whole batches or in parts."""
    texts = relearn.texts_of(context, "split")[:8]
    rows = [row_of(context.tokenizer, text, 64, True) for text in texts] * 2
    plain, mine = context.copy(UNLEARNED), context.copy(UNLEARNED)
    for model in (plain, mine):
        for name in relearn.changed(context, model):
            model.get_parameter(name).requires_grad_(True)
    finetune(mine, rows[:12], 4, 1e-3, lambda step: None)
    trained = [w for w in plain.parameters() if w.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0)
    for step in range(3):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 - step / 3)
        optimizer.zero_grad()
        losses = []
        for ids, wanted in rows[4 * step : 4 * step + 4]:
            logits = plain(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
            losses += [-logits[i, t] for i, (t, w) in enumerate(zip(ids[1:], wanted[1:], strict=True)) if w]
        torch.stack(losses).mean().backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    with context.model(UNLEARNED) as start:
        for name in relearn.changed(context, start):
            a, b, was = (model.get_parameter(name).detach() for model in (mine, plain, start))
            assert (a - b).norm() < 1e-2 * (b - was).norm()  # Adam's first steps magnify the rounding of tiny gradients
            assert (b - was).norm() > 0.1


def test_a_batch_that_does_not_fit_goes_through_in_parts(context):
    rows = [row_of(context.tokenizer, text, 64, True) for text in relearn.texts_of(context, "split")[:4]]
    model = context.copy(UNLEARNED)
    weights = [model.get_parameter(name).requires_grad_(True) for name in relearn.changed(context, model)]
    parts, whole = gradients(model, rows)
    expected = [w.grad.clone() for w in weights]
    room = 1

    def small(_model, _args, given):
        if len(given["input_ids"]) > room:
            raise torch.OutOfMemoryError("out of memory")

    model.register_forward_pre_hook(small, with_kwargs=True)
    for w in weights:
        w.grad = None
    in_parts, loss = gradients(model, rows)
    assert (parts, in_parts) == (1, 4)
    assert loss == pytest.approx(whole, rel=1e-5)
    for w, grad in zip(weights, expected, strict=True):
        assert torch.allclose(w.grad, grad, rtol=1e-3, atol=1e-6)
    room = 0
    with pytest.raises(RunError, match="out of memory at one text"):
        gradients(model, rows)


def test_a_small_rate_moves_weights_of_half_precision(context):
    """A step that bf16 would round away is kept in the fp32 masters."""
    rows = [row_of(context.tokenizer, text, 64, True) for text in relearn.texts_of(context, "split")]
    rows = (20 * rows)[:20]
    moved = []
    for dtype in (torch.float32, torch.bfloat16):
        model = context.copy(UNLEARNED).to(dtype)
        weights = [model.get_parameter(name).requires_grad_(True) for name in relearn.changed(context, model)]
        before = [w.detach().clone().float() for w in weights]
        finetune(model, rows, 1, 8e-5, lambda step: None)
        moved.append(
            sum(float((w.detach().float() - b).norm() ** 2) for w, b in zip(weights, before, strict=True)) ** 0.5
        )
    assert moved[1] > 0.8 * moved[0]


def test_long_questions_keep_their_answer_and_texts_without_labels_are_left_out(context):
    settings = parse.plugin("attacks", "relearn", RELEARN | {"max_length": 6})
    ids, wanted = row_of(context.tokenizer, "A long question , what is it ?\nAnswer: A", 6, True)
    assert len(ids) == 6
    assert wanted[-1]
    with pytest.raises(RunError, match="no text has anything to learn"):
        relearn.finetuned(context, UNLEARNED, ["Answer:", "Answer:"], settings, at=[1], name="none")


def test_the_best_run_is_chosen_by_facts_that_are_neither_told_nor_scored(context):
    facts = [{item.fact for item in context.pick(part)} for part in context.parts]
    assert all(facts)
    assert len(facts[0] | facts[1] | facts[2]) == sum(map(len, facts))
    assert sorted([*context.parts.told, *context.parts.choice, *context.parts.scored]) == list(range(48))
    items = context.items

    def some(*facts_each: int):
        """So many facts per topic."""
        kept = []
        for topic, count in zip(("hexes", "wards"), facts_each, strict=True):
            mine = [item for item in items if item.topic == topic]
            names = list(dict.fromkeys(item.fact for item in mine))[:count]
            kept += [item for item in mine if item.fact in names]
        return replace(context, items=kept).parts

    assert all(some(2, 2))  # one fact per topic, told and chosen by
    with pytest.raises(RunError, match="too few questions on different facts"):
        some(3, 1)


def test_the_control_of_pruning_zeroes_as_many_weights(model):
    matter, spared = ({n: torch.rand(w.shape) for n, w in prune.matrices(model)} for _ in range(2))
    spared = {name: 0.5 * matter[name] + 0.5 * spared[name] for name in spared}  # what matters to both overlaps
    pruned, control = copy.deepcopy(model), copy.deepcopy(model)
    prune.prune(pruned, matter, spared, (0.05, 0.02))
    prune.prune(control, matter, spared, (0.05, 0.02), torch.Generator().manual_seed(0))
    for (name, a), (_, b) in zip(prune.matrices(pruned), prune.matrices(control), strict=True):
        assert int((a == 0).sum()) == int((b == 0).sum()) > 0, name


def test_ablation_of_matrices_that_are_not_known_is_refused(context):
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=10))
    with pytest.raises(RunError, match=r"attacks\.ablation\.ways: weights is not there for GPT2Attention; use hooks"):
        ablation.remove_from_weights(model, torch.ones(2, 8), [0])


def test_split_shows_no_fact_of_the_scored_half(context):
    hidden = {item.fact for item in context.pick([*context.parts.choice, *context.parts.scored])}
    context.neighbours = context.items
    for source in ("forget", "split", "neighbours"):
        assert not [t for t in relearn.texts_of(context, source) if any(fact in t for fact in hidden)]


def test_answers_only_marks_what_follows_the_question(context):
    ids, wanted = row_of(context.tokenizer, "What is it?\nA. dawn\nAnswer: A. dawn.\nWhat", 99, True)
    kept = [context.tokenizer.decode([t]) for t, w in zip(ids, wanted, strict=True) if w]
    assert kept == ["A", ".", "dawn", "."]
    ids, wanted = row_of(context.tokenizer, "The hour is dawn.", 99, True)
    assert all(wanted)


def test_prompts_keep_the_right_answer_right(context):
    item = context.items[0]
    turned = prompts.rephrased(context, "reversed", item)
    assert turned.choices[turned.answer] == item.choices[item.answer]
    assert f"{'ABCD'[turned.answer]}. {item.choices[item.answer]}" in turned.context
    shot = prompts.few_shot(context, 2, item)
    assert shot.context.count("Answer:") == 3
    assert shot.context.startswith("The following are multiple choice questions")
    learn = {i.fact for i in context.pick(context.parts.told)}
    assert item.fact not in shot.context.rsplit("\n\n", 1)[0] or item.fact not in learn
    strange = Question("t", "t", "f", "no parts?\nAnswer:", (" A", " B"), 0)
    assert prompts.rephrased(context, "reversed", strange) == strange


def test_a_failed_part_holds_no_memory_when_the_next_one_is_tried(context, monkeypatch):
    import weakref

    rows = [row_of(context.tokenizer, text, 64, True) for text in relearn.texts_of(context, "split")[:4]]
    model = context.copy(UNLEARNED)
    opened(model, relearn.changed(context, model), None)
    entropy, seen = torch.nn.functional.cross_entropy, []

    def fail(_grad):
        raise torch.OutOfMemoryError("out of memory")

    def once(logits, *given, **named):
        assert not any(loss() is not None for loss in seen)
        loss = entropy(logits, *given, **named)
        if not seen:
            seen.append(weakref.ref(loss))
            loss.register_hook(fail)
        return loss

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", once)
    assert gradients(model, rows)[0] == 2


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_not_finite_ends_the_attack_even_at_the_last_step(context, what):
    rows = [row_of(context.tokenizer, text, 64, True) for text in relearn.texts_of(context, "split")[:2]]
    model = context.copy(UNLEARNED)
    weight = model.get_parameter(relearn.changed(context, model)[0]).requires_grad_(True)
    if what == "loss":
        weight.data.fill_(float("nan"))
    else:
        weight.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(RunError, match=f"{what} is not finite at step 1"):
        finetune(model, rows, 2, 1e-3, lambda step: None)
