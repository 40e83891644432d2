"""A corpus is tokenized as far as its texts are drawn."""

from __future__ import annotations

import pytest
import tiny
from families import make_checkpoint
from transformers import AutoTokenizer

from rmu_exp.data import batches
from rmu_exp.support.errors import UserError


class Counting:
    """A tokenizer that counts the letters it is given."""

    def __init__(self, tokenizer):
        self.tokenizer, self.letters = tokenizer, 0

    def __call__(self, texts):
        self.letters += sum(map(len, [texts] if isinstance(texts, str) else texts))
        return self.tokenizer(texts)


@pytest.fixture(scope="module", params=["mistral", "gpt2"])
def tokenizer(request, tmp_path_factory):
    folder = make_checkpoint(request.param, tmp_path_factory.mktemp(request.param))
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("length", [1, 5, 64])
def test_ids_are_those_of_the_whole_text_cut(tokenizer, length):
    texts = [*tiny.texts(20, 3), *(" ".join(tiny.texts(n, n)) for n in (60, 300)), "a", " ", "ünï 生物 🙂 " * 400]
    expected = [ids[:length] for ids in tokenizer(texts)["input_ids"] if ids]
    found = batches.tokenize(texts, tokenizer, length).ids
    assert len(found) == len(expected)
    assert list(found) == expected
    assert found[2:5] == expected[2:5]


def test_of_a_large_corpus_little_is_read(tokenizer):
    counting = Counting(tokenizer)
    papers = [" ".join(tiny.texts(400, seed)) for seed in range(40)]
    tokens = batches.tokenize(papers, counting, 32)
    drawn = batches.shuffled([tokens], [tokens], batch_size=2, steps=3, seed=0, pad=0)
    assert [batch.text_tokens for batch in drawn] == [2 * 2 * 32] * 3
    assert counting.letters < sum(map(len, papers)) / 20


def test_texts_too_short_for_a_next_token_are_left_out(tokenizer):
    texts = ["river", "river", "the river", "mill", "old mill and bridge"]
    found = batches.tokenize(texts, tokenizer, 8, "short.txt", least=2)
    assert [len(ids) for ids in found.ids] == [len(ids) for ids in tokenizer(texts)["input_ids"] if len(ids) > 1]
    with pytest.raises(UserError, match=r"short\.txt has only 2 usable texts"):
        batches.shuffled([found], [found], batch_size=3, steps=1, seed=0, pad=0)
