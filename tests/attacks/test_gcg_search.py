"""GCG's search against the obvious way: one candidate at a time, the whole text, no cache."""

from __future__ import annotations

import pytest
import torch
from families import make_checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer

from rmu_exp.attacks import gcg
from rmu_exp.attacks.gcg_search import Search, Target, cut, random_tokens, survives
from rmu_exp.evaluation.scoring import Scorer
from rmu_exp.model.hooks import BLOCK


def obvious(model, target: Target, tokens, weight: float) -> float:
    ids = torch.tensor([target.head + list(tokens) + target.tail])
    with torch.no_grad():
        out = model(input_ids=ids, output_hidden_states=True)
    loss = -out.logits[0, -1].log_softmax(-1)[target.token]
    away = [
        (out.hidden_states[layer + 1][0, -1] - base).pow(2).sum() / base.pow(2).sum()
        for layer, base in target.match.items()
        if layer < len(out.hidden_states) - 2  # transformers gives the last one behind the final norm
    ]
    return float(loss + (weight * torch.stack(away).mean() if away else 0))


@pytest.fixture
def targets(context):
    items, scorer = context.items[:3], context.scorer
    with context.model("base") as model:
        base_LND = scorer.at_last(model, [scorer.encode(item.context) for item in items])[BLOCK][:-1]
    return [
        Target(
            *cut(scorer, item.context), scorer.options(item)[item.answer][0], {k: base_LND[k, i] for k in range(7, 11)}
        )
        for i, item in enumerate(items)
    ]


def search(model, context, targets):
    return Search(model, context.scorer, targets, width=16, topk=32, weight=0.7)


def test_losses_are_those_of_the_obvious_loop(model, context, targets):
    found = search(model, context, targets)
    assert all(cache for _, cache in found.heads)
    start = found.start(5, torch.Generator().manual_seed(0))
    candidates = torch.cat([start[None], found.propose(start, torch.Generator().manual_seed(1))])
    expected = [sum(obvious(model, t, row, 0.7) for t in targets) / 3 for row in candidates.tolist()]
    assert found.losses(candidates).tolist() == pytest.approx(expected, rel=1e-4)
    context.scorer.budget = 1  # one candidate per forward pass
    assert found.losses(candidates).tolist() == pytest.approx(expected, rel=1e-4)


def test_gradient_is_that_of_the_whole_text(model, context, targets):
    found = search(model, context, targets[:1])
    start = found.start(5, torch.Generator().manual_seed(0))
    gradient = found.gradient(start)
    target = targets[0]
    weight = model.get_input_embeddings().weight
    hot = torch.nn.functional.one_hot(start, len(weight)).float().requires_grad_(True)
    embedded = torch.cat([weight[torch.tensor(target.head)], hot @ weight, weight[torch.tensor(target.tail)]])[None]
    out = model(inputs_embeds=embedded, output_hidden_states=True)
    away = [(out.hidden_states[k + 1][0, -1] - b).pow(2).sum() / b.pow(2).sum() for k, b in target.match.items()]
    loss = -out.logits[0, -1].log_softmax(-1)[target.token] + 0.7 * torch.stack(away).mean()
    (expected,) = torch.autograd.grad(loss, hot)
    assert torch.allclose(gradient, expected, rtol=1e-3, atol=1e-5)


def test_gradient_of_a_model_that_scales_its_embeddings(tmp_path):
    folder = make_checkpoint("gemma2", tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder).requires_grad_(False)
    target, tokens = Target([4, 5, 6], [7, 8], 9, {}), torch.tensor([10, 11])
    scorer = Scorer(AutoTokenizer.from_pretrained(folder), torch.device("cpu"))
    found = Search(model, scorer, [target], width=4, topk=4, weight=1.0).gradient(tokens)
    embedding = model.get_input_embeddings()
    h_1TD = embedding(torch.tensor([[4, 5, 6, 10, 11, 7, 8]])).requires_grad_(True)
    loss = -model(inputs_embeds=h_1TD).logits[0, -1].log_softmax(-1)[9]
    (by_1TD,) = torch.autograd.grad(loss, h_1TD)
    expected = by_1TD[0, 3:5] @ embedding(torch.arange(len(embedding.weight))).T
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_candidates_survive_being_written(model, context, targets):
    found = search(model, context, targets)
    start = found.start(5, torch.Generator().manual_seed(3))
    special = set(context.tokenizer.all_special_ids)
    for row in found.propose(start, torch.Generator().manual_seed(4)).tolist():
        assert sum(a != b for a, b in zip(row, start.tolist(), strict=True)) <= 1
        assert not special & set(row)
        assert survives(context.scorer, targets[0], row)


def test_tokens_of_a_lossless_tokenizer_survive():
    """Byte-level BPE (Llama 3, Qwen, OLMo) keeps every space that is written."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    words = ["the", "river", "runs", "past", "a", "quiet", "mill", "and", "over", "the", "old", "bridge\nAnswer:", "A"]
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    inner.train_from_iterator([" ".join(words[i:] + words[:i]) for i in range(len(words))], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)

    scorer = Scorer(tokenizer, torch.device("cpu"))
    encode = scorer.encode
    target = Target(*cut(scorer, "the old mill and the river\nAnswer:"), 0, {})
    assert survives(scorer, target, encode(" runs past the bridge"))
    assert not survives(scorer, target, encode(" runs past the bri") + encode("dge"))  # would be one token when written


def test_a_step_never_raises_the_loss_and_the_base_is_reached(model, context):
    index, start = gcg.hard(context, gcg.Settings(6, 10, 1, 2, 48, 64, 1.0), "hexes")
    item = context.items[index]
    target = Target(*cut(context.scorer, item.context), context.scorer.options(item)[item.answer][0], {})
    looking = Search(model, context.scorer, [target], width=48, topk=64, weight=1.0)
    found = looking.run(torch.tensor(start), 25, torch.Generator().manual_seed(0), stop=True)
    assert found.steps == len(found.losses) - 1
    values = [loss for _, loss in found.losses]
    assert values == sorted(values, reverse=True)


def test_a_prompt_is_cut_before_its_last_line(context):
    head, tail = cut(context.scorer, context.items[0].context)
    assert head + tail == context.scorer.encode(context.items[0].context)
    assert context.tokenizer.decode(tail).split() == ["Answer", ":"]


def test_random_tokens_survive_a_tokenizer_that_strips_the_leading_space():
    """SentencePiece: encoding puts a space and a <s> in front, decoding takes them away."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    words = ["the", "old", "river", "runs", "past", "a", "mill", "Answer:", "A"]
    trainer = trainers.BpeTrainer(vocab_size=120, initial_alphabet=["\n"], special_tokens=["<unk>", "<s>"])
    inner.train_from_iterator([" ".join(words[i:] + words[:i]) for i in range(len(words))], trainer)
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", unk_token="<unk>")
    scorer = Scorer(tokenizer, torch.device("cpu"))
    target = Target(*cut(scorer, "the old mill\nAnswer:"), 0, {})
    assert tokenizer.decode(target.head) != tokenizer.decode(target.head, skip_special_tokens=True)
    allowed_V = torch.tensor([v > 1 for v in range(len(tokenizer))])
    tokens_S = random_tokens(scorer, target, allowed_V, 4, torch.Generator().manual_seed(0))
    assert survives(scorer, target, tokens_S.tolist())
