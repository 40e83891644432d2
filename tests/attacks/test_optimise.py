"""What is learned by gradients and added to a forward pass, against the obvious computation."""

from __future__ import annotations

import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from families import make_checkpoint
from transformers import AutoModelForCausalLM

from rmu_exp.attacks import latent, optimise, soft_prompt
from rmu_exp.attacks.api import BASE, UNLEARNED
from rmu_exp.config import parse
from rmu_exp.evaluation.scoring import answered
from rmu_exp.support.errors import UserError

FEW = {"places": ["below", "steered", "above"], "radius": 0.5, "steps": 3, "batch_size": 4, "lr": 0.05, "random": 2}


def test_a_vector_is_added_to_every_token_of_one_layer(model, context):
    ids = torch.tensor([context.scorer.encode(context.items[0].context)])
    shift = torch.randn(128, generator=torch.Generator().manual_seed(3))
    plain = _inputs(model, ids)
    with latent.added(model, 7, shift):
        seen = _inputs(model, ids)
    assert torch.equal(seen[7], plain[7])
    assert torch.allclose(seen[8], plain[8] + shift, atol=1e-6)
    assert torch.equal(_inputs(model, ids)[8], plain[8])


def _inputs(model, ids) -> dict[int, torch.Tensor]:
    """What layers 7 and 8 are given."""
    seen: dict[int, torch.Tensor] = {}
    handles = [
        model.model.layers[i].register_forward_pre_hook(lambda _m, args, i=i: seen.update({i: args[0].clone()}))
        for i in (7, 8)
    ]
    model(input_ids=ids)
    for handle in handles:
        handle.remove()
    return seen


def test_learning_is_adam_inside_the_ball(model, context):
    """Two steps by hand: the first is the learning rate's length in every coordinate, then the ball cuts."""
    items = context.items[:2]
    target = torch.tensor([item.answer for item in items])
    weight = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    mine, hand = torch.zeros(5), torch.zeros(5, requires_grad=True)
    budget = SimpleNamespace(steps=2, batch_size=2, lr=0.1)
    layout = context.scorer.layout(items)
    letters = [context.scorer.options(item) for item in items]
    vocabulary = max(ids[0] for of in letters for ids in of) + 1

    def logits(ids_RT):
        found = torch.zeros(*ids_RT.shape, vocabulary)
        found[:, :, [ids[0] for ids in letters[0]]] = mine @ weight
        return found

    assert layout.shape == (2, 4)
    losses = optimise.learn(context, mine, logits, items, budget, _draws(), radius=0.15)
    optimizer = torch.optim.Adam([hand], lr=0.1)
    for step, picked in enumerate([torch.randperm(2, generator=g) for g in [_draws()] for _ in range(2)]):
        loss = torch.nn.functional.cross_entropy((hand @ weight).expand(2, 4), target[picked])
        assert losses[step] == (step + 1, pytest.approx(loss.item(), abs=1e-6))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            hand *= min(1.0, 0.15 / hand.norm().item())
    assert torch.allclose(mine, hand.detach(), atol=1e-6)
    assert mine.norm() == pytest.approx(0.15, abs=1e-6)


def _draws() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("begins", [False, True], ids=["no bos", "bos"])
def test_answers_are_those_of_asking_one_by_one(model, context, begins):
    """Padding and batches change no answer; the vectors stand before the text, but after its BOS."""
    items = context.items[:8]
    context.tokenizer = copy.deepcopy(context.tokenizer)
    if begins:
        context.tokenizer.bos_token = items[0].context.split()[0]
    soft = soft_prompt.initial(model, context, 3)
    put = optimise.put(context, partial(soft_prompt.logits_after, model, context, soft), 3)
    together = answered(put, items, unbiased=False).right
    for item, right in zip(items, together, strict=True):
        embedded = model.get_input_embeddings()(torch.tensor(context.scorer.encode(item.context)))
        whole = torch.cat([embedded[:begins], soft, embedded[begins:]])
        logits = model(inputs_embeds=whole[None]).logits[0, -1]
        chosen = int(logits[[ids[0] for ids in context.scorer.options(item)]].argmax())
        assert int(chosen == item.answer) == right


def test_a_soft_prompt_starts_at_what_tokens_enter_the_model_as(context, tmp_path):
    """Gemma multiplies its embeddings by the root of the hidden size."""
    model = AutoModelForCausalLM.from_pretrained(make_checkpoint("gemma2", tmp_path, layers=1))
    every = model.get_input_embeddings()(torch.arange(model.config.vocab_size))
    assert all((row == every).all(dim=1).any() for row in soft_prompt.initial(model, context, 3))


def test_the_attack_stays_in_its_ball_and_leaves_the_model_alone(context):
    settings = parse.plugin("attacks", "latent", FEW)
    assert latent.layers(context, settings) == [4, 7, 8]
    with context.model(UNLEARNED) as model:
        before = {name: value.clone() for name, value in model.state_dict().items()}
    found = latent.run(context, settings)
    with context.model(UNLEARNED) as model:
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        assert not any(weight.grad is not None for weight in model.parameters())
    told, choice, scored = map(len, context.parts)
    assert [len(part.right) for part in (found.after.told, found.after.choice, found.after.scored)] == [
        told,
        choice,
        scored,
    ]
    assert len(found.before.scored.corrected) == len(found.after.scored.corrected) == scored
    assert len(found.control["random"].scored.right) == 2 * scored
    assert found.control[BASE] == found.control["oracle"]  # here they are one model
    assert all(0 < row["length"] <= 0.5 + 1e-6 for row in found.more["layers"])


def test_below_the_first_layer_there_is_none(context):
    context.layer, context.span = 0, [0]
    assert latent.layers(context, parse.plugin("attacks", "latent", FEW)) == [0, 1]


def test_a_place_that_is_none_is_refused():
    with pytest.raises(UserError, match=r"attacks\.latent\.places: got 'beside', allowed is below, steered, above"):
        parse.plugin("attacks", "latent", FEW | {"places": ["beside"]})
